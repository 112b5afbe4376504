"""The conferences and calls of a keeper: what is observed of each is decided on, and what is decided is carried out.

An observation is decided on at once, and a task executes the resulting actions. At most one request about a target is
under way at a time, apart from the polls.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import define, evolve, field, frozen

from signalwire_streams.clock import Clock
from signalwire_streams.errors import ClientStateError, InvalidRequestError, StreamsError
from signalwire_streams.keep_streaming._background import Alarm, BackgroundTasks
from signalwire_streams.keep_streaming._decisions import decide
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
    KeepObservation,
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
    alarm: Alarm = field(factory=Alarm, repr=False)

    @property
    def record(self) -> KeptTarget:
        return KeptTarget(state=self.state, fingerprints=self.fingerprints)

    def leave(self) -> None:
        """Let nothing more come of it: another keeper has it, or none any more."""
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
        return tuple(map(self._snapshot_of, self._kept.values()))

    def _snapshot_of(self, kept: Kept) -> TargetSnapshot:
        kind, target = kept.target
        status = kept.state.reported or KeepStatus.WAITING
        if self._requests[kind].settings.receives and not kept.state.of_fate(Fate.HEARD):
            status = KeepStatus.WAITING if status is KeepStatus.STREAMING else status
        return TargetSnapshot(
            kind=kind, target=target, item=kept.item, status=status, reason=kept.state.reported_reason
        )

    # --- Which targets there are

    async def appear(self, kind: TargetKind, item: Item) -> None:
        """Keep a target that is in progress, unless that was decided before."""
        sid = str(item.sid)
        if self._is_known(sid):
            return
        self.ignored.add(sid)  # until it is decided, so that another poll does not ask again
        kept = self._new((kind, sid), KeptTarget(state=new_state()), item)
        try:
            kept.prepared = await self.request(kept)
        except StreamsError:  # which its start reports
            is_wanted = True
        else:
            is_wanted = kept.prepared is not None
        if is_wanted:
            self.ignored.discard(sid)
            if not self._is_known(sid):
                self._kept[sid] = kept
                self.observe(kept, TargetListed())

    def _is_known(self, sid: str) -> bool:
        return any(sid in known for known in (self._kept, self.ignored, self.ended, self.unrecovered))

    def of_record(self, target: Target, record: KeptTarget) -> Kept:
        """Return a target of the keeper before; `take_over` keeps it."""
        return self._new(target, record, None)

    def _new(self, target: Target, record: KeptTarget, item: Item | None) -> Kept:
        tokens = AttemptTokens(self._receivers)
        return Kept(target, record.state, tokens, item, fingerprints=dict(record.fingerprints))

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
        else:
            self.journal.forget(kept.target)
        self._emit(TargetReleased(kind=kind, target=sid))

    def begin_again(self) -> None:
        """Forget all, since another keeper may have acted: those that it recorded are to be taken over."""
        for kept in self:
            kept.leave()
        self._kept.clear()
        self.ignored.clear()
        self.breakers.clear()
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
                fields = await apply_template(fields, item)
        if fields is None:
            return None
        request = request_for(kind, sid, fields)
        before, kept.receiver = kept.receiver, receiver_of(request)
        self.breakers.move(sid, before, kept.receiver, self._requests[kind].settings, self._clock.now())
        return request

    def is_replaced(self, kept: Kept, request: Start) -> bool:
        """Return whether streams that an earlier keeper started are to be stopped, since they differ from a request."""
        if self._options.on_change is OnChange.KEEP or not kept.fingerprints:
            return False
        return set(kept.fingerprints.values()) != {fingerprint(request)}

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
        is_start = any(isinstance(action, StartStream) for action in decision.actions)
        self.breakers.on_decision(kept.receiver, sid, kept.state, now, is_start=is_start)
        for event in decision.events:
            self._emit(evolve(event, kind=kind, target=sid))
        numbers = {attempt.number for attempt in kept.state.attempts}
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

    def _resume(self, receiver: str) -> None:
        """Decide again on those that waited for a receiver."""
        for kept in self:
            if kept.receiver == receiver:
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
        kind, sid = kept.target
        requests = self._requests[kind]
        try:
            template = kept.prepared or await self.request(kept)
            if self._kept.get(sid) is not kept:
                return  # another keeper has taken over meanwhile
            if self.is_ending:
                raise ClientStateError("the keeper ends")
            # Before the start is recorded, since it fails if a receiver is closed.
            token = None if template is None else kept.tokens.mint(attempt, partial(self.observe, kept))
        except StreamsError as error:
            self.observe(kept, StartRejected(attempt=attempt, reason=str(error)))
            return
        if template is None:
            attempts = tuple(each for each in kept.state.attempts if each.number != attempt)
            kept.state = evolve(kept.state, attempts=attempts)
            await self.release(kept)
            return
        kept.prepared = None
        kept.fingerprints[attempt] = fingerprint(template)
        await self.journal.save(kept.target, kept.record)
        deadline_at = await self.journal.permit()
        name = requests.settings.stream_name(self._options.name, sid, attempt)
        request = attempt_of(template, number=attempt, name=name, token=token)
        self.observe(kept, await requests.start(request, attempt, deadline_at=deadline_at))

    async def _stop(self, kept: Kept, stop: StopBySid | StopByName) -> None:
        kind, sid = kept.target
        attempt = stop.attempt if isinstance(stop, StopByName) else 0
        name = self._requests[kind].settings.stream_name(self._options.name, sid, attempt)
        deadline_at = await self.journal.permit()
        self.observe(kept, await self._requests[kind].stop(sid, stop, name, deadline_at=deadline_at))

    async def _check(self, kept: Kept) -> None:
        kind, sid = kept.target
        await self.journal.permit()
        checked, item = await self._requests[kind].check(sid)
        kept.item = item or kept.item
        self.observe(kept, checked)

    # --- The end

    async def stop_all(self) -> None:
        """Stop all streams that may be running, those of the keeper before included."""
        self.is_stopping = True
        records = self.journal.targets.items()
        unknown = [self.of_record(*each) for each in records if each[0][1] in self.unrecovered]
        for kept in [*self, *unknown]:
            if kept.state.attempts:
                _ = self._tasks.spawn(self.stop_streams, kept)
        await self._tasks.finish()

    async def stop_streams(self, kept: Kept) -> None:
        kind, sid = kept.target
        requests, attempts = self._requests[kind], kept.state.attempts
        ending = tuple(evolve(attempt, fate=Fate.ENDING) for attempt in attempts)
        kept.state = evolve(kept.state, attempts=ending)
        try:
            await self.journal.save(kept.target, kept.record)
            deadline_at = await self.journal.permit()
        except LeaseLostError:
            reason = self.journal.obstacle or "another keeper has taken over"
            self._emit(StreamingInDoubt(kind=kind, target=sid, reason=reason))
            return
        doubts = await requests.stop_all(sid, attempts, self._options.name, deadline_at=deadline_at)
        if doubts:
            _LOG.warning("a stream on %s %s may still run: %s", kind, sid, doubts[0])
            self._emit(StreamingInDoubt(kind=kind, target=sid, reason=doubts[0]))
        else:
            self.journal.forget(kept.target)
