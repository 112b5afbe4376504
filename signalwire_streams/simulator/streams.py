"""Every stream that was ever started on the Space, and what was alive at one time (pure)."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import overload

from attrs import Factory, define, field

from signalwire_streams.simulator._routes import TargetKind
from signalwire_streams.simulator.shown import shown_address, shown_names

__all__ = ["Stream", "StreamBook"]


def _address(url: str | None) -> str:
    return repr(None if url is None else shown_address(url))


@define(eq=False, kw_only=True)
class Stream:
    """One stream: what was asked for, and what became of it.

    ``name`` is None when the start gave none. ``error`` says why a stream that was answered with 200 never lived
    (a status callback's ``StreamError``, https://signalwire.com/docs/compatibility-api/rest/streams/).
    ``created_at`` and ``stopped_at`` are POSIX seconds of the Space's clock. Of a bidirectional stream ``heard`` is
    the audio that has been played, ``pressed`` the keys that were sent, and ``ignored`` counts what could not be
    followed; on a one-way stream all that is sent is ignored. Its ``repr`` shows no bearer token, of parameters only
    the names, and addresses without user, password and query.
    """

    sid: str
    target_kind: TargetKind
    target_sid: str
    created_at: float
    url: str = field(repr=_address)
    name: str | None = None
    track: str = "both_tracks"
    codec: str | None = None
    realtime: bool | None = None
    status_callback: str | None = field(default=None, repr=_address)
    status_callback_method: str = "POST"
    parameters: Mapping[str, str] = field(factory=dict, repr=lambda parameters: repr(shown_names(parameters)))
    authorization_bearer_token: str | None = field(default=None, repr=False)
    status: str = "queued"
    alive: bool = False
    error: str | None = None
    updated_at: float = Factory(lambda self: self.created_at, takes_self=True)
    stopped_at: float | None = None
    heard: bytearray = field(factory=bytearray, init=False, repr=False)
    pressed: str = field(default="", init=False)
    ignored: int = field(default=0, init=False)


@define(eq=False)
class StreamBook(Sequence[Stream]):
    """The streams in the order of their starts, with the peaks that tell a doubled one.

    ``observer`` hears of each stream that starts or ends.
    """

    observer: Callable[[Stream], None] | None = None
    _all: list[Stream] = field(factory=list, init=False)
    _by_sid: dict[str, Stream] = field(factory=dict, init=False)
    _by_name: dict[tuple[str, str], list[Stream]] = field(factory=dict, init=False)
    _alive: dict[str, dict[str, Stream]] = field(factory=dict, init=False)
    _alive_named: Counter[tuple[str, str | None]] = field(factory=Counter, init=False)
    _doubled: dict[tuple[str, str | None], None] = field(factory=dict, init=False)
    _peaks: dict[str, int] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._all)

    @overload
    def __getitem__(self, index: int) -> Stream: ...
    @overload
    def __getitem__(self, index: slice) -> list[Stream]: ...
    def __getitem__(self, index: int | slice) -> Stream | list[Stream]:
        return self._all[index]

    def alive(self) -> list[Stream]:
        """List the streams that live now, in the order of their starts."""
        return [stream for stream in self._all if stream.alive]

    def alive_on(self, target_sid: str) -> list[Stream]:
        """List the streams that live now on one conference or call."""
        return list(self._alive.get(target_sid, {}).values())

    def doubled(self) -> list[tuple[str, str | None]]:
        """List (target sid, name) of which more than one stream was ever alive at the same time.

        Streams that were started without a name count together, under None.
        """
        return list(self._doubled)

    def peak_alive_per_target(self) -> dict[str, int]:
        """Give for each conference or call the most streams that it ever carried at the same time."""
        return dict(self._peaks)

    def add(self, stream: Stream) -> None:
        """Enter a new stream; it lives unless it carries an error."""
        self._all.append(stream)
        self._by_sid[stream.sid] = stream
        if stream.name is not None:
            self._by_name.setdefault((stream.target_sid, stream.name), []).append(stream)
        if stream.error is None:
            stream.alive = True
            self._count_birth(stream)
        if self.observer is not None:
            self.observer(stream)

    def find(self, target_sid: str, sid: str) -> Stream | None:
        """Find a stream of one conference or call by its sid."""
        stream = self._by_sid.get(sid)
        return stream if stream is not None and stream.target_sid == target_sid else None

    def find_named(self, target_sid: str, name: str) -> Stream | None:
        """Find a stream by its name: the oldest that lives, or else the newest that has ended."""
        named = self._by_name.get((target_sid, name))
        if not named:
            return None
        return next((stream for stream in named if stream.alive), named[-1])

    def name_is_alive(self, target_sid: str, name: str | None) -> bool:
        """Tell whether a stream of that name lives on the conference or call."""
        return name is not None and self._alive_named[target_sid, name] > 0

    def stop(self, streams: Iterable[Stream], now: float) -> None:
        """End streams that live."""
        for stream in streams:
            stream.alive = False
            stream.status = "stopped"
            stream.updated_at = stream.stopped_at = now
            del self._alive[stream.target_sid][stream.sid]
            self._alive_named[stream.target_sid, stream.name] -= 1
            if self.observer is not None:
                self.observer(stream)

    def _count_birth(self, stream: Stream) -> None:
        target_sid, key = stream.target_sid, (stream.target_sid, stream.name)
        on_target = self._alive.setdefault(target_sid, {})
        on_target[stream.sid] = stream
        if len(on_target) > self._peaks.get(target_sid, 0):
            self._peaks[target_sid] = len(on_target)
        self._alive_named[key] += 1
        if self._alive_named[key] > 1:
            self._doubled[key] = None
