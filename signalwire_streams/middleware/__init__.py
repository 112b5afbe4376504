"""What to do next, decided without I/O: clock and randomness come from outside."""
