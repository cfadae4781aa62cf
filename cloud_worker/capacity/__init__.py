"""How many edges a cloud worker can have: simulated, from measured times."""
