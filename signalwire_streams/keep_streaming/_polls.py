"""The polls of a keeper, its lease, and how it takes over what an earlier keeper left."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from math import inf

from signalwire_streams.clock import Clock
from signalwire_streams.errors import ClientStateError, StreamsError
from signalwire_streams.keep_streaming._background import BackgroundTasks
from signalwire_streams.keep_streaming._events import (
    KeeperEvent,
    PollingFailed,
    PollingRecovered,
    StandbyEnded,
    StandbyStarted,
    TargetFailing,
)
from signalwire_streams.keep_streaming._kept_targets import KeptTargets
from signalwire_streams.keep_streaming._records import KeptTarget, Target
from signalwire_streams.keep_streaming._state import (
    KeeperRestarted,
    KeepObservation,
    TargetChecked,
    TargetListed,
    TargetMissing,
)
from signalwire_streams.keep_streaming._target_requests import TargetRequests
from signalwire_streams.keep_streaming._template import Item
from signalwire_streams.models import TargetKind

_LOG = logging.getLogger("signalwire_streams.keep_streaming")
_HELD_UP = 10  # a template that hangs may take up one tenth of the polls' time


class Polls:
    """Lists what is in progress, and compares the kept targets with it."""

    def __init__(
        self,
        targets: KeptTargets,
        requests: Mapping[TargetKind, TargetRequests],
        *,
        interval: float,
        clock: Clock,
        tasks: BackgroundTasks,
        emit: Callable[[KeeperEvent], None],
    ) -> None:
        self._targets, self._requests, self._interval = targets, requests, interval
        self._clock, self._tasks, self._emit = clock, tasks, emit
        self._is_silent = False  # they fail
        # Targets of the keeper before whose template failed: the reported reason, and when it is asked again.
        self._not_taken_over: dict[str, tuple[str, float]] = {}

    async def run(self) -> None:
        targets = self._targets
        while self._tasks.failure is None:
            await self._take_lease()
            listed = await self._poll()
            recovering = [
                self._tasks.spawn(self._recover, (kind, sid), record, listed[kind])
                for (kind, sid), record in targets.journal.targets.items()
                if kind in listed and sid in targets.unrecovered and self._is_due(sid)
            ]
            if recovering:
                await asyncio.wait(recovering)
            self._compare(listed)
            targets.breakers.forget_unused({kept.receiver for kept in targets}, self._clock.now())
            await self._clock.sleep(self._interval)

    async def look_at(self, sid: str) -> None:
        """Keep a target that `Keeper.notice` named, if it is in progress, even if it was passed over before."""
        await self._targets.journal.permit()
        for requests in self._requests.values():
            try:
                item = await requests.get(sid)
            except StreamsError as error:
                _LOG.info(
                    "%s could not be fetched; the next list may show it: %s",
                    sid,
                    error,
                    extra={f"{requests.kind}": sid},
                )
                return
            if item is not None:
                if item.status == "in-progress":
                    self._targets.ignored.discard(sid)
                    await self._targets.appear(requests.kind, item)
                return

    async def _take_lease(self) -> None:
        """Wait until this keeper may act. If another one may have acted since, begin with what that one recorded."""
        obstacle = self._targets.journal.obstacle
        if obstacle is not None:
            self._emit(StandbyStarted(reason=obstacle))
        if await self._targets.journal.acquire():
            self._targets.begin_again()
        if obstacle is not None:
            self._emit(StandbyEnded())

    async def _poll(self) -> dict[TargetKind, dict[str, Item]]:
        """Return what is in progress of each kind whose list could be read to its end."""
        listed: dict[TargetKind, dict[str, Item]] = {}
        failures: list[StreamsError] = []
        self._targets.ended.clear()
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
            self._targets.start_now()
        self._is_silent = bool(failures)
        return listed

    async def _recover(self, key: Target, record: KeptTarget, listed: Mapping[str, Item]) -> None:
        """Take over a target of the keeper before."""
        (kind, sid), targets = key, self._targets
        kept, begun_at = targets.of_record(key, record), self._clock.now()
        observation: KeepObservation = TargetChecked(in_progress=False)
        try:
            kept.item = listed[sid] if sid in listed else await self._requests[kind].get(sid)
            if kept.item is not None:
                request = await targets.request(kept)
                if request is None:
                    self._not_taken_over.pop(sid, None)
                    await targets.release(kept)
                    return
                observation = KeeperRestarted(replaces=targets.is_replaced(kept, request))
        except StreamsError as error:
            if targets.may_replace(kept):  # otherwise it would keep its old fields
                if kept.item is not None:
                    reason, now = str(error), self._clock.now()
                    if self._not_taken_over.get(sid, ("",))[0] != reason:
                        self._emit(TargetFailing(kind=kind, target=sid, reason=reason, failures=1))
                    self._not_taken_over[sid] = reason, now + _HELD_UP * (now - begun_at)
                return
            _LOG.info("%s is taken over, although it could not be fetched: %s", sid, error, extra={f"{kind}": sid})
            observation = KeeperRestarted()
        self._not_taken_over.pop(sid, None)
        targets.take_over(kept, observation)

    def _is_due(self, sid: str) -> bool:
        _, at = self._not_taken_over.get(sid, ("", -inf))
        return self._clock.now() >= at

    def _compare(self, listed: Mapping[TargetKind, Mapping[str, Item]]) -> None:
        targets = self._targets
        if len(listed) == len(self._requests):
            targets.ignored &= {sid for items in listed.values() for sid in items}
        now = self._clock.now()
        for kept in targets:
            kind, sid = kept.target
            if kind not in listed:
                continue
            item = listed[kind].get(sid)
            if item is None:
                targets.observe(kept, TargetMissing())
            else:
                kept.item = item
                if now >= kept.state.next_at:  # before that nothing is decided
                    targets.observe(kept, TargetListed())
        for kind, items in listed.items():
            for sid, item in items.items():
                if targets.get(sid) is None:
                    _ = self._tasks.spawn(targets.appear, kind, item)
