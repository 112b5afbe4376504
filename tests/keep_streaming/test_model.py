"""The keeper's promises, in every state within a bound; and each of its rules is needed for them."""

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve, frozen

from signalwire_streams.keep_streaming import (
    Fate,
    KeepSettings,
    KeepStatus,
    SaveAttempt,
    StopAnswered,
    TargetMissing,
    TargetState,
)
from signalwire_streams.keep_streaming._decisions import RULES, Observed, Planned
from tests.keep_streaming.model import Faults, Space
from tests.keep_streaming.spaces import CONFERENCES, OTHERS, Setup, faults


@pytest.mark.parametrize("name", CONFERENCES)
def test_conference_has_one_stream_after_any_two_faults(name: str) -> None:
    """Never two, and one within four rounds, or an event that says that nobody can know."""
    # With a third start, callbacks in any order make five times as many states: `nox --session soak` visits those.
    starts = 2 if name == "refused in the callback, received elsewhere" else 3
    result = CONFERENCES[name].check(faults(2), starts=starts)
    assert result.problem is None, result
    assert result.rounds <= 3


@pytest.mark.parametrize("setup", [pytest.param(setup, id=name) for name, setup in OTHERS.items()])
def test_target_has_one_stream_after_any_two_faults(setup: Setup) -> None:
    result = setup.check(faults(2), starts=2)
    assert result.problem is None, result


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_nothing_stays_in_doubt_on_a_conference_unless_the_journal_is_lost(where: str) -> None:
    setup = evolve(CONFERENCES[f"refused in the response, received {where}"], without=("lost_journals",))
    result = setup.check(faults(2))
    assert (result.problem, result.doubts) == (None, 0), result


@pytest.mark.parametrize(
    "name", ["refused in the response, received here", "refused in the callback, received elsewhere", "calls that hold"]
)
def test_starts_that_pause_for_a_while_change_nothing_else(name: str) -> None:
    setup = {**CONFERENCES, **OTHERS}[name]
    result = setup.check(faults(2, pauses=1, lost_responses=1, drops=1, kills=1), starts=2)
    assert result.problem is None, result


@pytest.mark.parametrize("setup", [pytest.param(setup, id=name) for name, setup in {**CONFERENCES, **OTHERS}.items()])
def test_target_has_one_stream_after_any_number_of_faults(setup: Setup) -> None:
    """Not in every state, but far from the first one: a fault in every few of a hundred random steps."""
    result = setup.walk(steps=100, seed=1)
    assert result.problem is None, result


ENDS = faults(2, stops=1, lost_responses=1, kills=1, drops=1, half_open=1)

REPLACES = faults(2, stops=1, lost_responses=1, kills=1)


@pytest.mark.parametrize("replaces", [False, True], ids=["keeps", "replaces"])
@pytest.mark.parametrize("setup", [pytest.param(setup, id=name) for name, setup in {**CONFERENCES, **OTHERS}.items()])
def test_keepers_that_end_and_begin_leave_what_they_say(setup: Setup, replaces: bool) -> None:
    """With ``on_exit="stop"`` no stream runs after the end that was not told, and the next keeper has one stream.

    With ``on_change="replace"`` that one has its own fields, or is in doubt.
    """
    tried = REPLACES if replaces else ENDS
    result = evolve(setup, replaces=replaces).check(tried, starts=2)
    assert result.problem is None, result


# --- Each rule is needed


def forgets_missing_targets(case: Any, _: TargetMissing) -> Any:
    return case.report(KeepStatus.ENDED)


def matches_by_name(case: Any, observation: Any) -> Any:
    """Take an observation of a name to be of its newest attempt."""
    newest = case.state.attempts[-1:]
    if case.attempt.number or not newest:
        return None
    [apply] = [rule.apply for rule in RULES.values() if isinstance(rule, Observed) and rule.kind is type(observation)]
    return apply(evolve(case, attempt=newest[0]), observation)


