"""Answers become values: the documented examples as they stand, and whatever else a Space may say."""

from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import fields

from signalwire_streams._http.responses import has_key, read_item, read_page, read_stream
from signalwire_streams.errors import MalformedResponseError
from signalwire_streams.models import (
    AnsweredBy,
    Call,
    CallDirection,
    CallStatus,
    CallStream,
    Conference,
    ConferenceStatus,
    ConferenceStream,
    Page,
    Participant,
    ParticipantStatus,
    StreamStatus,
)

# Sids and dates are those of the vendor's documentation, which are neither hexadecimal nor RFC 2822.
ACCOUNT = "b3877c40-da60-4998-90ad-b792e98472af"
CONFERENCE = "b3877c40-da60-4998-90ad-b792e98472cf"
CALL = "b3877c40-da60-4998-90ad-b792e98472ca"
STREAM = "b3877c40-da60-4998-90ad-b792e98472st"
ROOT = f"/api/laml/2010-04-01/Accounts/{ACCOUNT}"

CONFERENCE_STREAM: dict[str, Any] = {
    "account_sid": ACCOUNT,
    "conference_sid": CONFERENCE,
    "date_updated": "Tue, 25 Sept 2018 20:00:00 +0000",
    "name": "my_conference_stream",
    "sid": STREAM,
    "status": "in-progress",
    "uri": f"{ROOT}/Conferences/{CONFERENCE}/Streams/{STREAM}.json",
}
CALL_STREAM: dict[str, Any] = {
    "sid": STREAM,
    "account_sid": ACCOUNT,
    "call_sid": CALL,
    "name": "my_first_stream",
    "status": "queued",
    "date_updated": "Wed, 19 Sep 2018 21:00:00 +0000",
    "uri": f"{ROOT}/Calls/{CALL}/Streams/{STREAM}.json",
}
CONFERENCE_ANSWER: dict[str, Any] = {
    "sid": CONFERENCE,
    "account_sid": ACCOUNT,
    "date_created": "Mon, 24 Sept 2018 21:00:00 +0000",
    "date_updated": "Tue, 25 Sept 2018 20:00:00 +0000",
    "friendly_name": "My Conference Room",
    "status": "in-progress",
    "api_version": "2010-04-01",
    "region": "us1",
    "uri": f"{ROOT}/Conferences/{CONFERENCE}.json",
    "subresource_uris": {
        "participants": f"{ROOT}/Conferences/{CONFERENCE}/Participants.json",
        "recordings": f"{ROOT}/Conferences/{CONFERENCE}/Recordings.json",
    },
}
PARTICIPANT: dict[str, Any] = {
    "account_sid": ACCOUNT,
    "call_sid": CALL,
    "call_sid_to_coach": "b3877c40-da60-4998-90ad-b792e98472co",
    "coaching": False,
    "conference_sid": CONFERENCE,
    "date_created": "Mon, 24 Sept 2018 21:00:00 +0000",
    "status": "completed",
    "date_updated": "Tue, 25 Sept 2018 20:00:00 +0000",
    "end_conference_on_exit": False,
    "muted": False,
    "hold": False,
    "start_conference_on_enter": True,
    "uri": f"{ROOT}/Conferences/{CONFERENCE}/Participants/{CALL}.json",
}
CALL_ANSWER: dict[str, Any] = {
    "sid": CALL,
    "account_sid": ACCOUNT,
    "date_created": "Wed, 19 Sep 2018 20:00:00 +0000",
    "date_updated": "Wed, 19 Sep 2018 21:00:00 +0000",
    "parent_call_sid": None,
    "to": "+13105678901",
    "formatted_to": "(310) 567-8901",
    "to_formatted": "(310) 567-8901",
    "from": "+13103384645",
    "formatted_from": "(310) 338-4645",
    "from_formatted": "(310) 338-4645",
    "phone_number_sid": "b3877c40-da60-4998-90ad-b792e98472pn",
    "status": "completed",
    "start_time": "Wed, 19 Sep 2018 20:00:01 +0000",
    "end_time": "Fri, 21 Sep 2018 10:00:00 +0000",
    "duration": 20,
    "price": 0.003,
    "price_unit": "USD",
    "direction": "outbound",
    "answered_by": "human",
    "api_version": "2010-04-01",
    "forwarded_from": None,
    "caller_name": None,
    "uri": f"{ROOT}/Calls/{CALL}.json",
    "subresource_uris": {"notifications": None, "recordings": f"{ROOT}/Calls/{CALL}/Recordings.json"},
    "annotation": None,
    "group_sid": None,
    "audio_in_mos": 4.5,
    "sip_result_code": "200",
    "audio_rtt_avg": 50,
    "audio_rtt_min": 20,
    "audio_rtt_max": 100,
    "audio_out_jitter_min": 1,
    "audio_out_jitter_max": 10,
    "audio_out_jitter_avg": 5,
    "audio_out_lost": 0,
}
ITEMS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "conference": (Conference, CONFERENCE_ANSWER),
    "participant": (Participant, PARTICIPANT),
    "call": (Call, CALL_ANSWER),
}
STREAMS: dict[str, tuple[type[Any], dict[str, Any], dict[str, object]]] = {
    "conference stream": (ConferenceStream, CONFERENCE_STREAM, {"conference_sid": CONFERENCE}),
    "call stream": (CallStream, CALL_STREAM, {"call_sid": CALL}),
}
each_item = pytest.mark.parametrize(("model", "document"), ITEMS.values(), ids=ITEMS)
each_stream = pytest.mark.parametrize(("model", "document", "asked"), STREAMS.values(), ids=STREAMS)

