"""The Space itself: what it is made of, its listening socket, its lifetime."""

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self, cast

from aiohttp import web
from attrs import define, field
from attrs.validators import ge, in_

from signalwire_streams.simulator._admin import Inspection
from signalwire_streams.simulator._audio.dialer import Dialer, Dialling
from signalwire_streams.simulator._audio.frames import Dialect, Speech
from signalwire_streams.simulator._audio.media_session import KEYS
from signalwire_streams.simulator._audio.sources import Sound
from signalwire_streams.simulator._connections import Connection, ConnectionBook, Listener, ResetOnConnect
from signalwire_streams.simulator._faults import Faults
from signalwire_streams.simulator._rate_limit import SpaceLimit
from signalwire_streams.simulator._request_log import RequestLog
from signalwire_streams.simulator._rest import CompatibilityApi, DuplicateNames
from signalwire_streams.simulator._serializers import Spelling
from signalwire_streams.simulator._server import Gateway
from signalwire_streams.simulator._state import IN_PROGRESS, SpaceState, Stream, StreamRegistry, new_sid
from signalwire_streams.simulator._status_callbacks import Notices


@define(eq=False)
class Outside:
    """Follows the streams of a Space.

    Attributes:
        state: what the Space holds.
        dialling: how it dials; None for not at all.
        notices: how it calls back; None for not at all.
    """

    state: SpaceState
    dialling: Dialling | None
    notices: Notices | None
    _dialer: Dialer | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        if self.dialling is not None:
            self._dialer = Dialer(self.dialling, began=self._began, ended=self._ended)
        if self.dialling is not None or self.notices is not None:
            self.state.streams.observer = self._follow

    async def close(self) -> None:
        """Hang up everywhere."""
        if self._dialer is not None:
            await self._dialer.close()
        if self.notices is not None:
            await self.notices.close()

    async def spoke(self, stream_sid: str) -> None:
        """Wait until a stream's first audio went out, or it ended without any; at once where nobody is dialled."""
        if self._dialer is not None:
            await self._dialer.spoke(stream_sid)

    async def press(self, target_sid: str, digits: str, milliseconds: int) -> None:
        """Let a caller press keys."""
        if self._dialer is not None:
            await self._dialer.press(target_sid, digits, milliseconds)

    def _follow(self, stream: Stream) -> None:
        if stream.alive:
            if self._dialer is None:
                self._began(stream)
            else:
                self._dialer.start(stream)
            return
        self._tell(stream, "stream-stopped" if stream.error is None else "stream-error")
        if self._dialer is not None:
            self._dialer.stop(stream)

    def _began(self, stream: Stream) -> None:
        self._tell(stream, "stream-started")

    def _ended(self, stream: Stream, error: str | None) -> None:
        if stream.alive:
            stream.error = error
            self.state.stop_stream(stream)

    def _tell(self, stream: Stream, event: str) -> None:
        if self.notices is not None:
            self.notices.tell(stream, event)


