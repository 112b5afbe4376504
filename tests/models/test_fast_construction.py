"""A value that is created fast is like one that its class creates."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve, frozen
from attrs.exceptions import FrozenInstanceError

from signalwire_streams import CallStream, ConferenceStream, Phase, Track
from signalwire_streams._http.messages import Result
from signalwire_streams.models import AttemptResult, StartConferenceStream
from signalwire_streams.models._fast import fast_constructor
from signalwire_streams.models._validation import from_masked

URL = "wss://rx.example.com/audio"
create_stream = fast_constructor(ConferenceStream)
CREATED = create_stream(conference_sid="room", name="audit", extra={"region": "eu"})
MADE = ConferenceStream(conference_sid="room", name="audit", extra={"region": "eu"})


def same(value: ConferenceStream) -> ConferenceStream:
    return value


def pickled(value: ConferenceStream) -> ConferenceStream:
    restored: ConferenceStream = pickle.loads(pickle.dumps(value))  # noqa: S301  (its own)
    return restored


@pytest.mark.parametrize("change", [same, copy.copy, copy.deepcopy, pickled])
def test_fast_value_equals_the_usual_one(change: Callable[[ConferenceStream], ConferenceStream]) -> None:
    """It has the same class, fields, hash and repr, also after it was copied or pickled."""
    value = change(CREATED)

    assert type(value) is ConferenceStream
    assert (value, hash(value), repr(value), value.extra) == (MADE, hash(MADE), repr(MADE), MADE.extra)


@pytest.mark.parametrize(
    "value",
    [
        CREATED,
        fast_constructor(CallStream)(call_sid="call"),
        fast_constructor(Result)(attempt_result=AttemptResult.DONE, phase=Phase.RESPONDED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fast_value_is_frozen(value: Any) -> None:
    """No field can be set or deleted, and no other one added."""
    for name in (value.__slots__[0], "other"):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, "changed")
    with pytest.raises(FrozenInstanceError):
        delattr(value, value.__slots__[0])


def test_each_fast_value_has_a_default_of_its_own() -> None:
    """A default that a factory makes is made for each value."""
    first, second = create_stream(conference_sid="room"), create_stream(conference_sid="room")

    assert first.extra == second.extra == {}
    assert first.extra is not second.extra


def test_fast_constructor_takes_what_the_class_takes() -> None:
    """A field that is missing or unknown is an error, as for the class."""
    for fields in ({}, {"conference_sid": "room", "call_sid": "call"}):
        with pytest.raises(TypeError):
            create_stream(**fields)  # type: ignore[arg-type]


def test_request_from_masked_arguments_is_validated() -> None:
    """Arguments that were masked before are checked as usual."""
    with pytest.raises(ValueError, match="url is empty"):
        from_masked(StartConferenceStream, conference_sid="room", url="", parameters={})


@pytest.mark.parametrize("fields", [{}, {"conference_sid": "room"}, {"conference_sid": "room", "url": URL, "sid": "x"}])
def test_request_takes_what_its_fields_are(fields: dict[str, str]) -> None:
    """A field that is missing or unknown is an error."""
    with pytest.raises(TypeError):
        StartConferenceStream(**fields)  # type: ignore[arg-type]


def test_each_request_has_parameters_of_its_own() -> None:
    """The default, and a copy of what was passed."""
    first, second = (StartConferenceStream(conference_sid="room", url=URL) for _ in range(2))
    passed = {"tenant": "acme"}
    third = evolve(first, parameters=passed)

    assert first.parameters == second.parameters == {}
    assert first.parameters is not second.parameters
    assert third.parameters == passed
    assert third.parameters is not passed


class Recorded(StartConferenceStream):
    """A subclass of a caller's, which attrs does not know."""


@frozen(kw_only=True)
class Tagged(StartConferenceStream):
    tag: str = "none"


@pytest.mark.parametrize("model", [StartConferenceStream, Recorded, Tagged])
def test_request_of_a_subclass_is_of_that_class_and_frozen(model: type[StartConferenceStream]) -> None:
    """It is converted and validated as well."""
    request = model(conference_sid="room", url=URL, name="audit", track="both_tracks")

    assert (type(request), request.track, request.name, request.unnamed) == (model, Track.BOTH, "audit", False)
    with pytest.raises(FrozenInstanceError):
        request.url = "wss://elsewhere.example.com"  # type: ignore[misc]
    with pytest.raises(ValueError, match="url is empty"):
        model(conference_sid="room", url="")


def test_default_that_is_passed_is_not_an_error() -> None:
    """Each of a caller's arguments may be None, as far as its default is."""
    request = StartConferenceStream(
        conference_sid="room", url=URL, name=None, unnamed=False, track=None, codec=None, realtime=None
    )
    assert request == StartConferenceStream(conference_sid="room", url=URL)
