"""Training of the earlier segment, and what it hands up to the later one."""
