"""The exception tree: its relations, its words, and its way across process boundaries."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from attrs import fields

from signalwire_streams import errors
from signalwire_streams.errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    CircuitOpenError,
    ClientStateError,
    FleetError,
    InvalidRequestError,
    JournalError,
    MalformedFrameError,
    MalformedResponseError,
    NotFoundError,
    OpenError,
    PermissionDeniedError,
    Phase,
    RateLimitedError,
    RunCancelledError,
    ServerError,
    StreamOutcomeUnknownError,
    StreamsError,
    TransportError,
    UnprocessableError,
)

COMMON: dict[str, Any] = {
    "message": "read Calls: HTTP 503 (3 attempts)",
    "sent": "maybe",
    "attempts": 3,
    "retry_after": 1.5,
    "request_id": "req-1",
}
OF_AN_ANSWER: dict[str, Any] = {
    "status": 422,
    "code": 21402,
    "errors": ("Url is invalid", "Name is too long"),
    "more_info": "https://signalwire.com/docs/compatibility-api/reference/errors",
}
OF_UNKNOWN: dict[str, Any] = {
    "target": "b3877c40-da60-4998-90ad-b792e98472cf",
    "name": "room-7",
    "phase": Phase.WAITING,
    "status": 502,
    "accepted": True,
}

EXAMPLES: tuple[StreamsError, ...] = (
    StreamsError(**COMMON),
    InvalidRequestError(**COMMON),
    ClientStateError(**COMMON),
    OpenError(**COMMON, stage="socket"),
    JournalError(**COMMON),
    FleetError(**COMMON),
    MalformedFrameError(**COMMON),
    TransportError(**COMMON, phase=Phase.WRITING),
    CircuitOpenError(**COMMON, phase=Phase.QUEUED),
    RunCancelledError(**COMMON, phase=Phase.QUEUED),
    MalformedResponseError(**COMMON, status=200),
    *(
        kind(**COMMON, **OF_AN_ANSWER)
        for kind in (
            ApiError,
            BadRequestError,
            AuthenticationError,
            PermissionDeniedError,
            NotFoundError,
            UnprocessableError,
            RateLimitedError,
            ServerError,
        )
    ),
    StreamOutcomeUnknownError(**COMMON, **OF_UNKNOWN),
)
COPIERS: dict[str, Callable[[StreamsError], StreamsError]] = {
    **{
        f"pickle {protocol}": lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))  # type: ignore[misc]  # noqa: S301
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def known(error: StreamsError) -> dict[str, object]:
    return {attribute.name: getattr(error, attribute.name) for attribute in fields(type(error))}


def each(error: StreamsError) -> str:
    return type(error).__name__


def test_every_class_of_the_tree_is_tested_here() -> None:
    """The examples of this file leave out no error class."""
    classes = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, StreamsError)}
    assert classes == {type(error) for error in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=each)
def test_copied_error_keeps_attributes(error: StreamsError) -> None:
    """An error that crosses a process boundary, or is copied, keeps its class and every attribute."""
    for how in COPIERS.values():
        twin = how(error)
        assert type(twin) is type(error)
        assert twin is not error
        assert known(twin) == known(error)
        assert str(twin) == str(error)


@pytest.mark.parametrize("how", COPIERS.values(), ids=COPIERS)
def test_copied_error_keeps_later_attributes(how: Callable[[StreamsError], StreamsError]) -> None:
    """Attributes that were set later survive copying as well."""
    error = ApiError("HTTP 400", status=400)
    error.sent, error.attempts, error.retry_after, error.request_id = "yes", 4, 2.0, "req-9"
    twin = how(error)
    assert known(twin) == known(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=each)
def test_str_of_error_is_its_message(error: StreamsError) -> None:
    """``str`` of an error is its one line, whatever else it carries."""
    assert str(error) == COMMON["message"]
    assert f"{error}".splitlines() == [COMMON["message"]]


@pytest.mark.parametrize("error", EXAMPLES, ids=each)
def test_repr_names_the_class_and_the_evidence(error: StreamsError) -> None:
    """``repr`` of an error is one line with its class and its attributes."""
    shown = repr(error)
    assert shown.startswith(f"{type(error).__name__}(message=")
    assert "request_id='req-1'" in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "parents"),
    [
        (StreamsError, (Exception,)),
        (InvalidRequestError, (StreamsError, ValueError)),
        (ClientStateError, (StreamsError, RuntimeError)),
        (JournalError, (StreamsError,)),
        (FleetError, (StreamsError,)),
        (TransportError, (StreamsError,)),
        (CircuitOpenError, (TransportError,)),
        (MalformedResponseError, (StreamsError,)),
        (ApiError, (StreamsError,)),
        (BadRequestError, (ApiError,)),
        (AuthenticationError, (ApiError,)),
        (PermissionDeniedError, (ApiError,)),
        (NotFoundError, (ApiError,)),
        (UnprocessableError, (ApiError,)),
        (RateLimitedError, (ApiError,)),
        (ServerError, (ApiError,)),
        (StreamOutcomeUnknownError, (StreamsError,)),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_error_class_has_the_documented_parents(kind: type[StreamsError], parents: tuple[type[Exception], ...]) -> None:
    """Each error can be caught as its parents in the tree, and as the built-in class it resembles."""
    assert kind.__bases__ == parents


@pytest.mark.parametrize("kind", [StreamOutcomeUnknownError, MalformedResponseError, TransportError, ApiError])
def test_error_branches_are_disjoint(kind: type[StreamsError]) -> None:
    """An unknown outcome, an unreadable response, no response and a rejection are four different things."""
    others = {StreamOutcomeUnknownError, MalformedResponseError, TransportError, ApiError} - {kind}
    assert not issubclass(kind, tuple(others))
    assert not issubclass(kind, ValueError | RuntimeError | OSError)


@pytest.mark.parametrize("error", EXAMPLES, ids=each)
def test_errors_can_be_raised_from_another(error: StreamsError) -> None:
    """An error takes a cause and a traceback like any exception."""
    cause = OSError("reset")
    with pytest.raises(StreamsError) as caught:
        raise error from cause
    assert caught.value is error
    assert error.__cause__ is cause


def test_errors_with_equal_messages_differ() -> None:
    """Two errors are the same only when they are one object, so they can be kept in a set."""
    one, other = StreamsError("x"), StreamsError("x")
    assert one != other
    assert len({one, other}) == 2


@pytest.mark.parametrize("kind", [type(error) for error in EXAMPLES], ids=lambda kind: kind.__name__)
def test_bare_error_says_nothing_was_sent_or_attempted(kind: type[StreamsError]) -> None:
    """A bare error says that nothing was sent, after no attempt, and knows no time to wait."""
    error = kind("x")
    assert (error.sent, error.attempts, error.retry_after, error.request_id) == ("no", 0, None, None)


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (TransportError, {"phase": Phase.QUEUED}),
        (CircuitOpenError, {"phase": Phase.QUEUED}),
        (MalformedResponseError, {"status": None}),
        (OpenError, {"stage": "start"}),
        (ApiError, {"status": 0, "code": None, "errors": (), "more_info": None}),
        (
            StreamOutcomeUnknownError,
            {"target": "", "name": None, "phase": Phase.WAITING, "status": None, "accepted": False},
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_defaults_of_an_error_kind(kind: type[StreamsError], defaults: dict[str, object]) -> None:
    error = kind("x")
    assert {name: value for name, value in known(error).items() if name not in COMMON} == defaults


def test_phases_are_declared_in_order_of_occurrence() -> None:
    """The phases of an attempt are in the order in which they occur."""
    assert [phase.value for phase in Phase] == ["queued", "connecting", "writing", "waiting", "responded"]
