"""What goes back to the Space over a bidirectional stream: audio in its own time, marks, keys.

REST-started streams are receive-only as far as documented; bidirectional ones come from cXML
(``<Connect><Stream>``). Nothing in the protocol tells which one a stream is, so the receiver is told.

Source: https://signalwire.com/docs/compatibility-api/cxml/voice/stream
"""

import asyncio
import json
import time
from base64 import b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Protocol

from attrs import define, field

from signalwire_streams.errors import InvalidRequestError, StreamsError, TransportError
from signalwire_streams.receiver.audio._formats import AudioFormat

_KEYS = frozenset("0123456789*#ABCD")
_FRAME_MILLISECONDS = 20
_AHEAD = 0.1  # seconds of audio that the Space may hold beyond what is playing


class Socket(Protocol):
    """The part of a WebSocket that sending needs."""

    async def send_str(self, data: str) -> None:
        """Send a text message."""
        ...


@define(eq=False)
class Playback:
    """The way back of one stream.

    Attributes:
        socket: where to send.
        stream_sid: the stream's id, which every frame carries.
        audio_format: how the audio is encoded that the Space plays: as that which it sends.
        bidirectional: whether the Space plays what it is sent.
        now: the time, in seconds.
        sleep: waits so many seconds.
    """

    socket: Socket
    stream_sid: str | None
    audio_format: AudioFormat
    bidirectional: bool
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _rest: bytes = field(init=False, default=b"", repr=False)  # less than a frame, which waits for more
    _plays_until: float = field(init=False, default=float("-inf"))
    _marks: dict[str, deque[asyncio.Future[None]]] = field(init=False, factory=dict)
    _cleared: int = field(init=False, default=0)
    _ended: bool = field(init=False, default=False)

    async def play(self, audio: bytes) -> None:
        """Send audio, encoded as the stream's own, no faster than it is played.

        It goes out in whole frames of 20 ms, however it is cut into calls: the rest, less than a frame, waits for the
        next call. After the last one, call `flush` or `mark`, which send it. Return when the Space holds no more than
        a tenth of a second beyond what is playing, so that a loop of calls sends evenly. `clear` ends it, and audio
        that was not sent yet is not sent.

        Args:
            audio: raw audio without a header, of any length.

        Raises:
            UnknownEncodingError: the length of the audio is unknown; nothing was sent.
            TransportError: the stream ended before all of it was sent.
        """
        self._check_open()
        step = self._frame_size()
        audio, self._rest = self._rest + audio, b""
        whole = len(audio) // step * step
        if await self._send_audio(audio[:whole]):
            self._rest += audio[whole:]

    async def flush(self) -> None:
        """Send the rest of the audio that was played, in a frame of less than 20 ms.

        Half a sample at its end still waits for its other half.

        Raises:
            TransportError: the stream ended before it was sent.
        """
        self._check_open()
        if self._rest:
            whole = len(self._rest) // self.audio_format.sample_size * self.audio_format.sample_size
            audio, self._rest = self._rest[:whole], self._rest[whole:]
            await self._send_audio(audio)

    def _frame_size(self) -> int:
        return max(self.audio_format.bytes_in(_FRAME_MILLISECONDS), self.audio_format.sample_size)

    async def _send_audio(self, audio: bytes) -> bool:
        """Send whole samples as they are played; return whether all of them were sent before a `clear`."""
        step, cleared = self._frame_size(), self._cleared
        for begin in range(0, len(audio), step):
            frame = audio[begin : begin + step]
            await self._send("media", media={"payload": b64encode(frame).decode("ascii")})
            seconds = len(frame) / self.audio_format.sample_size / self.audio_format.sample_rate
            self._plays_until = max(self._plays_until, self.now()) + seconds
            wait = self._plays_until - self.now() - _AHEAD
            if wait > 0:
                await self.sleep(wait)
            if self._cleared != cleared:
                return False
        return True

    async def mark(self, name: str) -> None:
        """Wait until everything that was played so far has been heard, or was cleared; `flush` it first.

        Args:
            name: what to call this point; it may be used again.

        Raises:
            TransportError: the stream ended before that.
        """
        await self.flush()
        played: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # It stays in its place when nobody waits for it any more: its echo comes all the same.
        self._marks.setdefault(name, deque()).append(played)
        try:
            await self._send("mark", mark={"name": name})
        except StreamsError:  # a cancellation comes too late: the frame is written, and its echo will come
            self._forget(name, played)
            raise
        await played

    async def clear(self) -> None:
        """Drop the audio that was not heard yet, here and in the Space; marks that wait for it come back at once."""
        self._cleared += 1
        self._rest = b""
        await self._send("clear")
        self._plays_until = self.now()

    async def send_dtmf(self, digits: str) -> None:
        """Send keys, as if they were pressed.

        Args:
            digits: of ``0`` to ``9``, ``*``, ``#`` and ``A`` to ``D``.

        Raises:
            InvalidRequestError: one of them is no key.
        """
        unknown = next((digit for digit in digits if digit not in _KEYS), None)
        if unknown is not None or not digits:
            raise InvalidRequestError(f"{digits!r} are no keys: write them of 0 to 9, *, # and A to D")
        for digit in digits:
            await self._send("dtmf", dtmf={"digit": digit})

    def _on_mark(self, name: str) -> None:
        """Hear that a mark came back."""
        if name in self._marks:
            played = self._marks[name][0]
            self._forget(name, played)
            if not played.done():
                played.set_result(None)

    def _close(self) -> None:
        """Hear that the stream has ended: no mark comes back any more."""
        self._ended = True
        for waiting in self._marks.values():
            for played in waiting:
                if not played.done():
                    played.set_exception(TransportError("the stream ended before the mark was played", sent="yes"))
        self._marks.clear()

    def _forget(self, name: str, played: "asyncio.Future[None]") -> None:
        with suppress(KeyError, ValueError):  # the stream may have ended meanwhile
            self._marks[name].remove(played)
        if not self._marks.get(name):
            self._marks.pop(name, None)

    def _check_open(self) -> None:
        if not self.bidirectional:
            raise InvalidRequestError(
                "this stream is one-way, so nothing can be sent: make it bidirectional (cXML <Connect><Stream>) and "
                "pass bidirectional=True to the receiver"
            )
        if self._ended:
            raise TransportError("the stream has ended, so nothing can be sent")

    async def _send(self, event: str, **body: Mapping[str, str]) -> None:
        self._check_open()
        try:
            await self.socket.send_str(json.dumps({"event": event, "streamSid": self.stream_sid, **body}))
        except ConnectionError as error:
            raise TransportError(f"the stream's connection broke while sending: {type(error).__name__}") from error
