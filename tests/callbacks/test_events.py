"""Parsing of callbacks that come as forms."""

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from hypothesis import assume, example, given, strategies as st
from multidict import MultiDict

from signalwire_streams import InvalidRequestError, Track
from signalwire_streams.callbacks import (
    StreamFailed,
    StreamStarted,
    StreamStopped,
    UnknownCallback,
    parse_callback,
)

from .signing import STARTED, fields


def test_each_documented_field_is_parsed() -> None:
    event = parse_callback(STARTED)

    assert event == StreamStarted(
        account_sid="b08dacad-85c6-40f7-83e5-f8ae3f1b8d3a",
        conference_sid="6f3f1cb6-4b5c-4b1f-b0ad-3a2b4b0c2f11",
        stream_sid="stream-1",
        stream_name="audit 1 é+&=",
        track=Track.BOTH,
        timestamp_text="2026-11-21T10:15:00Z",
        unique_id="u-1",
    )
    assert event.call_sid is None
    assert event.timestamp == datetime(2026, 11, 21, 10, 15, tzinfo=UTC)
    assert isinstance(event.track, Track)


@pytest.mark.parametrize(
    ("word", "kind"),
    [("stream-started", StreamStarted), ("stream-stopped", StreamStopped), ("stream-error", StreamFailed)],
)
def test_event_name_decides_the_type(word: str, kind: type[Any]) -> None:
    """For a mapping as for pairs."""
    assert type(parse_callback(fields(word))) is kind
    assert type(parse_callback(dict(fields(word)))) is kind
    assert type(parse_callback(MultiDict(fields(word)))) is kind


def test_unknown_event_keeps_all_fields() -> None:
    event = parse_callback(fields("stream-paused", StreamError="why", Reason="x", Blank=""))

    assert isinstance(event, UnknownCallback)
    assert (event.event, event.error, event.stream_sid) == ("stream-paused", "why", "stream-1")
    assert event.extra == {"Reason": "x", "Blank": ""}
    assert "Reason" not in repr(event)


@pytest.mark.parametrize("nothing", [[], {}, [("StreamEvent", "")], [("", "")]])
def test_callback_without_fields_is_unknown(nothing: Any) -> None:
    event = parse_callback(nothing)

    assert isinstance(event, UnknownCallback)
    assert event.event is None
    assert event.timestamp is None


def test_error_is_kept_as_received() -> None:
    event = parse_callback(fields("stream-error", StreamError="connection_refused"))

    assert isinstance(event, StreamFailed)
    assert event.error == "connection_refused"
    assert not event.is_duplicate
    assert event.extra == {}


@pytest.mark.parametrize(
    ("error", "duplicate"),
    [
        ("Duplicated stream ID", True),
        ("Duplicated stream name", True),
        ("duplicated_stream_name", True),
        ("Duplicate stream name", True),
        ("general_error", False),
        (None, False),
    ],
)
def test_duplicate_errors_are_recognized(error: str | None, duplicate: bool) -> None:
    """In any spelling of the platform."""
    assert StreamFailed(error=error).is_duplicate is duplicate


def test_error_of_another_event_is_extra() -> None:
    assert parse_callback(fields(StreamError="odd")).extra == {"StreamError": "odd"}
    assert parse_callback(fields(StreamError="")).extra == {}


def test_unknown_track_and_unreadable_timestamp_are_kept() -> None:
    event = parse_callback(fields(StreamTrack="left_track", Timestamp="soon"))

    assert event.track == "left_track"
    assert event.timestamp_text == "soon"
    assert event.timestamp is None


def test_rfc_2822_timestamp_is_parsed() -> None:
    """Other callbacks of the platform have it."""
    event = parse_callback(fields(Timestamp="Tue, 25 Sept 2018 20:00:00 +0000"))

    assert event.timestamp == datetime(2018, 9, 25, 20, tzinfo=UTC)


def test_first_value_of_a_repeated_name_counts() -> None:
    """Appended duplicates of a field are ignored."""
    event = parse_callback([*STARTED, ("StreamSid", "other"), ("X", "1"), ("X", "2")])

    assert event.stream_sid == "stream-1"
    assert event.extra == {"X": "1"}


def test_events_are_equal_hashable_and_frozen() -> None:
    first, second = parse_callback(fields(X="1")), parse_callback(fields(X="1"))

    assert first == second
    assert len({first, second, parse_callback(fields(X="2"))}) == 2
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        first.stream_sid = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong",
    [None, 5, "StreamSid=x", b"StreamSid=x", ["StreamSid"], {"StreamSid": ["x"]}, {"StreamSid": None}, {5: "x"}],
)
def test_wrong_argument_is_rejected_with_advice(wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match="parse_qsl"):
        parse_callback(wrong)


def test_form_with_a_field_event_type_is_not_taken_for_json() -> None:
    """The user's own query parameters are among the fields of a callback by GET."""
    form = [*fields(), ("event_type", "mine")]

    assert isinstance(parse_callback(form), StreamStarted)
    assert parse_callback(dict(form)) == parse_callback(form)


@given(st.dictionaries(st.one_of(st.sampled_from([name for name, _ in STARTED]), st.text()), st.text()))
@example({"AccountSid": "", "event_type": "0"})
def test_any_fields_make_an_event(told: dict[str, str]) -> None:
    """Also a timestamp that cannot be read."""
    # A mapping with that field and none of a form's is a JSON document.
    assume("event_type" not in told or not told.keys().isdisjoint(name for name, _ in STARTED))
    event = parse_callback(told)

    assert event.timestamp is None or event.timestamp.tzinfo is not None
    assert hash(event) == hash(parse_callback(list(told.items())))
