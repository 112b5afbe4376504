"""The Space's voice: what is said in its conferences and calls, and how it gets to a WebSocket server."""
