"""Answers programs on the same machine: HTTP with JSON, and gRPC."""
