"""``signalwire-streams bulk``: many streams from one command, with a journal that survives it."""
