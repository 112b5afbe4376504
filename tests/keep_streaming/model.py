"""A bounded model checker: one target and its keeper, with a Space, a network and processes that fail in any order.

`Model.check` visits every state that the keeper and its surroundings can reach with a number of faults. In each of
them there is at most one stream, if that is promised; and if everything works from there on, there is exactly one
within four rounds, or the keeper says that nobody can know. Each round is one list, and one time that comes.

Streams have the numbers of their attempts, which are also their sids. Of times only their order matters, and they may
come in any: a time is 1 until it comes, and then 0. What is on its way arrives in any order, or, if it is a callback,
never; only a socket is opened before it is closed. It arrives before a time comes, unless it is late. A keeper that is
killed leaves requests behind that are carried out later or never, and its journal has either everything or only what
had to be saved. One that ends and stops its streams tells which of them may still run; no others do.
"""

import gc
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cache
from math import inf
from operator import attrgetter
from random import Random
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from attrs import evolve, field, frozen

from signalwire_streams.keep_streaming import (
    EndedCallback,
    Fate,
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
    StreamNames,
    TargetChecked,
    TargetListed,
    TargetMissing,
    TargetState,
    TimePassed,
    WaitUntil,
)
from signalwire_streams.keep_streaming._decisions import RULES, Case, Observed, Planned, decide_by, stopping, unproven
from signalwire_streams.keep_streaming._state import (
    ObservationOfAttempt,
)

MAX_STARTS = 3
ROUNDS = 4
FOREIGN = 0
"""The number of a stream under the same name that another keeper started."""
_IGNORE_LATE = "a late observation of an older attempt changes nothing"
_STEPS = 60  # of one round; a keeper that takes more never rests


class Faults(NamedTuple):
    """How many of each may still happen, and how many in all."""

    total: int = 0
    lost_responses: int = 0
    kills: int = 0
    lost_journals: int = 0
    drops: int = 0
    half_open: int = 0
    repeats: int = 0
    late: int = 0
    torn_lists: int = 0
    rejections: int = 0
    ends: int = 0
    pauses: int = 0
    stops: int = 0


@frozen(kw_only=True)
class Space:
    """How the Space behaves, whatever the keeper assumes.

    Attributes:
        refuses: where it refuses a second stream of a name: in its ``"response"``, or in a ``"callback"``; or not.
        is_reusable: whether it takes a name again.
        finds_names: whether it finds streams by their names.
        has_foreign: whether there is a stream under our name that we did not start.
        loses_callbacks: whether any callback may be lost; else each arrives, and the journal has all that arrived.
    """

    refuses: str | None = "response"
    is_reusable: bool = True
    finds_names: bool = True
    has_foreign: bool = False
    loses_callbacks: bool = True


class Request(NamedTuple):
    action: KeepAction
    is_awaited: bool


class Message(NamedTuple):
    kind: str  # "response", "socket" or "callback"
    observation: KeepObservation
    attempt: int | None  # that it is of


_Value = TypeVar("_Value", bound=Hashable)


class Same(Generic[_Value]):
    """The only object for all equal values, so that it is compared and found by its identity."""

    __slots__ = ("text", "value")
    _all: ClassVar[dict[Any, Any]] = {}

    def __init__(self, value: _Value) -> None:
        self.value, self.text = value, repr(value)

    def __repr__(self) -> str:
        return self.text

    @classmethod
    def of(cls, value: _Value) -> "Same[_Value]":
        found: Same[_Value] | None = cls._all.get(value)
        if found is None:
            found = cls._all[value] = cls(value)
        return found


class World(NamedTuple):
    streams: tuple[tuple[int, bool], ...]  # those that run: the number, and whether its socket is open here
    names: frozenset[int]  # that were used
    requests: frozenset[Same[Request]]
    messages: frozenset[Same[Message]]
    state: Same[TargetState]
    journal: Same[TargetState]
    is_live: bool
    faults: Faults
    is_paused: bool = False  # starts wait for a receiver
    is_up: bool = True  # there is a keeper
    is_told: bool = False  # the one that ended said that a stream may still run
    replaced: int = -1  # the last attempt with fields that are not wanted any more

    def but(self, **changes: Any) -> "World":
        """Do the same as ``_replace``, at a third of the price."""
        values = list(self)
        for name, value in changes.items():
            values[_PLACES[name]] = value
        return tuple.__new__(World, values)


_PLACES = {name: place for place, name in enumerate(World._fields)}


