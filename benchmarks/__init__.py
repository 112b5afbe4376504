"""Benchmarks: cost of this package relative to hand-written code in the same run: ``python -m benchmarks``."""