def takes_refusal_for_failure(case: Any, _: object) -> Any:
    return case.close().fail("the name is refused")


def takes_lost_response_for_failure(case: Any, _: object) -> Any:
    return case.close().fail("no response")


def takes_closed_socket_for_proof(case: Any, _: object) -> Any:
    return case.close().lose("its socket was closed")


def takes_missing_name_for_proof(case: Any, answer: StopAnswered) -> Any:
    attempts = tuple(attempt for attempt in case.state.attempts if attempt.fate is not Fate.ENDING)
    return case.set(pending=None, attempts=attempts)


def believes_journal(case: Any, _: object) -> Any:
    return case.turn(Fate.SENDING, to=Fate.IN_DOUBT).set(pending=None)


def takes_old_streams_for_wanted(case: Any, restarted: Any) -> Any:
    case = RULES["after a restart of the keeper nothing is certain"].apply(case, restarted)  # type: ignore[call-arg]
    return case.set(attempts=tuple(evolve(attempt, is_unwanted=False) for attempt in case.state.attempts))


def takes_any_stream_for_wanted(case: Any, _: object) -> Any:
    return case.close().believe() if case.state.of_fate(Fate.IN_DOUBT) else None


def starts_unsaved(case: Any) -> Any:
    start: Any = RULES["a target without a stream gets one"].apply
    case, actions = start(case)
    return case, tuple(action for action in actions if not isinstance(action, SaveAttempt))


NONE = Faults()


@frozen
class Mutant:
    """A table without a rule, or with a wrong one in its place.

    Attributes:
        setup: where that matters.
        faults: those that it takes.
        instead: the wrong rule.
    """

    setup: Setup
    faults: Faults = NONE
    instead: Callable[..., Any] | None = None


HERE = CONFERENCES["refused in the response, received here"]
ELSEWHERE = CONFERENCES["refused in the response, received elsewhere"]
HELD, HELD_HERE = OTHERS["calls that hold"], OTHERS["calls that hold, received here"]
HELD_UNTOLD = evolve(HELD, space=Space(refuses=None))
TOLD_OTHERS = evolve(ELSEWHERE, space=Space(loses_callbacks=False), replaces=True)
AGAIN, AGAIN_HERE = OTHERS["calls that restart"], OTHERS["calls that restart, received here"]