WIRE_NAMES = {
    "from_": "from",
    "date_created_text": "date_created",
    "date_updated_text": "date_updated",
    "start_time_text": "start_time",
    "end_time_text": "end_time",
}


def read_any(model: type[Any], document: dict[str, Any]) -> Any:
    if model is ConferenceStream:
        return read_stream(document, model, {"conference_sid": CONFERENCE})
    if model is CallStream:
        return read_stream(document, model, {"call_sid": CALL})
    return read_item(document, model)


EXAMPLES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    **ITEMS,
    **{name: (model, document) for name, (model, document, _) in STREAMS.items()},
}
each_example = pytest.mark.parametrize(("model", "document"), EXAMPLES.values(), ids=EXAMPLES)


@each_example
def test_documented_example_is_structured(model: type[Any], document: dict[str, Any]) -> None:
    """Each key of a documented answer is found again under its name, to the letter, and nothing is extra."""
    item = read_any(model, document)
    said = {
        WIRE_NAMES.get(attribute.name, attribute.name): getattr(item, attribute.name)
        for attribute in fields(model)
        if attribute.name not in {"extra", "ambiguous", "already_started", "already_ended"}
    }
    assert {key: said[key] for key in document} == document
    assert {key for key, value in said.items() if value is not None} <= set(document)
    assert item.extra == {}


def test_documented_statuses_become_enum_members() -> None:
    """A known word becomes the member of its vocabulary."""
    call = read_item(CALL_ANSWER, Call)
    assert call.status is CallStatus.COMPLETED
    assert call.direction is CallDirection.OUTBOUND
    assert call.answered_by is AnsweredBy.HUMAN
    assert read_item(CONFERENCE_ANSWER, Conference).status is ConferenceStatus.IN_PROGRESS
    assert read_item(PARTICIPANT, Participant).status is ParticipantStatus.COMPLETED
    assert read_any(ConferenceStream, CONFERENCE_STREAM).status is StreamStatus.IN_PROGRESS
    assert read_any(CallStream, CALL_STREAM).status is StreamStatus.QUEUED


def test_documented_dates_are_parsed() -> None:
    """The documentation's own unreadable date is read nonetheless."""
    stream = read_any(ConferenceStream, CONFERENCE_STREAM)
    assert stream.date_updated_text == "Tue, 25 Sept 2018 20:00:00 +0000"
    assert stream.date_updated == datetime(2018, 9, 25, 20, tzinfo=UTC)
    assert read_item(CALL_ANSWER, Call).start_time == datetime(2018, 9, 19, 20, 0, 1, tzinfo=UTC)


def test_keys_of_older_spaces_are_known() -> None:
    """A call stream of an older Space has an API version and an error code."""
    stream = read_any(CallStream, {**CALL_STREAM, "api_version": "2010-04-01", "error_code": 21220})
    assert (stream.api_version, stream.error_code, stream.extra) == ("2010-04-01", "21220", {})


@each_example
def test_unknown_keys_are_kept_in_extra(model: type[Any], document: dict[str, Any]) -> None:
    """An unknown key is kept as it came, even where it has the name of one of ours."""
    news = {
        "brand_new": {"a": [1, None]},
        "extra": "theirs",
        "from_": "x",
        "date_updated_text": "y",
        "": 0,
    }
    assert read_any(model, {**document, **news}).extra == news


