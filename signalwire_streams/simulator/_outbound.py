"""The Space's outbound connections: to the WebSocket server of each stream, and to receivers of status callbacks.

Callbacks are retried as often as documented (https://signalwire.com/docs/compatibility-api/), and signed here
independently of the client half, so that a mistake in its verification cannot go unnoticed.
"""

import asyncio
import hashlib
import hmac
import ssl
from base64 import b64encode
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import aiohttp
from attrs import field, frozen
from yarl import URL

from signalwire_streams.simulator._faults import FaultKind, FaultRule, matching_rules
from signalwire_streams.simulator._media_session import EncodedAudio, MediaSession, NoticedBy, OutboundCall
from signalwire_streams.simulator._requests import redact_url
from signalwire_streams.simulator._sources import Silence, is_encodable
from signalwire_streams.simulator._state import SpaceSettings, Stream

HANDSHAKE_SECONDS = 5.0
_HALF_OPEN_SECONDS = 300.0  # after which a connection that the Space has lost is closed
_CLOSE_TIMEOUT = aiohttp.ClientWSTimeout(ws_close=1.0)
_ATTEMPTS = 3
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=2.0, sock_read=5.0)
_SIGNATURE = "X-SignalWire-Signature"
_SUCCESS = range(200, 300)


class OutboundClient:
    """Connects to the user's servers, in tasks that end with the Space."""

    def __init__(self, ssl_context: ssl.SSLContext | None) -> None:
        self._ssl = True if ssl_context is None else ssl_context
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._session is not None:
            await self._session.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _shared_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = _new_session()
        return self._session


def _new_session(*tracing: aiohttp.TraceConfig) -> aiohttp.ClientSession:
    # Each stream needs its connection for as long as it lasts, so there may be as many as there are streams.
    redirects = aiohttp.TraceConfig()
    redirects.on_request_redirect.append(_fail_on_redirect)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[redirects, *tracing],
    )


async def _fail_on_redirect(_: object, __: object, parameters: aiohttp.TraceRequestRedirectParams) -> None:
    """Have a redirected upgrade fail: RFC 6455, 4.1, lets clients choose, and what a Space does is not documented."""
    response = parameters.response
    response.close()
    raise aiohttp.WSServerHandshakeError(response.request_info, (), status=response.status, headers=response.headers)


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

    def lose(self, stream: Stream, noticed_by: NoticedBy) -> bool:
        """Lose a stream's connection; return whether it has one."""
        call = self._calls.get(stream.sid)
        if call is None or call.media is None:
            return False
        call.media.lose(noticed_by)
        return True

    async def wait_for_audio(self, stream_sid: str) -> None:
        if stream_sid in self._calls:
            await self._calls[stream_sid].audio_sent.wait()

    async def send_dtmf(self, target_sid: str, digits: str, milliseconds: int) -> None:
        for call in list(self._calls.values()):
            if call.stream.target_sid == target_sid and call.media is not None:
                await call.media.send_dtmf(digits, milliseconds)

    def session_of(self, call: OutboundCall) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
        slow = call.rule(FaultKind.SOCKET_SLOW)
        if slow is None:
            return nullcontext(self._shared_session())
        return _new_session(self._delayed_upgrade(slow.settings.seconds))

    async def _run(self, call: OutboundCall) -> None:
        try:
            async with self.session_of(call) as session:
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
            socket = await self.connect(call, session)
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
        if call.media.noticed_by == "space":
            await self._settings.sleep(_HALF_OPEN_SECONDS)
            await call.media.close()

    async def connect(
        self, call: OutboundCall, session: aiohttp.ClientSession, *, autoclose: bool = True
    ) -> aiohttp.ClientWebSocketResponse:
        if call.rule(FaultKind.SOCKET_REFUSED) is not None:
            raise ConnectionRefusedError
        trusts_nobody = call.rule(FaultKind.TLS_UNTRUSTED) is not None
        token = call.stream.authorization_bearer_token
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            return await session.ws_connect(
                call.stream.url,
                headers={} if token is None else {"Authorization": f"Bearer {token}"},
                ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if trusts_nobody else self._ssl,
                autoclose=autoclose,
                compress=0,
                timeout=_CLOSE_TIMEOUT,
            )

    def _delayed_upgrade(self, seconds: float) -> aiohttp.TraceConfig:
        """Wait between the connection and the upgrade, no longer than a handshake may take."""

        async def wait(*_: object) -> None:
            await self._settings.sleep(min(seconds, HANDSHAKE_SECONDS))
            if seconds >= HANDSHAKE_SECONDS:
                raise TimeoutError

        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(wait)
        return tracing


