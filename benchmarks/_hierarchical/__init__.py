"""Parts of `benchmarks/hierarchical.py`."""
