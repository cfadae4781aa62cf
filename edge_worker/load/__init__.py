"""Plays many edges against a real cloud worker."""
