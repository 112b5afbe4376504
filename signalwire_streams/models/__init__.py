"""Requests, responses and the enums of the API: immutable, validated values."""

from signalwire_streams.models._attempts import Attempt, AttemptResult, Operation, Priority, RetryDecision
from signalwire_streams.models._enums import (
    AnsweredBy,
    CallbackMethod,
    CallDirection,
    CallStatus,
    Codec,
    ConferenceStatus,
    ParticipantStatus,
    StreamStatus,
    TargetKind as TargetKind,
    Track,
)
from signalwire_streams.models._requests import (
    GENERATED_NAME as GENERATED_NAME,
    OpenOptions as OpenOptions,
    StartCallStream,
    StartConferenceStream,
    StartOptions as StartOptions,
)
from signalwire_streams.models._responses import Call, CallStream, Conference, ConferenceStream, Page, Participant
from signalwire_streams.models._signed_tokens import SignedTokens

__all__ = [
    "AnsweredBy",
    "Attempt",
    "AttemptResult",
    "Call",
    "CallDirection",
    "CallStatus",
    "CallStream",
    "CallbackMethod",
    "Codec",
    "Conference",
    "ConferenceStatus",
    "ConferenceStream",
    "Operation",
    "Page",
    "Participant",
    "ParticipantStatus",
    "Priority",
    "RetryDecision",
    "SignedTokens",
    "StartCallStream",
    "StartConferenceStream",
    "StreamStatus",
    "Track",
]
