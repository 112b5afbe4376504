"""Streams for agent frameworks: `signalwire_streams.adapters.pipecat` and `signalwire_streams.adapters.livekit`.

Each module imports its framework, and is imported by nothing else of this package.
"""
