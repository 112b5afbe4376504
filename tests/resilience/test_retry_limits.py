"""How often, how long and how late a call is tried."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, strategies as st

from signalwire_streams.middleware._policies import RetryPolicy
from signalwire_streams.middleware._retry import Decision, RetryBudget, Retrying
from signalwire_streams.models import Action, Event, Kind

IDEMPOTENT = [Kind.READ, Kind.STOP]
START = 1000.0


def half() -> float:
    return 0.5


def nothing() -> float:
    return 0.0


def call(
    kind: Kind = Kind.READ,
    *,
    policy: RetryPolicy | None = None,
    random: Callable[[], float] = half,
    deadline: float = 1e9,
    tokens: int = 500,
) -> Retrying:
    return Retrying(policy or RetryPolicy(), kind, RetryBudget(tokens), random, START + deadline)


def attempts_until_the_end(retrying: Retrying, events: Sequence[Event]) -> int:
    """Count the attempts of a call whose attempts end so, the last event for ever."""
    now = START
    for attempt in range(1, 100):
        decision = retrying.decide(events[min(attempt, len(events)) - 1], now)
        if decision.is_final:
            return attempt
        now += decision.wait
    raise AssertionError("the call never ends")


@pytest.mark.parametrize(
    "event", [Event.BROKEN, Event.MALFORMED, Event.SERVER_FAULT, Event.UNAVAILABLE, Event.TRY_AGAIN]
)
@pytest.mark.parametrize("kind", IDEMPOTENT)
def test_three_attempts_that_reached_the_space(kind: Kind, event: Event) -> None:
    """What reached the Space, or may have, is tried three times in all."""
    assert attempts_until_the_end(call(kind), [event]) == 3


@pytest.mark.parametrize("kind", Kind)
def test_three_more_attempts_that_never_left(kind: Kind) -> None:
    """What certainly did not reach the Space is tried three more times."""
    assert attempts_until_the_end(call(kind), [Event.UNSENT]) == 4


@pytest.mark.parametrize(
    ("kind", "attempts"),
    [(Kind.READ, 4), (Kind.STOP, 4), (Kind.CONFERENCE_START, 4), (Kind.CALL_START, 4), (Kind.UNNAMED_START, 2)],
)
def test_how_often_a_dead_connection_is_replaced(kind: Kind, attempts: int) -> None:
    """Three times, as for whatever was not sent; once for a start without a name."""
    assert attempts_until_the_end(call(kind), [Event.STALE]) == attempts


def test_an_unnamed_start_on_a_fresh_connection_may_still_fail_to_connect() -> None:
    """The one resend after a dead connection is one of the three that never left."""
    events = [Event.STALE, Event.UNSENT, Event.UNSENT, Event.UNSENT]
    assert attempts_until_the_end(call(Kind.UNNAMED_START), events) == 4


@pytest.mark.parametrize("kind", Kind)
def test_six_waits_on_too_many_requests(kind: Kind) -> None:
    """A call waits six times when the Space takes no more requests."""
    assert attempts_until_the_end(call(kind), [Event.THROTTLED]) == 7


def test_the_limits_add_up_and_do_not_mix() -> None:
    """Each kind of trouble has its own allowance within one call."""
    events = [*[Event.THROTTLED] * 6, *[Event.UNSENT] * 3, *[Event.UNAVAILABLE] * 3]
    assert attempts_until_the_end(call(Kind.UNNAMED_START), events) == 12
    assert attempts_until_the_end(call(), [*events, Event.DONE]) == 12


def test_success_after_all_limits_but_one_is_success() -> None:
    """A call that has tried everything once less than the limits is still a call."""
    retrying = call()
    for event in [*[Event.THROTTLED] * 6, *[Event.UNSENT] * 3, *[Event.BROKEN] * 2]:
        assert not retrying.decide(event, START).is_final
    assert retrying.decide(Event.DONE, START).action is Action.FINISH


@pytest.mark.parametrize(
    ("policy", "event", "attempts"),
    [
        (RetryPolicy(max_attempts=1), Event.BROKEN, 1),
        (RetryPolicy(max_attempts=5), Event.BROKEN, 5),
        (RetryPolicy(unsent_attempts=0), Event.UNSENT, 1),
        (RetryPolicy(unsent_attempts=0), Event.STALE, 1),
        (RetryPolicy(throttle_waits=0), Event.THROTTLED, 1),
        (RetryPolicy(throttle_waits=1), Event.THROTTLED, 2),
    ],
)
def test_the_limits_are_the_policys(policy: RetryPolicy, event: Event, attempts: int) -> None:
    """Each limit can be set."""
    assert attempts_until_the_end(call(policy=policy), [event]) == attempts


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("event", [Event.THROTTLED, Event.UNAVAILABLE, Event.TRY_AGAIN, Event.UNSENT])
@pytest.mark.parametrize(("asked", "again"), [(60.0, True), (60.1, False), (3600.0, False)])
def test_a_wait_of_more_than_a_minute_is_not_waited(kind: Kind, event: Event, asked: float, *, again: bool) -> None:
    """A Retry-After beyond 60 seconds ends the call at once."""
    decision = call(kind).decide(event, START, asked)
    assert decision.is_final is not again
    assert decision == Decision(Action.FAIL) if not again else decision.wait >= asked


@pytest.mark.parametrize("event", [Event.THROTTLED, Event.UNAVAILABLE])
@pytest.mark.parametrize(("asked", "again"), [(9.0, True), (10.0, False), (30.0, False)])
def test_a_wait_beyond_the_deadline_is_not_waited(event: Event, asked: float, *, again: bool) -> None:
    """A Retry-After that ends at the deadline or later ends the call at once."""
    decision = call(deadline=10.0, random=nothing).decide(event, START, asked)
    assert decision.is_final is not again


@pytest.mark.parametrize("event", [Event.BROKEN, Event.UNSENT, Event.STALE, Event.THROTTLED, Event.UNAVAILABLE])
@pytest.mark.parametrize("kind", IDEMPOTENT)
def test_nothing_is_tried_after_the_deadline(kind: Kind, event: Event) -> None:
    """When the deadline is reached the call ends."""
    assert call(kind, deadline=0.0).decide(event, START) == Decision(Action.FAIL)
    assert not call(kind, deadline=100.0).decide(event, START).is_final


def test_the_longest_wait_can_be_set() -> None:
    """Who can wait longer than a minute may say so."""
    policy = RetryPolicy(wait_longest=600.0)
    assert call(policy=policy, random=nothing).decide(Event.THROTTLED, START, 600.0) == Decision(
        Action.WAIT_FOR_GATE, 600.0
    )


@given(
    kind=st.sampled_from(Kind),
    event=st.sampled_from([Event.THROTTLED, Event.UNAVAILABLE, Event.TRY_AGAIN, Event.SERVER_FAULT, Event.UNSENT]),
    asked=st.floats(min_value=0, max_value=60),
    chance=st.floats(min_value=0, max_value=1),
    before=st.integers(min_value=0, max_value=1),
)
def test_the_wait_is_never_less_than_asked(kind: Kind, event: Event, asked: float, chance: float, before: int) -> None:
    """A Retry-After is a floor, with at most a tenth of it, or a twentieth of a second, on top."""
    retrying = call(kind, random=lambda: chance)
    for _ in range(before):
        retrying.decide(Event.UNAVAILABLE, START)
    decision = retrying.decide(event, START, asked)
    if decision.is_final:
        assert event is Event.SERVER_FAULT
        return
    assert decision.wait >= asked
    if asked:
        assert decision.wait <= asked + max(asked * 0.1, 0.05) + 1e-9


@given(chances=st.lists(st.floats(min_value=0, max_value=1), min_size=6, max_size=6))
def test_the_jitter_is_full_and_bounded(chances: list[float]) -> None:
    """Without Retry-After a wait is anywhere from 0 to base times 2ⁿ, and never above the cap."""
    left = list(chances)
    retrying = call(random=lambda: left.pop(0))
    for number, chance in enumerate(chances):
        wait = retrying.decide(Event.THROTTLED, START).wait
        assert wait == pytest.approx(chance * min(20.0, 1.0 * 2**number))
    left = list(chances)
    retrying = call(random=lambda: left.pop(0), policy=RetryPolicy(max_attempts=7))
    for number, chance in enumerate(chances):
        wait = retrying.decide(Event.UNAVAILABLE, START).wait
        assert wait == pytest.approx(chance * min(5.0, 0.2 * 2**number))


@pytest.mark.parametrize("tokens", [0, 13])
def test_without_budget_there_is_no_second_attempt(tokens: int) -> None:
    """When the allowance is spent a fault is final at once, and nothing is taken."""
    retrying = call(tokens=tokens)
    assert retrying.decide(Event.UNAVAILABLE, START) == Decision(Action.FAIL)
    assert retrying.budget.tokens == tokens


@pytest.mark.parametrize(
    ("event", "cost"),
    [
        (Event.BROKEN, 14),
        (Event.SERVER_FAULT, 14),
        (Event.UNAVAILABLE, 14),
        (Event.TRY_AGAIN, 14),
        (Event.THROTTLED, 5),
        (Event.UNSENT, 5),
        (Event.STALE, 5),
    ],
)
def test_what_a_retry_costs(event: Event, cost: int) -> None:
    """A retry costs 14, and 5 where the Space certainly did nothing; a success gives the last cost back."""
    retrying = call()
    retrying.decide(event, START)
    assert retrying.budget.tokens == 500 - cost
    retrying.decide(Event.DONE, START)
    assert retrying.budget.tokens == 500


def test_what_is_refused_costs_and_earns_nothing() -> None:
    """A refusal is neither a success nor a retry."""
    retrying = call(tokens=100)
    retrying.decide(Event.REJECTED, START)
    assert retrying.budget.tokens == 100


def test_a_first_success_earns_one() -> None:
    """Each success at the first attempt adds one to the allowance."""
    retrying = call(tokens=100)
    retrying.decide(Event.DONE, START)
    assert retrying.budget.tokens == 101
