"""The conferences and calls of a keeper: each observation is decided on, and the decision is executed.

An observation is decided on at once, and a task executes the resulting actions. At most one request about a target is
under way at a time, apart from the polls.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import define, evolve, field, frozen

from signalwire_streams.clock import Clock
from signalwire_streams.errors import ClientStateError, InvalidRequestError, StreamsError
from signalwire_streams.keep_streaming._background import Alarm, BackgroundTasks
from signalwire_streams.keep_streaming._decisions import decide, stopping, unproven
from signalwire_streams.keep_streaming._events import (
    KeeperEvent,
    KeepStatus,
    StreamingInDoubt,
    TargetReleased,
    TargetSnapshot,
)
from signalwire_streams.keep_streaming._receiver_breaker import ReceiverBreakers
from signalwire_streams.keep_streaming._receiving import AttemptTokens
from signalwire_streams.keep_streaming._records import KeeperStore, KeptTarget, LeaseLostError, Target, new_state
from signalwire_streams.keep_streaming._settings import OnChange
from signalwire_streams.keep_streaming._state import (
    Fate,
    GetTarget,
    KeepAction,
    KeeperRestarted,
    KeepObservation,
    ResponseLost,
    SaveAttempt,
    StartRejected,
    StartStream,
    StopByName,
    StopBySid,
    TargetListed,
    TargetState,
    TimePassed,
    WaitUntil,
)
from signalwire_streams.keep_streaming._target_requests import TargetRequests
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
from signalwire_streams.receiver import MediaReceiver

_LOG = logging.getLogger("signalwire_streams.keep_streaming")
_AT_ONCE = 200  # requests; more would wait in the client, whose deadline ends them unsent
_LATE = 300.0  # seconds in which a Space may carry out a start whose response was lost; that is not documented
_MAY_START = "the response to a start was lost, and the Space may still carry it out"


@frozen(kw_only=True)
class KeeperOptions:
    """What a keeper streams, and how; checked."""

    name: str
    template: Template
    where: Callable[[Item], bool] | None
    on_change: OnChange


@define(eq=False)
class Kept:
    """One conference or call, while it is in progress."""

    target: Target
    state: TargetState
    tokens: AttemptTokens = field(repr=False)
    item: Item | None = None  # as it was listed last
    receiver: str = ""  # that its last request led to
    fingerprints: dict[int, str] = field(factory=dict)  # of the requests of its attempts
    prepared: Start | None = None  # what the template returned when it appeared
    since: float = 0.0  # when this keeper began to keep it
    status: KeepStatus | None = None  # in snapshots
    status_at: float = 0.0  # when that began
    lost_at: dict[int, float] = field(factory=dict)  # when the responses to attempts were lost
    alarm: Alarm = field(factory=Alarm, repr=False)

    @property
    def record(self) -> KeptTarget:
        """What the journal has to know: no attempt that is still being prepared, so that none is held for it."""
        attempts = (
            each for each in self.state.attempts if each.fate is not Fate.SENDING or each.number in self.fingerprints
        )
        return KeptTarget(state=evolve(self.state, attempts=tuple(attempts)), fingerprints=self.fingerprints)

    def may_still_start(self, now: float) -> bool:
        """Return whether the Space may carry out a start whose response was lost, though its name was stopped."""
        return any(now < self.lost_at.get(each.number, self.since) + _LATE for each in unproven(self.state))

    def leave(self) -> None:
        """Cancel its timer and its tokens: another keeper has it, or none any more."""
        self.alarm.cancel()
        self.tokens.keep_only(())


class KeptTargets:
    """The targets that a keeper has.

    Attributes:
        journal: the store of their records.
        ignored: those that were listed, and are not to be streamed.
        ended: those that ended since the last list was begun, which may still have them.
        unrecovered: those of the keeper before that are not taken over yet.
        is_ending: whether nothing is started any more.
        is_stopping: whether nothing is decided any more.
    """

    journal: KeeperStore

    def __init__(
        self,
        options: KeeperOptions,
        requests: Mapping[TargetKind, TargetRequests],
        *,
        receivers: Sequence[MediaReceiver],
        clock: Clock,
        tasks: BackgroundTasks,
        emit: Callable[[KeeperEvent], None],
    ) -> None:
        self._options, self._requests, self._receivers = options, requests, receivers
        self._clock, self._tasks, self._emit = clock, tasks, emit
        self._kept: dict[str, Kept] = {}  # the sids of conferences and of calls differ
        self._released: dict[str, KeptTarget] = {}  # of the keeper before, whose streams may run
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._asking: set[asyncio.Future[object]] = set()  # templates
        self.breakers = ReceiverBreakers(receivers, emit=emit, resume=self._resume)
        self.ignored: set[str] = set()
        self.ended: set[str] = set()
        self.unrecovered: set[str] = set()
        self.is_ending = self.is_stopping = False

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Kept]:
        return iter(tuple(self._kept.values()))

    def get(self, sid: str | None) -> Kept | None:
        return self._kept.get(sid or "")

    @property
    def snapshot(self) -> tuple[TargetSnapshot, ...]:
        return tuple(map(self._snapshot_of, self))  # also in another thread, such as that of a metrics exporter

    def _snapshot_of(self, kept: Kept) -> TargetSnapshot:
        kind, target = kept.target
        return TargetSnapshot(
            kind=kind,
            target=target,
            item=kept.item,
            status=self._status_of(kept),
            reason=kept.state.reported_reason,
            seconds=self._clock.now() - kept.status_at,
        )

    def _status_of(self, kept: Kept) -> KeepStatus:
        status = kept.state.reported or KeepStatus.WAITING
        if self._requests[kept.target[0]].settings.receives and not kept.state.of_fate(Fate.HEARD):
            status = KeepStatus.WAITING if status is KeepStatus.STREAMING else status
        return status

    # --- Which targets there are

    async def appear(self, kind: TargetKind, item: Item) -> None:
        """Keep a target that is in progress, unless that was decided before."""
        sid = str(item.sid)
        if self._is_known(sid):
            return
        self.ignored.add(sid)  # until it is decided, so that another poll does not ask again
        released = self._released.get(sid)
        kept = self._new((kind, sid), released or KeptTarget(state=new_state()), item)
        try:
            kept.prepared = await self.request(kept)
        except StreamsError:  # which its start reports
            is_wanted = True
        else:
            is_wanted = kept.prepared is not None
        if is_wanted:
            self.ignored.discard(sid)
            if not self._is_known(sid):
                self._released.pop(sid, None)
                self._kept[sid] = kept
                is_replaced = kept.prepared is not None and self.is_replaced(kept, kept.prepared)
                self.observe(kept, TargetListed() if released is None else KeeperRestarted(replaces=is_replaced))

    def _is_known(self, sid: str) -> bool:
        return any(sid in known for known in (self._kept, self.ignored, self.ended, self.unrecovered))

    def of_record(self, target: Target, record: KeptTarget) -> Kept:
        """Return a target of the keeper before; `take_over` keeps it."""
        return self._new(target, record, None)

    def _new(self, target: Target, record: KeptTarget, item: Item | None) -> Kept:
        tokens = AttemptTokens(self._receivers)
        known = dict(record.fingerprints)
        return Kept(target, record.state, tokens, item, fingerprints=known, since=self._clock.now())

    def take_over(self, kept: Kept, observation: KeepObservation) -> None:
        _, sid = kept.target
        self._kept[sid] = kept
        self.unrecovered.discard(sid)
        self.observe(kept, observation)

    async def release(self, kept: Kept) -> None:
        """Stop keeping a target that is no longer selected."""
        kind, sid = kept.target
        self._kept.pop(sid, None)
        self.unrecovered.discard(sid)
        self.ignored.add(sid)
        kept.leave()
        if self._options.on_change is OnChange.REPLACE:
            await self.stop_streams(kept)
        if kept.record.state.attempts:  # of which it has to be known if it is chosen again
            self.journal.save_later(kept.target, kept.record)
            self._released[sid] = kept.record
        else:
            self.journal.forget(kept.target)
        self._emit(TargetReleased(kind=kind, target=sid))

    def begin_again(self) -> None:
        """Forget all, since another keeper may have acted: those that it recorded are to be taken over."""
        for kept in self:
            kept.leave()
        self._kept.clear()
        self._released.clear()
        self.ignored.clear()
        self.breakers.forget_unused((), self._clock.now())
        self.unrecovered = {sid for kind, sid in self.journal.targets if kind in self._requests}

    def start_now(self) -> None:
        """Retry starts that failed during an outage now, where a retry is safe."""
        for kept in self:
            is_safe = self._requests[kept.target[0]].settings.is_guarded or not kept.state.attempts
            if is_safe and kept.state.status is KeepStatus.FAILING:
                kept.state = evolve(kept.state, next_at=self._clock.now(), failures=0)

    # --- Requests

    async def request(self, kept: Kept) -> Start | None:
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
                fields = await self._ask(apply_template(fields, item), sid)
        if fields is None:
            return None
        request = request_for(kind, sid, fields, is_received=bool(self._receivers))
        before, kept.receiver = kept.receiver, receiver_of(request)
        self.breakers.move(sid, before, kept.receiver, self._requests[kind].settings, self._clock.now())
        return request

    async def _ask(self, asking: Coroutine[Any, Any, object], sid: str) -> object:
        """Wait for a template until the keeper ends, when nothing comes of it any more."""
        task = asyncio.ensure_future(asking)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        if self.is_ending:
            task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            return task.result()
        if self.is_ending:
            raise asyncio.CancelledError
        raise InvalidRequestError(f"the template was cancelled for {sid}: let it return the fields, or None")

    def may_replace(self, kept: Kept) -> bool:
        """Return whether streams that an earlier keeper started are to be stopped if they differ from a request."""
        return self._options.on_change is OnChange.REPLACE and bool(kept.fingerprints)

    def is_replaced(self, kept: Kept, request: Start) -> bool:
        # What could not be stopped with certainty was replaced before, unless nothing followed it.
        abandoned = {attempt.number for attempt in kept.state.of_fate(Fate.ABANDONED)}
        latest = {number: text for number, text in kept.fingerprints.items() if number not in abandoned}
        known = set((latest or kept.fingerprints).values())
        return self.may_replace(kept) and known != {fingerprint(request)}

    # --- Decisions

    def observe(self, kept: Kept, observation: KeepObservation) -> None:
        kind, sid = kept.target
        is_over = self.is_stopping or self._tasks.failure is not None or self.journal.is_lost
        if is_over or self._kept.get(sid) is not kept:
            return
        settings, now = self._requests[kind].settings, self._clock.now()
        paused_until = self.breakers.paused_until(kept.receiver)
        decision = decide(kept.state, observation, now, settings, paused_until=paused_until)
        kept.state = decision.state
        if (status := self._status_of(kept)) is not kept.status:
            kept.status, kept.status_at = status, now
        is_start = any(isinstance(action, StartStream) for action in decision.actions)
        self.breakers.on_decision(kept.receiver, sid, kept.state, now, is_start=is_start)
        for event in decision.events:
            self._emit(evolve(event, kind=kind, target=sid))
        numbers = {attempt.number for attempt in kept.state.attempts}
        kept.lost_at = {number: at for number, at in kept.lost_at.items() if number in numbers}
        kept.fingerprints = {number: text for number, text in kept.fingerprints.items() if number in numbers}
        kept.tokens.keep_only(numbers)
        kept.alarm.cancel()
        if kept.state.status is KeepStatus.ENDED:
            del self._kept[sid]
            self.ended.add(sid)
            self.journal.forget(kept.target)
            return
        if not any(isinstance(action, SaveAttempt) for action in decision.actions):
            self.journal.save_later(kept.target, kept.record)
        for action in decision.actions:
            self._execute(kept, action)

    def _resume(self) -> None:
        """Decide again, since some waited for a receiver."""
        for kept in self:
            asyncio.get_running_loop().call_soon(self.observe, kept, TimePassed())

    def _execute(self, kept: Kept, action: KeepAction) -> None:
        match action:
            case WaitUntil():  # the polls end all waits of a keeper that ends
                if not self.is_ending:
                    kept.alarm.set(action.at - self._clock.now(), partial(self.observe, kept, TimePassed()))
            case StartStream():  # which saves it first
                _ = self._tasks.spawn(self._start, kept, action.attempt)
            case StopBySid() | StopByName():
                _ = self._tasks.spawn(self._stop, kept, action)
            case GetTarget():
                _ = self._tasks.spawn(self._check, kept)

    async def _start(self, kept: Kept, attempt: int) -> None:
        _, sid = kept.target
        try:
            template = kept.prepared or await self.request(kept)
            if self._kept.get(sid) is not kept or self.is_ending:
                return  # nothing was sent, and perhaps another keeper has taken over meanwhile
            # Before the start is recorded, since it fails if a receiver is closed.
            token = None if template is None else kept.tokens.mint(attempt, partial(self.observe, kept))
        except StreamsError as error:
            self.observe(kept, StartRejected(attempt=attempt, reason=str(error), may_have_ended=kept.item is None))
            return
        if template is None:
            attempts = tuple(each for each in kept.state.attempts if each.number != attempt)
            kept.state = evolve(kept.state, attempts=attempts)
            await self.release(kept)
            return
        kept.prepared = None
        async with self._slots:
            if self._kept.get(sid) is kept and not self.is_ending:
                await self._send(kept, attempt, template, token)

    async def _send(self, kept: Kept, attempt: int, template: Start, token: str | None) -> None:
        kind, sid = kept.target
        requests = self._requests[kind]
        kept.fingerprints[attempt] = fingerprint(template)
        await self.journal.save(kept.target, kept.record)
        deadline_at = await self.journal.permit()
        name = requests.settings.stream_name(self._options.name, sid, attempt)
        request = attempt_of(template, number=attempt, name=name, token=token)
        try:
            answer = await requests.start(request, attempt, deadline_at=deadline_at)
        except ClientStateError:  # nothing was sent
            del kept.fingerprints[attempt]
            self.journal.save_later(kept.target, kept.record)
            raise
        if isinstance(answer, ResponseLost):
            kept.lost_at[attempt] = self._clock.now()
        self.observe(kept, answer)

    async def _stop(self, kept: Kept, stop: StopBySid | StopByName) -> None:
        kind, sid = kept.target
        attempt = stop.attempt if isinstance(stop, StopByName) else 0
        name = self._requests[kind].settings.stream_name(self._options.name, sid, attempt)
        async with self._slots:
            deadline_at = await self.journal.permit()
            answer = await self._requests[kind].stop(sid, stop, name, deadline_at=deadline_at)
        self.observe(kept, answer)

    async def _check(self, kept: Kept) -> None:
        kind, sid = kept.target
        async with self._slots:
            await self.journal.permit()
            checked, item = await self._requests[kind].check(sid)
        kept.item = item or kept.item
        self.observe(kept, checked)

    # --- The end

    def end(self) -> None:
        """Start nothing more, and wait for no time and no template."""
        self.is_ending = True
        for kept in self:
            kept.alarm.cancel()
        for task in self._asking:
            task.cancel()

    async def stop_all(self) -> None:
        """Stop all streams that may be running, those of the keeper before included."""
        self.is_stopping = True
        if self.journal.is_lost and self.journal.obstacle is None:  # the end came before the first poll
            await self.journal.acquire()
            self.begin_again()
        records = self.journal.targets.items()
        unknown = [self.of_record(*each) for each in records if each[0][1] in self.unrecovered]
        for kept in [*self, *unknown]:
            if kept.record.state.attempts:
                _ = self._tasks.spawn(self.stop_streams, kept)
        await self._tasks.finish()

    async def stop_streams(self, kept: Kept) -> None:
        """Stop all streams of a target that may be running, and report if one may still run."""
        async with self._slots:
            await self._stop_streams(kept)

    async def _stop_streams(self, kept: Kept) -> None:
        kind, sid = kept.target
        requests = self._requests[kind]
        kept.state = stopping(kept.record.state, requests.settings)
        try:
            await self.journal.save(kept.target, kept.record)
            deadline_at = await self.journal.permit()
        except LeaseLostError:
            reason = self.journal.obstacle or "another keeper has taken over"
            self._emit(StreamingInDoubt(kind=kind, target=sid, reason=reason))
            return
        attempts, prefix = kept.state.attempts, self._options.name
        doubts = await requests.stop_all(sid, attempts, prefix, deadline_at=deadline_at)
        if kept.may_still_start(self._clock.now()):
            doubts = (*doubts, _MAY_START)
        if doubts:  # its record stays, for the next keeper
            _LOG.warning("a stream on %s %s may still run: %s", kind, sid, doubts[0], extra={f"{kind}": sid})
            self._emit(StreamingInDoubt(kind=kind, target=sid, reason=doubts[0]))
        else:
            kept.state = evolve(kept.state, attempts=())
            self.journal.forget(kept.target)
