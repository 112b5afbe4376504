"""Measure the cost of this package relative to hand-written code and other clients in the same run."""
