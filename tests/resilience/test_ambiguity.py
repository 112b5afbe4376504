"""After an attempt that may have been carried out: what is sent again, and what is told."""

import pytest

from signalwire_streams.middleware._policies import RetryPolicy
from signalwire_streams.middleware._retry import Decision, RetryBudget, Retrying
from signalwire_streams.models import Action, Event, Kind

AMBIGUOUS = [Event.BROKEN, Event.MALFORMED, Event.SERVER_FAULT]
CERTAIN = [Event.UNSENT, Event.STALE, Event.THROTTLED, Event.TRY_AGAIN, Event.UNAVAILABLE]
REFUSALS = [Event.REJECTED, Event.DENIED, Event.REDIRECTED, Event.UNUSABLE, Event.EXPIRED, Event.BREAKER_OPEN]
SAFE = [Kind.CONFERENCE_START, Kind.CALL_START]


def call(kind: Kind, *, tokens: int = 500, deadline: float = 1e9) -> Retrying:
    """Begin a call under a policy that sends starts on calls again as well."""
    return Retrying(RetryPolicy(resend_call_starts=True), kind, RetryBudget(tokens), lambda: 0.0, deadline)


@pytest.mark.parametrize("event", AMBIGUOUS)
@pytest.mark.parametrize("kind", SAFE)
def test_a_named_start_is_sent_again_twice(kind: Kind, event: Event) -> None:
    """A named start is sent again at most twice, and then its outcome is unknown."""
    retrying = call(kind)
    assert not retrying.ambiguous
    assert [retrying.decide(event, at).action for at in (0.0, 1.0, 2.0)] == [
        Action.RESEND,
        Action.RESEND,
        Action.UNKNOWN,
    ]
    assert retrying.ambiguous
    assert retrying.ambiguous_since == 0.0


@pytest.mark.parametrize(
    ("seconds", "action"),
    [(0.0, Action.RESEND), (30.0, Action.RESEND), (30.001, Action.UNKNOWN), (500.0, Action.UNKNOWN)],
)
def test_a_named_start_is_sent_again_within_thirty_seconds(seconds: float, action: Action) -> None:
    """The thirty seconds count from the first attempt that may have been carried out."""
    retrying = call(Kind.CONFERENCE_START)
    assert retrying.decide(Event.BROKEN, 100.0).action is Action.RESEND
    assert retrying.decide(Event.BROKEN, 100.0 + seconds).action is action


def test_the_thirty_seconds_hold_at_the_moment_of_sending() -> None:
    """A wait that ends after the thirty seconds is not begun."""
    retrying = call(Kind.CONFERENCE_START)
    retrying.decide(Event.BROKEN, 100.0)
    assert retrying.decide(Event.THROTTLED, 101.0, 29.0).action is Action.WAIT_FOR_GATE
    retrying = call(Kind.CONFERENCE_START)
    retrying.decide(Event.BROKEN, 100.0)
    assert retrying.decide(Event.THROTTLED, 101.0, 29.1).action is Action.UNKNOWN


def test_the_limits_of_resending_can_be_set() -> None:
    """How often and for how long a named start is sent again is the policy's."""
    policy = RetryPolicy(resends=0)
    retrying = Retrying(policy, Kind.CONFERENCE_START, RetryBudget(), lambda: 0.0, 1e9)
    assert retrying.decide(Event.BROKEN, 0.0) == Decision(Action.UNKNOWN)
    policy = RetryPolicy(resends=9, max_attempts=10, resend_window=5.0)
    retrying = Retrying(policy, Kind.CONFERENCE_START, RetryBudget(), lambda: 0.0, 1e9)
    actions = [retrying.decide(Event.BROKEN, float(at)).action for at in range(7)]
    assert actions == [*[Action.RESEND] * 6, Action.UNKNOWN]


@pytest.mark.parametrize("end", REFUSALS)
@pytest.mark.parametrize("event", AMBIGUOUS)
@pytest.mark.parametrize("kind", SAFE)
def test_after_an_ambiguous_attempt_a_start_does_not_just_fail(kind: Kind, event: Event, end: Event) -> None:
    """Whatever ends such a call, the caller hears that the stream may be running."""
    retrying = call(kind)
    retrying.decide(event, 0.0)
    assert retrying.decide(end, 1.0) == Decision(Action.UNKNOWN)


