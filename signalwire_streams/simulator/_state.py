"""The Space's settings, and its state: conferences, participants, calls, streams (pure; the clock is injected)."""

import asyncio
import random
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, get_args

from attrs import Factory, define, field
from attrs.validators import ge, in_

from signalwire_streams.simulator._faults import Faults
from signalwire_streams.simulator._request_log import ReadOnlyList, RequestLog
from signalwire_streams.simulator._requests import StreamRequest, TargetKind
from signalwire_streams.simulator._sources import Sound


def new_sid(source: random.Random) -> str:
    """Draw a version 4 UUID; SignalWire's sids are UUIDs (https://signalwire.com/docs/compatibility-api/)."""
    bits = source.getrandbits(128) & ~(0xF << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


Dialect = Literal["signalwire", "twilio"]
"""The vendor whose frames are sent."""
DuplicateNames = Literal["stream-error", "http-error", "allow"]


@define(eq=False, kw_only=True)
class SpaceSettings:
    """The arguments of `SimulatedSpace`, documented there, and the values drawn from its seed."""

    conferences: int = field(default=0, validator=ge(0))
    calls: int = field(default=0, validator=ge(0))
    participants: int = field(default=2, validator=ge(0))
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    rate_limit: int | None = 13_800
    window: float = 10.0
    limit_headers: bool = True
    retry_after: float | None = None
    advertised_limit: int | None = None
    duplicate_names: DuplicateNames = field(default="stream-error", validator=in_(get_args(DuplicateNames)))
    reusable_names: bool = True
    streams_by_name: bool = True
    long_september: bool = False
    log_requests: bool = True
    audio: Sound | None = None
    real_time: bool = True
    dialect: Dialect = "signalwire"
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    bidirectional: bool = False
    realtime_bidirectional: bool = False
    callbacks: bool = False
    allow_ws: bool = False
    clock: Callable[[], float] = field(default=time.time, repr=False)
    monotonic: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    project: str = field(init=False)
    token: str = field(init=False, repr=False)
    signing_key: str = field(init=False, repr=False)
    requests: RequestLog = field(init=False, repr=False)
    faults: Faults = field(init=False, repr=False)
    _random: random.Random = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311  (reproducible, and protects nothing)
        self.project = new_sid(self._random)
        self.token = f"PT{self._random.getrandbits(192):048x}"
        self.signing_key = f"PSK_{self._random.getrandbits(128):032x}"
        self.requests = RequestLog(self.log_requests)
        self.faults = Faults(random.Random(f"faults {self.seed}"))  # noqa: S311  (the same)

    def plays(self, stream: "Stream") -> bool:
        """Return whether the Space plays the audio that it receives over a stream."""
        return self.bidirectional or (self.realtime_bidirectional and bool(stream.realtime))


@define(eq=False, kw_only=True)
class Stream(StreamRequest):
    """One stream: its request and its state.

    ``name`` is None if the start had none. ``error`` says why a stream whose start got a 200 did not run, or ended
    (a status callback's ``StreamError``, https://signalwire.com/docs/compatibility-api/rest/streams/).
    ``is_foreign`` says that nobody asked this Space for it over REST (see `Churn`).
    ``created_at`` and ``stopped_at`` are POSIX seconds of the Space's clock. Of a bidirectional stream ``played_audio``
    is the audio that was played to the call, ``dtmf_received`` the keys that were sent, and ``ignored_messages`` counts
    messages that were invalid; on a one-way stream all messages are ignored. Its ``repr`` shows no bearer token, only
    the names of parameters, and URLs without user, password and query.
    """

    sid: str
    target_kind: TargetKind
    target_sid: str
    created_at: float
    status: str = "queued"
    alive: bool = False
    is_foreign: bool = False
    error: str | None = None
    updated_at: float = Factory(lambda self: self.created_at, takes_self=True)
    stopped_at: float | None = None
    played_audio: bytearray = field(factory=bytearray, init=False, repr=False)
    dtmf_received: str = field(default="", init=False)
    ignored_messages: int = field(default=0, init=False)


class StreamRegistry(ReadOnlyList[Stream]):
    """The streams in the order of their starts, and the names under which several ever ran at the same time."""

    def __init__(self, observer: Callable[[Stream], None] | None = None) -> None:
        """Create an empty registry; the observer is called with each stream that starts or ends."""
        super().__init__()
        self._observer = observer
        self._by_sid: dict[str, Stream] = {}
        self._by_name: dict[tuple[str, str], list[Stream]] = {}
        self._active: dict[str, dict[str, Stream]] = {}
        self._active_names: Counter[tuple[str, str | None]] = Counter()
        self._duplicates: dict[tuple[str, str | None], None] = {}

    def active(self) -> list[Stream]:
        """Return the streams that are running, in the order of their starts."""
        return [stream for stream in self._items if stream.alive]

    def alive_on(self, target_sid: str) -> list[Stream]:
        """Return the streams that are running on one conference or call."""
        return list(self._active.get(target_sid, {}).values())

    def duplicates(self) -> list[tuple[str, str | None]]:
        """Return each (target sid, name) under which more than one stream ever ran at the same time.

        Streams that were started without a name count together, under None.
        """
        return list(self._duplicates)

    def add(self, stream: Stream) -> None:
        """Add a new stream; it runs unless it has an error."""
        self._items.append(stream)
        self._by_sid[stream.sid] = stream
        if stream.name is not None:
            self._by_name.setdefault((stream.target_sid, stream.name), []).append(stream)
        if stream.error is None:
            stream.alive = True
            self._active.setdefault(stream.target_sid, {})[stream.sid] = stream
            key = stream.target_sid, stream.name
            self._active_names[key] += 1
            if self._active_names[key] > 1:
                self._duplicates[key] = None
        if self._observer is not None:
            self._observer(stream)

    def find(self, target_sid: str, sid: str) -> Stream | None:
        """Return a stream of one conference or call by its sid."""
        stream = self._by_sid.get(sid)
        return stream if stream is not None and stream.target_sid == target_sid else None

    def find_named(self, target_sid: str, name: str) -> Stream | None:
        """Return a stream by its name: the oldest that is running, or else the newest that has ended."""
        named = self._by_name.get((target_sid, name))
        return next((stream for stream in named if stream.alive), named[-1]) if named else None

    def has_name(self, target_sid: str, name: str | None, *, ended: bool = False) -> bool:
        """Return whether a stream of that name is running on the conference or call, or ever did."""
        known = self._by_name if ended else self._active_names
        return name is not None and bool(known.get((target_sid, name)))

    def stop(self, streams: Iterable[Stream], now: float) -> None:
        """End running streams."""
        for stream in streams:
            stream.alive = False
            stream.status = "stopped"
            stream.updated_at = stream.stopped_at = now
            del self._active[stream.target_sid][stream.sid]
            self._active_names[stream.target_sid, stream.name] -= 1
            if self._observer is not None:
                self._observer(stream)


IN_PROGRESS = "in-progress"
ENDED = frozenset({"completed", "canceled", "busy", "failed", "no-answer"})
_NOT_STARTED = frozenset({"queued", "ringing"})


@define(eq=False, kw_only=True)
class Resource:
    ordinal: int  # the place among everything that the Space ever created; lists are ordered by it
    status: str
    created_at: float
    updated_at: float = Factory(lambda self: self.created_at, takes_self=True)


@define(eq=False, kw_only=True)
class Call(Resource):
    """A call leg; ``conference_sid`` is set if it belongs to a participant of a conference."""

    sid: str
    from_number: str
    to_number: str
    direction: str = "outbound"
    started_at: float | None = None
    ended_at: float | None = None
    parent_call_sid: str | None = None
    conference_sid: str | None = None


@define(eq=False, kw_only=True)
class Participant(Resource):
    call_sid: str
    conference_sid: str
    muted: bool = False
    hold: bool = False


@define(eq=False, kw_only=True)
class Conference(Resource):
    sid: str
    friendly_name: str
    participants: list[Participant] = field(factory=list)


class SpaceState:
    def __init__(self, source: random.Random, clock: Callable[[], float], streams: StreamRegistry) -> None:
        self.conferences: dict[str, Conference] = {}
        self.calls: dict[str, Call] = {}
        self.streams = streams
        self.now = clock
        self._random = source
        self._ordinal = 0

    def add_conference(self, *, status: str, friendly_name: str | None, participants: int) -> Conference:
        """Create a conference, with a call leg for each participant."""
        now, sid = self.now(), new_sid(self._random)
        ordinal = self._next_ordinal()
        name = f"conference-{ordinal}" if friendly_name is None else friendly_name
        conference = Conference(sid=sid, ordinal=ordinal, friendly_name=name, status=status, created_at=now)
        self.conferences[sid] = conference
        leg_status = "completed" if status == "completed" else IN_PROGRESS
        for _ in range(participants):
            call = self.add_call(status=leg_status, direction="inbound", conference_sid=sid)
            conference.participants.append(
                Participant(
                    call_sid=call.sid, conference_sid=sid, ordinal=call.ordinal, created_at=now, status=leg_status
                )
            )
        return conference

    def add_call(
        self,
        *,
        status: str = IN_PROGRESS,
        from_number: str | None = None,
        to_number: str | None = None,
        **details: Any,  # noqa: ANN401  (attributes of a `Call`)
    ) -> Call:
        """Create a call leg; numbers that are not given are drawn from the fictitious 555-01xx range."""
        now, sid = self.now(), new_sid(self._random)
        call = Call(
            sid=sid,
            ordinal=self._next_ordinal(),
            status=status,
            from_number=from_number if from_number is not None else self._draw_number(),
            to_number=to_number if to_number is not None else self._draw_number(),
            created_at=now,
            started_at=None if status in _NOT_STARTED else now,
            ended_at=None if status in {*_NOT_STARTED, IN_PROGRESS} else now,
            **details,
        )
        self.calls[sid] = call
        return call

    def stop_stream(self, stream: Stream) -> None:
        self.streams.stop([stream], self.now())

    def end_conference(self, sid: str) -> None:
        """Complete a conference: its streams stop, its participants and their call legs are completed."""
        now = self.now()
        conference = self.conferences[sid]
        conference.status, conference.updated_at = "completed", now
        self.streams.stop(self.streams.alive_on(sid), now)
        for participant in conference.participants:
            self.end_call(participant.call_sid)

    def end_call(self, sid: str, status: str = "completed") -> None:
        """End a call: its streams stop, and it leaves its conference."""
        now = self.now()
        call = self.calls[sid]
        call.status, call.updated_at, call.ended_at = status, now, now
        self.streams.stop(self.streams.alive_on(sid), now)
        conference = None if call.conference_sid is None else self.conferences[call.conference_sid]
        for participant in () if conference is None else conference.participants:
            if participant.call_sid == sid:
                participant.status, participant.updated_at = "completed", now

    def draw_sid(self) -> str:
        return new_sid(self._random)

    def _next_ordinal(self) -> int:
        self._ordinal += 1
        return self._ordinal

    def _draw_number(self) -> str:
        return f"+1{self._random.randrange(201, 990)}55501{self._random.randrange(100):02}"
