"""The dialer: connects to the WebSocket server of each stream that starts."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence

import aiohttp

from signalwire_streams.simulator._audio.frames import Dialect, EncodedAudio, FrameEncoder
from signalwire_streams.simulator._audio.media_session import MediaSession, Player
from signalwire_streams.simulator._audio.sources import Sound, codec_of, is_encodable
from signalwire_streams.simulator._faults import FaultKind, FaultRule, Faults, matching_rules
from signalwire_streams.simulator._state import Stream

_HANDSHAKE_SECONDS = 5.0
_CLOSE_TIMEOUT = aiohttp.ClientWSTimeout(ws_close=1.0)


class _OutboundCall:
    """The connection of one stream, from the first attempt to its end."""

    def __init__(self, rules: Sequence[FaultRule]) -> None:
        self.rules = rules
        self.stopped = asyncio.Event()
        self.audio_sent = asyncio.Event()  # or it ended before
        self.media: MediaSession | None = None
        self.own_session: aiohttp.ClientSession | None = None

    def rule(self, kind: FaultKind) -> FaultRule | None:
        return next((rule for rule in self.rules if rule.kind is kind), None)


class Dialer:
    def __init__(
        self,
        *,
        sound: Sound,
        project: str,
        real_time: bool,
        dialect: Dialect,
        ssl_context: ssl.SSLContext | None,
        bidirectional: bool,
        faults: Faults,
        sleep: Callable[[float], Awaitable[None]],
        on_connected: Callable[[Stream], None],
        on_ended: Callable[[Stream, str | None], None],
    ) -> None:
        self._audio = EncodedAudio(sound)
        self._project = project
        self._real_time = real_time
        self._dialect: Dialect = dialect
        self._ssl = True if ssl_context is None else ssl_context
        self._bidirectional = bidirectional
        self._faults = faults
        self._sleep = sleep
        self._on_connected = on_connected
        self._on_ended = on_ended
        self._session: aiohttp.ClientSession | None = None
        self._calls: dict[Stream, _OutboundCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, stream: Stream) -> None:
        call = self._calls[stream] = _OutboundCall(list(matching_rules(self._faults, "dial", stream.target_sid)))
        task = asyncio.create_task(self._run(stream, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self, stream: Stream) -> None:
        if stream in self._calls:
            self._calls[stream].stopped.set()

    async def wait_for_audio(self, stream_sid: str) -> None:
        """Wait until a stream has sent its first audio, or ended without any."""
        call = next((call for stream, call in self._calls.items() if stream.sid == stream_sid), None)
        if call is not None:
            await call.audio_sent.wait()

    async def send_dtmf(self, target_sid: str, digits: str, milliseconds: int) -> None:
        for stream, call in list(self._calls.items()):
            if stream.target_sid == target_sid and call.media is not None:
                await call.media.send_dtmf(digits, milliseconds)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._session is not None:
            await self._session.close()

    async def _run(self, stream: Stream, call: _OutboundCall) -> None:
        try:
            await self._connect_and_send(stream, call)
        finally:
            del self._calls[stream]
            call.audio_sent.set()
            if call.own_session is not None:
                await call.own_session.close()

    async def _connect_and_send(self, stream: Stream, call: _OutboundCall) -> None:
        if not is_encodable(stream.codec):
            self._on_ended(stream, "codec_error")
            return
        try:
            socket = await self._connect(stream, call)
        except (aiohttp.ClientSSLError, TimeoutError):
            self._on_ended(stream, "connection_refused_timeout_or_ssl_error")
            return
        except (aiohttp.ClientError, OSError, ValueError):
            self._on_ended(stream, "connection_refused")
            return
        stream.status = "in-progress"
        self._on_connected(stream)
        call.media = self._media_session(stream, socket, call)
        try:
            await call.media.run()
        except (OSError, ValueError):  # the WAV file can't be read any more
            self._on_ended(stream, "codec_error")
            raise
        self._on_ended(stream, None)

    def _media_session(
        self, stream: Stream, socket: aiohttp.ClientWebSocketResponse, call: _OutboundCall
    ) -> MediaSession:
        codec = codec_of(stream.codec)
        octets_per_second = codec.rate * codec.width if self._real_time else None
        return MediaSession(
            stream=stream,
            socket=socket,
            audio=self._audio,
            encoder=FrameEncoder(
                stream, project=self._project, dialect=self._dialect, bidirectional=self._bidirectional
            ),
            player=Player(octets_per_second, stream.played_audio) if self._bidirectional else None,
            real_time=self._real_time,
            rules=call.rules,
            audio_sent=call.audio_sent,
            stopped=call.stopped,
        )

    async def _connect(self, stream: Stream, call: _OutboundCall) -> aiohttp.ClientWebSocketResponse:
        if call.rule(FaultKind.SOCKET_REFUSED) is not None:
            raise ConnectionRefusedError
        trusts_nobody = call.rule(FaultKind.TLS_UNTRUSTED) is not None
        token = stream.authorization_bearer_token
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            return await self._session_for(call).ws_connect(
                stream.url,
                headers={} if token is None else {"Authorization": f"Bearer {token}"},
                ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if trusts_nobody else self._ssl,
                compress=0,
                timeout=_CLOSE_TIMEOUT,
            )

    def _session_for(self, call: _OutboundCall) -> aiohttp.ClientSession:
        slow = call.rule(FaultKind.SOCKET_SLOW)
        if slow is not None:
            call.own_session = _new_session(self._delayed_upgrade(slow.settings.seconds))
            return call.own_session
        if self._session is None:
            self._session = _new_session()
        return self._session

    def _delayed_upgrade(self, seconds: float) -> aiohttp.TraceConfig:
        """Wait between the connection and the upgrade, no longer than a handshake may take."""

        async def wait(*_: object) -> None:
            await self._sleep(min(seconds, _HANDSHAKE_SECONDS))
            if seconds >= _HANDSHAKE_SECONDS:
                raise TimeoutError

        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(wait)
        return tracing


def _new_session(*tracing: aiohttp.TraceConfig) -> aiohttp.ClientSession:
    # Each stream needs its connection for as long as it lasts, so there may be as many as there are streams.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), trace_configs=list(tracing)
    )
