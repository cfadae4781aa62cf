"""Where to cut a model, from device speeds, the link and exit rates."""
