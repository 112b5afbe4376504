"""Any JSON becomes a value or an error of this package."""

from datetime import datetime
from typing import Any

from attrs import fields
from hypothesis import given, strategies as st

from signalwire_streams._http.error_bodies import read_problem
from signalwire_streams._http.responses import read_item, read_page, read_stream
from signalwire_streams.errors import StreamsError
from signalwire_streams.models import Call, CallStream, Conference, ConferenceStream, Participant

_ALIASES = {"from_": "from"}
_KNOWN_KEYS = sorted(
    {
        _ALIASES.get(attribute.name, attribute.name.removesuffix("_text"))
        for model in (Call, CallStream, Conference, ConferenceStream, Participant)
        for attribute in fields(model)
    }
)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**300, max_value=10**310),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(["queued", "in-progress", "human", "inbound", "Tue, 25 Sept 2018 20:00:00 +0000", "1e999", "nan"]),
)
_KEYS = st.sampled_from([*_KNOWN_KEYS, "errors", "code", "message", "detail", "calls"]) | st.text(max_size=5)
_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=8
)
_OBJECTS = st.dictionaries(_KEYS, _JSON, max_size=8)
_DOCUMENTS = (
    _JSON
    | _OBJECTS.map(lambda document: {"sid": "x", "call_sid": "y", **document})
    | st.lists(_OBJECTS, max_size=2).map(lambda items: {"calls": items, "errors": items})
)


def check_stream(document: Any, model: type[Any], asked: dict[str, object]) -> None:
    stream = read_stream(document, model, asked)
    assert isinstance(stream, model)
    assert isinstance(stream.sid, str | None)
    assert isinstance(stream.date_updated, datetime | None)


def check_item(document: Any, model: type[Any]) -> None:
    try:
        item = read_item(document, model)
    except StreamsError:
        return
    assert isinstance(item, model)
    for name in ("date_created", "date_updated", "start_time", "end_time"):
        assert isinstance(getattr(item, name, None), datetime | None)


def check_page(document: Any) -> None:
    try:
        page = read_page(document, Call, "calls")
    except StreamsError:
        return
    assert all(isinstance(call, Call) for call in page.items)


@given(document=_DOCUMENTS)
def test_any_json_is_parsed_without_exception(document: Any) -> None:
    """Any JSON is a stream, an item, a page and a problem, or refused as malformed."""
    check_stream(document, ConferenceStream, {"conference_sid": "c"})
    check_stream(document, CallStream, {"call_sid": "c"})
    for model in (Conference, Participant, Call):
        check_item(document, model)
    check_page(document)
    problem = read_problem(document)
    assert problem.says_duplicate_name in {True, False}
    assert problem.says_already_stopped in {True, False}
    assert all(sentence.strip() for sentence in problem.sentences)
