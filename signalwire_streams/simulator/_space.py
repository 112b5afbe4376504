"""The simulated Space: its parts, its listening socket, its lifetime."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self, cast

from aiohttp import web
from attrs import define, field

from signalwire_streams.simulator._churn import Churn, ChurnRun, Lifetime
from signalwire_streams.simulator._connections import Connection, ConnectionRegistry, ResetOnConnect, bind
from signalwire_streams.simulator._endpoint_messages import DTMF_KEYS
from signalwire_streams.simulator._faults import matching_rules
from signalwire_streams.simulator._media_session import NoticedBy
from signalwire_streams.simulator._outbound import Dialer, StatusCallbackSender
from signalwire_streams.simulator._server import Server
from signalwire_streams.simulator._state import IN_PROGRESS, SpaceSettings, SpaceState, Stream, StreamRegistry

_BACKLOG = 2048  # a client that opens a thousand connections at once must not wait for SYN retries


@define(eq=False, kw_only=True)
class SimulatedSpace(SpaceSettings):
    """A SignalWire Space on a loopback socket: its Compatibility REST API, its state, the requests that it received.

    Use it with ``async with``, or with `start` and `close`. All random values (project, token, sids) depend only on
    ``seed``.

    Attributes:
        conferences: the number of conferences that are in progress at the start.
        calls: the number of calls that are in progress at the start, besides the participants' call legs.
        participants: participants of each of those conferences.
        seed: the seed of all random values.
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.
        rate_limit: POST, PUT and PATCH requests per window for the whole Space; None for no limit. 13,800 per
            10 seconds is documented (https://signalwire.com/docs/compatibility-api/).
        window: the limit's window, in seconds.
        limit_headers: whether responses report limit and remainder; the vendor does not document those headers' names.
        retry_after: seconds, sent with the Space's own 429s; None sends no Retry-After.
        advertised_limit: a limit that the headers claim instead of the true one.
        duplicate_names: the response to a start whose Name is already in use on that conference or call.
            "stream-error" is the documented one: 200 and a new sid whose stream never runs. "http-error" is 422,
            "allow" starts a second stream.
        reusable_names: whether a name is free again once its stream has ended, which is not documented.
        streams_by_name: whether a stream can be stopped by its name over REST.
        long_september: write September as "Sept", as the vendor's examples do.
        log_requests: whether the requests are kept; otherwise they are only counted.
        audio: the audio of conferences and calls. With it the Space connects to the WebSocket server of each stream
            that starts; without it streams run without a connection.
        real_time: whether audio is sent in real time; otherwise as fast as the other end reads.
        dialect: the vendor whose frame format is sent.
        ssl_context: which certificates of WebSocket and callback servers are accepted; None for those of well-known
            authorities.
        bidirectional: whether streams play the audio that they receive (in real time if ``real_time``), as those of
            cXML's ``<Connect><Stream>`` do; `Stream.played_audio` holds the played audio.
        realtime_bidirectional: whether conference streams that were started with ``realtime=True`` do so too. SWML says
            that of its own streams (https://signalwire.com/docs/swml/); whether it is true over REST is not known.
        callbacks: whether status callbacks are sent, signed with the signing key.
        allow_ws: whether ``ws://`` URLs on loopback are accepted and connected to, for clients that send them;
            the vendor accepts wss only, and so does this package's client.
        churn: conferences and calls that come and go from `start` to `close`, besides the others.
        clock: the clock of dates, in POSIX seconds.
        monotonic: the clock of the limit's window and of the request log, in seconds.
        sleep: how latency and churn wait.
        project: the Project ID, which is the AccountSid.
        token: the API token.
        signing_key: the key that signs callbacks.
        streams: every stream ever started.
        requests: the request log.
        faults: the fault rules.
        connections: the connections to its REST API.
    """

    churn: Churn | None = None
    streams: StreamRegistry = field(init=False, repr=False)
    connections: ConnectionRegistry = field(factory=ConnectionRegistry, init=False, repr=False)
    _state: SpaceState = field(init=False, repr=False)
    _dialer: Dialer = field(init=False, repr=False)
    _callback_sender: StatusCallbackSender = field(init=False, repr=False)
    _server: Server = field(init=False, repr=False)
    _churn_run: ChurnRun | None = field(default=None, init=False, repr=False)
    _http: web.Server | None = field(default=None, init=False, repr=False)
    _tcp: asyncio.Server | None = field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.streams = StreamRegistry(self._on_stream_change)
        self._state = SpaceState(self._random, self.clock, self.streams)
        for _ in range(self.conferences):
            self.add_conference()
        for _ in range(self.calls):
            self.add_call()
        self._dialer = Dialer(self, on_connected=self._on_connected, on_ended=self._on_media_ended)
        self._callback_sender = StatusCallbackSender(self)
        self._server = Server(self, self._state, wait_for_audio=self._dialer.wait_for_audio)
        if self.churn is not None:
            self._churn_run = ChurnRun(self.churn, self, self._state, self.lose_socket)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen; from here on `port` is the actual port.

        Raises:
            RuntimeError: the Space is listening already, or was closed.
            OSError: the address is in use.
        """
        if self._http is not None:
            raise RuntimeError("this Space was already started: create a new SimulatedSpace")
        self._http = web.Server(self._server.handle)
        endpoint = bind(self.host, self.port)
        self.port: int = endpoint.getsockname()[1]
        await self._listen(endpoint)
        if self._churn_run is not None:
            self._churn_run.start()

    async def close(self) -> None:
        """Stop listening and drop every connection; requests that hang never get a response. Safe to repeat."""
        self._stop_listening()
        self._server.close()
        if self._churn_run is not None:
            await self._churn_run.close()
        await self._dialer.close()
        await self._callback_sender.close()
        await self.connections.close()
        if self._tcp is not None:
            await self._tcp.wait_closed()

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
        """Add a conference, by default with as many participants as the others; return its sid."""
        count = self.participants if participants is None else participants
        return self._state.add_conference(status=status, friendly_name=friendly_name, participants=count).sid

    def add_call(
        self,
        status: str = IN_PROGRESS,
        *,
        from_number: str | None = None,
        to_number: str | None = None,
        direction: str = "outbound",
        parent_call_sid: str | None = None,
    ) -> str:
        """Add a call and return its sid; numbers that are not given are random."""
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
        """Press keys on a caller's phone, each for *milliseconds*; the streams of that conference or call send them.

        Raises:
            ValueError: one of the digits is not a DTMF digit.
        """
        if not digits or not set(digits) <= DTMF_KEYS:
            raise ValueError(f"{digits!r} are not DTMF digits: use 0 to 9, *, # and A to D")
        await self._dialer.send_dtmf(target_sid, digits, milliseconds)

    @property
    def lifetimes(self) -> list[Lifetime]:
        """The conferences and calls that came by ``churn``, in the order in which they began, as of now."""
        return [] if self._churn_run is None else self._churn_run.lifetimes()

    def lose_socket(self, stream: Stream, noticed_by: NoticedBy = "both") -> bool:
        """Lose the connection of a stream, as a network does: neither a stop event nor a close frame is sent.

        Args:
            stream: one of `streams`. Of a Space without audio, which has no connections, it ends unless only the
                receiver notices that.
            noticed_by: which end notices it. If it is the ``receiver``, the stream runs on until it is stopped. If it
                is the ``space``, the stream ends, and the receiver's socket stays open without a sign of life.

        Returns:
            Whether there was a connection, or a stream.
        """
        if not stream.alive:
            return False
        is_lost = self._dialer.lose(stream, noticed_by) if self.audio is not None else noticed_by != "receiver"
        if is_lost and self.audio is None:
            self._state.stop_stream(stream)
        elif is_lost and self._churn_run is not None:
            self._churn_run.on_received(stream, is_received=False)
        return is_lost

    @asynccontextmanager
    async def refuse_connections(self) -> AsyncIterator[None]:
        """Refuse new connections for a block, and close idle ones; requests that are being served continue."""
        self._stop_listening()
        endpoint = bind(self.host, self.port)
        idle = self.connections.idle()
        self.connections.close_idle()
        for connection in idle:
            await connection.wait_gone()
        # A client in this loop needs a turn to notice that its idle connections are closed.
        await asyncio.sleep(0)
        try:
            yield
        finally:
            await self._listen(endpoint)

    async def _listen(self, endpoint: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._tcp = await loop.create_server(self._new_protocol, sock=endpoint, backlog=_BACKLOG)

    def _stop_listening(self) -> None:
        if self._tcp is not None:
            self._tcp.close()

    def _on_stream_change(self, stream: Stream) -> None:
        if self._churn_run is not None:
            self._churn_run.on_change(stream)
        if stream.is_foreign:
            return
        if not stream.alive:
            self._send_callback(stream, "stream-stopped" if stream.error is None else "stream-error")
            self._dialer.stop(stream)
        elif self.audio is not None:
            self._dialer.start(stream)
        else:
            self._on_connected(stream)

    def _on_connected(self, stream: Stream) -> None:
        if self._churn_run is not None:
            self._churn_run.on_received(stream, is_received=True)
        self._send_callback(stream, "stream-started")

    def _on_media_ended(self, stream: Stream, error: str | None) -> None:
        if stream.alive:
            stream.error = error
            self._state.stop_stream(stream)

    def _send_callback(self, stream: Stream, event: str) -> None:
        if self.callbacks:
            self._callback_sender.send(stream, event)

    def _new_protocol(self) -> asyncio.BaseProtocol:
        if next(matching_rules(self.faults, "connect"), None) is not None:
            return ResetOnConnect(self.connections)
        return Connection(cast(web.Server, self._http), self.connections, asyncio.get_running_loop())
