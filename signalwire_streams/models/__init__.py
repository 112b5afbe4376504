"""What travels: immutable values and the vendor's vocabularies. No behaviour beyond validation."""

from signalwire_streams.models._attempts import Action, Attempt, Event, Kind, Lane
from signalwire_streams.models._responses import Call
from signalwire_streams.models.conferences import Conference, Participant
from signalwire_streams.models._enums import (
    AnsweredBy,
    CallbackMethod,
    CallDirection,
    CallStatus,
    Codec,
    ConferenceStatus,
    ParticipantStatus,
    StreamStatus,
    Track,
)
from signalwire_streams.models.options import OpenOptions, StartOptions
from signalwire_streams.models.pages import Page
from signalwire_streams.models._requests import GENERATED_NAME, StartCallStream, StartConferenceStream
from signalwire_streams.models.streams import CallStream, ConferenceStream

__all__ = [
    "GENERATED_NAME",
    "Action",
    "AnsweredBy",
    "Attempt",
    "Call",
    "CallDirection",
    "CallStatus",
    "CallStream",
    "CallbackMethod",
    "Codec",
    "Conference",
    "ConferenceStatus",
    "ConferenceStream",
    "Event",
    "Kind",
    "Lane",
    "OpenOptions",
    "Page",
    "Participant",
    "ParticipantStatus",
    "StartCallStream",
    "StartConferenceStream",
    "StartOptions",
    "StreamStatus",
    "Track",
]
