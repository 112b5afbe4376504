"""The families of figures: each asks its children round by round, and returns sections."""
