"""Conferences and calls that come and go, what happens to their sockets, and a record of each."""

import asyncio
import random
from collections.abc import Callable
from typing import TypeAlias

from attrs import define, field, frozen
from attrs.validators import and_, ge, gt, le

from signalwire_streams.simulator._media_session import NoticedBy
from signalwire_streams.simulator._requests import TargetKind
from signalwire_streams.simulator._state import IN_PROGRESS, Conference, SpaceSettings, SpaceState, Stream

_HOUR, _MINUTE, _TICK = 3600.0, 60.0, 5.0
_FRACTION = and_(ge(0.0), le(1.0))
_FOREIGN_URL = "wss://foreign.invalid/audio"

LoseSocket: TypeAlias = Callable[[Stream, NoticedBy], bool]


@frozen(kw_only=True)
class Churn:
    """Conferences and calls that come and go by the Space's seed, while sockets are lost and names are taken.

    They end as by `SimulatedSpace.end_conference` and `SimulatedSpace.end_call`, and are recorded in
    `SimulatedSpace.lifetimes`. The times are those of the Space's ``monotonic`` and ``sleep``. What goes wrong with
    requests, lists and callbacks is left to `SimulatedSpace.faults`: ``disconnect``, ``executed-late``, ``list-torn``,
    ``callback-lost``, ``callback-delayed``.

    It is a fact that streams end with their conference or call, and that names are unique on a conference
    (https://signalwire.com/docs/compatibility-api/). Independent arrivals, exponential lives and constant rates are our
    model of a busy Space; whether the vendor's notices a lost socket, and how soon, is not documented.

    Attributes:
        conferences_per_hour: how many begin in an hour, on average.
        calls_per_hour: how many calls do.
        mean_life: seconds that each lives, on average.
        lost_sockets: fraction of the sockets that is lost in a minute. Of a Space without audio, its streams end.
        half_open: fraction of those that only one end notices. In one half the receiver does, and the stream runs on
            until it is stopped; in the other the Space does, and the receiver's socket falls silent.
        foreign_streams: fraction of conferences and calls on which somebody else runs a stream for a part of their
            lives; no request starts it, and nothing is sent to anybody.
        foreign_name: the name of those streams; ``{sid}`` stands for the conference or call.
    """

    conferences_per_hour: float = field(default=0.0, validator=ge(0.0))
    calls_per_hour: float = field(default=0.0, validator=ge(0.0))
    mean_life: float = field(default=600.0, validator=gt(0.0))
    lost_sockets: float = field(default=0.0, validator=_FRACTION)
    half_open: float = field(default=0.0, validator=_FRACTION)
    foreign_streams: float = field(default=0.0, validator=_FRACTION)
    foreign_name: str = "foreign-{sid}"


@define(eq=False, kw_only=True)
class Lifetime:
    """The life of one conference or call, by the Space's own count. Times are POSIX seconds of its clock.

    Attributes:
        target_kind: "conference" or "call".
        target_sid: its sid.
        began: when it began.
        ended: when it ended; None while it lives.
        streamed: seconds, until now, in which at least one stream was received; or ran, if the Space opens no sockets.
            Foreign streams do not count.
        most_streams: how many streams ran on it at the same time, at most. Foreign ones count.
    """

    target_kind: TargetKind
    target_sid: str
    began: float
    ended: float | None = None
    streamed: float = 0.0
    most_streams: int = 0
    _received: set[str] = field(factory=set, init=False, repr=False)
    _since: float = field(default=0.0, init=False, repr=False)

    def _advance(self, now: float) -> None:
        if self._received:
            self.streamed += now - self._since
        self._since = now


