"""`Keeper`: the context manager and iterator that a user has, and the checks of the arguments that create one."""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from os import PathLike
from types import TracebackType
from typing import Any, Self

from signalwire_streams.callbacks._events import CallbackEvent
from signalwire_streams.clock import Clock
from signalwire_streams.errors import ClientStateError, InvalidRequestError
from signalwire_streams.keep_streaming._background import BackgroundTasks
from signalwire_streams.keep_streaming._events import (
    KeeperEvent,
    Obstacle,
    PollingFailed,
    PollingRecovered,
    StandbyEnded,
    StandbyStarted,
    StartsPaused,
    StartsResumed,
    TargetSnapshot,
)
from signalwire_streams.keep_streaming._kept_targets import KeeperOptions, KeptTargets
from signalwire_streams.keep_streaming._polls import Polls
from signalwire_streams.keep_streaming._receiving import check_receivers
from signalwire_streams.keep_streaming._records import KeeperOwner, KeeperStore
from signalwire_streams.keep_streaming._settings import (
    DUPLICATE_NAMES,
    DuplicateNames,
    InDoubtPolicy,
    KeepSettings,
    OnChange,
    OnExit,
    StreamNames,
)
from signalwire_streams.keep_streaming._state import TargetMissing
from signalwire_streams.keep_streaming._target_requests import TargetRequests, observation_of
from signalwire_streams.keep_streaming._template import Item, Template, request_for
from signalwire_streams.models import TargetKind
from signalwire_streams.models._validation import check_flag, check_path_segment, check_seconds, kind_of, masks_secrets
from signalwire_streams.receiver import MediaReceiver
from signalwire_streams.resources._streams import Streams

_MAX_EVENTS = 10_000  # that wait for a reader
_BEGINNINGS: Mapping[type[KeeperEvent], type[Obstacle]] = {
    PollingRecovered: PollingFailed,
    StandbyEnded: StandbyStarted,
    StartsResumed: StartsPaused,
}


