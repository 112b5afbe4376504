"""Those who receive audio, each in a child of its own, and the one who speaks to them all."""
