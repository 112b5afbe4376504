"""When a receiver counts as one that rejects all streams."""

from collections.abc import Iterable

import pytest
from attrs import field, frozen

from signalwire_streams.keep_streaming import (
    EndedCallback,
    KeepSettings,
    SocketOpened,
    StartAccepted,
    StartedCallback,
    StartRejected,
    StartStream,
    TargetChecked,
    TargetListed,
    TargetState,
    TimePassed,
    WaitUntil,
    decide,
)
from signalwire_streams.keep_streaming._receiver_breaker import ReceiverBreaker

ELSEWHERE = KeepSettings(duplicate_names="refused")
HERE = KeepSettings(duplicate_names="refused", receives=True)


@frozen
class Rooms:
    """Targets whose streams lead to one receiver; the decisions about them are real."""

    settings: KeepSettings = ELSEWHERE
    breaker: ReceiverBreaker = field(factory=lambda: ReceiverBreaker(ELSEWHERE))
    states: dict[str, TargetState] = field(factory=dict)
    changes: list[bool] = field(factory=list)
    starts: list[str] = field(factory=list)
    waits: dict[str, float] = field(factory=dict)

    def see(self, name: str, observation: object, now: float) -> None:
        state = self.states.get(name, TargetState())
        decision = decide(state, observation, now, self.settings, paused_until=self.breaker.paused_until)  # type: ignore[arg-type]
        self.states[name] = decision.state
        self.waits.pop(name, None)
        for action in decision.actions:
            if isinstance(action, StartStream):
                self.starts.append(name)
                self.breaker.on_start(name, decision.state, now)
            elif isinstance(action, WaitUntil):
                self.waits[name] = action.at
        self.breaker.on_decision(name, decision.state, now)
        self.update(now)

    def update(self, now: float) -> None:
        if self.breaker.update(now):
            self.changes.append(self.breaker.is_paused)

    def start(self, names: Iterable[str], now: float = 0.0) -> None:
        for name in names:
            self.see(name, TargetListed() if name not in self.states else TimePassed(), now)

    def accept(self, names: Iterable[str], now: float = 0.0, *, heard: bool = False) -> None:
        for name in names:
            number, sid = self.states[name].last, f"{name}-{self.states[name].last}"
            self.see(name, StartAccepted(attempt=number, sid=sid), now)
            if heard:
                opened = SocketOpened if self.settings.receives else StartedCallback
                self.see(name, opened(attempt=number, sid=sid), now)

    def refuse(self, names: Iterable[str], now: float = 0.0, *, in_progress: bool = True) -> None:
        for name in names:
            self.see(name, EndedCallback(attempt=self.states[name].last, reason="connection_refused"), now)
            self.see(name, TargetChecked(in_progress=in_progress), now)


def rooms(count: int) -> list[str]:
    return [f"room-{number}" for number in range(count)]


def refused(count: int, now: float = 0.0) -> Rooms:
    kept = Rooms()
    kept.start(rooms(count))
    kept.accept(rooms(count))
    kept.refuse(rooms(count), now)
    return kept


def test_starts_pause_once_the_streams_of_three_targets_were_rejected() -> None:
    kept = refused(2)
    assert not kept.breaker.is_paused
    kept = refused(3)
    assert kept.changes == [True]
    assert kept.breaker.reason == "connection_refused"


def test_stream_that_lived_for_long_is_not_rejected() -> None:
    kept = Rooms()
    kept.start(rooms(5))
    kept.accept(rooms(5), heard=True)
    kept.refuse(rooms(5), 10.0)
    assert kept.changes == []


def test_stream_whose_target_ended_is_not_rejected() -> None:
    kept = Rooms()
    kept.start(rooms(5))
    kept.accept(rooms(5))
    kept.refuse(rooms(5), 1.0, in_progress=False)
    assert kept.changes == []


def test_start_that_the_space_rejects_says_nothing_of_the_receiver() -> None:
    kept = Rooms()
    kept.start(rooms(5))
    for name in rooms(5):
        kept.see(name, StartRejected(attempt=1, reason="403"), 0.0)
        kept.see(name, TargetChecked(in_progress=True), 0.0)
    assert kept.changes == []


