"""Reading a frame of the audio socket: a pure function of its text, usable from any framework.

>>> from signalwire_streams.receiver import MediaEvent, decode_event
>>> async def audio(websocket):  # FastAPI or Starlette  # doctest: +SKIP
...     await websocket.accept()
...     async for text in websocket.iter_text():
...         event = decode_event(text)
...         if isinstance(event, MediaEvent):
...             await consume(event.track, event.payload)

Both dialects are read: SignalWire's, and that of Twilio, which puts ``streamSid`` on every frame. Numbers may be
strings. Keys and events that this version does not know are kept, not refused.

Source: https://signalwire.com/docs/compatibility-api/rest/streams
"""

import json
import re
from binascii import Error as Base64Error, a2b_base64
from collections.abc import Callable, Mapping
from sys import getsizeof
from typing import Any, TypeAlias

from attrs import define, evolve, field, frozen, setters

from signalwire_streams.errors import MalformedFrameError


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


_MOST_DIGITS = 19
_ITEM, _LIST, _OBJECT = 176, 96, 288  # bytes of an object's item, of a list, of an object; each at most
_LIMIT = 1 << 63

# A media frame as both dialects spell it, which is read twice as fast like this as by way of JSON. Whatever looks
# different takes the long way, to the same event.
_MEDIA = re.compile(
    r"""\{"event":\ ?"media",\ ?
    "sequenceNumber":\ ?"([0-9]{1,18})",\ ?
    (?:"streamSid":\ ?"[0-9A-Za-z-]*",\ ?)?
    "media":\ ?\{"track":\ ?"([a-z_]+)",\ ?
    "chunk":\ ?"([0-9]{1,18})",\ ?"timestamp":\ ?"([0-9]{1,18})",\ ?
    "payload":\ ?"([^"\\]*)"\}
    (?:,\ ?"streamSid":\ ?"[0-9A-Za-z-]*")?\}""",
    re.VERBOSE,
).fullmatch


def decode_event(frame: str | bytes, *, elapsed: float | None = None) -> AudioEvent:
    """Read one frame.

    Args:
        frame: the text of a WebSocket message.
        elapsed: seconds from the arrival of the start event to that of this frame, for `MediaEvent.elapsed`.

    Raises:
        MalformedFrameError: the frame is no JSON object, or an event that is known lacks what makes it one. The
            message does not repeat the frame.
    """
    media = _MEDIA(frame) if isinstance(frame, str) else None
    if media is not None:
        sequence_number, track, chunk, timestamp, payload = media.groups()
        return MediaEvent(
            track=track,
            payload=_octets(payload),
            chunk=int(chunk),
            timestamp=int(timestamp),
            sequence_number=int(sequence_number),
            elapsed=elapsed,
        )
    try:
        document = json.loads(frame)
    except (ValueError, RecursionError):
        raise MalformedFrameError("a frame of the audio socket is no JSON") from None
    if not isinstance(document, dict):
        raise MalformedFrameError("a frame of the audio socket is no JSON object")
    name = document.get("event")
    if name == "media":
        return _media(document, elapsed)
    read = _READERS.get(name) if isinstance(name, str) else None
    memory = _memory_of(frame)
    if read is None:
        return UnknownEvent(name=name if isinstance(name, str) else None, document=document, memory=memory)
    return evolve(read(document), memory=memory)


def _memory_of(frame: str | bytes) -> int:
    """Return how many bytes a frame takes at most once it is parsed, without looking at what it parsed to."""
    if isinstance(frame, str):
        found = frame.count(","), frame.count("["), frame.count("{")
    else:
        found = frame.count(b","), frame.count(b"["), frame.count(b"{")
    items, lists, objects = found
    return getsizeof(frame) + _ITEM * items + _LIST * lists + _OBJECT * objects


def _connected(document: dict[str, Any]) -> ConnectedEvent:
    return ConnectedEvent(
        protocol=_text(document.get("protocol")),
        version=_text(document.get("version")),
        extra=_rest(document, "protocol", "version"),
    )


