"""What it takes to serve many edges: their traffic, and a worker's times."""