def test_stream_that_is_not_heard_in_time_is_rejected() -> None:
    kept = Rooms(HERE, ReceiverBreaker(HERE))
    kept.start(rooms(3))
    kept.accept(rooms(3))
    for name in rooms(3):
        kept.see(name, TimePassed(), HERE.socket_timeout)
    assert kept.changes == [True]
    assert kept.breaker.reason == "its socket was not opened in time"


@pytest.mark.parametrize(("bad", "is_paused"), [(19, False), (20, True)])
def test_one_in_ten_may_be_heard(bad: int, *, is_paused: bool) -> None:
    kept = Rooms()
    kept.start(rooms(bad + 2))
    kept.accept(rooms(bad))
    kept.accept(rooms(bad + 2)[bad:], heard=True)
    kept.refuse(rooms(bad), 1.0)
    assert kept.breaker.is_paused is is_paused


def test_stream_counts_as_heard_until_it_has_lived_for_long() -> None:
    kept = Rooms()
    kept.start(rooms(1))
    kept.accept(rooms(1), heard=True)
    kept.update(ELSEWHERE.min_lifetime)
    kept.see("room-0", TargetListed(), ELSEWHERE.min_lifetime)
    kept.start(rooms(4)[1:], 11.0)
    kept.accept(rooms(4)[1:], 11.0)
    kept.refuse(rooms(4)[1:], 12.0)
    assert kept.breaker.is_paused


@pytest.mark.parametrize(("undecided", "is_paused"), [(3, True), (4, False)])
def test_most_starts_have_to_be_decided(undecided: int, *, is_paused: bool) -> None:
    kept = Rooms()
    kept.start(rooms(3 + undecided))
    kept.accept(rooms(3 + undecided))
    kept.refuse(rooms(3), 1.0)
    assert kept.breaker.is_paused is is_paused
    if not is_paused:  # a start whose result does not come is forgotten
        kept.update(ELSEWHERE.socket_timeout + ELSEWHERE.min_lifetime)
        assert kept.changes == [True]


def test_streams_from_before_do_not_count() -> None:
    """They were opened before the receiver began to refuse."""
    kept = Rooms()
    kept.start(rooms(50))
    kept.accept(rooms(50), heard=True)
    kept.update(10.0)
    kept.start(["a", "b", "c"], 20.0)
    kept.accept(["a", "b", "c"], 20.0)
    kept.refuse(["a", "b", "c"], 21.0)
    assert kept.changes == [True]


def test_pause_has_one_start_at_a_time_and_longer_waits() -> None:
    kept = refused(20)
    kept.starts.clear()
    now, times = 0.0, []
    for _ in range(9):
        now = kept.breaker.paused_until
        kept.start(rooms(20), now - 0.1)
        assert kept.starts == []
        kept.start(rooms(20), now)
        if not kept.starts:  # each of them waits for its own next start
            now = min(state.next_at for state in kept.states.values())
            kept.start(rooms(20), now)
        [probe] = kept.starts
        kept.starts.clear()
        kept.start(rooms(20), now + 1.0)
        assert kept.starts == []
        assert any(wait == now + 20.0 for wait in kept.waits.values())
        kept.accept([probe], now + 1.0)
        kept.refuse([probe], now + 1.0)
        times.append(kept.breaker.paused_until - now - 1.0)
    assert times == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]
    assert kept.changes == [True]


def test_probe_that_lives_resumes_all() -> None:
    kept = refused(20)
    kept.starts.clear()
    kept.start(rooms(20), 1.0)
    assert kept.starts == ["room-0"]
    kept.accept(["room-0"], 1.5, heard=True)
    kept.update(11.0)
    assert kept.changes == [True]
    kept.update(11.5)
    assert kept.changes == [True, False]
    kept.start(rooms(20), 11.5)
    assert len(kept.starts) == 20


def test_waits_begin_anew_after_a_probe_that_lived() -> None:
    kept = refused(20)
    kept.start(rooms(20), 1.0)
    kept.accept(["room-0"], 1.5, heard=True)
    kept.update(11.5)
    others = rooms(20)[1:]
    kept.start(others, 11.5)
    kept.accept(others, 11.5)
    kept.refuse(others, 12.0)
    assert kept.changes == [True, False, True]
    assert kept.breaker.paused_until == 12.0 + ELSEWHERE.wait_initial