@each_stream
def test_response_cannot_set_client_side_flags(
    model: type[Any], document: dict[str, Any], asked: dict[str, object]
) -> None:
    """A Space that claims a stream to be ambiguous or started already is kept as extra, and not believed."""
    claimed = {"ambiguous": True, "already_started": True, "already_ended": True}
    stream = read_stream({**document, **claimed}, model, asked)
    assert (stream.ambiguous, stream.already_started, stream.already_ended) == (False, False, False)
    assert stream.extra == claimed


@each_example
def test_unknown_status_stays_text(model: type[Any], document: dict[str, Any]) -> None:
    """An unknown status stays the word as it came."""
    status = read_any(model, {**document, "status": "hibernating"}).status
    assert status == "hibernating"
    assert type(status) is str


def test_unknown_direction_and_answerer_stay_text() -> None:
    """An unknown direction, or something unknown that answered, stays the word as it came."""
    call = read_item({**CALL_ANSWER, "direction": "outbound-dial", "answered_by": "fax"}, Call)
    assert (call.direction, call.answered_by) == ("outbound-dial", "fax")


@pytest.mark.parametrize("wrong", [[], {}, ["x"], {"x": 1}, True, 1.5], ids=repr)
@each_example
def test_value_of_wrong_type_becomes_none(model: type[Any], document: dict[str, Any], wrong: object) -> None:
    """A text, word, switch or number of a type that it can't have becomes None instead of an error."""
    identity = {"sid", "conference_sid", "call_sid"}
    item = read_any(
        model, {**dict.fromkeys(document, wrong), **{key: document[key] for key in identity & set(document)}}
    )
    for attribute in fields(model):
        value = getattr(item, attribute.name)
        if attribute.name in identity | {"extra", "ambiguous", "already_started", "already_ended"}:
            continue
        if attribute.name == "subresource_uris":
            assert value == (wrong if isinstance(wrong, dict) else {})
        elif value is not None:
            assert value in (True, 1.5, 1)
            assert attribute.type in {bool | None, int | None, float | None}


NUMBERS: dict[str, tuple[object, int | None, float | None]] = {
    "whole": (20, 20, 20.0),
    "fraction": (20.9, 20, 20.9),
    "text": ("20", 20, 20.0),
    "text with a fraction": ("0.003", 0, 0.003),
    "negative text": ("-0.5", 0, -0.5),
    "blanks": (" 20 ", 20, 20.0),
    "nothing": (None, None, None),
    "empty": ("", None, None),
    "a word": ("many", None, None),
    "a switch": (True, None, None),
    "not a number": (float("nan"), None, None),
    "not a number, as text": ("nan", None, None),
    "without end": (float("inf"), None, None),
    "without end, as text": ("-Infinity", None, None),
    "beyond measure": (10**400, None, None),
    "beyond measure, as text": ("1e999", None, None),
}


@pytest.mark.parametrize(("value", "whole", "real"), NUMBERS.values(), ids=NUMBERS)
def test_number_in_response_is_read_from_number_or_text(value: object, whole: int | None, real: float | None) -> None:
    """Numbers are read from numbers and from text; what is no finite number is None."""
    call = read_item({**CALL_ANSWER, "duration": value, "price": value}, Call)
    assert (call.duration, call.price) == (whole, real)


@pytest.mark.parametrize(
    ("value", "text"), [(200, "200"), (0, "0"), ("200", "200"), ("", ""), (True, None), (1.5, None), (None, None)]
)
def test_numeric_code_in_response_becomes_text(value: object, text: str | None) -> None:
    """A code that comes as a number is text all the same."""
    assert read_item({**CALL_ANSWER, "sip_result_code": value}, Call).sip_result_code == text


@pytest.mark.parametrize(("value", "flag"), [(True, True), (False, False), ("true", None), (1, None), (None, None)])
def test_flag_in_response_is_true_false_or_none(value: object, *, flag: bool | None) -> None:
    """A switch is True, False or unknown, and never guessed from a word."""
    assert read_item({**PARTICIPANT, "muted": value}, Participant).muted is flag


@each_stream
def test_requested_values_take_precedence_over_response(
    model: type[Any], document: dict[str, Any], asked: dict[str, object]
) -> None:
    """A stream belongs to the conference or call that it was started on, whatever the answer says."""
    key = next(iter(asked))
    assert getattr(read_stream({**document, key: "another"}, model, asked), key) == asked[key]
    assert getattr(read_stream({**document, key: None}, model, asked), key) == asked[key]


