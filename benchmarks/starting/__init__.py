"""Those who start streams, each in a child of its own."""