@define(eq=False, kw_only=True)
class SimulatedSpace:
    """A SignalWire Space on a loopback socket: its Compatibility REST API, what it holds, what it received.

    Use it with ``async with``, or with `start` and `close`. Everything that is drawn (project, token, sids) follows
    from ``seed``.

    Attributes:
        conferences: how many conferences are in progress at the start.
        calls: how many calls are in progress at the start, besides the participants' call legs.
        participants: participants of each of those conferences.
        seed: the seed of everything drawn.
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.
        rate_limit: POST, PUT and PATCH requests per window for the whole Space; None for no limit. 13,800 per
            10 seconds is documented (https://signalwire.com/docs/compatibility-api/).
        window: the limit's window, in seconds.
        limit_headers: whether answers tell limit and remainder; the vendor does not document those headers' names.
        retry_after: seconds, sent with the Space's own 429s; None sends no Retry-After.
        advertised_limit: a limit that the headers claim instead of the true one.
        duplicate_names: what a start gets whose Name lives already on that conference or call. "stream-error" is
            what the documentation describes: 200 and a new sid whose stream never lives. "http-error" is 422,
            "allow" starts a second one.
        streams_by_name: whether a stream can be stopped by its name over REST.
        sept: spell September "Sept", as the vendor's examples do.
        keep_requests: whether the journal keeps the requests; if not, it keeps counters.
        audio: what is heard in conferences and calls. With it the Space dials the WebSocket server of each stream
            that starts; without it streams live, and nobody is dialled.
        real_time: whether audio goes out as it is spoken; if not, as fast as the other end takes it.
        dialect: whose frames are sent.
        trust: which certificates of servers that are dialled or called back are accepted; None for those of
            well-known authorities.
        bidirectional: whether streams play what they are sent, in its own time if ``real_time``, as those of cXML's
            ``<Connect><Stream>`` do; each `Stream` tells what was heard.
        callbacks: whether status callbacks are posted, signed with the signing key.
        allow_ws: whether ``ws://`` addresses on loopback are taken and dialled, for clients that would send them;
            the vendor takes wss only, and so does this package's client.
        clock: the clock of dates, in POSIX seconds.
        monotonic: the clock of the limit's window and of the journal, in seconds.
        sleep: how latency waits.
        project: the Project ID, which is the AccountSid.
        token: the API token.
        signing_key: the key that signs callbacks.
        streams: every stream ever started.
        requests: the journal.
        faults: the fault rules.
        connections: the connections to its REST API.
    """

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
    duplicate_names: DuplicateNames = field(
        default="stream-error", validator=in_(("stream-error", "http-error", "allow"))
    )
    streams_by_name: bool = True
    long_september: bool = False
    log_requests: bool = True
    audio: Sound | None = None
    real_time: bool = True
    dialect: Dialect = "signalwire"
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    bidirectional: bool = False
    callbacks: bool = False
    allow_ws: bool = False
    clock: Callable[[], float] = field(default=time.time, repr=False)
    monotonic: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    project: str = field(init=False)
    token: str = field(init=False, repr=False)
    signing_key: str = field(init=False, repr=False)
    streams: StreamRegistry = field(init=False, repr=False)
    requests: RequestLog = field(init=False, repr=False)
    faults: Faults = field(init=False, repr=False)
    connections: ConnectionBook = field(factory=ConnectionBook, init=False, repr=False)
    _state: SpaceState = field(init=False, repr=False)
    _gateway: Gateway = field(init=False, repr=False)
    _outside: Outside = field(init=False, repr=False)
    _server: web.Server | None = field(default=None, init=False, repr=False)
    _listener: Listener = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        # Reproducible sids are the point: nothing here guards anything.
        source = random.Random(self.seed)  # noqa: S311
        self.project = new_sid(source)
        self.token = f"PT{source.getrandbits(192):048x}"
        self.signing_key = f"PSK_{source.getrandbits(128):032x}"
        self.faults = Faults(random.Random(f"faults {self.seed}"))  # noqa: S311
        self.requests = RequestLog(self.log_requests)
        self._state = SpaceState(source, self.clock)
        self.streams = self._state.streams
        for _ in range(self.conferences):
            self.add_conference()
        for _ in range(self.calls):
            self.add_call()
        self._outside = Outside(self._state, self._dialling(), self._notices())
        self._gateway = self._assemble()
        self._listener = Listener(self._new_protocol)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen; `port` is the true one from here on.

        Raises:
            RuntimeError: the Space is listening already, or was closed.
            OSError: the address is taken.
        """
        if self._server is not None:
            raise RuntimeError("this Space has been started already: make a new SimulatedSpace")
        self._server = web.Server(self._gateway.handle)
        self.port = await self._listener.open(self.host, self.port)

    async def close(self) -> None:
        """Stop listening and drop every connection; answers that hang are never given. Safe to repeat."""
        self._listener.stop()
        self._gateway.close()
        await self._outside.close()
        await self.connections.close()
        await self._listener.wait_closed()

    @property
    def base_url(self) -> str:
        """The origin, such as ``http://127.0.0.1:40123``, without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def conference_sids(self) -> list[str]:
        """The conferences' sids, in the order of creation."""
        return list(self._state.conferences)

    @property
    def call_sids(self) -> list[str]:
        """The calls' sids, in the order of creation, without the participants' call legs."""
        return [call.sid for call in self._state.calls.values() if call.conference_sid is None]

    def add_conference(
        self, status: str = IN_PROGRESS, friendly_name: str | None = None, participants: int | None = None
    ) -> str:
        """Open a conference, with the Space's usual number of participants unless told otherwise; give its sid."""
        seats = self.participants if participants is None else participants
        conference = self._state.add_conference(status=status, friendly_name=friendly_name, participants=seats)
        return conference.sid

    def add_call(
        self,
        status: str = IN_PROGRESS,
        *,
        from_number: str | None = None,
        to_number: str | None = None,
        direction: str = "outbound",
        parent_call_sid: str | None = None,
    ) -> str:
        """Place a call and give its sid; numbers that are not given are drawn."""
        call = self._state.add_call(
            status=status,
            from_number=from_number,
            to_number=to_number,
            direction=direction,
            parent_call_sid=parent_call_sid,
        )
        return call.sid

    def end_conference(self, sid: str) -> None:
        """Complete a conference: its streams stop, its participants leave."""
        self._state.end_conference(sid)

    def end_call(self, sid: str) -> None:
        """Complete a call: its streams stop."""
        self._state.end_call(sid)

    async def send_dtmf(self, target_sid: str, digits: str, milliseconds: int = 100) -> None:
        """Let a caller of a conference or call press keys for so long: its streams tell of them.

        Raises:
            ValueError: one of them is no key.
        """
        if not digits or not set(digits) <= KEYS:
            raise ValueError(f"{digits!r} are no keys: write them of 0 to 9, *, # and A to D")
        await self._outside.press(target_sid, digits, milliseconds)

    @asynccontextmanager
    async def refuse_connections(self) -> AsyncIterator[None]:
        """Refuse new connections for a block, and close idle ones; requests that are being served go on."""
        endpoint = self._listener.refuse(self.host, self.port)
        idle = self.connections.idle()
        self.connections.close_idle()
        for connection in idle:
            await connection.wait_gone()
        # A client in this loop needs a turn to find its idle connections closed.
        await asyncio.sleep(0)
        try:
            yield
        finally:
            await self._listener.listen(endpoint)

    def _dialling(self) -> Dialling | None:
        if self.audio is None:
            return None
        return Dialling(
            speech=Speech(self.audio),
            project=self.project,
            real_time=self.real_time,
            dialect=self.dialect,
            trust=self.ssl_context,
            bidirectional=self.bidirectional,
            faults=self.faults,
            sleep=self.sleep,
        )

    def _notices(self) -> Notices | None:
        if not self.callbacks:
            return None
        return Notices(self.project, self.signing_key, self.clock, self.sleep, self.ssl_context, self.faults)

    def _assemble(self) -> Gateway:
        spelling = Spelling(self.project, self.long_september)
        return Gateway(
            api=CompatibilityApi(
                self._state, spelling, self.token, self.duplicate_names, self.streams_by_name, self.allow_ws
            ),
            journal=self.requests,
            faults=self.faults,
            limit=SpaceLimit(
                limit=self.rate_limit,
                window=self.window,
                advertised=self.advertised_limit,
                headers=self.limit_headers,
                retry_after=self.retry_after,
            ),
            inspection=Inspection(self._state, self.requests),
            clock=self.clock,
            monotonic=self.monotonic,
            sleep=self.sleep,
            spoke=self._outside.spoke,
        )

    def _new_protocol(self) -> asyncio.BaseProtocol:
        if self.faults.trip_connection():
            return ResetOnConnect(self.connections)
        server = cast(web.Server, self._server)
        return Connection(server, self.connections, asyncio.get_running_loop())
