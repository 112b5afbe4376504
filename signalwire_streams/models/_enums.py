"""The API's enumerations.

A request value that is not listed is rejected before anything is sent. An unknown value in a response is kept as a
plain ``str``.
"""

from enum import StrEnum
from typing import NoReturn

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._attempts import Operation


class Choice(StrEnum):
    """The values of a request field; any other value is rejected."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        choices = ", ".join(repr(member.value) for member in cls)
        raise InvalidRequestError(f"{cls.__field__} {value!r} is unknown: write one of {choices}")  # type: ignore[attr-defined]


class TargetKind(StrEnum):
    """The kind of resource that a stream is on.

    Attributes:
        collection: its name in paths.
        target_key: the field that holds its sid, in requests and in responses.
        start: the operation of a named start on it.
    """

    collection: str
    target_key: str
    start: Operation

    CONFERENCE = "conference"
    CALL = "call"

    def __init__(self, noun: str) -> None:
        self.collection, self.target_key = f"{noun.capitalize()}s", f"{noun}_sid"
        self.start = Operation[f"{noun.upper()}_START"]


class Track(Choice):
    """Which side of the conversation is streamed; the API's default is both.

    Source: https://signalwire.com/docs/compatibility-api/rest/streams
    """

    __field__ = "track"
    INBOUND = "inbound_track"
    OUTBOUND = "outbound_track"
    BOTH = "both_tracks"


class Codec(StrEnum):
    """Encoding of a conference stream's audio (``StreamCodec``).

    A start also takes these names with a sample rate and a packet time, as in ``"PCMU@40i"`` (frames of 40 ms) or
    ``"L16@24000h@40i"``. Those, and ``G722``, are documented for the platform's other APIs, not for this field; a Space
    that does not know one rejects it.

    Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams
    """

    PCMU = "PCMU"
    PCMA = "PCMA"
    L16 = "L16"
    L16_16K = "L16@16000h"
    L16_24K = "L16@24000h"


class CallbackMethod(Choice):
    """The HTTP method of status callbacks; the API's default is POST."""

    __field__ = "status_callback_method"
    GET = "GET"
    POST = "POST"


class StreamStatus(StrEnum):
    """State of a stream."""

    QUEUED = "queued"
    IN_PROGRESS = "in-progress"
    STOPPED = "stopped"


class ConferenceStatus(StrEnum):
    """State of a conference."""

    INIT = "init"
    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"


class CallStatus(StrEnum):
    """State of a call."""

    QUEUED = "queued"
    RINGING = "ringing"
    IN_PROGRESS = "in-progress"
    CANCELED = "canceled"
    COMPLETED = "completed"
    BUSY = "busy"
    FAILED = "failed"
    NO_ANSWER = "no-answer"


class CallDirection(StrEnum):
    """Which side placed the call."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class AnsweredBy(StrEnum):
    """Whether a person or a machine answered the call."""

    HUMAN = "human"
    MACHINE = "machine"


class ParticipantStatus(StrEnum):
    """State of a participant."""

    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"