@pytest.mark.parametrize("nothing", [None, [], "sid", 7, True, {}], ids=repr)
@pytest.mark.parametrize(
    ("model", "asked"),
    [(ConferenceStream, {"conference_sid": CONFERENCE}), (CallStream, {"call_sid": CALL})],
    ids=["conference", "call"],
)
def test_stream_is_structured_without_response(model: type[Any], asked: dict[str, object], nothing: object) -> None:
    """Where the answer says nothing, the stream is what was asked for."""
    assert read_stream(nothing, model, asked) == model(**asked)


@pytest.mark.parametrize(
    "wrong",
    [None, [], "x", 7, {}, {"sid": None}, {"sid": ".."}, {"sid": ["x"]}, {"call_sid": {}}],
    ids=repr,
)
@pytest.mark.parametrize(("model", "key"), [(Conference, "sid"), (Participant, "call_sid"), (Call, "sid")])
def test_item_without_id_is_malformed(model: type[Any], key: str, wrong: object) -> None:
    """A conference, call or participant without an id is no answer of the API."""
    with pytest.raises(MalformedResponseError) as caught:
        read_item(wrong, model)
    assert str(caught.value) == f"the Space returned a {model.__name__.lower()} without {key}"
    assert caught.value.sent == "yes"


def test_item_needs_only_its_id() -> None:
    """A conference that only has an id is a conference."""
    assert read_item({"sid": "x"}, Conference) == Conference(sid="x")
    assert read_item({"call_sid": "x"}, Participant) == Participant(call_sid="x")


PAGE: dict[str, Any] = {
    "uri": f"{ROOT}/Conferences?PageToken=PA1234",
    "first_page_uri": f"{ROOT}/Conferences",
    "next_page_uri": f"{ROOT}/Conferences?Page=1&PageToken=PA5678",
    "previous_page_uri": None,
    "page": 0,
    "page_size": 50,
}


@pytest.mark.parametrize(
    ("model", "key", "document"),
    [
        (Conference, "conferences", CONFERENCE_ANSWER),
        (Participant, "participants", PARTICIPANT),
        (Call, "calls", CALL_ANSWER),
    ],
    ids=["conferences", "participants", "calls"],
)
def test_page_keeps_item_order_and_page_uris(model: type[Any], key: str, document: dict[str, Any]) -> None:
    """A page keeps its items in order, and the addresses of its neighbours as they came."""
    page = read_page({**PAGE, key: [document, document]}, model, key)
    assert page == Page(items=(read_item(document, model),) * 2, **PAGE)


def test_page_may_be_empty() -> None:
    """A list without items is a page without items."""
    assert read_page({"calls": []}, Call, "calls") == Page(items=())


@pytest.mark.parametrize(
    "document",
    [None, [], "calls", 7, {}, {"calls": None}, {"calls": {}}, {"calls": "x"}, {"conferences": []}],
    ids=repr,
)
def test_page_without_its_list_is_malformed(document: object) -> None:
    """A page that has no list of what was asked for is no answer of the API."""
    with pytest.raises(MalformedResponseError, match=r"^the Space returned a page without a list of calls$") as caught:
        read_page(document, Call, "calls")
    assert caught.value.sent == "yes"


@pytest.mark.parametrize("item", [None, {}, "x", {"sid": ""}], ids=repr)
def test_page_with_an_item_without_an_id_is_malformed(item: object) -> None:
    """A page is as good as its items."""
    with pytest.raises(MalformedResponseError, match="a call without sid"):
        read_page({"calls": [CALL_ANSWER, item]}, Call, "calls")


@pytest.mark.parametrize(
    ("document", "key", "found"),
    [
        ({"sid": "x"}, "sid", True),
        ({"sid": ""}, "sid", False),
        ({"sid": None}, "sid", False),
        ({"sid": 7}, "sid", True),
        ({"sid": "a/b"}, "sid", False),
        ({"sid": "\ud800"}, "sid", False),
        ({}, "sid", False),
        (None, "sid", False),
        (["sid"], "sid", False),
        ({"sid": ["x"]}, "sid", False),
        ({"sid": []}, "sid", False),
        ({"call_sid": "x"}, "call_sid", True),
        ({"call_sid": ["x"]}, "call_sid", False),
        ({"calls": "x"}, "calls", False),
        ({"calls": []}, "calls", True),
        ({"calls": {}}, "calls", False),
    ],
    ids=repr,
)
def test_required_key_decides_whether_response_is_readable(document: object, key: str, *, found: bool) -> None:
    """An answer is readable when it has the id or the list that it is read for."""
    assert has_key(document, key) is found
