"""What this package costs, as ratios taken in one run: ``python -m benchmarks``."""
