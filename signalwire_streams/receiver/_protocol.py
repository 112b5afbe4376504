"""Frames of the audio socket, and a pure function that decodes them, for use with any web framework.

>>> from signalwire_streams.receiver import MediaEvent, decode_event
>>> async def audio(websocket):  # FastAPI or Starlette  # doctest: +SKIP
...     await websocket.accept()
...     async for text in websocket.iter_text():
...         event = decode_event(text)
...         if isinstance(event, MediaEvent):
...             await consume(event.track, event.payload)

Both dialects are supported: SignalWire's, and Twilio's, which puts ``streamSid`` on every frame. Numbers may be
strings. Unknown keys and events are kept, not rejected.

Source: https://signalwire.com/docs/compatibility-api/rest/streams
"""

import json
import re
from binascii import Error as Base64Error, a2b_base64
from collections.abc import Callable, Mapping
from sys import getsizeof
from typing import Any, ClassVar, TypeAlias

from attrs import define, evolve, field, frozen

from signalwire_streams.errors import InvalidRequestError, MalformedFrameError
from signalwire_streams.models._validation import kind_of, names_only


@frozen(kw_only=True)
class _JsonEvent:
    """An event whose parts may take many times the memory of its frame.

    Attributes:
        sequence_number: position of the frame on the socket, from 1; None if the frame has none.
        memory: upper bound of the bytes that it takes; 0 if it was not decoded from a frame.
    """

    sequence_number: int | None = None
    memory: int = field(default=0, eq=False, repr=False)


@frozen(kw_only=True)
class ConnectedEvent(_JsonEvent):
    """The socket is open; the start event follows.

    Attributes:
        protocol: ``Call``.
        version: version of the protocol; SignalWire sends ``0.2.0``.
        extra: unknown keys of the frame.
    """

    protocol: str | None = None
    version: str | None = None
    extra: Mapping[str, object] = field(factory=dict, repr=False, hash=False)


@frozen(kw_only=True)
class MediaFormat:
    """Encoding of a stream's audio, as the start event has it.

    Attributes:
        encoding: such as ``audio/x-mulaw`` or ``audio/x-L16``.
        sample_rate: samples per second.
        channels: 1.
    """

    encoding: str | None = None
    sample_rate: int | None = None
    channels: int | None = None


@frozen(kw_only=True)
class StartEvent(_JsonEvent):
    """The stream starts.

    Attributes:
        stream_sid: the stream's sid.
        account_sid: Project ID.
        call_sid: the call's sid; whether a conference's stream has one is not documented.
        conference_sid: the conference's sid, if the frame has it.
        tracks: ``inbound``, ``outbound``, or both.
        custom_parameters: the ``parameters`` of the start, by name.
        media_format: encoding of the audio.
        extra: unknown keys of the frame's ``start`` object.
    """

    stream_sid: str | None = None
    account_sid: str | None = None
    call_sid: str | None = None
    conference_sid: str | None = None
    tracks: tuple[str, ...] = ()
    custom_parameters: Mapping[str, str] = field(factory=dict, repr=names_only, hash=False)
    media_format: MediaFormat = field(factory=MediaFormat)
    extra: Mapping[str, object] = field(factory=dict, repr=False, hash=False)


# Not frozen, which would take four times as long to create: there are thousands per second.
@define(unsafe_hash=True)
class MediaEvent:
    """Audio of one track, usually 20 ms. Do not modify it.

    Attributes:
        track: ``inbound`` or ``outbound``; None if the frame has none.
        payload: the audio, encoded as the `StartEvent` says, without a header.
        chunk: position of the frame in its track, from 1.
        timestamp: milliseconds since the stream's start.
        sequence_number: position of the frame on the socket, from 1.
        elapsed: seconds between the arrivals of the start event and of this frame, by the receiver's clock; None if
            `decode_event` did not get it. Ignored by ``==``.
    """

    track: str | None
    payload: bytes = field(repr=lambda payload: f"<{len(payload)} bytes>")
    chunk: int | None = None
    timestamp: int | None = None
    sequence_number: int | None = None
    elapsed: float | None = field(default=None, eq=False)


@frozen(kw_only=True)
class DtmfEvent(_JsonEvent):
    """A DTMF digit was received.

    Attributes:
        digit: ``0`` to ``9``, ``*``, ``#``, ``A`` to ``D``.
        duration: milliseconds.
        track: the track, if the frame has it.
    """

    digit: str
    duration: int | None = None
    track: str | None = None


@frozen(kw_only=True)
class MarkEvent(_JsonEvent):
    """All audio that was sent before the mark of this name has been played or cleared.

    Attributes:
        name: name of the mark, as it was sent.
    """

    name: str


