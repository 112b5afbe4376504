"""Hours of a Space's life in seconds: conferences that come and go, and what keepers make of them, by a virtual clock.

No request is sent. Responses, sockets and callbacks are events of one queue, and fail as often as `Weather` says.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random

from attrs import define, field, frozen

from signalwire_streams.keep_streaming import (
    EndedCallback,
    GetTarget,
    KeepAction,
    KeeperRestarted,
    KeepObservation,
    KeepSettings,
    KeepStatus,
    NameRefused,
    ResponseLost,
    SaveAttempt,
    SocketClosed,
    SocketOpened,
    StartAccepted,
    StartedCallback,
    StartRejected,
    StartStream,
    StopAnswered,
    StopByName,
    StopBySid,
    StopResult,
    TargetChecked,
    TargetListed,
    TargetMissing,
    TargetState,
    TimePassed,
    WaitUntil,
    decide,
)

LEASE = 30.0
_POLLS_OF_A_LOSS = 4  # while a response is waited for that does not come, and then for the next start


@frozen(kw_only=True)
class Weather:
    """What fails how often.

    Attributes:
        drops: fraction of all sockets that close in a minute.
        unnoticed: fraction of those that the Space does not notice.
        lost_responses: fraction of requests without a response; of those, a third is executed, a third is executed
            late, and a third is not executed.
        lost_callbacks: fraction of callbacks that do not arrive.
        torn: fraction of live targets that a list does not have.
        outage: from when to when there is no response to anything, in seconds.
        kills: when the keeper that is at work is killed, in seconds.
    """

    drops: float = 0.02
    unnoticed: float = 0.2
    lost_responses: float = 0.1
    lost_callbacks: float = 0.2
    torn: float = 0.001
    outage: tuple[float, float] = (0.0, 0.0)
    kills: tuple[float, ...] = ()


@define(eq=False)
class Stream:
    """A stream that runs."""

    keeper: "Keeper"
    attempt: int
    is_connected: bool


@define(eq=False)
class Target:
    """A conference or call, as the Space knows it."""

    sid: str
    began: float
    ends: float
    streams: dict[str, Stream] = field(factory=dict)
    since: float = 0.0  # when the streams last changed
    streamed: float = 0.0  # seconds with one stream that is received
    doubled: float = 0.0  # seconds with two or more
    polls: int = 0  # lists that have it
    unanswered: int = 0  # starts without a response
    names: set[str] = field(factory=set)


class Soak:
    """One Space, its targets and their keepers."""

    def __init__(
        self, weather: Weather, *, targets: int, seconds: float, life: float, refuses: bool, seed: int
    ) -> None:
        self.weather, self.refuses, self.seconds = weather, refuses, seconds
        self.random = Random(seed)  # noqa: S311  (no secret depends on it)
        self.now = 0.0
        self.targets: dict[str, Target] = {}
        self.ended: list[Target] = []
        self.sids = count(1)
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()
        for number in range(targets):
            began = self.random.uniform(0.0, seconds)
            self.at(began, partial(self._begin, f"CF{number}", self.random.expovariate(1.0 / life)))

    def at(self, time: float, event: Callable[[], object]) -> None:
        heappush(self._queue, (time, next(self._order), event))

    def after(self, seconds: float, event: Callable[[], object]) -> None:
        self.at(self.now + seconds, event)

    def run(self) -> None:
        while self._queue and self._queue[0][0] <= self.seconds:
            self.now, _, event = heappop(self._queue)
            event()
        self.now = self.seconds
        for target in tuple(self.targets.values()):
            self._end(target)

    @property
    def is_out(self) -> bool:
        begins, ends = self.weather.outage
        return begins <= self.now < ends

    def happens(self, fraction: float) -> bool:
        return self.random.random() < fraction

    def _begin(self, sid: str, life: float) -> None:
        target = self.targets[sid] = Target(sid=sid, began=self.now, ends=self.now + life, since=self.now)
        self.at(target.ends, lambda: self._end(target))

    def _end(self, target: Target) -> None:
        if self.targets.pop(target.sid, None) is not None:
            for sid in tuple(target.streams):
                self.end_stream(target, sid, "the conference ended")
            self.account(target)
            target.ends = self.now
            self.ended.append(target)

    def account(self, target: Target) -> None:
        """Add the time since the streams last changed."""
        seconds, target.since = self.now - target.since, self.now
        if len(target.streams) > 1:
            target.doubled += seconds
        if any(stream.is_connected for stream in target.streams.values()):
            target.streamed += seconds

    def start(self, keeper: "Keeper", sid: str, attempt: int, name: str) -> KeepObservation:
        target = self.targets.get(sid)
        if target is None:
            return StartRejected(attempt=attempt, reason="404")
        running = {self.name_of(stream, sid) for stream in target.streams.values()}
        if self.refuses and name in running:
            return NameRefused(attempt=attempt)
        stream_sid = f"s{next(self.sids)}"
        self.account(target)
        stream = target.streams[stream_sid] = Stream(keeper=keeper, attempt=attempt, is_connected=True)
        target.names.add(name)
        receives = keeper.settings.receives
        if receives and not keeper.is_up:
            stream.is_connected = False
            self.after(1.0, lambda: self.end_stream(target, stream_sid, "connection_refused"))
        elif receives:
            opened = SocketOpened(attempt=attempt, sid=stream_sid)
            self.after(self.random.uniform(0.05, 0.5), lambda: keeper.observe(sid, opened))
        self.call_back(keeper, sid, StartedCallback(attempt=attempt, sid=stream_sid))
        if self.weather.drops:
            lasts = self.random.expovariate(self.weather.drops / 60.0)
            self.after(max(lasts, 1.0), lambda: self._drop(target, stream_sid))
        return StartAccepted(attempt=attempt, sid=stream_sid)

    def name_of(self, stream: Stream, sid: str) -> str:
        return stream.keeper.settings.stream_name("kept", sid, stream.attempt)

    def stop(self, keeper: "Keeper", sid: str, stop: StopBySid | StopByName) -> StopResult:
        target = self.targets.get(sid)
        if target is None:
            return StopResult.ENDED
        if isinstance(stop, StopBySid):
            self.end_stream(target, stop.sid, "it was stopped")
            return StopResult.ENDED
        name = keeper.settings.stream_name("kept", sid, stop.attempt)
        named = [found for found, stream in target.streams.items() if self.name_of(stream, sid) == name]
        for found in named[:1]:
            self.end_stream(target, found, "it was stopped")
        return StopResult.ENDED if name in target.names else StopResult.NOT_FOUND

    def _drop(self, target: Target, sid: str) -> None:
        stream = target.streams.get(sid)
        if stream is None or not stream.is_connected:
            return
        if stream.keeper.settings.receives and self.happens(self.weather.unnoticed):
            self.close_socket(target, stream)
        else:
            self.end_stream(target, sid, "the connection was lost")

    def close_socket(self, target: Target, stream: Stream) -> None:
        """A socket closes, and the Space does not notice."""
        self.account(target)
        stream.is_connected = False
        stream.keeper.observe(target.sid, SocketClosed(attempt=stream.attempt))

    def end_stream(self, target: Target, sid: str, reason: str) -> None:
        if sid not in target.streams:
            return
        self.account(target)
        stream = target.streams.pop(sid)
        keeper = stream.keeper
        if stream.is_connected and keeper.settings.receives:
            self.after(0.6, lambda: keeper.observe(target.sid, SocketClosed(attempt=stream.attempt)))
        self.call_back(keeper, target.sid, EndedCallback(attempt=stream.attempt, reason=reason))

    def call_back(self, keeper: "Keeper", sid: str, observation: KeepObservation) -> None:
        if not self.happens(self.weather.lost_callbacks):
            late = 60.0 if self.happens(0.05) else 1.0
            self.after(self.random.uniform(0.0, late), lambda: keeper.observe(sid, observation))


class Keeper:
    """Carries out what is decided for each target, as a real one would."""

    def __init__(self, soak: Soak, settings: KeepSettings, *, poll: float = 5.0, offset: float = 0.0) -> None:
        self.soak, self.settings, self.poll = soak, settings, poll
        self.is_up = True
        self.standby: Keeper | None = None  # on another host, with the same journal
        self.events: Counter[str] = Counter()
        self.starts = self.decisions = self.kept = 0
        self._states: dict[str, TargetState] = {}
        self._saved: dict[str, TargetState] = {}
        self._process = 0  # its number: what one before waited for does not arrive
        soak.at(offset, self._list)

    def pair_with(self, standby: "Keeper") -> None:
        """Have another one stand by with the same journal, and stand by for it once it has taken over."""
        self.standby, standby.standby = standby, self
        standby.is_up, standby._process, standby._saved = False, 1000, self._saved

    def observe(self, sid: str, observation: KeepObservation) -> None:
        state = self._states.get(sid)
        if state is None or not self.is_up:
            return
        self.decisions += 1
        decision = decide(state, observation, self.soak.now, self.settings)
        self._states[sid] = decision.state
        self.events.update(type(event).__name__ for event in decision.events)
        if decision.state.status is KeepStatus.ENDED:
            del self._states[sid]
            self._saved.pop(sid, None)
            return
        if self.soak.happens(0.9):  # what it writes down later is lost now and then
            self._saved[sid] = decision.state
        for action in decision.actions:
            if isinstance(action, SaveAttempt):
                self._saved[sid] = decision.state
            elif isinstance(action, WaitUntil):
                self._in_this_process(action.at - self.soak.now, sid, TimePassed())
            else:
                self._send(sid, action)

    def _in_this_process(self, seconds: float, sid: str, observation: KeepObservation) -> None:
        process = self._process
        self.soak.after(seconds, lambda: self.observe(sid, observation) if process == self._process else None)

    def _list(self) -> None:
        soak = self.soak
        if self.is_up and not soak.is_out:
            listed = {sid for sid in soak.targets if not soak.happens(soak.weather.torn)}
            for sid in listed:
                soak.targets[sid].polls += 1
            for sid in sorted(listed - self._states.keys()):
                self._states[sid] = TargetState(last=self._process * 1_000_000)
                self.observe(sid, TargetListed())
            self.kept = max(self.kept, len(self._states), len(self._saved))
            for sid in sorted(self._states.keys() - listed):
                self.observe(sid, TargetMissing())
        soak.after(self.poll, self._list)

    def _send(self, sid: str, action: KeepAction) -> None:
        soak, latency = self.soak, self.soak.random.uniform(0.05, 0.4)
        self.starts += isinstance(action, StartStream)
        if soak.is_out or soak.happens(soak.weather.lost_responses):
            if isinstance(action, StartStream) and sid in soak.targets:
                soak.targets[sid].unanswered += 1
            fate = 1.0 if soak.is_out else soak.random.random()
            if fate < 2 / 3:
                executed = latency if fate < 1 / 3 else soak.random.uniform(5.0, 60.0)
                soak.after(executed, partial(self._execute, sid, action))
            self._in_this_process(soak.random.uniform(0.1, 15.0), sid, _lost(action))
            return
        process = self._process

        def respond() -> None:
            if process == self._process:  # else it was executed for a process that was killed meanwhile
                self._in_this_process(latency, sid, self._execute(sid, action))
            else:
                self._execute(sid, action)

        soak.after(latency, respond)

    def _execute(self, sid: str, action: KeepAction) -> KeepObservation:
        if isinstance(action, StartStream):
            name = self.settings.stream_name("kept", sid, action.attempt)
            return self.soak.start(self, sid, action.attempt, name)
        if isinstance(action, StopBySid | StopByName):
            return StopAnswered(stop=action, result=self.soak.stop(self, sid, action))
        return TargetChecked(in_progress=sid in self.soak.targets)

    def die(self) -> None:
        """Be killed. Start again after five seconds, or else the other one takes over, from what was written down."""
        if self.standby is not None and not self.is_up:
            self.standby.die()
            return
        self.is_up = False
        self._process += 1
        self._states = {}
        if self.settings.receives:
            for target in self.soak.targets.values():
                for sid, stream in tuple(target.streams.items()):
                    if stream.keeper is self and self.soak.happens(self.soak.weather.unnoticed):
                        self.soak.close_socket(target, stream)
                    elif stream.keeper is self:
                        self.soak.end_stream(target, sid, "the connection was lost")
        if self.standby is None:
            self.soak.after(5.0, self._resume)
        else:
            self.soak.after(self.soak.random.uniform(LEASE / 2, LEASE), self.standby._resume)

    def _resume(self) -> None:
        self.is_up = True
        self._process += 1
        self._states = dict(self._saved)
        for sid in tuple(self._states):
            self.observe(sid, KeeperRestarted())


def _lost(action: KeepAction) -> KeepObservation:
    if isinstance(action, StartStream):
        return ResponseLost(attempt=action.attempt, reason="no response")
    if isinstance(action, StopBySid | StopByName):
        return StopAnswered(stop=action, result=StopResult.FAILED, reason="no response")
    assert isinstance(action, GetTarget)
    return TargetChecked(in_progress=None)


@frozen(kw_only=True)
class Report:
    """What became of all targets.

    Attributes:
        targets: how many there were.
        doubled: how many ever had two streams at once.
        missed: how many were never streamed, though they were in more than two lists beside those of the time that
            starts without a response took.
        longest_missed: seconds that the longest-lived of those lived.
        share: the fraction of their lives in which they were streamed.
        starts: requests.
        decisions: how often a keeper decided.
        kept: the most targets that a keeper had a state of.
        events: how many of each.
    """

    targets: int
    doubled: int
    missed: int
    longest_missed: float
    share: float
    starts: int
    decisions: int
    kept: int
    events: dict[str, int]


@frozen(kw_only=True)
class Scene:
    """Keepers that know nothing of each other, and their Space.

    Attributes:
        keepers: the settings of each.
        refuses: whether the Space refuses a second stream of a name.
        kills: how often the first of the keepers is killed.
        has_standby: whether that one has a second host, which takes over within a lease.
        is_promised: whether none is doubled, and no conference missed.
    """

    keepers: tuple[KeepSettings, ...]
    refuses: bool = True
    kills: int = 0
    has_standby: bool = False
    is_promised: bool = True

    def broken_promises(self, report: Report) -> list[str]:
        """Return what two hours should not have shown."""
        is_conference = self.keepers[0].is_guarded
        wrong = {
            "some were doubled": report.doubled and self.is_promised,
            "some were missed": report.missed and is_conference and self.is_promised,
            "they were streamed for too little of their lives": report.share < (0.98 if is_conference else 0.9),
        }
        return [problem for problem, is_wrong in wrong.items() if is_wrong]

    def play(self, *, targets: int, seconds: float, life: float = 600.0, seed: int = 1) -> Report:
        weather = Weather(
            outage=(seconds / 4, seconds / 4 + 180.0),
            kills=tuple(seconds * number / (self.kills + 1) for number in range(1, self.kills + 1)),
        )
        space = Soak(weather, targets=targets, seconds=seconds, life=life, refuses=self.refuses, seed=seed)
        keepers = [Keeper(space, settings, offset=2.0 * number) for number, settings in enumerate(self.keepers)]
        if self.has_standby:
            keepers.append(Keeper(space, self.keepers[0], offset=1.0))
            keepers[0].pair_with(keepers[-1])
        for time in weather.kills:
            space.at(time, keepers[0].die)
        space.run()
        events: Counter[str] = Counter()
        for keeper in keepers:
            events.update(keeper.events)
        unheard = [
            target
            for target in space.ended
            if target.polls > 2 + _POLLS_OF_A_LOSS * target.unanswered and not target.streamed
        ]
        return Report(
            targets=len(space.ended),
            doubled=sum(target.doubled > 0 for target in space.ended),
            missed=len(unheard),
            longest_missed=max((target.ends - target.began for target in unheard), default=0.0),
            share=sum(target.streamed for target in space.ended)
            / sum(target.ends - target.began for target in space.ended),
            starts=sum(keeper.starts for keeper in keepers),
            decisions=sum(keeper.decisions for keeper in keepers),
            kept=max(keeper.kept for keeper in keepers),
            events=dict(events),
        )


_HERE = KeepSettings(duplicate_names="refused", receives=True)
_ELSEWHERE = KeepSettings(duplicate_names="refused")
_HOLD = KeepSettings(duplicate_names="allowed", receives=True)
_RESTART = KeepSettings(duplicate_names="allowed", receives=True, in_doubt="restart")

CONFERENCES = {
    "conferences, received here": Scene(keepers=(_HERE,)),
    "conferences, received elsewhere": Scene(keepers=(_ELSEWHERE,)),
    "conferences, received here, keeper killed five times": Scene(keepers=(_HERE,), kills=5),
    "conferences, received elsewhere, keeper killed five times": Scene(keepers=(_ELSEWHERE,), kills=5),
    "conferences, received here, killed once with a second host": Scene(keepers=(_HERE,), kills=1, has_standby=True),
    "conferences, received elsewhere, killed once with a second host": Scene(
        keepers=(_ELSEWHERE,), kills=1, has_standby=True
    ),
    "conferences, two keepers that know nothing of each other": Scene(keepers=(_ELSEWHERE, _ELSEWHERE)),
    "conferences, two such keepers, received by each": Scene(keepers=(_HERE, _HERE)),
}
CALLS = {
    "calls that hold": Scene(keepers=(_HOLD,), refuses=False),
    "calls that hold, killed once with a second host": Scene(
        keepers=(_HOLD,), refuses=False, kills=1, has_standby=True
    ),
    "calls that restart": Scene(keepers=(_RESTART,), refuses=False, is_promised=False),
    "conferences whose Space does not refuse, though it is believed to": Scene(
        keepers=(_HERE,), refuses=False, is_promised=False
    ),
}