@frozen
class StatusCallback:
    """A callback. With GET, its fields are in the query of the URL too."""

    method: str
    url: str = field(repr=lambda url: repr(redact_url(url)))
    fields: Mapping[str, str] = field(repr=False)

    @classmethod
    def from_stream(cls, stream: Stream, event: str, *, project: str, number: int, moment: float) -> "StatusCallback":
        target = "ConferenceSid" if stream.target_kind == "conference" else "CallSid"
        fields = {
            "AccountSid": project,
            target: stream.target_sid,
            "StreamSid": stream.sid,
            "StreamName": stream.name or stream.sid,
            "StreamTrack": stream.track,
            "StreamEvent": event,
            "Timestamp": datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "Unique-ID": f"{stream.sid}-{number}",
        }
        if stream.error is not None and event == "stream-error":
            fields["StreamError"] = stream.error
        url = stream.status_callback or ""
        if stream.status_callback_method == "GET":
            url += ("&" if "?" in url else "?") + urlencode(fields)
        return cls(stream.status_callback_method, url, fields)

    def signature(self, key: str) -> str:
        """Compute HMAC-SHA1 over the URL and, for POST, the sorted fields."""
        signed = self.url
        if self.method == "POST":
            signed += "".join(name + value for name, value in sorted(self.fields.items()))
        return b64encode(hmac.new(key.encode(), signed.encode(), hashlib.sha1).digest()).decode("ascii")


class StatusCallbackSender(OutboundClient):
    """Sends callbacks, in order for each stream."""

    def __init__(self, settings: SpaceSettings) -> None:
        super().__init__(settings.ssl_context)
        self.sleep = settings.sleep
        self._settings = settings
        self._last_tasks: dict[str, asyncio.Task[None]] = {}
        self._overtaken: dict[str, list[StatusCallback]] = {}
        self._number = 0

    def send(self, stream: Stream, event: str) -> None:
        if stream.status_callback is None:
            return
        self._number += 1
        callback = StatusCallback.from_stream(
            stream, event, project=self._settings.project, number=self._number, moment=self._settings.clock()
        )
        rule = next(matching_rules(self._settings.faults, event, stream.target_sid), None)
        kind = None if rule is None else rule.kind
        if kind is FaultKind.CALLBACK_REORDERED:
            self._overtaken.setdefault(stream.sid, []).append(callback)
            return
        if kind is FaultKind.CALLBACK_LOST:
            return
        self._schedule(stream.sid, callback, rule)
        if kind is FaultKind.CALLBACK_DUPLICATED:
            self._schedule(stream.sid, callback)
        for overtaken in self._overtaken.pop(stream.sid, ()):
            self._schedule(stream.sid, overtaken)

    def _schedule(self, sid: str, callback: StatusCallback, rule: FaultRule | None = None) -> None:
        """Deliver a callback after the stream's earlier ones, except those that a fault delays."""
        is_delayed = rule is not None and rule.kind is FaultKind.CALLBACK_DELAYED
        previous = None if is_delayed else self._last_tasks.get(sid)
        task = self._spawn(self._deliver(callback, previous, rule))
        if not is_delayed:
            self._last_tasks[sid] = task
            task.add_done_callback(lambda done: self._forget(sid, done))

    def _forget(self, sid: str, task: "asyncio.Task[None]") -> None:
        if self._last_tasks.get(sid) is task:
            del self._last_tasks[sid]

    async def _deliver(
        self, callback: StatusCallback, previous: "asyncio.Task[None] | None", rule: FaultRule | None
    ) -> None:
        if previous is not None:
            await asyncio.wait({previous})
        key = self._settings.signing_key
        if rule is not None and rule.kind is FaultKind.CALLBACK_DELAYED:
            await self.sleep(rule.settings.seconds)
        elif rule is not None and rule.kind is FaultKind.CALLBACK_BAD_SIGNATURE:
            key = f"not {key}"
        for number in range(_ATTEMPTS):
            if number:
                await self.sleep(1.0)
            if await self._attempt(callback, key):
                return

    async def _attempt(self, callback: StatusCallback, key: str) -> bool:
        try:
            async with self._shared_session().request(
                callback.method,
                URL(callback.url, encoded=True),  # byte for byte what was signed
                data=callback.fields if callback.method == "POST" else None,
                headers={_SIGNATURE: callback.signature(key)},
                ssl=self._ssl,
                allow_redirects=False,
                timeout=_TIMEOUT,
            ) as response:
                return response.status in _SUCCESS
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