Label = tuple[object, ...]


@frozen(kw_only=True)
class Result:
    """What was visited, and the steps to a state that should not be.

    Attributes:
        states: how many there are.
        problem: what is wrong with the last one.
        steps: the shortest way there.
        rounds: the most that were needed until there was one stream.
        doubts: in how many states nobody could know.
    """

    states: int
    problem: str | None = None
    steps: tuple[str, ...] = field(default=(), repr=lambda steps: "".join(f"\n  {step}" for step in steps))
    rounds: int = 0
    doubts: int = 0


@frozen(kw_only=True)
class Verdict:
    problem: str | None
    rounds: int = 0
    is_doubt: bool = False


class _Decided(NamedTuple):
    state: Same[TargetState]
    requests: frozenset[Same[Request]]
    is_saved: bool


class _Round(NamedTuple):
    problem: str | None
    following: World
    is_good: bool = False


class Model:
    def __init__(
        self,
        settings: KeepSettings,
        space: Space,
        *,
        at_most_one: bool = True,
        at_least_one: bool = True,
        replaces: bool = False,
        rules: Mapping[str, Observed | Planned] = RULES,
        stop: Callable[[TargetState, KeepSettings], TargetState] = stopping,
        unproven: Callable[[TargetState], object] = unproven,
    ) -> None:
        self._space, self._settings, self._rules = space, settings, rules
        self._replaces, self._stop_all, self._unproven = replaces, stop, unproven
        self._at_most_one, self._at_least_one = at_most_one, at_least_one
        self._ignores_late = rules.get(_IGNORE_LATE) is RULES[_IGNORE_LATE]
        self._decided: dict[tuple[Same[TargetState], KeepObservation, bool], _Decided] = {}
        self._rounds: dict[World, _Round] = {}

    def check(self, faults: Faults, *, starts: int = MAX_STARTS, limit: int = 10_000_000) -> Result:
        """Visit every state within the bound, nearest first, until one should not be."""
        was_enabled = gc.isenabled()
        gc.disable()  # it has nothing to collect, and takes a sixth of the time
        try:
            return self._check(faults, starts, limit)
        finally:
            if was_enabled:
                gc.enable()

    def _check(self, faults: Faults, starts: int, limit: int) -> Result:
        world = self._begin(faults)
        seen: dict[World, tuple[World, Label] | None] = {world: None}
        queue = deque(seen)
        rounds = doubts = 0
        while queue:
            world = queue.popleft()
            verdict = self._settle(world)
            if verdict.problem is not None:
                return Result(states=len(seen), problem=verdict.problem, steps=_way(seen, world))
            rounds, doubts = max(rounds, verdict.rounds), doubts + verdict.is_doubt
            for label, reached in self._moves(world):
                following = self._without_idle(reached)
                if world.is_paused and _has_new_start(world, following):
                    return Result(states=len(seen), problem="a start in a pause", steps=_way(seen, world))
                if following in seen or following.state.value.last > starts:
                    continue
                seen[following] = world, label
                queue.append(following)
                if len(seen) > limit:
                    return Result(states=len(seen), problem="too many states")
        return Result(states=len(seen), rounds=rounds, doubts=doubts)

    def _begin(self, faults: Faults) -> World:
        streams = ((FOREIGN, False),) if self._space.has_foreign else ()
        names, nothing = frozenset(number for number, _ in streams), frozenset[Any]()
        blank = Same.of(_BLANK)
        world = World(streams, names, nothing, nothing, blank, blank, is_live=True, faults=faults)
        return self._observe(world, TargetListed())

    def walk(self, faults: Faults, steps: int, random: Random) -> Result:
        """Go one random way, as long as the faults last."""
        world = self._begin(faults)
        way: list[str] = []
        for _ in range(steps):
            verdict = self._settle(world)
            moves = sorted(self._moves(world), key=lambda move: _text(move[0]))
            if verdict.problem is not None or not moves:
                return Result(states=len(way), problem=verdict.problem, steps=tuple(way))
            label, world = random.choice(moves)
            world = self._without_idle(world)
            way.append(_text(label))
        return Result(states=len(way))

    def _without_idle(self, world: World) -> World:
        """Leave out what changes nothing any more: a journal that is not read, callbacks of forgotten attempts."""
        journal = world.journal if world.faults.kills else world.state
        if world.messages and self._ignores_late:
            known = journal.value.attempts + world.state.value.attempts
            numbers = {None, *(attempt.number for attempt in known)}
            messages = frozenset(message for message in world.messages if message.value.attempt in numbers)
            if len(messages) < len(world.messages):
                return world.but(journal=journal, messages=messages)
        return world if journal is world.journal else world.but(journal=journal)

    # --- The keeper

    def _observe(self, world: World, observation: KeepObservation) -> World:
        if not world.is_up:
            return world
        known = self._decided.get((world.state, observation, world.is_paused))
        if known is None:
            until = 1.0 if world.is_paused else -inf
            case = Case(state=world.state.value, now=0.0, settings=self._settings, paused_until=until)
            decision = decide_by(self._rules, case, observation)
            saved = [action for action in decision.actions if isinstance(action, SaveAttempt)]
            sent = [action for action in decision.actions if not isinstance(action, SaveAttempt | WaitUntil)]
            requests = frozenset(Same.of(Request(action, True)) for action in sent)
            known = _Decided(Same.of(_plain(decision.state)), requests, bool(saved))
            self._decided[world.state, observation, world.is_paused] = known
        state, requests, is_saved = known
        if state is world.state and not requests and not is_saved:
            return world
        return world.but(state=state, journal=state if is_saved else world.journal, requests=world.requests | requests)

    # --- The Space

    def _carry_out(self, world: World, request: Same[Request]) -> World:
        """Execute a request; its response is on its way, unless nobody waits for it any more."""
        world = world.but(requests=world.requests - {request})
        action, is_awaited = request.value
        if isinstance(action, StartStream):
            world, answer = self._start(world, action.attempt)
        elif isinstance(action, GetTarget):
            answer = TargetChecked(in_progress=world.is_live)
        else:
            assert isinstance(action, StopBySid | StopByName)
            world, result = self._stop(world, action)
            answer = StopAnswered(stop=action, result=result)
        return _send(world, "response", answer) if is_awaited else world

    def _start(self, world: World, number: int) -> tuple[World, KeepObservation]:
        if not world.is_live:
            return world, StartRejected(attempt=number, reason="no such conference")
        name = self._name(number)
        runs = any(self._name(stream) == name for stream, _ in world.streams)
        accepted = StartAccepted(attempt=number, sid=str(number))
        if self._space.refuses and (runs or (not self._space.is_reusable and name in world.names)):
            if self._space.refuses == "response":
                return world, NameRefused(attempt=number)
            return _send(world, "callback", NameRefused(attempt=number)), accepted
        streams = (*world.streams, (number, self._settings.receives))
        world = world.but(streams=streams, names=world.names | {name})
        if self._settings.receives:
            world = _send(world, "socket", SocketOpened(attempt=number, sid=str(number)))
        return _send(world, "callback", StartedCallback(attempt=number, sid=str(number))), accepted

    def _name(self, number: int) -> int:
        return number if self._settings.names is StreamNames.ONCE else 0

    def _stop(self, world: World, stop: StopBySid | StopByName) -> tuple[World, StopResult]:
        if isinstance(stop, StopBySid):
            found = [stream for stream in world.streams if stream[0] == int(stop.sid)]
        elif self._space.finds_names:
            found = [stream for stream in world.streams if self._name(stream[0]) == self._name(stop.attempt)]
            if not found and self._name(stop.attempt) not in world.names:
                return world, StopResult.NOT_FOUND
        else:
            return world, StopResult.NOT_FOUND
        return (_end(world, found[0]) if found else world), StopResult.ENDED

    # --- What may happen

    def _moves(self, world: World) -> Iterator[tuple[Label, World]]:
        if not world.is_up:
            for request in world.requests:
                yield ("the Space carries out", request), _silent(self._carry_out(world, request))
            begun = world.but(is_up=True, is_told=False)
            yield ("a keeper begins",), self._begin_again(begun, world.journal, is_recorded=world.is_told)
            return
        for request in world.requests:
            yield ("the Space carries out", request), self._carry_out(world, request)
            if request.value.is_awaited:
                yield from self._lose(world, request)
        for message in world.messages:
            yield from self._arrive(world, message)
        if not (world.messages or any(request.value.is_awaited for request in world.requests)):
            yield from self._pass_time(world)
        elif world.faults.late:
            yield from self._pass_time(_spend(world, "late"))
        yield from self._fail(world)

    def _pass_time(self, world: World) -> Iterator[tuple[Label, World]]:
        due = _changed(world.state, next_at=0.0)
        if due is not world.state:
            yield ("the time comes",), self._observe(world.but(state=due), TimePassed())
        settled = _changed(world.state, has_settled=True)
        if settled is not world.state:
            yield ("a stream has lived long enough",), world.but(state=settled)

    def _lose(self, world: World, request: Same[Request]) -> Iterator[tuple[Label, World]]:
        action, faults = request.value.action, world.faults
        without = world.but(requests=world.requests - {request})
        if faults.lost_responses:
            lost = self._observe(_spend(without, "lost_responses"), _lost(action))
            yield ("is lost:", request), lost
            late = Same.of(Request(action, False))
            yield ("is late, and its response lost:", request), lost.but(requests=lost.requests | {late})
        if faults.rejections and isinstance(action, StartStream):
            rejected = StartRejected(attempt=action.attempt, reason="403")
            yield ("is rejected:", request), _send(_spend(without, "rejections"), "response", rejected)

    def _arrive(self, world: World, message: Same[Message]) -> Iterator[tuple[Label, World]]:
        kind, observation, _ = message.value
        if isinstance(observation, SocketClosed) and _opening(observation.attempt) in world.messages:
            return
        without = world.but(messages=world.messages - {message})
        yield ("arrives:", message), self._observe(without, observation)
        if kind == "callback":
            if self._space.loses_callbacks:
                yield ("is lost:", message), without
            if world.faults.repeats:
                yield ("arrives, and will again:", message), self._observe(_spend(world, "repeats"), observation)
        if kind == "response" and world.faults.lost_responses:
            lost = self._observe(_spend(without, "lost_responses"), _lost_response(observation))
            yield ("is lost:", message), lost

    def _fail(self, world: World) -> Iterator[tuple[Label, World]]:
        faults = world.faults
        for stream in world.streams:
            number, is_connected = stream
            if faults.drops:
                yield ("ends at the Space: stream", number), _end(_spend(world, "drops"), stream)
            if faults.half_open and is_connected:
                streams = tuple((one, connected and one != number) for one, connected in world.streams)
                broken = _spend(world, "half_open").but(streams=streams)
                yield (
                    ("unnoticed by the Space, a socket closes:", number),
                    _send(broken, "socket", SocketClosed(attempt=number)),
                )
        if faults.torn_lists:
            yield ("is missing from a torn list",), self._observe(_spend(world, "torn_lists"), TargetMissing())
        if world.is_paused:
            yield ("starts are resumed",), self._observe(world.but(is_paused=False), TimePassed())
        elif faults.pauses:
            yield ("starts are paused",), _spend(world, "pauses").but(is_paused=True)
        if faults.ends and world.is_live:
            ended = _spend(world, "ends").but(is_live=False)
            for stream in world.streams:
                ended = _end(ended, stream)
            yield ("the target ends",), ended
        if faults.stops and not any(request.value.is_awaited for request in world.requests):
            yield from self._end_keeper(_spend(world, "stops"))
        yield from self._kill(world)

    def _end_keeper(self, world: World) -> Iterator[tuple[Label, World]]:
        """Wait for a stop of each attempt, and tell and record what may still run."""
        state = self._stop_all(world.state.value, self._settings)
        stops = [
            Same.of(Request(StopByName(attempt=one.number) if one.sid is None else StopBySid(sid=one.sid), False))
            for one in state.attempts
        ]
        journal, nothing = Same.of(_plain(state)), Same.of(evolve(_BLANK, last=state.last))
        ended = world.but(state=journal, journal=journal, is_up=False, is_told=True)
        if stops and world.faults.lost_responses:
            late = _spend(ended, "lost_responses").but(requests=ended.requests.union(stops))
            yield ("the keeper ends, and its stops are late",), _silent(late)
        for stop in stops:
            ended = self._carry_out(ended, stop)
        if not self._unproven(state):
            ended = ended.but(state=nothing, journal=nothing, is_told=False)
        yield ("the keeper ends, and stops",), _silent(ended)

    def _begin_again(self, world: World, journal: Same[TargetState], *, is_recorded: bool = True) -> World:
        replaced = journal.value.last if self._replaces and is_recorded else -1
        began = world.but(state=journal, replaced=replaced)
        following = self._observe(began, KeeperRestarted(replaces=self._replaces) if is_recorded else TargetListed())
        return following.but(journal=following.state)

    def _kill(self, world: World) -> Iterator[tuple[Label, World]]:
        faults = world.faults
        if faults.kills:
            for requests in {_late(world), _late(world, only_late=True)}:
                for journal in {world.journal, world.state} if self._space.loses_callbacks else {world.state}:
                    killed = _without_process(_spend(world, "kills"), requests, journal)
                    late = sorted(requests, key=attrgetter("text"))
                    label = "the keeper is killed, and goes on from", journal, "with late requests", late
                    yield label, self._begin_again(killed, journal)
        if faults.lost_journals:
            blank = Same.of(evolve(_BLANK, last=world.state.value.last))
            killed = _without_process(_spend(world, "lost_journals"), _late(world), blank)
            yield ("the keeper is killed, and its journal lost",), self._observe(killed, TargetListed())

    # --- What has to be

    def _settle(self, world: World) -> Verdict:
        """Make everything work from here on, and return whether there is one stream within four rounds."""
        if not self._at_least_one:
            return Verdict(problem="two streams" if self._at_most_one and len(world.streams) > 1 else None)
        if not world.is_up:
            return Verdict(problem=self._left_running(world))
        rounds = 0
        world = world.but(faults=_NO_FAULTS, journal=world.state, is_paused=False)
        for number in range(ROUNDS + 2):
            result = self._rounds.get(world)
            if result is None:
                result = self._rounds[world] = self._run_round(world)
            if result.problem is not None:
                return Verdict(problem=result.problem)
            if not result.is_good:
                rounds = number + 1
            world = result.following
        if rounds > ROUNDS:
            return Verdict(problem=f"not one stream, but {world.streams}, and the keeper believes: {world.state}")
        return Verdict(problem=None, rounds=rounds, is_doubt=world.state.value.status is KeepStatus.IN_DOUBT)

    def _left_running(self, world: World) -> str | None:
        """Return what is wrong with a Space whose keeper has ended, once everything is carried out."""
        for request in sorted(world.requests, key=attrgetter("text"), reverse=True):  # stops, and then starts
            world = _silent(self._carry_out(world, request))
        runs = any(number != FOREIGN for number, _ in world.streams)
        return "a stream that was to be stopped runs, and nobody was told" if runs and not world.is_told else None

    def _run_round(self, world: World) -> "_Round":
        """Have everything arrive that is on its way, and look; then comes a list, and the time that is waited for."""
        if self._at_most_one and len(world.streams) > 1:
            return _Round("two streams", world)
        if world.state.value.status is KeepStatus.STREAMING and not world.state.value.attempts:
            return _Round("the keeper believes in a stream that nobody started", world)
        for _ in range(_STEPS):
            if not (world.requests or world.messages):
                break
            world = self._work(world)
            if self._at_most_one and len(world.streams) > 1:
                return _Round("two streams, when all that is on its way arrives", world)
        else:
            return _Round("the keeper never rests", world)
        is_good = self._is_good(world)
        world = self._observe(world, TargetListed() if world.is_live else TargetMissing())
        due = _changed(world.state, next_at=0.0, has_settled=True)
        world = self._observe(world.but(state=due), TimePassed())
        return _Round(None, world.but(journal=world.state), is_good=is_good)

    def _work(self, world: World) -> World:
        """Carry out all requests, and deliver what is on its way, sockets in their order."""
        for request in sorted(world.requests, key=attrgetter("text")):
            world = self._carry_out(world, request)
        for message in sorted(world.messages, key=_in_order):
            without = world.but(messages=world.messages - {message})
            world = self._observe(without, message.value.observation)
        return world

    def _is_good(self, world: World) -> bool:
        status = world.state.value.status
        if not world.is_live:
            return status is KeepStatus.ENDED
        if status is KeepStatus.IN_DOUBT:  # nobody can know whose stream it is, or whether there is one
            return len(world.streams) == 1 or not (world.streams or self._settings.is_guarded)
        replaced = [number for number, _ in world.streams if FOREIGN < number <= world.replaced]
        # A late start that nothing tells of may take the name once another stream has ended unnoticed.
        is_seen = self._settings.receives or not self._space.loses_callbacks
        if status is KeepStatus.STREAMING and replaced and is_seen and self._at_most_one:
            return False
        received = [number for number, is_open in world.streams if is_open or not self._settings.receives]
        doubted = world.state.value.of_fate(Fate.ENDING, Fate.ABANDONED)
        if not self._at_most_one and any(attempt.sid is None for attempt in doubted):  # another may run: that was told
            return status is KeepStatus.STREAMING and len(received) == 1
        return status is KeepStatus.STREAMING and len(received) == len(world.streams) == 1


