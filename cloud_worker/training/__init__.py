"""Training of the later segment, from what edges hand up."""
