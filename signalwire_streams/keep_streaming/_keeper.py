"""`Keeper`: executes the decisions for each conference and call, and reports events.

All of it runs in one event loop: an observation is decided on at once, and a task executes the resulting actions. At
most one request about a target is under way at a time, apart from the polls.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from math import inf
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeAlias

from attrs import define, evolve, field, frozen

from signalwire_streams.callbacks._events import CallbackEvent
from signalwire_streams.clock import Clock
from signalwire_streams.errors import ClientStateError, InvalidRequestError, StreamsError
from signalwire_streams.keep_streaming._decisions import decide
from signalwire_streams.keep_streaming._events import (
    KeepEvent,
    KeepStatus,
    PollingFailed,
    PollingRecovered,
    StandbyEnded,
    StandbyStarted,
    StartsPaused,
    StartsResumed,
    StreamingInDoubt,
    TargetReleased,
    TargetSnapshot,
)
from signalwire_streams.keep_streaming._receiver_breaker import ReceiverBreaker
from signalwire_streams.keep_streaming._receiving import AttemptTokens
from signalwire_streams.keep_streaming._records import KeeperStore, KeptTarget, LeaseLostError, Target, new_state
from signalwire_streams.keep_streaming._settings import (
    OnChange,
    OnExit,
)
from signalwire_streams.keep_streaming._state import (
    Fate,
    GetTarget,
    KeepAction,
    KeeperRestarted,
    KeepObservation,
    SaveAttempt,
    StartRejected,
    StartStream,
    StopByName,
    StopBySid,
    TargetChecked,
    TargetListed,
    TargetMissing,
    TargetState,
    TimePassed,
    WaitUntil,
)
from signalwire_streams.keep_streaming._target_requests import TargetRequests, observation_of
from signalwire_streams.keep_streaming._template import (
    Item,
    Start,
    Template,
    apply_template,
    attempt_of,
    chooses,
    fingerprint,
    receiver_of,
    request_for,
)
from signalwire_streams.models import TargetKind
from signalwire_streams.models._validation import check_path_segment
from signalwire_streams.receiver import MediaReceiver

_LOG = logging.getLogger("signalwire_streams.keep_streaming")
_Arguments = ParamSpec("_Arguments")
_MAX_EVENTS = 10_000  # that wait for a reader

KeeperEvent: TypeAlias = (
    KeepEvent | PollingFailed | PollingRecovered | StandbyEnded | StandbyStarted | StartsPaused | StartsResumed
)
"""Any event that a `Keeper` yields."""

Obstacle: TypeAlias = PollingFailed | StandbyStarted | StartsPaused
"""An event that reports what keeps a `Keeper` from starting streams."""

_BEGINNINGS: Mapping[type[KeeperEvent], type[Obstacle]] = {
    PollingRecovered: PollingFailed,
    StandbyEnded: StandbyStarted,
    StartsResumed: StartsPaused,
}


@frozen(kw_only=True)
class KeeperOptions:
    """The arguments of `StreamsClient.keep_streaming`, checked."""

    name: str
    template: Template
    where: Callable[[Item], bool] | None
    poll: float
    on_change: OnChange
    on_exit: OnExit


@define(eq=False)
class _Kept:
    """One conference or call, while it is in progress."""

    target: Target
    state: TargetState
    tokens: AttemptTokens = field(repr=False)
    item: Item | None = None  # as it was listed last
    receiver: str = ""  # that its last request led to
    fingerprints: dict[int, str] = field(factory=dict)  # of the requests of its attempts
    prepared: Start | None = None  # what the template returned when it appeared
    status: KeepStatus | None = None  # in snapshots
    since: float = 0.0
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    @property
    def record(self) -> KeptTarget:
        return KeptTarget(state=self.state, fingerprints=self.fingerprints)


class Keeper:
    """Keeps one stream on each conference or call. `StreamsClient.keep_streaming` creates it.

    Use it with ``async with``, which begins and ends its work, and iterate over it for its events. One loop can read
    them. Up to 10,000 wait for it; then the oldest are dropped, since no stream waits for a reader.

    A fatal error, such as that of a full disk, is raised by the loop, and by the end of the block.
    """

    def __init__(
        self,
        options: KeeperOptions,
        requests: Mapping[TargetKind, TargetRequests],
        *,
        open_journal: Callable[[], Coroutine[Any, Any, KeeperStore]],
        receivers: Sequence[MediaReceiver],
        clock: Clock,
    ) -> None:
        self._options, self._requests, self._open_journal = options, requests, open_journal
        self._receivers, self._clock = receivers, clock
        self._targets: dict[str, _Kept] = {}  # the sids of conferences and of calls differ
        self._ignored: set[str] = set()  # listed, and not to be streamed
        self._ended: set[str] = set()  # since the last list was begun, which may still have them
        self._events: deque[KeeperEvent] = deque(maxlen=_MAX_EVENTS)
        self._obstacles: dict[tuple[type[Obstacle], str], Obstacle] = {}  # to all streams, or to those of one receiver
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._is_silent = False  # the polls fail
        self._breakers: dict[str, ReceiverBreaker] = {}  # of each receiver
        self._rejected = 0  # upgrades to its receivers when those worked last
        self._unrecovered: set[str] = set()  # of the keeper before, and not yet taken over
        self._is_ending = self._has_ended = False
        self._is_stopping = False  # so that nothing is decided any more
        self._journal: KeeperStore
        self._polling: asyncio.Task[None]

    def __repr__(self) -> str:
        return f"<Keeper {self._options.name!r}: {len(self._targets)} targets>"

    async def __aenter__(self) -> Self:
        """Open the journal, and begin to list what is in progress.

        Raises:
            InvalidRequestError: the journal is another keeper's, or another process is using it.
            JournalError: the journal can't be read or written, or its Redis can't be reached.
            ClientStateError: the keeper was used before.
        """
        if self._is_ending or hasattr(self, "_journal"):
            raise ClientStateError("this keeper was used before: call keep_streaming again")
        self._journal = await self._open_journal()
        self._polling = asyncio.create_task(self._guard(self._run))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_ending = True
        try:
            self._journal.stop_waiting()
            self._polling.cancel()
            await asyncio.wait({self._polling})
            for kept in self._targets.values():
                self._cancel_timer(kept)
            await self._finish()
            if self._options.on_exit is OnExit.STOP and self._failure is None:
                self._is_stopping = True
                records = self._journal.targets.items()
                unknown = [self._kept_of(*each) for each in records if each[0][1] in self._unrecovered]
                for kept in [*self._targets.values(), *unknown]:
                    if kept.state.attempts:
                        _ = self._spawn(self._stop_streams, kept)
                await self._finish()
        finally:
            self._is_stopping = True
            for task in self._tasks:  # if this was cancelled
                task.cancel()
            await self._finish()
            for kept in self._targets.values():
                kept.tokens.keep_only(())
            self._has_ended = True
            self._changed.set()
            await self._journal.aclose()
        if error is None and self._failure is not None:
            raise self._failure

    def __aiter__(self) -> AsyncIterator[KeeperEvent]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[KeeperEvent]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self._failure is not None:
                raise self._failure
            if self._has_ended:
                return
            self._changed.clear()
            await self._changed.wait()

    @property
    def snapshot(self) -> tuple[TargetSnapshot, ...]:
        """The conferences and calls that the keeper knows now; after it has ended, those that it knew then."""
        return tuple(map(self._snapshot_of, self._targets.values()))

    @property
    def obstacles(self) -> tuple[Obstacle, ...]:
        """The events that report what keeps it from starting streams, and whose end was not reported yet."""
        return tuple(self._obstacles.values())

    def _snapshot_of(self, kept: _Kept) -> TargetSnapshot:
        kind, target = kept.target
        return TargetSnapshot(
            kind=kind,
            target=target,
            item=kept.item,
            status=self._status_of(kept),
            reason=kept.state.reported_reason,
            seconds=self._clock.now() - kept.since,
        )

    def _status_of(self, kept: _Kept) -> KeepStatus:
        status = kept.state.reported or KeepStatus.WAITING
        if self._requests[kept.target[0]].settings.receives and not kept.state.of_fate(Fate.HEARD):
            status = KeepStatus.WAITING if status is KeepStatus.STREAMING else status
        return status

    async def handle_status_callback(self, event: CallbackEvent) -> None:
        """Handle a status callback: pass this to a `CallbackReceiver` as its handler, or call it from yours.

        The template's ``status_callback`` has to lead there. Callbacks of other streams are ignored.

        Args:
            event: a callback whose signature was verified.
        """
        kept = self._targets.get(event.target or "")
        observation = None if kept is None else observation_of(event, kept.state)
        if kept is not None and observation is not None:
            self._observe(kept, observation)

    def notice(self, sid: str) -> None:
        """Look at a conference or call at once, instead of with the next list: one that a webhook reports, for example.

        Args:
            sid: that of a conference or call. It gets a stream if it is in progress and of a kind that is kept, and
                was not passed over before: `where` and a template are asked once for each target.

        Raises:
            InvalidRequestError: it can't be a sid.
            ClientStateError: the keeper is not open: use it within ``async with``.
        """
        check_path_segment(sid, "sid")
        if not hasattr(self, "_journal"):
            raise ClientStateError("this keeper is not open: write 'async with client.keep_streaming(...) as keeper'")
        kept = self._targets.get(sid)
        if kept is not None:
            self._observe(kept, TargetMissing())
        elif not self._is_ending:
            _ = self._spawn(self._check_sid, sid)

    async def _check_sid(self, sid: str) -> None:
        await self._journal.permit()
        for requests in self._requests.values():
            try:
                item = await requests.get(sid)
            except StreamsError as error:
                _LOG.info("%s could not be looked at, and waits for the next list: %s", sid, error)
                return
            if item is not None:
                if item.status == "in-progress":
                    await self._appear(requests.kind, item)
                return

    async def _run(self) -> None:
        while self._failure is None:
            await self._take_lease()
            listed = await self._poll()
            recovering = [
                self._spawn(self._recover, (kind, sid), record, listed[kind])
                for (kind, sid), record in self._journal.targets.items()
                if kind in listed and sid in self._unrecovered
            ]
            if recovering:
                await asyncio.wait(recovering)
            self._compare(listed)
            self._update_receivers()
            await self._clock.sleep(self._options.poll)

    async def _take_lease(self) -> None:
        """Wait until this keeper may act. If another one may have acted since, begin with what that one recorded."""
        obstacle = self._journal.obstacle
        if obstacle is not None:
            self._emit(StandbyStarted(reason=obstacle))
        if await self._journal.acquire():
            for kept in self._targets.values():
                self._cancel_timer(kept)
                kept.tokens.keep_only(())
            for known in (self._targets, self._breakers, self._ignored):
                known.clear()
            self._unrecovered = {sid for kind, sid in self._journal.targets if kind in self._requests}
        if obstacle is not None:
            self._emit(StandbyEnded())

    async def _poll(self) -> dict[TargetKind, dict[str, Item]]:
        """Return what is in progress of each kind whose list could be read to its end."""
        listed: dict[TargetKind, dict[str, Item]] = {}
        failures: list[StreamsError] = []
        self._ended.clear()
        for kind, requests in self._requests.items():
            try:
                listed[kind] = {item.sid: item async for item in requests.list()}
            except ClientStateError:
                raise
            except StreamsError as error:
                failures.append(error)
        if failures and not self._is_silent:
            self._emit(PollingFailed(reason=str(failures[0])))
        elif self._is_silent and not failures:
            self._emit(PollingRecovered())
            self._start_now()
        self._is_silent = bool(failures)
        return listed

    def _start_now(self) -> None:
        """Retry starts that failed during an outage now, where a retry is safe."""
        for kept in self._targets.values():
            is_safe = self._requests[kept.target[0]].settings.is_guarded or not kept.state.attempts
            if is_safe and kept.state.status is KeepStatus.FAILING:
                kept.state = evolve(kept.state, next_at=self._clock.now(), failures=0)

    def _compare(self, listed: Mapping[TargetKind, Mapping[str, Item]]) -> None:
        if len(listed) == len(self._requests):
            self._ignored &= {sid for items in listed.values() for sid in items}
        now = self._clock.now()
        for kept in list(self._targets.values()):
            kind, sid = kept.target
            if kind not in listed:
                continue
            item = listed[kind].get(sid)
            if item is None:
                self._observe(kept, TargetMissing())
            else:
                kept.item = item
                if now >= kept.state.next_at:  # before that nothing is decided
                    self._observe(kept, TargetListed())
        for kind, items in listed.items():
            for sid, item in items.items():
                if sid not in self._targets and sid not in self._ended:
                    _ = self._spawn(self._appear, kind, item)

    def _update_receivers(self) -> None:
        """Update the breaker of each receiver, and forget those that no target leads to any more."""
        in_use = {kept.receiver for kept in self._targets.values()}
        for receiver, breaker in list(self._breakers.items()):
            self._update_breaker(receiver)
            if receiver not in in_use:
                del self._breakers[receiver]
                if breaker.is_paused:
                    self._emit(StartsResumed(receiver=receiver))

    async def _recover(self, key: Target, record: KeptTarget, listed: Mapping[str, Item]) -> None:
        """Take over a target of the keeper before."""
        kind, sid = key
        kept = self._kept_of(key, record)
        observation: KeepObservation = TargetChecked(in_progress=False)
        try:
            kept.item = listed[sid] if sid in listed else await self._requests[kind].get(sid)
            if kept.item is not None:
                request = await self._request(kept)
                if request is None:
                    self._unrecovered.discard(sid)
                    await self._release(kept)
                    return
                observation = KeeperRestarted(replaces=self._is_replaced(kept, request))
        except StreamsError as error:
            _LOG.info("%s is taken over, though it could not be looked at: %s", sid, error)
            observation = KeeperRestarted()
        self._targets[sid] = kept
        self._unrecovered.discard(sid)
        self._observe(kept, observation)

    def _kept_of(self, key: Target, record: KeptTarget) -> _Kept:
        return _Kept(key, record.state, AttemptTokens(self._receivers), fingerprints=dict(record.fingerprints))

    def _is_replaced(self, kept: _Kept, request: Start) -> bool:
        if self._options.on_change is OnChange.KEEP or not kept.fingerprints:
            return False
        return set(kept.fingerprints.values()) != {fingerprint(request)}

    async def _release(self, kept: _Kept) -> None:
        """Stop keeping a target that is no longer selected."""
        kind, sid = kept.target
        self._targets.pop(sid, None)
        self._ignored.add(sid)
        kept.tokens.keep_only(())
        if self._options.on_change is OnChange.REPLACE:
            await self._stop_streams(kept)
        else:
            self._journal.forget(kept.target)
        self._emit(TargetReleased(kind=kind, target=sid))

    async def _appear(self, kind: TargetKind, item: Item) -> None:
        sid = str(item.sid)
        if sid in self._targets or sid in self._unrecovered or sid in self._ignored:
            return
        self._ignored.add(sid)  # until it is decided, so that another poll does not ask again
        kept = _Kept((kind, sid), new_state(), AttemptTokens(self._receivers), item)
        try:
            kept.prepared = await self._request(kept)
        except StreamsError:  # which its start reports
            is_wanted = True
        else:
            is_wanted = kept.prepared is not None
        if is_wanted and sid not in self._targets and sid not in self._unrecovered:
            self._ignored.discard(sid)
            self._targets[sid] = kept
            self._observe(kept, TargetListed())

    async def _request(self, kept: _Kept) -> Start | None:
        """Return the request that the template is for a target, or None if it is not chosen."""
        kind, sid = kept.target
        fields: Any = self._options.template
        where = self._options.where
        if where is not None or callable(fields):
            item = kept.item = kept.item or await self._requests[kind].get(sid)
            if item is None:
                raise InvalidRequestError(f"the {kind} has ended")
            if where is not None and not chooses(where, item):
                return None
            if callable(fields):
                fields = await apply_template(fields, item)
        if fields is None:
            return None
        request = request_for(kind, sid, fields)
        before, kept.receiver = kept.receiver, receiver_of(request)
        if before != kept.receiver and before in self._breakers:
            self._breakers[before].forget(sid, self._clock.now())
        if kept.receiver not in self._breakers:
            self._breakers[kept.receiver] = ReceiverBreaker(self._requests[kind].settings)
        return request

    def _observe(self, kept: _Kept, observation: KeepObservation) -> None:
        kind, sid = kept.target
        is_over = self._is_stopping or self._failure is not None or self._journal.is_lost
        if is_over or self._targets.get(sid) is not kept:
            return
        settings, now = self._requests[kind].settings, self._clock.now()
        breaker = self._breakers.get(kept.receiver)
        paused_until = -inf if breaker is None else breaker.paused_until
        decision = decide(kept.state, observation, now, settings, paused_until=paused_until)
        kept.state = decision.state
        if (status := self._status_of(kept)) is not kept.status:
            kept.status, kept.since = status, now
        if breaker is not None:
            if any(isinstance(action, StartStream) for action in decision.actions):
                breaker.on_start(sid, kept.state, now)
            breaker.on_decision(sid, kept.state, now)
            self._update_breaker(kept.receiver)
        for event in decision.events:
            self._emit(evolve(event, kind=kind, target=sid))
        numbers = {attempt.number for attempt in kept.state.attempts}
        kept.fingerprints = {number: text for number, text in kept.fingerprints.items() if number in numbers}
        kept.tokens.keep_only(numbers)
        self._cancel_timer(kept)
        if kept.state.status is KeepStatus.ENDED:
            del self._targets[sid]
            self._ended.add(sid)
            self._journal.forget(kept.target)
            return
        if not any(isinstance(action, SaveAttempt) for action in decision.actions):
            self._journal.save_later(kept.target, kept.record)
        for action in decision.actions:
            self._execute(kept, action)

    def _execute(self, kept: _Kept, action: KeepAction) -> None:
        match action:
            case WaitUntil():
                if not self._is_ending:
                    delay = max(0.0, action.at - self._clock.now())
                    wake = partial(self._observe, kept, TimePassed())
                    kept.timer = asyncio.get_running_loop().call_later(delay, wake)
            case StartStream():  # which saves it first
                _ = self._spawn(self._start, kept, action.attempt)
            case StopBySid() | StopByName():
                _ = self._spawn(self._stop, kept, action)
            case GetTarget():
                _ = self._spawn(self._check, kept)

    async def _start(self, kept: _Kept, attempt: int) -> None:
        kind, sid = kept.target
        requests = self._requests[kind]
        try:
            template = kept.prepared or await self._request(kept)
            if self._targets.get(sid) is not kept:
                return  # another keeper has taken over meanwhile
            if self._is_ending:
                raise ClientStateError("the keeper ends")
            # Before the start is recorded, since it fails if a receiver is closed.
            token = None if template is None else kept.tokens.mint(attempt, partial(self._observe, kept))
        except StreamsError as error:
            self._observe(kept, StartRejected(attempt=attempt, reason=str(error)))
            return
        if template is None:
            attempts = tuple(each for each in kept.state.attempts if each.number != attempt)
            kept.state = evolve(kept.state, attempts=attempts)
            await self._release(kept)
            return
        kept.prepared = None
        kept.fingerprints[attempt] = fingerprint(template)
        await self._journal.save(kept.target, kept.record)
        deadline_at = await self._journal.permit()
        name = requests.settings.stream_name(self._options.name, sid, attempt)
        request = attempt_of(template, number=attempt, name=name, token=token)
        self._observe(kept, await requests.start(request, attempt, deadline_at=deadline_at))

    async def _stop(self, kept: _Kept, stop: StopBySid | StopByName) -> None:
        kind, sid = kept.target
        attempt = stop.attempt if isinstance(stop, StopByName) else 0
        name = self._requests[kind].settings.stream_name(self._options.name, sid, attempt)
        deadline_at = await self._journal.permit()
        self._observe(kept, await self._requests[kind].stop(sid, stop, name, deadline_at=deadline_at))

    async def _check(self, kept: _Kept) -> None:
        kind, sid = kept.target
        in_progress: bool | None = None
        await self._journal.permit()
        try:
            item = await self._requests[kind].get(sid)
        except StreamsError as error:
            _LOG.info("%s could not be checked: %s", sid, error)
        else:
            in_progress, kept.item = item is not None, item or kept.item
        self._observe(kept, TargetChecked(in_progress=in_progress))

    def _update_breaker(self, receiver: str) -> None:
        breaker = self._breakers[receiver]
        if not breaker.update(self._clock.now()):
            return
        rejected = sum(each.rejected_upgrades for each in self._receivers)
        if breaker.is_paused:
            reason, here = breaker.reason, rejected - self._rejected
            reason += f"; since it last worked, {here} upgrades were rejected here" if here else ""
            self._emit(StartsPaused(receiver=receiver, reason=reason))
            return
        self._rejected = rejected
        self._emit(StartsResumed(receiver=receiver))
        for kept in [kept for kept in self._targets.values() if kept.receiver == receiver]:
            asyncio.get_running_loop().call_soon(self._observe, kept, TimePassed())

    def _cancel_timer(self, kept: _Kept) -> None:
        if kept.timer is not None:
            kept.timer.cancel()
            kept.timer = None

    def _emit(self, event: KeeperEvent) -> None:
        receiver = getattr(event, "receiver", "")
        if isinstance(event, Obstacle):
            self._obstacles[type(event), receiver] = event
        elif type(event) in _BEGINNINGS:
            self._obstacles.pop((_BEGINNINGS[type(event)], receiver), None)
        self._events.append(event)
        self._changed.set()

    def _spawn(
        self, work: Callable[_Arguments, Coroutine[Any, Any, None]], *arguments: _Arguments.args, **_: _Arguments.kwargs
    ) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._guard(partial(work, *arguments)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except LeaseLostError:
            pass  # the keeper that has the lease does the work
        except Exception as error:  # noqa: BLE001  (of a journal, a template or a client: the reader gets it)
            self._failure = self._failure or error
            self._changed.set()

    async def _finish(self) -> None:
        """Wait for the requests under way, and for what follows from them."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _stop_streams(self, kept: _Kept) -> None:
        kind, sid = kept.target
        requests, attempts = self._requests[kind], kept.state.attempts
        ending = tuple(evolve(attempt, fate=Fate.ENDING) for attempt in attempts)
        kept.state = evolve(kept.state, attempts=ending)
        try:
            await self._journal.save(kept.target, kept.record)
            deadline_at = await self._journal.permit()
        except LeaseLostError:
            reason = self._journal.obstacle or "another keeper has taken over"
            self._emit(StreamingInDoubt(kind=kind, target=sid, reason=reason))
            return
        doubts = await requests.stop_all(sid, attempts, self._options.name, deadline_at=deadline_at)
        if doubts:
            _LOG.warning("a stream on %s %s may still run: %s", kind, sid, doubts[0])
            self._emit(StreamingInDoubt(kind=kind, target=sid, reason=doubts[0]))
        else:
            self._journal.forget(kept.target)