_BLANK = TargetState()
_NO_FAULTS = Faults()


def _plain(state: TargetState) -> TargetState:
    """Forget what decides nothing."""
    attempts = tuple(
        evolve(attempt, settles_at=inf if attempt.settles_at == inf else max(attempt.settles_at, 0.0))
        for attempt in state.attempts
    )
    return evolve(
        state,
        attempts=attempts,
        next_at=max(state.next_at, 0.0),
        failures=min(state.failures, 1),
        early_ends=0,
        reason=None,
        reported=state.status,
        reported_reason=None,
        has_streamed=False,
    )


@cache
def _changed(state: Same[TargetState], *, next_at: float | None = None, has_settled: bool = False) -> Same[TargetState]:
    """Return a state in which times have come."""
    changed = state.value if next_at is None else evolve(state.value, next_at=next_at)
    if has_settled:
        attempts = (
            evolve(attempt, settles_at=0.0) if attempt.settles_at == 1 else attempt for attempt in changed.attempts
        )
        changed = evolve(changed, attempts=tuple(attempts))
    return Same.of(changed)


def _silent(world: World) -> World:
    """Nobody is there whom the Space could tell."""
    return world.but(messages=frozenset(), streams=tuple((number, False) for number, _ in world.streams))


def _spend(world: World, fault: str) -> World:
    left = {fault: getattr(world.faults, fault) - 1, "total": world.faults.total - 1}
    return world.but(faults=world.faults._replace(**left) if left["total"] else _NO_FAULTS)


