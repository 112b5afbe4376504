"""The dialer: connects to the WebSocket server of each stream that starts."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import nullcontext

import aiohttp

from signalwire_streams.simulator._connections import OutboundClient, new_session
from signalwire_streams.simulator._faults import FaultKind, matching_rules
from signalwire_streams.simulator._frames import EncodedAudio
from signalwire_streams.simulator._media_session import MediaSession, OutboundCall
from signalwire_streams.simulator._settings import SpaceSettings
from signalwire_streams.simulator._sources import Silence, is_encodable
from signalwire_streams.simulator._state import Stream

_HANDSHAKE_SECONDS = 5.0
_CLOSE_TIMEOUT = aiohttp.ClientWSTimeout(ws_close=1.0)


class Dialer(OutboundClient):
    def __init__(
        self,
        settings: SpaceSettings,
        *,
        on_connected: Callable[[Stream], None],
        on_ended: Callable[[Stream, str | None], None],
    ) -> None:
        super().__init__(settings.ssl_context)
        self._settings = settings
        self._audio = EncodedAudio(Silence() if settings.audio is None else settings.audio)
        self._on_connected = on_connected
        self._on_ended = on_ended
        self._calls: dict[str, OutboundCall] = {}  # by the stream's sid

    def start(self, stream: Stream) -> None:
        rules = list(matching_rules(self._settings.faults, "dial", stream.target_sid))
        call = self._calls[stream.sid] = OutboundCall(stream, rules)
        _ = self._spawn(self._run(call))

    def stop(self, stream: Stream) -> None:
        if stream.sid in self._calls:
            self._calls[stream.sid].stopped.set()

    async def wait_for_audio(self, stream_sid: str) -> None:
        """Wait until a stream has sent its first audio, or ended without any."""
        if stream_sid in self._calls:
            await self._calls[stream_sid].audio_sent.wait()

    async def send_dtmf(self, target_sid: str, digits: str, milliseconds: int) -> None:
        for call in list(self._calls.values()):
            if call.stream.target_sid == target_sid and call.media is not None:
                await call.media.send_dtmf(digits, milliseconds)

    async def _run(self, call: OutboundCall) -> None:
        slow = call.rule(FaultKind.SOCKET_SLOW)
        delayed = None if slow is None else new_session(self._delayed_upgrade(slow.settings.seconds))
        try:
            async with delayed or nullcontext(self._shared_session()) as session:
                await self._connect_and_send(call, session)
        finally:
            del self._calls[call.stream.sid]
            call.audio_sent.set()

    async def _connect_and_send(self, call: OutboundCall, session: aiohttp.ClientSession) -> None:
        stream = call.stream
        if not is_encodable(stream.codec):
            self._on_ended(stream, "codec_error")
            return
        try:
            socket = await self._connect(call, session)
        except (aiohttp.ClientSSLError, TimeoutError):
            self._on_ended(stream, "connection_refused_timeout_or_ssl_error")
            return
        except (aiohttp.ClientError, OSError, ValueError):
            self._on_ended(stream, "connection_refused")
            return
        stream.status = "in-progress"
        self._on_connected(stream)
        call.media = MediaSession(call, socket, self._audio, self._settings)
        try:
            await call.media.run()
        except (OSError, ValueError):  # the WAV file can't be read any more
            self._on_ended(stream, "codec_error")
            raise
        self._on_ended(stream, None)

    async def _connect(self, call: OutboundCall, session: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
        if call.rule(FaultKind.SOCKET_REFUSED) is not None:
            raise ConnectionRefusedError
        trusts_nobody = call.rule(FaultKind.TLS_UNTRUSTED) is not None
        token = call.stream.authorization_bearer_token
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            return await session.ws_connect(
                call.stream.url,
                headers={} if token is None else {"Authorization": f"Bearer {token}"},
                ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if trusts_nobody else self._ssl,
                compress=0,
                timeout=_CLOSE_TIMEOUT,
            )

    def _delayed_upgrade(self, seconds: float) -> aiohttp.TraceConfig:
        """Wait between the connection and the upgrade, no longer than a handshake may take."""

        async def wait(*_: object) -> None:
            await self._settings.sleep(min(seconds, _HANDSHAKE_SECONDS))
            if seconds >= _HANDSHAKE_SECONDS:
                raise TimeoutError

        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(wait)
        return tracing
