"""Which requests trigger a fault: scopes, counters, order, invalid rules."""

import random
from itertools import pairwise
from typing import Any

import pytest

from signalwire_streams.simulator import FaultKind, FaultRule, Faults
from signalwire_streams.simulator._faults import matching_rules

from .peer import simulated

START, STOP, CALL_START = "start-conference-stream", "stop-conference-stream", "start-call-stream"


def faults(seed: int = 0) -> Faults:
    return Faults(random.Random(seed))  # noqa: S311  (reproducible on purpose)


def trip(rules: Faults, operation: str, target: str | None = None) -> FaultRule | None:
    return next(matching_rules(rules, operation, target), None)


def test_rule_with_times_triggers_on_the_next_requests_only() -> None:
    rules = faults()
    rule = rules.add("500", times=2)
    assert [trip(rules, START, "a") is rule for _ in range(4)] == [True, True, False, False]
    assert rule.hits == 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("every_nth", [1, 2, 10])
def test_every_nth_is_exact_and_depends_on_the_seed_only(every_nth: int, seed: int) -> None:
    """Every n-th request, from an offset that depends on the seed."""
    first, second = faults(seed), faults(seed)
    first.add("500", every_nth=every_nth)
    second.add("500", every_nth=every_nth)
    tripped = [trip(first, START, "a") is not None for _ in range(100)]
    assert tripped == [trip(second, START, "a") is not None for _ in range(100)]
    places = [place for place, hit in enumerate(tripped) if hit]
    assert len(places) == 100 // every_nth
    assert {later - earlier for earlier, later in pairwise(places)} <= {every_nth}


def test_every_nth_has_an_offset_that_depends_on_the_seed() -> None:
    offsets = set()
    for seed in range(20):
        rules = faults(seed)
        rules.add("500", every_nth=10)
        offsets.add(next(place for place in range(10) if trip(rules, START, "a")))
    assert len(offsets) > 3


def test_per_target_counts_each_conference_or_call() -> None:
    rules = faults()
    rules.add("500", per_target=1)
    hits = [sid for sid in ("a", "b", "a", "b", "c") if trip(rules, START, sid)]
    assert hits == ["a", "b", "c"]


def test_rule_with_target_ignores_other_targets() -> None:
    rules = faults()
    rules.add("500", target="a")
    assert trip(rules, START, "b") is None
    assert trip(rules, START, "a") is not None
    assert trip(rules, "list-conferences", None) is None


@pytest.mark.parametrize(
    ("scope", "operations"),
    [
        ("start", {START, CALL_START}),
        ("stop", {STOP, "stop-call-stream"}),
        ("list", {"list-conferences", "list-participants", "list-calls"}),
        ("get", {"get-conference", "get-call"}),
        ("end", {"end-conference", "end-call"}),
        ("end-conference", {"end-conference"}),
        ("unknown", {"unknown"}),
        (
            "any",
            {
                START,
                STOP,
                CALL_START,
                "stop-call-stream",
                "list-conferences",
                "list-participants",
                "list-calls",
                "get-conference",
                "get-call",
                "end-conference",
                "end-call",
            },
        ),
    ],
)
def test_scope_stands_for_operations(scope: str, operations: set[str]) -> None:
    assert faults().add("500", on=scope).operations == operations


def test_request_taken_by_a_rule_does_not_count_for_later_rules() -> None:
    rules = faults()
    first = rules.add("500", times=2)
    second = rules.add("502", every_nth=1, times=1)
    assert [trip(rules, START, "a") for _ in range(4)] == [first, first, second, None]


def test_rules_can_be_removed_and_cleared() -> None:
    rules = faults()
    rule = rules.add("500")
    rules.add("502")
    rule.remove()
    rule.remove()
    tripped = trip(rules, START, "a")
    assert tripped is not None
    assert tripped.kind is FaultKind.PROXY_502
    rules.clear()
    assert len(rules) == 0
    assert trip(rules, START, "a") is None


