"""The other end of a stream: a WebSocket server that the Space dials, and what it receives."""

from signalwire_streams.receiver.backlog import Overflow
from signalwire_streams.receiver.decoding import decode_event
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
from signalwire_streams.receiver.joining_many import JoinedOutcome
from signalwire_streams.receiver.measures import StreamStatistics, TrackStatistics
from signalwire_streams.receiver.media_receiver import MediaReceiver
from signalwire_streams.receiver.sending import Playback
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