class ChurnRun:
    """Carries out a `Churn`, and records the lives of what it makes."""

    def __init__(self, churn: Churn, settings: SpaceSettings, state: SpaceState, lose_socket: LoseSocket) -> None:
        self._lifetimes: dict[str, Lifetime] = {}
        self._churn, self._settings, self._state, self._lose_socket = churn, settings, state, lose_socket
        self._received: dict[str, Stream] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.result()  # raises what ended it early

    def lifetimes(self) -> list[Lifetime]:
        """Return all of them, as of now."""
        for lifetime in self._lifetimes.values():
            lifetime._advance(self._state.now())  # noqa: SLF001
        return list(self._lifetimes.values())

    def on_change(self, stream: Stream) -> None:
        """Record that a stream started or ended."""
        lifetime = self._lifetimes.get(stream.target_sid)
        if lifetime is not None:
            lifetime.most_streams = max(lifetime.most_streams, len(self._state.streams.alive_on(stream.target_sid)))
        if not stream.alive:
            self.on_received(stream, is_received=False)

    def on_received(self, stream: Stream, *, is_received: bool) -> None:
        """Record that the other end of a stream begins or ceases to receive it."""
        if is_received:
            self._received[stream.sid] = stream
        elif self._received.pop(stream.sid, None) is None:
            return
        lifetime = self._lifetimes.get(stream.target_sid)
        if lifetime is not None:
            lifetime._advance(self._state.now())  # noqa: SLF001  (what users do not see)
            (lifetime._received.add if is_received else lifetime._received.discard)(stream.sid)  # noqa: SLF001

    async def _run(self) -> None:
        churn = self._churn
        async with asyncio.TaskGroup() as group:
            for kind, rate in self._rates().items():
                _ = group.create_task(self._arrive(group, kind, rate / _HOUR))
            if churn.lost_sockets:
                _ = group.create_task(self._lose_sockets())

    def _source_of(self, purpose: str) -> random.Random:
        """Return a source of its own, so that arrivals do not depend on what else happens, nor on when."""
        return random.Random(f"{purpose} {self._settings.seed}")  # noqa: S311  (reproducible, and protects nothing)

    def _rates(self) -> dict[TargetKind, float]:
        rates: dict[TargetKind, float] = {
            "conference": self._churn.conferences_per_hour,
            "call": self._churn.calls_per_hour,
        }
        return {kind: rate for kind, rate in rates.items() if rate}

    async def _arrive(self, group: asyncio.TaskGroup, kind: TargetKind, rate: float) -> None:
        schedule, due = self._source_of(kind), self._settings.monotonic()
        while True:
            due += schedule.expovariate(rate)
            life = schedule.expovariate(1.0 / self._churn.mean_life)
            is_foreign, share = schedule.random() < self._churn.foreign_streams, schedule.random()
            await self._settings.sleep(max(due - self._settings.monotonic(), 0.0))
            _ = group.create_task(self._live(kind, life, foreign=share * life if is_foreign else 0.0))

    async def _live(self, kind: TargetKind, life: float, *, foreign: float) -> None:
        state, sleep = self._state, self._settings.sleep
        target, end = (state.add_call(), state.end_call) if kind == "call" else (self._add(), state.end_conference)
        sid = target.sid
        lifetime = self._lifetimes[sid] = Lifetime(target_kind=kind, target_sid=sid, began=target.created_at)
        if foreign:
            stream = self._add_foreign(kind, sid)
            await sleep(foreign)
            state.streams.stop([stream] if stream.alive else (), state.now())
        await sleep(life - foreign)
        if target.status == IN_PROGRESS:
            end(sid)
        lifetime.ended = target.updated_at

    def _add(self) -> Conference:
        participants = self._settings.participants
        return self._state.add_conference(status=IN_PROGRESS, friendly_name=None, participants=participants)

    def _add_foreign(self, kind: TargetKind, sid: str) -> Stream:
        stream = Stream(
            sid=self._state.draw_sid(),
            target_kind=kind,
            target_sid=sid,
            created_at=self._state.now(),
            url=_FOREIGN_URL,
            name=self._churn.foreign_name.replace("{sid}", sid),
            is_foreign=True,
        )
        self._state.streams.add(stream)
        return stream

    async def _lose_sockets(self) -> None:
        source, churn = self._source_of("sockets"), self._churn
        share = churn.lost_sockets * _TICK / _MINUTE
        while True:
            await self._settings.sleep(_TICK)
            for stream in [stream for stream in self._received.values() if source.random() < share]:
                ends: tuple[NoticedBy, ...] = ("receiver", "space") if source.random() < churn.half_open else ("both",)
                _ = self._lose_socket(stream, source.choice(ends))