@pytest.mark.parametrize("more", CERTAIN)
@pytest.mark.parametrize("kind", SAFE)
def test_running_out_of_tries_after_an_ambiguous_attempt_is_unknown(kind: Kind, more: Event) -> None:
    """Where further trouble uses up the limits, the outcome is unknown as well."""
    retrying = call(kind)
    retrying.decide(Event.BROKEN, 0.0)
    actions = [retrying.decide(more, 1.0).action for _ in range(12)]
    assert actions[-1] is Action.UNKNOWN
    assert Action.FAIL not in actions


@pytest.mark.parametrize("kind", SAFE)
def test_without_budget_or_time_an_ambiguous_start_is_unknown(kind: Kind) -> None:
    """An empty allowance, or a deadline, does not make an ambiguous start a failed one."""
    assert call(kind, tokens=0).decide(Event.BROKEN, 0.0) == Decision(Action.UNKNOWN)
    assert call(kind, deadline=0.0).decide(Event.BROKEN, 0.0) == Decision(Action.UNKNOWN)
    retrying = call(kind, deadline=10.0)
    assert retrying.decide(Event.BROKEN, 0.0, 3600.0) == Decision(Action.UNKNOWN)


@pytest.mark.parametrize("before", CERTAIN)
@pytest.mark.parametrize("kind", [*SAFE, Kind.UNNAMED_START])
def test_a_start_that_certainly_did_nothing_fails(kind: Kind, before: Event) -> None:
    """Where each attempt certainly did nothing, a refusal is a failure and nothing is in doubt."""
    for end in (*REFUSALS, Event.DUPLICATE_NAME):
        retrying = call(kind)
        assert not retrying.decide(before, 0.0).is_final
        assert not retrying.ambiguous
        assert retrying.decide(end, 1.0) == Decision(Action.FAIL)


@pytest.mark.parametrize("between", [[], [Event.BROKEN], [Event.UNSENT], [Event.THROTTLED]], ids=str)
@pytest.mark.parametrize("event", AMBIGUOUS)
@pytest.mark.parametrize("kind", SAFE)
def test_a_duplicate_of_our_own_first_attempt_is_success(kind: Kind, event: Event, between: list[Event]) -> None:
    """A start that is refused as its own duplicate has been carried out."""
    retrying = call(kind)
    for at, happened in enumerate([event, *between]):
        assert not retrying.decide(happened, float(at)).is_final
    assert retrying.decide(Event.DUPLICATE_NAME, 5.0) == Decision(Action.ALREADY_STARTED)


@pytest.mark.parametrize("event", [*AMBIGUOUS, Event.ACCEPTED])
def test_a_repeated_stop_that_finds_nothing_is_success(event: Event) -> None:
    """A stop by a returned sid that finds nothing, after one that may have been carried out, has been carried out."""
    retrying = call(Kind.STOP_RETURNED)
    assert retrying.decide(event, 0.0).action is Action.RETRY
    assert retrying.decide(Event.GONE, 1.0) == Decision(Action.ALREADY_STOPPED)


@pytest.mark.parametrize("event", sorted({*AMBIGUOUS} - {Event.ACCEPTED}))
def test_repeated_stop_by_text_that_finds_nothing_fails(event: Event) -> None:
    """The text may be a name in the form of a sid, and a Space may not find streams by their names."""
    retrying = call(Kind.STOP)
    assert retrying.decide(event, 0.0).action is Action.RETRY
    assert retrying.decide(Event.GONE, 1.0) == Decision(Action.FAIL)


@pytest.mark.parametrize("event", CERTAIN)
def test_a_stop_that_certainly_did_nothing_finds_nothing(event: Event) -> None:
    """A stop that finds nothing, after one that did nothing, fails."""
    retrying = call(Kind.STOP)
    retrying.decide(event, 0.0)
    assert retrying.decide(Event.GONE, 1.0) == Decision(Action.FAIL)


def test_a_stop_that_is_accepted_each_time_is_success() -> None:
    """A stop that the Space accepts worked, even where no answer to it can be read."""
    retrying = call(Kind.STOP)
    actions = [retrying.decide(Event.ACCEPTED, 0.0).action for _ in range(3)]
    assert actions == [Action.RETRY, Action.RETRY, Action.ALREADY_STOPPED]
    for hurried in (call(Kind.STOP, tokens=0), call(Kind.STOP, deadline=0.0)):
        assert hurried.decide(Event.ACCEPTED, 0.0) == Decision(Action.ALREADY_STOPPED)


