"""The models of answers: what they need, what they leave open, and their dates."""

import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve
from attrs.exceptions import FrozenInstanceError

from signalwire_streams.errors import Phase
from signalwire_streams.models import (
    Attempt,
    AttemptResult,
    Call,
    CallStream,
    Conference,
    ConferenceStream,
    Operation,
    Page,
    Participant,
    Priority,
    RetryDecision,
)

MODELS: dict[str, tuple[type[Any], str]] = {
    "conference": (Conference, "sid"),
    "participant": (Participant, "call_sid"),
    "call": (Call, "sid"),
    "conference stream": (ConferenceStream, "conference_sid"),
    "call stream": (CallStream, "call_sid"),
}
DATES = [
    ("conference", "date_created"),
    ("conference", "date_updated"),
    ("participant", "date_created"),
    ("participant", "date_updated"),
    ("call", "date_created"),
    ("call", "date_updated"),
    ("call", "start_time"),
    ("call", "end_time"),
    ("conference stream", "date_updated"),
    ("call stream", "date_updated"),
]
each_model = pytest.mark.parametrize(("model", "key"), MODELS.values(), ids=MODELS)


@each_model
def test_only_the_id_must_be_known(model: type[Any], key: str) -> None:
    """One id makes a model; all else may be unknown."""
    made = model(**{key: "x"})
    assert getattr(made, key) == "x"
    assert made.extra == {}
    with pytest.raises(TypeError):
        model()


@each_model
def test_model_is_immutable_and_compares_by_value(model: type[Any], key: str) -> None:
    """Models are equal when they say the same, can't be changed, and are shown in one line."""
    made = model(**{key: "x"})
    assert made == model(**{key: "x"})
    assert made != model(**{key: "y"})
    assert evolve(made, **{key: "y"}) == model(**{key: "y"})
    assert len(repr(made).splitlines()) == 1
    assert len({made, model(**{key: "x"}), model(**{key: "y"})}) == 2
    with pytest.raises(FrozenInstanceError):
        setattr(made, key, "y")


@pytest.mark.parametrize(("name", "date"), DATES)
def test_date_is_read_from_its_text(name: str, date: str) -> None:
    """A date keeps the platform's text, and is read from it when it is asked for."""
    model, key = MODELS[name]
    made = model(**{key: "x", f"{date}_text": "Tue, 25 Sept 2018 20:00:00 +0000"})
    assert getattr(made, date) == datetime(2018, 9, 25, 20, tzinfo=UTC)


@pytest.mark.parametrize("text", [None, "soon"])
@pytest.mark.parametrize(("name", "date"), DATES)
def test_date_that_cannot_be_read_is_none(name: str, date: str, text: str | None) -> None:
    """A model with an unreadable date is a model all the same."""
    model, key = MODELS[name]
    assert getattr(model(**{key: "x", f"{date}_text": text}), date) is None


@pytest.mark.parametrize("model", [ConferenceStream, CallStream], ids=lambda model: model.__name__)
def test_stream_is_plain_unless_it_is_said_otherwise(model: type[Any]) -> None:
    """A stream is neither ambiguous nor found to be running already, unless the client found so."""
    key = "conference_sid" if model is ConferenceStream else "call_sid"
    stream = model(**{key: "x"})
    assert (stream.sid, stream.name, stream.ambiguous, stream.already_started) == (None, None, False, False)


def test_two_models_do_not_share_what_is_extra() -> None:
    """Each instance has its own mapping for unknown keys."""
    assert Conference(sid="a").extra is not Conference(sid="a").extra


def test_page_holds_items_and_its_neighbours() -> None:
    """A page may have no neighbours and no number."""
    page = Page(items=("a", "b"))
    assert page.items == ("a", "b")
    assert (page.uri, page.next_page_uri, page.previous_page_uri, page.first_page_uri) == (None,) * 4
    assert (page.page, page.page_size) == (None, None)


def test_attempt_has_words_for_machines_and_sentences_for_people() -> None:
    """The values of its enums are stable keys, and each has a description beside it."""
    attempt = Attempt(
        operation=Operation.CONFERENCE_START,
        target="c",
        name="room",
        number=1,
        result=AttemptResult.NO_RESPONSE,
        phase=Phase.WAITING,
        sent="maybe",
        status=None,
        code=None,
        queue_time=0.1,
        duration=0.5,
        decision=RetryDecision.RESEND,
        next_delay=0.1,
    )
    assert f"{attempt.operation}: {attempt.result}, {attempt.decision}" == "conference_start: no_response, resend"
    assert (attempt.operation.description, attempt.result.description, attempt.decision.description) == (
        "named start on a conference",
        "no response",
        "send again under the same name",
    )
    for word in (*Operation, *AttemptResult, *RetryDecision, *Priority):
        assert word.value == word.name.lower()
        assert word.description.isprintable()
        assert pickle.loads(pickle.dumps(word)) is type(word)(word.value) is word  # noqa: S301
