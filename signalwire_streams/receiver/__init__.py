"""The receiving end of a stream: the WebSocket server that the Space connects to, and the events it receives."""

from signalwire_streams.receiver._auth import TokenClaims
from signalwire_streams.receiver._event_queue import Overflow
from signalwire_streams.receiver._media_receiver import MediaReceiver
from signalwire_streams.receiver._open import OpenOutcome
from signalwire_streams.receiver._playback import Playback
from signalwire_streams.receiver._protocol import (
    AudioEvent,
    ConnectedEvent,
    DtmfEvent,
    GapEvent,
    MarkEvent,
    MediaEvent,
    MediaFormat,
    StartEvent,
    StopEvent,
    UnknownEvent,
    decode_event,
)
from signalwire_streams.receiver._session import EndReason, StreamSession
from signalwire_streams.receiver._statistics import StreamStatistics, TrackStatistics
from signalwire_streams.receiver._taps import PcmStream, Tap

__all__ = [
    "AudioEvent",
    "ConnectedEvent",
    "DtmfEvent",
    "EndReason",
    "GapEvent",
    "MarkEvent",
    "MediaEvent",
    "MediaFormat",
    "MediaReceiver",
    "OpenOutcome",
    "Overflow",
    "PcmStream",
    "Playback",
    "StartEvent",
    "StopEvent",
    "StreamSession",
    "StreamStatistics",
    "Tap",
    "TokenClaims",
    "TrackStatistics",
    "UnknownEvent",
    "decode_event",
]
