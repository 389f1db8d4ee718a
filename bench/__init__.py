"""Benchmarks: `python -m bench` prints ours, the reference program's, their ratio and the target, measured in turn in one run."""