def test_probe_that_is_not_decided_is_followed_by_another() -> None:
    kept = refused(3)
    kept.starts.clear()
    kept.start(rooms(3), 1.0)
    kept.accept(["room-0"], 1.0)
    kept.start(rooms(3), 20.9)
    kept.start(rooms(3), 21.0)
    assert kept.starts == ["room-0", "room-1"]


def test_probe_whose_target_ends_is_followed_by_another() -> None:
    kept = refused(3)
    kept.starts.clear()
    kept.start(rooms(3), 1.0)
    kept.accept(["room-0"], 1.0)
    kept.refuse(["room-0"], 2.0, in_progress=False)
    kept.start(rooms(3)[1:], 2.0)
    assert kept.starts == ["room-0", "room-1"]
    assert kept.changes == [True]


def test_stream_from_before_the_refusals_resumes_nothing() -> None:
    kept = Rooms()
    kept.start(["old"])
    kept.accept(["old"], 5.0, heard=True)
    kept.start(rooms(10), 5.0)
    kept.accept(rooms(10), 5.0)
    kept.refuse(rooms(10), 6.0)
    kept.update(15.0)
    assert kept.changes == [True]


def test_stream_that_was_opened_since_resumes_all_though_it_is_no_probe() -> None:
    kept = Rooms()
    kept.start(rooms(6))
    kept.accept(rooms(6))
    kept.refuse(rooms(3), 1.0)
    kept.accept(rooms(6)[3:4], 2.0, heard=True)
    kept.update(12.0)
    assert kept.changes == [True, False]


def test_target_that_leads_elsewhere_is_forgotten() -> None:
    kept = refused(2)
    kept.breaker.forget("room-0", 1.0)
    kept.start(["room-2"], 1.0)
    kept.accept(["room-2"], 1.0)
    kept.refuse(["room-2"], 1.0)
    assert kept.changes == []


def test_refusals_of_one_target_count_once() -> None:
    kept = Rooms()
    now = 0.0
    for _ in range(5):
        kept.start(["room"], now)
        kept.accept(["room"], now)
        kept.refuse(["room"], now)
        now = kept.states["room"].next_at
    assert kept.states["room"].early_ends == 5
    assert kept.changes == []


def test_stream_that_was_heard_and_then_rejected_counts_as_rejected_only() -> None:
    kept = Rooms()
    kept.start(rooms(3))
    kept.accept(rooms(3), heard=True)
    kept.refuse(rooms(3), 1.0)
    assert kept.changes == [True]


def test_stream_that_was_rejected_and_then_heard_counts_as_heard_only() -> None:
    kept = Rooms()
    first, again, *others = rooms(21)
    kept.start([first, again, *others])
    kept.accept([first, again, *others])
    kept.accept([first], heard=True)
    kept.refuse([again])
    kept.start([again], 1.0)
    kept.accept([again], 1.0, heard=True)
    kept.refuse(others, 2.0)
    assert kept.changes == [], "19 were rejected, and two heard"
    kept.start(["another"], 2.0)
    kept.refuse(["another"], 2.0)
    assert kept.changes == [True]


def test_stream_that_was_heard_is_decided() -> None:
    kept = Rooms()
    kept.start(rooms(12))
    kept.accept(rooms(12), heard=True)
    others = ["a", "b", "c"]
    kept.start(others, 11.0)
    kept.refuse(others, 11.0)
    assert kept.changes == [True]


def test_stream_of_a_target_that_was_rejected_before_leaves_nothing_undecided() -> None:
    kept = Rooms()
    first, second, third, *_ = rooms(5)
    kept.start(rooms(5))
    kept.accept(rooms(5))
    kept.refuse([first, second])
    kept.start([first, second], 1.0)
    kept.refuse([third], 1.0)
    assert kept.changes == [True], "three were rejected, and two are undecided"


def test_rejection_of_before_the_last_stream_that_lived_is_forgotten_though_another_target_was_rejected_since() -> None:
    kept = Rooms()
    for name, now in (("again", 0.0), ("once", 5.0), ("heard", 6.0), ("again", 12.0)):
        kept.start([name], now)
        kept.accept([name], now, heard=name == "heard")
        kept.refuse([name] if name != "heard" else [], now)
    kept.update(16.0)
    kept.start(["last"], 17.0)
    kept.refuse(["last"], 17.0)
    assert kept.changes == [], "two were rejected since that one was heard"
