"""What this package costs, as ratios to hand-written code measured in the same run: ``python -m benchmarks``."""
