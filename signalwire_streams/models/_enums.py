"""The vendor's fixed vocabularies.

In requests a word that is not listed is refused before anything is sent. In answers an unknown word is
kept as it came, as a plain ``str``.
"""

from enum import StrEnum


class Track(StrEnum):
    """Which side of the conversation is copied; the API's default is both.

    Source: https://signalwire.com/docs/compatibility-api/rest/streams
    """

    INBOUND = "inbound_track"
    OUTBOUND = "outbound_track"
    BOTH = "both_tracks"


class Codec(StrEnum):
    """How the audio of a conference stream is encoded (``StreamCodec``).

    A start also takes these names with a sample rate and a packet time, as in ``"PCMU@40i"`` (frames of 40 ms) or
    ``"L16@24000h@40i"``. Those, and ``G722``, are documented for the platform's other APIs, not for this field; a Space
    that does not know one refuses it.

    Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams
    """

    PCMU = "PCMU"
    PCMA = "PCMA"
    L16 = "L16"
    L16_16K = "L16@16000h"
    L16_24K = "L16@24000h"


class CallbackMethod(StrEnum):
    """How the Space calls the status callback; the API's default is POST."""

    GET = "GET"
    POST = "POST"


class StreamStatus(StrEnum):
    """Where a stream is in its life."""

    QUEUED = "queued"
    IN_PROGRESS = "in-progress"
    STOPPED = "stopped"


class ConferenceStatus(StrEnum):
    """Where a conference is in its life."""

    INIT = "init"
    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"


class CallStatus(StrEnum):
    """Where a call is in its life."""

    QUEUED = "queued"
    RINGING = "ringing"
    IN_PROGRESS = "in-progress"
    CANCELED = "canceled"
    COMPLETED = "completed"
    BUSY = "busy"
    FAILED = "failed"
    NO_ANSWER = "no-answer"


class CallDirection(StrEnum):
    """Who started the call."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class AnsweredBy(StrEnum):
    """What answered the call."""

    HUMAN = "human"
    MACHINE = "machine"


class ParticipantStatus(StrEnum):
    """Whether a participant is still in the conference."""

    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"
