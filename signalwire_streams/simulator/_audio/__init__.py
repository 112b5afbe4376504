"""The Space's audio: what is heard in its conferences and calls, and how it is sent to a WebSocket server."""
