"""The Space's audio: the sound of its conferences and calls, sent to WebSocket servers."""