class Keeper:
    """Keeps one stream on each conference or call. `StreamsClient.keep_streaming` creates it.

    Use it with ``async with``, which begins and ends its work, and iterate over it for its events, in one loop at a
    time. Up to 10,000 wait for it; then the oldest are dropped, since no stream waits for a reader.

    A fatal error, such as that of a full disk, is raised by the loop, and by the end of the block.
    """

    def __init__(
        self,
        options: KeeperOptions,
        requests: Mapping[TargetKind, TargetRequests],
        *,
        open_journal: Callable[[], Coroutine[Any, Any, KeeperStore]],
        receivers: Sequence[MediaReceiver],
        poll: float,
        on_exit: OnExit,
        clock: Clock,
    ) -> None:
        self._name, self._open_journal, self._on_exit = options.name, open_journal, on_exit
        self._events: deque[KeeperEvent] = deque(maxlen=_MAX_EVENTS)
        self._obstacles: dict[tuple[type[Obstacle], str], Obstacle] = {}  # to all streams, or to those of one receiver
        self._changed = asyncio.Event()
        self._reader: asyncio.Task[Any] | None = None  # that waits for an event
        self._tasks = BackgroundTasks(lambda _: self._changed.set())
        shared: dict[str, Any] = {"clock": clock, "tasks": self._tasks, "emit": self._emit}
        self._targets = KeptTargets(options, requests, receivers=receivers, **shared)
        self._polls = Polls(self._targets, requests, interval=poll, **shared)
        self._has_begun = self._has_ended = False
        self._loop: asyncio.AbstractEventLoop | None = None  # once it was opened
        self._polling: asyncio.Task[None]

    def __repr__(self) -> str:
        return f"<Keeper {self._name!r}: {len(self._targets)} targets>"

    async def __aenter__(self) -> Self:
        """Open the journal, and begin to list what is in progress.

        Raises:
            InvalidRequestError: the journal is another keeper's, or another process is using it.
            JournalError: the journal can't be read or written, or its Redis can't be reached.
            ClientStateError: the keeper was used before.
        """
        if self._has_begun or self._targets.is_ending:
            raise ClientStateError("this keeper was used before: call keep_streaming again")
        self._targets.journal = await self._open_journal()
        self._has_begun, self._loop = True, asyncio.get_running_loop()
        self._polling = asyncio.create_task(self._tasks.guard(self._polls.run))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        targets, tasks = self._targets, self._tasks
        targets.is_ending = True
        try:
            targets.journal.stop_waiting()
            self._polling.cancel()
            await asyncio.wait({self._polling})
            targets.end()
            await tasks.finish()
            if self._on_exit is OnExit.STOP and tasks.failure is None:
                await targets.stop_all()
        finally:
            targets.is_stopping = True
            tasks.cancel()  # if this was cancelled
            try:
                await tasks.finish()
            finally:  # also if it is cancelled again
                for kept in targets:
                    kept.leave()
                self._has_ended = True
                self._changed.set()
                await targets.journal.aclose()
        if error is None and tasks.failure is not None:
            raise tasks.failure

    def __aiter__(self) -> AsyncIterator[KeeperEvent]:
        self._check_open()
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[KeeperEvent]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self._tasks.failure is not None:
                raise self._tasks.failure
            if self._has_ended:
                return
            if self._reader is not None and not self._reader.cancelling():
                raise ClientStateError("only one loop at a time can iterate over a keeper")
            self._reader = asyncio.current_task()
            try:
                self._changed.clear()
                await self._changed.wait()
            finally:
                self._reader = None

    @property
    def snapshot(self) -> tuple[TargetSnapshot, ...]:
        """The conferences and calls that the keeper knows now; after it has ended, those that it knew then."""
        return self._targets.snapshot

    @property
    def obstacles(self) -> tuple[Obstacle, ...]:
        """The events that report what keeps it from starting streams, and whose end was not reported yet."""
        return tuple(self._obstacles.values())

    async def handle_status_callback(self, event: CallbackEvent) -> None:
        """Handle a status callback: pass this to a `CallbackReceiver` as its handler, or call it from yours.

        The template's ``status_callback`` has to lead there. Callbacks of other streams are ignored.

        Args:
            event: a callback whose signature was verified.

        Raises:
            ClientStateError: the keeper was opened in another event loop.
        """
        self._check_loop()
        kept = self._targets.get(event.target)
        observation = None if kept is None else observation_of(event, kept.state)
        if kept is not None and observation is not None:
            self._targets.observe(kept, observation)

    def notice(self, sid: str) -> None:
        """Check a conference or call at once, instead of with the next list: for example, one that a webhook reported.

        Args:
            sid: that of a conference or call. It gets a stream if it is in progress and of a kind that is kept. If
                ``where`` or the template has passed it over before, they are asked again.

        Raises:
            InvalidRequestError: it can't be a sid.
            ClientStateError: the keeper is not open, or was opened in another event loop or thread.
        """
        check_path_segment(sid, "sid")
        self._check_open()
        kept = self._targets.get(sid)
        if kept is not None:
            self._targets.observe(kept, TargetMissing())
        elif not self._targets.is_ending:
            _ = self._tasks.spawn(self._polls.look_at, sid)

    def _check_open(self) -> None:
        if not self._has_begun:
            raise ClientStateError("this keeper is not open: write 'async with client.keep_streaming(...) as keeper'")
        self._check_loop()

    def _check_loop(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a thread without one
            loop = None
        if self._loop not in {None, loop}:
            raise ClientStateError(
                "this keeper belongs to another event loop: from another thread, write "
                "loop.call_soon_threadsafe(keeper.notice, sid), with the loop in which it was opened"
            )

    def _emit(self, event: KeeperEvent) -> None:
        receiver = getattr(event, "receiver", "")
        if isinstance(event, Obstacle):
            self._obstacles[type(event), receiver] = event
        elif type(event) in _BEGINNINGS:
            self._obstacles.pop((_BEGINNINGS[type(event)], receiver), None)
        self._events.append(event)
        self._changed.set()


_PLACEHOLDER = "target"
_REDIS = ("redis://", "rediss://", "unix://")


@masks_secrets
def make_keeper(
    template: Template,
    *,
    name: str,
    streams: Mapping[TargetKind, Streams[Any]],
    reads: Mapping[TargetKind, Streams[Any]],
    conferences: bool,
    calls: bool,
    where: Callable[[Item], bool] | None,
    poll: float,
    journal: PathLike[str] | str,
    lease: float,
    receivers: Iterable[MediaReceiver],
    reassert: float,
    in_doubt: InDoubtPolicy | str,
    names: StreamNames | str,
    duplicate_names: Mapping[str, DuplicateNames | str],
    on_change: OnChange | str,
    on_exit: OnExit | str,
    origin: str,
    project: str,
    clock: Clock,
) -> Keeper:
    """Check the arguments, and return the keeper that they are for."""
    check_path_segment(name, "name")
    check_seconds(poll, "poll")
    wanted = {
        TargetKind.CONFERENCE: check_flag(conferences, "conferences"),
        TargetKind.CALL: check_flag(calls, "calls"),
    }
    kinds = [kind for kind, is_wanted in wanted.items() if is_wanted]
    if not kinds:
        raise InvalidRequestError("neither conferences nor calls are kept: pass conferences=True or calls=True")
    if where is not None and not callable(where):
        raise InvalidRequestError(f"where is {kind_of(where)}: write a function that returns True or False")
    if inspect.iscoroutinefunction(where):
        raise InvalidRequestError("where is an async function: write def, or let an async template return None")
    served = check_receivers(receivers)
    if not callable(template):
        for kind in kinds:
            request_for(kind, _PLACEHOLDER, template, is_received=bool(served))
    duplicates = {**DUPLICATE_NAMES, **_of_each_kind(duplicate_names)}
    requests = {}
    for kind in kinds:
        settings = KeepSettings(
            duplicate_names=DuplicateNames(duplicates[kind]),
            names=StreamNames(names),
            in_doubt=InDoubtPolicy(in_doubt),
            receives=bool(served),
            reassert=reassert,
        )
        requests[kind] = TargetRequests(kind=kind, settings=settings, streams=streams[kind], reads=reads[kind])
    options = KeeperOptions(name=name, template=template, where=where, on_change=OnChange(on_change))
    owner = KeeperOwner(origin, project, name, StreamNames(names))
    open_journal = _opener(journal, owner, check_seconds(lease, "lease"), clock)
    return Keeper(
        options,
        requests,
        open_journal=open_journal,
        receivers=served,
        poll=poll,
        on_exit=OnExit(on_exit),
        clock=clock,
    )


@masks_secrets
def _opener(
    journal: PathLike[str] | str, owner: KeeperOwner, lease: float, clock: Clock
) -> Callable[[], Coroutine[Any, Any, KeeperStore]]:
    if not (isinstance(journal, str) and journal.startswith(_REDIS)):
        # Imported here, like the other store, so that telemetry and a page without a keeper do not load SQLite.
        from signalwire_streams.bulk._journal_file import journal_path, when_free  # noqa: PLC0415
        from signalwire_streams.keep_streaming._journal import KeeperJournal  # noqa: PLC0415

        path = journal_path(journal)
        return lambda: when_free(clock, partial(KeeperJournal.open, path, owner, clock=clock))
    if not find_spec("redis"):
        raise InvalidRequestError("a journal in Redis needs more packages: pip install 'signalwire-streams[redis]'")
    from signalwire_streams.keep_streaming._redis_journal import RedisJournal  # noqa: PLC0415

    stored = RedisJournal(journal, owner, lease=lease, clock=clock)
    return stored.open


def _of_each_kind(duplicate_names: object) -> Mapping[str, str]:
    if not isinstance(duplicate_names, Mapping) or not duplicate_names.keys() <= set(TargetKind):
        raise InvalidRequestError(
            "duplicate_names must be a mapping by kind: write {'conference': 'refused', 'call': 'allowed'}"
        )
    return duplicate_names
