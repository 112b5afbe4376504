"""Decoding of audio socket frames, in both dialects, and of invalid ones."""

import json
import tracemalloc
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, strategies as st

from signalwire_streams import MalformedFrameError
from signalwire_streams.receiver import (
    ConnectedEvent,
    DtmfEvent,
    MarkEvent,
    MediaEvent,
    MediaFormat,
    StartEvent,
    StopEvent,
    UnknownEvent,
    decode_event,
)

MEDIA: dict[str, Any] = {
    "event": "media",
    "sequenceNumber": "42",
    "media": {"track": "inbound", "chunk": "41", "timestamp": "820", "payload": b64encode(b"audio").decode()},
}


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        (
            {"event": "connected", "protocol": "Call", "version": "0.2.0"},
            ConnectedEvent(protocol="Call", version="0.2.0"),
        ),
        (
            {
                "event": "start",
                "sequenceNumber": "1",
                "start": {
                    "streamSid": "s",
                    "accountSid": "a",
                    "callSid": "c",
                    "tracks": ["inbound", "outbound"],
                    "customParameters": {"tenant": "acme", "count": 3},
                    "mediaFormat": {"encoding": "audio/x-L16", "sampleRate": 16000, "channels": 1},
                },
            },
            StartEvent(
                stream_sid="s",
                account_sid="a",
                call_sid="c",
                tracks=("inbound", "outbound"),
                custom_parameters={"tenant": "acme", "count": "3"},
                media_format=MediaFormat(encoding="audio/x-L16", sample_rate=16000, channels=1),
                sequence_number=1,
            ),
        ),
        (MEDIA, MediaEvent(track="inbound", payload=b"audio", chunk=41, timestamp=820, sequence_number=42)),
        (
            {"event": "dtmf", "sequenceNumber": "7", "dtmf": {"digit": "#", "duration": 100}},
            DtmfEvent(digit="#", duration=100, sequence_number=7),
        ),
        ({"event": "mark", "mark": {"name": "end"}}, MarkEvent(name="end")),
        ({"event": "stop", "sequenceNumber": "9"}, StopEvent(sequence_number=9)),
    ],
)
def test_documented_frame_is_decoded(frame: dict[str, Any], event: object) -> None:
    assert decode_event(json.dumps(frame)) == event
    assert decode_event(json.dumps(frame).encode()) == event


def test_twilio_dialect_is_decoded_to_the_same_events() -> None:
    """A sid on every frame, numbers as numbers or as texts, a body in stop, a track of a key."""
    start = decode_event('{"event": "start", "streamSid": "MZ1", "start": {"callSid": "CA1", "tracks": ["inbound"]}}')
    assert isinstance(start, StartEvent)
    assert (start.stream_sid, start.call_sid, start.media_format) == ("MZ1", "CA1", MediaFormat())
    media = decode_event(
        '{"event": "media", "sequenceNumber": 3, "streamSid": "MZ1",'
        ' "media": {"track": "outbound", "chunk": 2, "timestamp": 5, "payload": ""}}'
    )
    assert media == MediaEvent(track="outbound", payload=b"", chunk=2, timestamp=5, sequence_number=3)
    assert decode_event('{"event": "dtmf", "dtmf": {"digit": 5, "track": "inbound_track"}}') == DtmfEvent(
        digit="5", track="inbound_track"
    )
    stop = decode_event('{"event": "stop", "streamSid": "MZ1", "stop": {"callSid": "CA1"}}')
    assert stop == StopEvent(extra={"stop": {"callSid": "CA1"}})