def test_a_read_that_is_accepted_each_time_fails() -> None:
    """A read is there for its answer."""
    retrying = call(Kind.READ)
    actions = [retrying.decide(Event.ACCEPTED, 0.0).action for _ in range(3)]
    assert actions == [Action.RETRY, Action.RETRY, Action.FAIL]


@pytest.mark.parametrize("kind", [Kind.READ, Kind.STOP])
@pytest.mark.parametrize("event", AMBIGUOUS)
def test_a_read_or_stop_may_just_fail(kind: Kind, event: Event) -> None:
    """What does no harm when it is done twice fails after its last attempt."""
    retrying = call(kind)
    actions = [retrying.decide(event, 0.0).action for _ in range(3)]
    assert actions == [Action.RETRY, Action.RETRY, Action.FAIL]


@pytest.mark.parametrize("event", [*AMBIGUOUS, Event.ACCEPTED])
@pytest.mark.parametrize("kind", [Kind.UNNAMED_START, Kind.CALL_START])
def test_a_start_that_could_be_doubled_is_not_sent_again(kind: Kind, event: Event) -> None:
    """A start without a name is unknown at once; so is one on a call, unless its name is known to protect it."""
    retrying = Retrying(RetryPolicy(), kind, RetryBudget(), lambda: 0.0, 1e9)
    by_name = kind is Kind.CALL_START and event is Event.ACCEPTED
    assert retrying.decide(event, 0.0) == Decision(Action.BY_NAME if by_name else Action.UNKNOWN)
    assert retrying.budget.tokens == 500


@pytest.mark.parametrize("kind", SAFE)
def test_a_resent_start_that_is_accepted_is_known_by_its_name(kind: Kind) -> None:
    """An accepted start whose answer can't be read is held by its name, and not sent again."""
    retrying = call(kind)
    retrying.decide(Event.BROKEN, 0.0)
    assert retrying.decide(Event.ACCEPTED, 1.0) == Decision(Action.BY_NAME)


def test_an_accepted_start_is_not_held_to_be_ambiguous() -> None:
    """A start that is known to run is not in doubt."""
    retrying = call(Kind.CONFERENCE_START)
    retrying.decide(Event.ACCEPTED, 0.0)
    assert not retrying.ambiguous


def test_an_attempt_at_time_zero_is_an_attempt() -> None:
    """A clock that begins at 0 makes no difference."""
    retrying = call(Kind.CONFERENCE_START)
    retrying.decide(Event.BROKEN, 0.0)
    assert retrying.ambiguous
    assert retrying.decide(Event.BROKEN, 31.0).action is Action.UNKNOWN


REFUSED_FOR_NOW = [Event.THROTTLED, Event.TRY_AGAIN, Event.UNAVAILABLE]


@pytest.mark.parametrize("event", REFUSED_FOR_NOW)
@pytest.mark.parametrize("kind", SAFE)
def test_duplicate_of_generated_name_after_refusal_is_own_stream(kind: Kind, event: Event) -> None:
    """Nobody else knows a generated name, so an earlier attempt made the stream, whatever was answered to it."""
    policy = RetryPolicy(resend_call_starts=True)
    retrying = Retrying(policy, kind, RetryBudget(), lambda: 0.0, 1e9, has_unique_name=True)
    retrying.decide(event, 0.0)
    assert retrying.decide(Event.DUPLICATE_NAME, 1.0) == Decision(Action.ALREADY_STARTED)


@pytest.mark.parametrize("event", REFUSED_FOR_NOW)
def test_duplicate_of_chosen_name_after_refusal_is_rejected(event: Event) -> None:
    """A name that the caller chose may be in use by a stream of somebody else's."""
    retrying = call(Kind.CONFERENCE_START)
    retrying.decide(event, 0.0)
    assert retrying.decide(Event.DUPLICATE_NAME, 1.0) == Decision(Action.FAIL)


@pytest.mark.parametrize("event", [None, Event.UNSENT, Event.STALE])
def test_duplicate_of_generated_name_that_was_never_sent_is_rejected(event: Event | None) -> None:
    retrying = Retrying(RetryPolicy(), Kind.CONFERENCE_START, RetryBudget(), lambda: 0.0, 1e9, has_unique_name=True)
    if event is not None:
        retrying.decide(event, 0.0)
    assert retrying.decide(Event.DUPLICATE_NAME, 1.0) == Decision(Action.FAIL)