def _start(document: dict[str, Any]) -> StartEvent:
    body = _body(document, "start")
    tracks, parameters = body.get("tracks"), body.get("customParameters")
    return StartEvent(
        stream_sid=_text(document.get("streamSid")) or _text(body.get("streamSid")),
        account_sid=_text(body.get("accountSid")),
        call_sid=_text(body.get("callSid")),
        conference_sid=_text(body.get("conferenceSid")),
        tracks=tuple(filter(None, map(_text, tracks))) if isinstance(tracks, list) else (),
        custom_parameters=_parameters(parameters) if isinstance(parameters, dict) else {},
        media_format=_media_format(body.get("mediaFormat")),
        sequence_number=_number(document.get("sequenceNumber")),
        extra=_rest(body, *_OF_A_START),
    )


_OF_A_START = ("streamSid", "accountSid", "callSid", "conferenceSid", "tracks", "customParameters", "mediaFormat")


def _parameters(found: dict[str, Any]) -> dict[str, str]:
    # Values are texts; a number is taken for one, and what is nested was no parameter.
    return {name: str(value) for name, value in found.items() if isinstance(value, str | int | float)}


def _media_format(body: object) -> MediaFormat:
    if not isinstance(body, dict):
        return MediaFormat()
    return MediaFormat(
        encoding=_text(body.get("encoding")),
        sample_rate=_number(body.get("sampleRate")),
        channels=_number(body.get("channels")),
    )


def _media(document: dict[str, Any], elapsed: float | None) -> MediaEvent:
    body = _body(document, "media")
    return MediaEvent(
        track=_text(body.get("track")),
        payload=_octets(body.get("payload")),
        chunk=_number(body.get("chunk")),
        timestamp=_number(body.get("timestamp")),
        sequence_number=_number(document.get("sequenceNumber")),
        elapsed=elapsed,
    )


def _octets(payload: Any) -> bytes:  # noqa: ANN401  (it may be any JSON)
    try:
        return a2b_base64(payload, strict_mode=True)
    except (TypeError, ValueError, Base64Error):
        raise MalformedFrameError("a media frame's payload is no base64") from None


def _dtmf(document: dict[str, Any]) -> DtmfEvent:
    body = _body(document, "dtmf")
    return DtmfEvent(
        digit=_needed(body, "digit", "dtmf"),
        duration=_number(body.get("duration")),
        track=_text(body.get("track")),
        sequence_number=_number(document.get("sequenceNumber")),
    )


def _mark(document: dict[str, Any]) -> MarkEvent:
    return MarkEvent(
        name=_needed(_body(document, "mark"), "name", "mark"), sequence_number=_number(document.get("sequenceNumber"))
    )


def _stop(document: dict[str, Any]) -> StopEvent:
    return StopEvent(
        sequence_number=_number(document.get("sequenceNumber")), extra=_rest(document, "sequenceNumber", "streamSid")
    )


_READERS: Mapping[str, Callable[[dict[str, Any]], KeptEvent]] = {
    "connected": _connected,
    "start": _start,
    "dtmf": _dtmf,
    "mark": _mark,
    "stop": _stop,
}


def _body(document: dict[str, Any], name: str) -> dict[str, Any]:
    body = document.get(name)
    if not isinstance(body, dict):
        raise MalformedFrameError(f"a {name} frame has no {name!r} object")
    return body


def _needed(body: dict[str, Any], key: str, event: str) -> str:
    value = body.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise MalformedFrameError(f"a {event} frame has no {key}")
    return value


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> int | None:
    """Read a whole number that came as a number or as a text; None where it is none that can be meant."""
    if isinstance(value, str):
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS):
            return None
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -_LIMIT <= value < _LIMIT:
        return value
    return None


def _rest(body: Mapping[str, object], *known: str) -> dict[str, object]:
    return {name: value for name, value in body.items() if name not in known and name != "event"}
