"""What comes over the audio socket: one typed event for each kind of frame.

Source: https://signalwire.com/docs/compatibility-api/rest/streams
"""

from collections.abc import Mapping
from typing import TypeAlias

from attrs import define, field, frozen, setters


def _shown_length(payload: bytes) -> str:
    return f"<{len(payload)} bytes>"


def _shown_names(parameters: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name!r}: ***" for name in parameters) + "}"


@frozen(kw_only=True)
class _ParsedEvent:
    """An event read as JSON: its parts may take many times the memory of its text.

    Attributes:
        memory: bytes that it takes at most, roughly; 0 if it was not read from a frame.
    """

    memory: int = field(default=0, eq=False, repr=False)


@frozen(kw_only=True)
class ConnectedEvent(_ParsedEvent):
    """The socket is open, and the stream will begin.

    Attributes:
        protocol: ``Call``.
        version: the protocol's version; ``0.2.0`` from SignalWire.
        extra: keys that this version does not know.
    """

    protocol: str | None = None
    version: str | None = None
    extra: Mapping[str, object] = field(factory=dict, repr=False, hash=False)


@frozen(kw_only=True)
class MediaFormat:
    """How the audio is encoded.

    Attributes:
        encoding: as it came, such as ``audio/x-mulaw`` or ``audio/x-L16``.
        sample_rate: samples per second.
        channels: 1.
    """

    encoding: str | None = None
    sample_rate: int | None = None
    channels: int | None = None


@frozen(kw_only=True)
class StartEvent(_ParsedEvent):
    """The stream begins.

    Attributes:
        stream_sid: the stream's id.
        account_sid: the project.
        call_sid: the call; it is not documented whether a conference's stream has one.
        conference_sid: the conference, where it is told.
        tracks: ``inbound``, ``outbound``, or both.
        custom_parameters: what the start handed over.
        media_format: how the audio is encoded.
        sequence_number: counted from 1 over the whole socket.
        extra: keys that this version does not know.
    """

    stream_sid: str | None = None
    account_sid: str | None = None
    call_sid: str | None = None
    conference_sid: str | None = None
    tracks: tuple[str, ...] = ()
    custom_parameters: Mapping[str, str] = field(factory=dict, repr=_shown_names, hash=False)
    media_format: MediaFormat = field(factory=MediaFormat)
    sequence_number: int | None = None
    extra: Mapping[str, object] = field(factory=dict, repr=False, hash=False)


# As frozen as the others, but made in half the time: there are thousands a second.
@define(kw_only=True, on_setattr=setters.frozen, unsafe_hash=True)
class MediaEvent:
    """Some audio of one track.

    Attributes:
        track: ``inbound`` or ``outbound``; None where the frame does not say.
        payload: the audio, encoded as the `StartEvent` says, without any header.
        chunk: counted from 1 for each track.
        timestamp: milliseconds from the stream's start.
        sequence_number: counted from 1 over the whole socket.
        elapsed: seconds from the arrival of the start event to that of this one, by the receiver's clock; None if no
            receiver was there (`decode_event`). Events that differ only in this are equal.
    """

    track: str | None
    payload: bytes = field(repr=_shown_length)
    chunk: int | None = None
    timestamp: int | None = None
    sequence_number: int | None = None
    elapsed: float | None = field(default=None, eq=False)


@frozen(kw_only=True)
class DtmfEvent(_ParsedEvent):
    """Somebody pressed a key.

    Attributes:
        digit: ``0`` to ``9``, ``*``, ``#``, ``A`` to ``D``.
        duration: milliseconds.
        track: on which track, where that is told.
        sequence_number: counted from 1 over the whole socket.
    """

    digit: str
    duration: int | None = None
    track: str | None = None
    sequence_number: int | None = None


@frozen(kw_only=True)
class MarkEvent(_ParsedEvent):
    """The audio that was sent before a mark of this name has been played, or was cleared.

    Attributes:
        name: as it was sent.
        sequence_number: counted from 1 over the whole socket; SignalWire leaves it out.
    """

    name: str
    sequence_number: int | None = None


@frozen(kw_only=True)
class StopEvent(_ParsedEvent):
    """The stream has ended. It may never come: that the socket closes is the end as well.

    Attributes:
        sequence_number: counted from 1 over the whole socket.
        extra: keys that this version does not know.
    """

    sequence_number: int | None = None
    extra: Mapping[str, object] = field(factory=dict, repr=False, hash=False)


@frozen(kw_only=True)
class UnknownEvent(_ParsedEvent):
    """An event that this version does not know.

    Attributes:
        name: the ``event`` of the frame, where it is a text.
        document: the whole frame.
    """

    name: str | None
    document: Mapping[str, object] = field(repr=False, hash=False)


KeptEvent: TypeAlias = ConnectedEvent | StartEvent | DtmfEvent | MarkEvent | StopEvent
"""Events that are never dropped, however slow a handler is."""
AudioEvent: TypeAlias = KeptEvent | MediaEvent | UnknownEvent
"""Whatever a frame of the audio socket can be."""