def _send(world: World, kind: str, observation: KeepObservation) -> World:
    return world.but(messages=world.messages | {_message(kind, observation)})


@cache
def _message(kind: str, observation: KeepObservation) -> Same[Message]:
    attempt = observation.attempt if isinstance(observation, ObservationOfAttempt) else None
    return Same.of(Message(kind, observation, attempt))


def _opening(number: int) -> Same[Message]:
    return _message("socket", SocketOpened(attempt=number, sid=str(number)))


def _end(world: World, stream: tuple[int, bool]) -> World:
    number, is_connected = stream
    world = world.but(streams=tuple(one for one in world.streams if one != stream))
    if number == FOREIGN:
        return world
    if is_connected:
        world = _send(world, "socket", SocketClosed(attempt=number))
    return _send(world, "callback", EndedCallback(attempt=number, reason="it was stopped"))


def _late(world: World, *, only_late: bool = False) -> frozenset[Same[Request]]:
    """Return the requests that may still be carried out when nobody waits for them."""
    kept = (request.value for request in world.requests if not (only_late and request.value.is_awaited))
    return frozenset(Same.of(Request(request.action, False)) for request in kept)


def _without_process(world: World, requests: frozenset[Same[Request]], journal: Same[TargetState]) -> World:
    callbacks = frozenset(message for message in world.messages if message.value.kind == "callback")
    streams = tuple((number, False) for number, _ in world.streams)
    return world.but(requests=requests, messages=callbacks, streams=streams, state=journal, journal=journal)