def test_unknown_keys_and_events_are_kept() -> None:
    """A newer platform's events and keys are no errors."""
    unknown = decode_event('{"event": "transcription", "text": "hello"}')
    assert unknown == UnknownEvent(name="transcription", document={"event": "transcription", "text": "hello"})
    assert decode_event("{}") == UnknownEvent(name=None, document={})
    assert decode_event('{"event": 7}') == UnknownEvent(name=None, document={"event": 7})
    start = decode_event('{"event": "start", "start": {"region": "eu", "conferenceSid": "c"}}')
    assert isinstance(start, StartEvent)
    assert (start.extra, start.conference_sid, start.stream_sid) == ({"region": "eu"}, "c", None)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ("", "not JSON"),
        ("hush", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        ("[]", "not a JSON object"),
        ('"media"', "not a JSON object"),
        ('{"event": "media"}', "no 'media' object"),
        ('{"event": "media", "media": []}', "no 'media' object"),
        ('{"event": "media", "media": {}}', "not base64"),
        ('{"event": "media", "media": {"payload": 7}}', "not base64"),
        ('{"event": "media", "media": {"payload": "hush!"}}', "not base64"),
        ('{"event": "media", "media": {"payload": "YQ"}}', "not base64"),
        ('{"event": "media", "media": {"payload": "\\u00fc"}}', "not base64"),
        ('{"event": "start"}', "no 'start' object"),
        ('{"event": "dtmf", "dtmf": {"digit": ""}}', "a dtmf frame has no digit"),
        ('{"event": "dtmf", "dtmf": {"digit": true}}', "a dtmf frame has no digit"),
        ('{"event": "mark", "mark": {}}', "a mark frame has no name"),
    ],
)
def test_invalid_frame_is_malformed(frame: str | bytes, words: str) -> None:
    """A frame that can't be read is told in words, and not repeated."""
    with pytest.raises(MalformedFrameError, match=words) as caught:
        decode_event(frame)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("value", ["x", "", "1.5", "-", "٣", "9" * 20, 10**30, 1.5, None, True, [], {}, "1e3", " 1"])
def test_invalid_number_is_left_out(value: object) -> None:
    """Invalid counts of frames or milliseconds are ignored, and the frame is decoded."""
    event = decode_event(json.dumps({**MEDIA, "sequenceNumber": value}))
    assert isinstance(event, MediaEvent)
    assert event.sequence_number is None
    assert event.payload == b"audio"


def test_negative_number_is_decoded() -> None:
    event = decode_event(json.dumps({**MEDIA, "sequenceNumber": "-5"}))
    assert isinstance(event, MediaEvent)
    assert event.sequence_number == -5


@pytest.mark.parametrize(
    "document",
    [
        {"event": "new", "a": [[]] * 10_000},
        {"event": "new", "a": [{"a": 1}] * 10_000},
        {"event": "new", "a": [str(number) for number in range(10_000)]},
        {"event": "new", "a": {f"key {number}": number * 1000 for number in range(10_000)}},
        {"event": "new", "a": "\u20ac" * 50_000},
        {"event": "new", "a": "\U0001f600" + "a" * 50_000},
        {"event": "new", "a": ["\U0001f600" + "a" * 500] * 100},
        {"event": "mark", "mark": {"name": "\U0001f600" + "a" * 50_000}},
        {"event": "connected", "a": [[[]]] * 10_000},
        {"event": "mark", "mark": {"name": "a" * 50_000}},
    ],
)
def test_event_memory_is_an_upper_bound(document: dict[str, Any]) -> None:
    plain = json.dumps(document, ensure_ascii=False)
    for frame in (json.dumps(document), json.dumps(document).encode(), plain, plain.encode(), plain.encode("utf-16")):
        decode_event(frame)  # else the memory that a tool for coverage takes for each new line would count
        tracemalloc.start()
        event = decode_event(frame)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert not isinstance(event, MediaEvent)
        assert taken <= event.memory + 1000


def test_media_event_has_elapsed_time_if_given() -> None:
    """If it is told so, by the short way and by the long one; it is the same event either way."""
    for frame in SPELLED:
        event = decode_event(frame, elapsed=1.5)
        assert isinstance(event, MediaEvent)
        assert event.elapsed == 1.5
        assert event == decode_event(frame)