@frozen(kw_only=True)
class StopEvent(_JsonEvent):
    """The stream has ended. Streams may also end without it, when the socket closes.

    Attributes:
        extra: unknown keys of the frame.
    """

    extra: Mapping[str, object] = field(factory=dict, repr=False, hash=False)


@frozen(kw_only=True)
class GapEvent:
    """The stream was lost, and has been started again (`MediaReceiver.open` with ``when_lost="restart"``).

    What was said meanwhile was not received. Timestamps and chunk numbers of the events that follow continue those
    before, as if only the frames of the gap were missing.

    Attributes:
        seconds: time between the last message of the lost stream and the start event of the new one.
        lost_stream_sid: sid of the lost stream.
        stream_sid: sid of the new stream.
        unheard_ms: milliseconds of audio that was being played when the stream was lost, and was dropped unheard.
    """

    memory: ClassVar[int] = 0  # it was not decoded from a frame

    seconds: float
    lost_stream_sid: str | None
    stream_sid: str | None
    unheard_ms: int = 0


@frozen(kw_only=True)
class UnknownEvent(_JsonEvent):
    """An event that this version does not know.

    Attributes:
        name: the frame's ``event``, if it is a string.
        document: the whole frame.
    """

    name: str | None
    document: Mapping[str, object] = field(repr=False, hash=False)


_Decoded: TypeAlias = ConnectedEvent | StartEvent | DtmfEvent | MarkEvent | StopEvent
KeptEvent: TypeAlias = _Decoded | GapEvent
"""Events that are never dropped, even if the handler is slow."""
AudioEvent: TypeAlias = KeptEvent | MediaEvent | UnknownEvent
"""Any event of a session."""

_CHARACTER, _ITEM, _LIST, _OBJECT = 4, 176, 96, 288  # bytes of each in memory, at most
_MAX_DIGITS, _MAX_NUMBER = 19, 1 << 63
_START_KEYS = ("streamSid", "accountSid", "callSid", "conferenceSid", "tracks", "customParameters", "mediaFormat")

# The head and the tail of a media frame as both dialects write it; searching for the end of the payload costs less
# than matching it. Every other frame is decoded as JSON, to the same event.
_MEDIA_HEAD = re.compile(
    r"""\{"event":\ ?+"media",\ ?+
    "sequenceNumber":\ ?+"([0-9]{1,18}+)",\ ?+
    (?:"streamSid":\ ?+"[0-9A-Za-z-]*+",\ ?+)?+
    "media":\ ?+\{"track":\ ?+"([a-z_]++)",\ ?+
    "chunk":\ ?+"([0-9]{1,18}+)",\ ?+"timestamp":\ ?+"([0-9]{1,18}+)",\ ?+
    "payload":\ ?+\"""",
    re.VERBOSE,
).match
_PLAIN_TAIL = '"}}'
_MEDIA_TAIL = re.compile(r'[^"]*("\}(?:, ?"streamSid": ?"[0-9A-Za-z-]*")?\})').fullmatch


def decode_event(frame: str | bytes, *, elapsed: float | None = None) -> AudioEvent:
    """Decode one frame.

    Args:
        frame: text of a WebSocket message.
        elapsed: seconds since the start event arrived, for `MediaEvent.elapsed`.

    Raises:
        InvalidRequestError: the frame is neither a str nor bytes.
        MalformedFrameError: the frame is not a JSON object, or a required key of a known event is missing or invalid.
            Neither the message nor the traceback's local variables repeat the frame.
    """
    try:
        if not isinstance(frame, str) or (head := _MEDIA_HEAD(frame)) is None:
            return _decode_json(frame, elapsed)
        begin = head.end()
        if frame.endswith(_PLAIN_TAIL, begin):
            end = -len(_PLAIN_TAIL)
        elif (tail := _MEDIA_TAIL(frame, begin)) is not None:
            end = tail.start(1)
        else:
            return _decode_json(frame, elapsed)
        try:
            payload = a2b_base64(frame[begin:end], strict_mode=True)
        except ValueError:  # it may have escapes, such as "\/", or more keys follow it
            return _decode_json(frame, elapsed)
        sequence_number, track, chunk, timestamp = head.groups()
        return MediaEvent(track, payload, int(chunk), int(timestamp), int(sequence_number), elapsed)
    except (InvalidRequestError, MalformedFrameError) as error:
        kind, reason = type(error), str(error)
    frame = ""
    raise kind(reason)


def memory_of(event: AudioEvent) -> int:
    """Return the bytes of an event that depend on the frame it was decoded from."""
    if isinstance(event, MediaEvent):
        return len(event.payload) + (_CHARACTER * len(event.track) if event.track else 0)
    return event.memory