def _lost(action: KeepAction) -> KeepObservation:
    if isinstance(action, StartStream):
        return ResponseLost(attempt=action.attempt, reason="no response")
    if isinstance(action, StopBySid | StopByName):
        return StopAnswered(stop=action, result=StopResult.FAILED, reason="no response")
    return TargetChecked(in_progress=None)


def _lost_response(observation: KeepObservation) -> KeepObservation:
    if isinstance(observation, StopAnswered):
        return _lost(observation.stop)
    if isinstance(observation, StartAccepted | NameRefused | StartRejected):
        return _lost(StartStream(attempt=observation.attempt))
    return _lost(GetTarget())


def _in_order(message: Same[Message]) -> tuple[bool, str]:
    return isinstance(message.value.observation, SocketClosed), message.text


def _text(label: Label) -> str:
    return " ".join(str(part) for part in label)


def _has_new_start(world: World, following: World) -> bool:
    if following.is_paused:
        new = following.requests - world.requests
        return any(request.value.is_awaited and isinstance(request.value.action, StartStream) for request in new)
    return False


def _way(seen: Mapping[World, tuple[World, Label] | None], world: World) -> tuple[str, ...]:
    steps: list[str] = []
    found = seen[world]
    while found is not None:
        world, label = found
        steps.append(_text(label))
        found = seen[world]
    return tuple(reversed(steps))