def test_event_repr_shows_no_private_content() -> None:
    """A log that shows an event shows neither audio nor parameters."""
    start = decode_event('{"event": "start", "start": {"customParameters": {"card": "hush", "nested": {"a": 1}}}}')
    shown = repr([start, decode_event(json.dumps(MEDIA)), decode_event('{"event": "new", "body": "hush"}')])
    assert "hush" not in shown
    assert "audio" not in shown
    assert "'card': ***" in shown
    assert "nested" not in shown


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["connected", "start", "media", "dtmf", "mark", "stop", "other"])


@given(name=NAMES, rest=st.dictionaries(st.sampled_from(["start", "media", "dtmf", "mark", "streamSid"]), JSON))
def test_any_json_decodes_to_event_or_raises_malformed(name: str, rest: dict[str, Any]) -> None:
    """For any value of a key, only `MalformedFrameError` is raised."""
    try:
        event = decode_event(json.dumps({"event": name, **rest}))
    except MalformedFrameError:
        return
    assert type(event).__name__.endswith("Event")


@given(st.text() | st.binary())
def test_any_text_decodes_to_event_or_raises_malformed(frame: str | bytes) -> None:
    """For any frame, only `MalformedFrameError` is raised."""
    try:
        event = decode_event(frame)
    except MalformedFrameError:
        return
    assert type(event).__name__.endswith("Event")


def outcome_of(frame: str | bytes) -> object:
    try:
        return decode_event(frame)
    except MalformedFrameError as error:
        return type(error)


SPELLED = [
    json.dumps(MEDIA),
    json.dumps(MEDIA, separators=(",", ":")),
    json.dumps({"streamSid": "MZ1", **MEDIA}),
    json.dumps({**MEDIA, "streamSid": "MZ1"}),
    json.dumps({"event": "media", "sequenceNumber": "42", "streamSid": "MZ1", "media": MEDIA["media"]}),
    json.dumps({**MEDIA, "sequenceNumber": 42}),
    json.dumps(MEDIA).replace("/", "\\/"),
    json.dumps(MEDIA).replace("inbound", "in\\u0062ound"),
    json.dumps(MEDIA).replace('"}}', '", "more": 1}}'),
]


@pytest.mark.parametrize("frame", SPELLED)
def test_json_formatting_does_not_change_the_event(frame: str) -> None:
    """Blanks, order, numbers or strings, escapes: nothing of it matters."""
    event = MediaEvent(track="inbound", payload=b"audio", chunk=41, timestamp=820, sequence_number=42)
    assert decode_event(frame) == event
    assert decode_event(frame.encode()) == event


@given(
    frame=st.sampled_from(SPELLED),
    at=st.integers(0, 200),
    length=st.integers(0, 8),
    instead=st.text(max_size=6) | st.sampled_from(['"', "\\", "=", "\n", "9" * 30, "}", "null"]),
)
def test_fast_path_and_json_path_agree(frame: str, at: int, length: int, instead: str) -> None:
    """Frames in the usual spelling are read by a shorter way; it reads no frame differently, broken ones neither."""
    frame = frame[:at] + instead + frame[at + length :]
    assert outcome_of(frame) == outcome_of(frame.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("tail", ["", "}}", '"}', '}"}}', "="], ids=repr)
@pytest.mark.parametrize("payload", ["", b64encode(b"audio").decode()])
def test_broken_end_of_a_media_frame_is_malformed(payload: str, tail: str) -> None:
    """Above all one whose payload begins, but has no end."""
    frame = json.dumps({**MEDIA, "media": {**MEDIA["media"], "payload": payload}})
    with pytest.raises(MalformedFrameError):
        decode_event(frame.removesuffix('"}}') + tail)


def test_events_with_equal_fields_are_equal_and_hash_alike() -> None:
    """Equal ones have the same hash, whenever they arrived; those that are rare are immutable as well."""
    event = MediaEvent(track="inbound", payload=b"audio", elapsed=1.0)
    assert event == MediaEvent(track="inbound", payload=b"audio", elapsed=2.0)
    assert hash(event) == hash(MediaEvent(track="inbound", payload=b"audio"))
    key = DtmfEvent(digit="1")
    with pytest.raises(AttributeError):
        key.digit = "2"  # type: ignore[misc]