MUTANTS = {
    "a late observation of an older attempt changes nothing": [
        Mutant(HELD, faults(2, drops=1, repeats=1)),
        Mutant(HELD, faults(2, drops=1, repeats=1), matches_by_name),
    ],
    "a target missing from a list is checked": [
        Mutant(HELD_UNTOLD, faults(1, ends=1)),
        Mutant(ELSEWHERE, faults(1, torn_lists=1), forgets_missing_targets),
    ],
    "a completed target is forgotten": [Mutant(HERE, faults(1, ends=1))],
    "a target that was checked is kept": [Mutant(HERE, faults(1, drops=1))],
    "an accepted start is believed to run": [Mutant(ELSEWHERE)],
    "a refused name means that a stream runs": [
        Mutant(ELSEWHERE, faults(1, lost_responses=1)),
        Mutant(ELSEWHERE, faults(1, lost_responses=1), takes_refusal_for_failure),
        Mutant(TOLD_OTHERS, faults(2, kills=1, lost_responses=1), takes_any_stream_for_wanted),
    ],
    "a rejected start is closed": [Mutant(HERE, faults(1, rejections=1))],
    "a start without a response is in doubt": [
        Mutant(HERE, faults(1, lost_responses=1)),
        Mutant(HELD, faults(1, lost_responses=1), takes_lost_response_for_failure),
    ],
    "an open socket is a stream": [Mutant(HERE)],
    "a callback reports a stream": [Mutant(AGAIN, faults(1, lost_responses=1))],
    "a closed socket is a hint": [
        Mutant(HERE, faults(1, drops=1)),
        Mutant(HELD_HERE, faults(1, half_open=1), takes_closed_socket_for_proof),
    ],
    "a callback reports an end": [Mutant(HELD, faults(1, drops=1))],
    "a stop by sid is proof": [Mutant(HERE, faults(1, half_open=1))],
    "a stop by name proves nothing": [
        Mutant(AGAIN_HERE, faults(1, lost_responses=1)),
        Mutant(AGAIN_HERE, faults(1, lost_responses=1), takes_missing_name_for_proof),
    ],
    "a stop that failed is repeated": [Mutant(HERE, faults(2, half_open=1, lost_responses=1))],
    "after a restart of the keeper nothing is certain": [
        Mutant(HERE, faults(1, kills=1)),
        Mutant(HERE, faults(1, kills=1), believes_journal),
        Mutant(evolve(HERE, replaces=True), faults(1, kills=1), takes_old_streams_for_wanted),
    ],
    "a request under way is waited for": [Mutant(HELD, faults(1, torn_lists=1))],
    "a target that may have ended is checked": [Mutant(HERE, faults(1, ends=1))],
    "nothing is done before its time": [Mutant(ELSEWHERE)],
    "of two streams the older one is stopped": [Mutant(AGAIN_HERE, faults(1, lost_responses=1))],
    "what may still run is stopped first": [Mutant(HELD_HERE, faults(1, half_open=1))],
    "a stream that is not heard is given up": [Mutant(HERE, faults(1, kills=1))],
    "a stream that runs is left alone": [Mutant(HELD)],
    "without its sid it is stopped by its name": [Mutant(HERE, faults(1, kills=1))],
    "a doubt holds, if a second stream would not be refused": [Mutant(HELD, faults(1, lost_responses=1))],
    "or else the stream is stopped by its name": [Mutant(AGAIN_HERE, faults(1, kills=1))],
    "while a receiver rejects all streams, nothing is started": [Mutant(HERE, faults(2, pauses=1, rejections=1))],
    "a target without a stream gets one": [Mutant(HERE), Mutant(HELD_HERE, faults(1, kills=1), starts_unsaved)],
}


def replace(rule: Observed | Planned, apply: Callable[..., Any]) -> Observed | Planned:
    return Planned(apply) if isinstance(rule, Planned) else Observed(rule.kind, apply)


def test_all_rules_are_taken_away() -> None:
    assert list(MUTANTS) == list(RULES)


@pytest.mark.parametrize(
    ("rule", "mutant"),
    [
        pytest.param(rule, mutant, id=f"{rule}: {mutant.instead.__name__ if mutant.instead else 'removed'}")
        for rule, mutants in MUTANTS.items()
        for mutant in mutants
    ],
)
def test_rule_is_needed(rule: str, mutant: Mutant) -> None:
    """What is checked with it holds, and has a counterexample without it."""
    changed: dict[str, Observed | Planned] = {}
    for name, one in RULES.items():
        if name != rule:
            changed[name] = one
        elif mutant.instead is not None:
            changed[name] = replace(one, mutant.instead)
    assert mutant.setup.check(mutant.faults, starts=2).problem is None
    result = mutant.setup.check(mutant.faults, starts=2, rules=changed)
    assert result.problem is not None
    assert len(result.steps) <= 15


def stops_without_a_doubt(state: TargetState, _: KeepSettings) -> TargetState:
    return evolve(state, attempts=tuple(evolve(attempt, fate=Fate.ENDING) for attempt in state.attempts))


@pytest.mark.parametrize(
    ("setup", "changes"),
    [
        pytest.param(HERE, {"unproven": lambda _: ()}, id="a stop by name is taken for proof"),
        pytest.param(HELD, {"stop": stops_without_a_doubt}, id="a call that is stopped by name is not held"),
    ],
)
def test_what_is_told_at_the_end_is_needed(setup: Setup, changes: dict[str, Any]) -> None:
    assert setup.check(ENDS, starts=2, **changes).problem is not None
