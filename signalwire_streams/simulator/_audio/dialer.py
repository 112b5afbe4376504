"""The Space's way out: it dials the WebSocket server of each stream that starts."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import aiohttp
from attrs import define, field, frozen

from signalwire_streams.simulator._audio.frames import Dialect, Speech, Spelling
from signalwire_streams.simulator._audio.media_session import Conversation, Player
from signalwire_streams.simulator._audio.sources import codec_of, is_encodable
from signalwire_streams.simulator._faults import FaultKind, FaultRule, Faults
from signalwire_streams.simulator._state import Stream

__all__ = ["Dialer", "Dialling"]

_HANDSHAKE_SECONDS: Final = 5.0
_FAREWELL: Final = aiohttp.ClientWSTimeout(ws_close=1.0)

Began: TypeAlias = Callable[[Stream], None]
"""Hears that a stream is taken by its WebSocket server."""

Ended: TypeAlias = Callable[[Stream, str | None], None]
"""Hears that a stream came to its end from outside, and why if it was an error."""


@frozen(kw_only=True)
class Dialling:
    """How the Space dials.

    Attributes:
        speech: what is heard.
        project: the Project ID.
        real_time: whether audio goes out as it is spoken; if not, as fast as the other end takes it.
        dialect: whose frames are sent.
        trust: which certificates are accepted; None for those of well-known authorities.
        bidirectional: whether streams play what they are sent.
        faults: the fault rules.
        sleep: how a slow handshake waits.
    """

    speech: Speech
    project: str
    real_time: bool
    dialect: Dialect
    trust: ssl.SSLContext | None
    bidirectional: bool
    faults: Faults
    sleep: Callable[[float], Awaitable[None]]

    def converse(self, stream: Stream, socket: aiohttp.ClientWebSocketResponse, call: "_Call") -> Conversation:
        """Make what is said on a socket that was taken."""
        call_sid = stream.target_sid if stream.target_kind == "call" else None
        codec = codec_of(stream.codec)
        rate = codec.rate * codec.width if self.real_time else None
        return Conversation(
            stream=stream,
            socket=socket,
            speech=self.speech,
            spelling=Spelling(stream, self.project, call_sid, self.dialect, self.bidirectional),
            player=Player(rate, stream.played_audio) if self.bidirectional else None,
            real_time=self.real_time,
            rules=call.rules,
            spoke=call.spoke.set,
            stopped=call.stopped,
        )


@define(eq=False)
class _Call:
    """What the Space has out for one stream.

    Attributes:
        rules: the faults that it runs into.
        stopped: set when the stream is to end.
        spoke: set when its first audio went out, or it ended before that.
        conversation: what is said, once the socket is there.
        session: its own HTTP session, where it needs one.
    """

    rules: Sequence[FaultRule]
    stopped: asyncio.Event = field(init=False, factory=asyncio.Event)
    spoke: asyncio.Event = field(init=False, factory=asyncio.Event)
    conversation: Conversation | None = field(init=False, default=None)
    session: aiohttp.ClientSession | None = field(init=False, default=None)

    def rule(self, kind: FaultKind) -> FaultRule | None:
        """Give the rule of that kind, if there is one."""
        return next((rule for rule in self.rules if rule.kind is kind), None)


@define(eq=False)
class Dialer:
    """Keeps one call out for each stream that lives.

    Attributes:
        dialling: how.
        began: hears of streams that are taken.
        ended: hears of streams that ended from outside.
    """

    dialling: Dialling
    began: Began
    ended: Ended
    _session: aiohttp.ClientSession | None = field(init=False, default=None)
    _calls: dict[Stream, _Call] = field(init=False, factory=dict)
    _tasks: "set[asyncio.Task[None]]" = field(init=False, factory=set)

    def start(self, stream: Stream) -> None:
        """Dial for a stream that starts."""
        call = self._calls[stream] = _Call(self.dialling.faults.trip_dialling(stream.target_sid))
        task = asyncio.create_task(self._carry(stream, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self, stream: Stream) -> None:
        """Let a stream's call end in its way."""
        if stream in self._calls:
            self._calls[stream].stopped.set()

    async def spoke(self, stream_sid: str) -> None:
        """Wait until a stream's first audio went out, or it ended without any."""
        call = next((call for stream, call in self._calls.items() if stream.sid == stream_sid), None)
        if call is not None:
            await call.spoke.wait()

    async def press(self, target_sid: str, digits: str, milliseconds: int) -> None:
        """Tell the streams of a conference or call of keys that a caller pressed."""
        for stream, call in list(self._calls.items()):
            if stream.target_sid == target_sid and call.conversation is not None:
                await call.conversation.press(digits, milliseconds)

    async def close(self) -> None:
        """Hang up everywhere."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._session is not None:
            await self._session.close()

    async def _carry(self, stream: Stream, call: _Call) -> None:
        try:
            await self._call(stream, call)
        finally:
            del self._calls[stream]
            call.spoke.set()
            if call.session is not None:
                await call.session.close()

    async def _call(self, stream: Stream, call: _Call) -> None:
        if not is_encodable(stream.codec):
            self.ended(stream, "codec_error")
            return
        try:
            socket = await self._dial(stream, call)
        except (aiohttp.ClientSSLError, TimeoutError):
            self.ended(stream, "connection_refused_timeout_or_ssl_error")
        except (aiohttp.ClientError, OSError, ValueError):
            self.ended(stream, "connection_refused")
        else:
            stream.status = "in-progress"
            self.began(stream)
            call.conversation = self.dialling.converse(stream, socket, call)
            await call.conversation.hold()
            self.ended(stream, None)

    async def _dial(self, stream: Stream, call: _Call) -> aiohttp.ClientWebSocketResponse:
        if call.rule(FaultKind.SOCKET_REFUSED) is not None:
            raise ConnectionRefusedError
        token = stream.authorization_bearer_token
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            return await self._session_for(call).ws_connect(
                stream.url,
                headers={} if token is None else {"Authorization": f"Bearer {token}"},
                ssl=self._trust_for(call),
                compress=0,
                timeout=_FAREWELL,
            )

    def _session_for(self, call: _Call) -> aiohttp.ClientSession:
        slow = call.rule(FaultKind.SOCKET_SLOW)
        if slow is not None:
            call.session = _new_session(self._slowly(slow.settings.seconds))
            return call.session
        if self._session is None:
            self._session = _new_session()
        return self._session

    def _trust_for(self, call: _Call) -> ssl.SSLContext | bool:
        if call.rule(FaultKind.TLS_UNTRUSTED) is not None:
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it knows no authority
        return True if self.dialling.trust is None else self.dialling.trust

    def _slowly(self, seconds: float) -> aiohttp.TraceConfig:
        """Wait between the connection and the upgrade, for no longer than a handshake may take."""

        async def wait(*_: object) -> None:
            await self.dialling.sleep(min(seconds, _HANDSHAKE_SECONDS))
            if seconds >= _HANDSHAKE_SECONDS:
                raise TimeoutError

        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(wait)
        return tracing


def _new_session(*tracing: aiohttp.TraceConfig) -> aiohttp.ClientSession:
    # Each stream keeps its connection for as long as it lasts, so there may be as many as there are streams.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), trace_configs=list(tracing)
    )
