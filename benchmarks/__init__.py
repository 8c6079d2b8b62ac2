"""Measurements against the bare tools; `python -m benchmarks` runs them."""