def test_connections_trigger_only_rules_for_connections() -> None:
    rules = faults()
    rules.add("500")
    connect = rules.add("reset-on-connect", times=1)
    assert trip(rules, "connect") is connect
    assert trip(rules, "connect") is None
    assert connect.hits == 1
    rules.clear()
    rules.add(FaultKind.RESET_ON_CONNECT)
    assert trip(rules, START, "a") is None


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    [
        ("slow", {}, "'slow' is not a kind of fault: write one of .*latency"),
        ("500", {"on": "starts"}, "on='starts' is not a scope of '500'; write one of any, .*start"),
        ("500", {"times": 0}, "times must be at least 1, not 0"),
        ("500", {"every_nth": -1}, "every_nth must be at least 1"),
        ("500", {"per_target": 0}, "per_target must be at least 1"),
        ("500", {"status": 500}, "status is not a setting of '500', which takes body"),
        ("empty", {"body": "api"}, "body is not a setting of 'empty', which takes no settings"),
        ("latency", {}, r"'latency' needs seconds=\.\.\."),
        ("latency", {"seconds": float("inf")}, "a number of seconds"),
        ("latency", {"seconds": -0.1}, "a number of seconds"),
        ("status", {"status": 600}, "an HTTP status from 200 to 599"),
        ("latency", {"seconds": -1}, "seconds must be a number of seconds, not -1"),
        ("status", {}, r"'status' needs status=\.\.\."),
        ("status", {"status": 99}, "status must be an HTTP status from 200 to 599"),
        ("status", {"status": 500, "body": "json"}, "body must be 'api', 'html' or 'empty'"),
        ("throttle", {"code": "20429"}, "code must be an error code"),
        ("throttle", {"retry_after": [1]}, "retry_after must be seconds or the header's text"),
        ("throttle", {"headers": "X-A: b"}, "headers must be a mapping"),
        ("hang", {"read_body": 1}, "read_body must be True or False"),
        ("redirect", {"location": 1}, "location must be a string"),
        ("duplicate-name", {"as_": "error"}, "as_ must be 'http-error' or 'stream-error'"),
        ("duplicate-name", {"on": "stop"}, "is not a scope of 'duplicate-name'; write one of start, start-call-stream"),
        (
            "duplicate-name",
            {"on": "nonsense"},
            "is not a scope of 'duplicate-name'; write one of start, start-call-stream",
        ),
        ("duplicate-name", {"executed": True}, "'duplicate-name' starts nothing"),
        ("reset-on-connect", {"on": "start"}, "omit on; use times or every_nth"),
        ("reset-on-connect", {"target": "a", "executed": False}, "omit target, executed"),
    ],
)
def test_invalid_rule_is_rejected_with_a_hint(kind: str, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        faults().add(kind, **given)


async def test_space_replaces_the_same_responses_under_the_same_seed() -> None:
    async def run() -> list[int]:
        async with simulated(seed=7) as peer:
            rule = peer.space.faults.add("503", on="start", every_nth=4)
            statuses = [(await peer.start()).status for _ in range(12)]
            assert rule.hits == statuses.count(503) == 3
            return statuses

    assert await run() == await run()


async def test_fault_applies_without_authentication_but_not_to_unknown_operations() -> None:
    """A proxy in front checks no tokens; paths outside of the API are not affected."""
    async with simulated() as peer:
        peer.space.faults.add("502")
        reply = await peer.send("GET", peer.path("Conferences"), headers={"Authorization": ""})
        assert reply.status == 502
        assert (await peer.get("Rooms")).status == 404


def test_kinds_name_what_they_require_of_a_space() -> None:
    assert {kind.value for kind in FaultKind if kind.requires_callbacks} == {
        kind.value for kind in FaultKind if kind.startswith("callback-")
    }
    assert {kind.value for kind in FaultKind if kind.requires_audio} == {
        *(kind.value for kind in FaultKind if kind.startswith(("socket-", "frames-"))),
        *("tls-untrusted", "connection-dropped", "no-stop"),
    }
