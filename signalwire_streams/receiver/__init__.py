"""The other end of a stream: a WebSocket server that the Space dials, and what it receives."""

from signalwire_streams.receiver._session import Overflow
from signalwire_streams.receiver._protocol import decode_event
from signalwire_streams.receiver.events import (
    AudioEvent,
    ConnectedEvent,
    DtmfEvent,
    MarkEvent,
    MediaEvent,
    MediaFormat,
    StartEvent,
    StopEvent,
    UnknownEvent,
)
from signalwire_streams.receiver._start_and_receive_bulk import JoinedOutcome
from signalwire_streams.receiver.measures import StreamStatistics, TrackStatistics
from signalwire_streams.receiver._media_receiver import MediaReceiver
from signalwire_streams.receiver._playback import Playback
from signalwire_streams.receiver.session import EndReason, StreamSession

__all__ = [
    "AudioEvent",
    "ConnectedEvent",
    "DtmfEvent",
    "EndReason",
    "JoinedOutcome",
    "MarkEvent",
    "MediaEvent",
    "MediaFormat",
    "MediaReceiver",
    "Overflow",
    "Playback",
    "StartEvent",
    "StopEvent",
    "StreamSession",
    "StreamStatistics",
    "TrackStatistics",
    "UnknownEvent",
    "decode_event",
]