def _decode_json(frame: str | bytes, elapsed: float | None) -> AudioEvent:
    if not isinstance(frame, str | bytes | bytearray):
        raise InvalidRequestError(
            f"a frame must be the text of a WebSocket message, not {kind_of(frame)}: pass what was received, undecoded"
        )
    try:
        text = frame if isinstance(frame, str) else frame.decode(json.detect_encoding(frame), "surrogatepass")
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedFrameError("a frame of the audio socket is not JSON") from None
    if not isinstance(document, dict):
        raise MalformedFrameError("a frame of the audio socket is not a JSON object")
    name = document.get("event")
    if name == "media":
        return _decode_media(document, elapsed)
    decode = _DECODERS.get(name, _decode_unknown) if isinstance(name, str) else _decode_unknown
    number = _number(document.get("sequenceNumber"))
    return evolve(decode(document), sequence_number=number, memory=_parsed_size(text))


def _parsed_size(text: str) -> int:
    """Return an upper bound of the bytes that a frame takes once it is parsed, without walking the result."""
    # An escape may put a character of four bytes into a string that otherwise takes one byte for each.
    size = _CHARACTER * len(text) if "\\u" in text else getsizeof(text)
    return size + _ITEM * text.count(",") + _LIST * text.count("[") + _OBJECT * text.count("{")


def _decode_connected(document: dict[str, Any]) -> ConnectedEvent:
    return ConnectedEvent(
        protocol=_text(document.get("protocol")),
        version=_text(document.get("version")),
        extra=_extra(document, "protocol", "version", "sequenceNumber"),
    )


def _decode_start(document: dict[str, Any]) -> StartEvent:
    body = _body(document, "start")
    tracks, parameters, media = body.get("tracks"), body.get("customParameters"), body.get("mediaFormat")
    media = media if isinstance(media, dict) else {}
    parameters = parameters if isinstance(parameters, dict) else {}
    return StartEvent(
        stream_sid=_text(document.get("streamSid")) or _text(body.get("streamSid")),
        account_sid=_text(body.get("accountSid")),
        call_sid=_text(body.get("callSid")),
        conference_sid=_text(body.get("conferenceSid")),
        tracks=tuple(filter(None, map(_text, tracks))) if isinstance(tracks, list) else (),
        # Values are strings; a number is converted, and anything nested cannot have been a parameter.
        custom_parameters={
            name: str(value) for name, value in parameters.items() if isinstance(value, str | int | float)
        },
        media_format=MediaFormat(
            encoding=_text(media.get("encoding")),
            sample_rate=_number(media.get("sampleRate")),
            channels=_number(media.get("channels")),
        ),
        extra=_extra(body, *_START_KEYS),
    )


def _decode_media(document: dict[str, Any], elapsed: float | None) -> MediaEvent:
    body = _body(document, "media")
    return MediaEvent(
        track=_text(body.get("track")),
        payload=_decode_base64(body.get("payload")),
        chunk=_number(body.get("chunk")),
        timestamp=_number(body.get("timestamp")),
        sequence_number=_number(document.get("sequenceNumber")),
        elapsed=elapsed,
    )


def _decode_base64(payload: Any) -> bytes:  # noqa: ANN401  (it may be any JSON)
    try:
        return a2b_base64(payload, strict_mode=True)
    except (TypeError, ValueError, Base64Error):
        raise MalformedFrameError("a media frame's payload is not base64") from None


def _decode_dtmf(document: dict[str, Any]) -> DtmfEvent:
    body = _body(document, "dtmf")
    return DtmfEvent(
        digit=_required(body, "digit", "dtmf"),
        duration=_number(body.get("duration")),
        track=_text(body.get("track")),
    )


def _decode_unknown(document: dict[str, Any]) -> UnknownEvent:
    name = document.get("event")
    return UnknownEvent(name=name if isinstance(name, str) else None, document=document)


_DECODERS: Mapping[str, Callable[[dict[str, Any]], _Decoded]] = {
    "connected": _decode_connected,
    "start": _decode_start,
    "dtmf": _decode_dtmf,
    "mark": lambda document: MarkEvent(name=_required(_body(document, "mark"), "name", "mark")),
    "stop": lambda document: StopEvent(extra=_extra(document, "sequenceNumber", "streamSid")),
}


def _body(document: dict[str, Any], name: str) -> dict[str, Any]:
    body = document.get(name)
    if not isinstance(body, dict):
        raise MalformedFrameError(f"a {name} frame has no {name!r} object")
    return body


def _required(body: dict[str, Any], key: str, event: str) -> str:
    value = body.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise MalformedFrameError(f"a {event} frame has no {key}")
    return value


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> int | None:
    """Return an integer that was sent as a number or a string; None if it is neither, or beyond 64 bits."""
    if isinstance(value, str):
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS):
            return None
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -_MAX_NUMBER <= value < _MAX_NUMBER:
        return value
    return None


def _extra(body: Mapping[str, object], *known: str) -> dict[str, object]:
    return {name: value for name, value in body.items() if name not in known and name != "event"}
