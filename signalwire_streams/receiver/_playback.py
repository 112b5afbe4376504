"""Sending over a bidirectional stream: audio in real time, marks, DTMF.

As far as documented, streams started over REST only send; bidirectional ones come from cXML (``<Connect><Stream>``).
The protocol does not say which kind a stream is, so the receiver needs ``bidirectional=True``.

Source: https://signalwire.com/docs/compatibility-api/cxml/voice/stream
"""

import asyncio
import json
import time
from base64 import b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from signalwire_streams.errors import InvalidRequestError, StreamsError, TransportError
from signalwire_streams.receiver._socket import TextSender
from signalwire_streams.receiver.audio._formats import AudioFormat

_KEYS = frozenset("0123456789*#ABCD")
_FRAME_MILLISECONDS = 20
_MAX_AHEAD = 0.1  # seconds of audio that the Space may hold beyond what is playing
_ECHO_MARGIN = 128  # bytes by which the echo of a mark may be longer than the mark


class Playback:
    """Sends audio, marks and DTMF over one bidirectional stream.

    Every method raises `InvalidRequestError` unless the receiver has ``bidirectional=True``, and `TransportError` if
    the stream has ended, or ends before everything was sent.

    Attributes:
        stream_sid: the stream's id, which is in every message.
        audio_format: encoding of the audio in both directions.
        bidirectional: whether the Space plays the audio sent to it.
    """

    def __init__(
        self,
        socket: TextSender,
        stream_sid: str | None,
        audio_format: AudioFormat,
        bidirectional: bool,  # noqa: FBT001  (a public signature)
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        max_message: int = 64 * 1024,
    ) -> None:
        """Created by `MediaReceiver`. A message from the Space may have *max_message* bytes."""
        self.socket = socket
        self.stream_sid = stream_sid
        self.audio_format = audio_format
        self.bidirectional = bidirectional
        self.now = now
        self.sleep = sleep
        self._max_message = max_message
        self._rest = b""  # less than a frame, kept for the next call
        self._plays_until = float("-inf")
        self._marks: dict[str, deque[asyncio.Future[None]]] = {}
        self._clears = 0
        self._is_closed = False

    async def play(self, audio: bytes) -> None:
        """Send audio in real time, in frames of 20 ms.

        The audio may be split over calls at any byte. The remainder of the last frame waits for the next call, or for
        `flush` or `mark`. Return when the Space holds at most 100 ms of audio beyond what is playing, so a loop of
        calls sends evenly. `clear` ends the call, and the rest of its audio is not sent.

        Args:
            audio: raw audio, encoded as `audio_format` says, without a header, of any length.

        Raises:
            UnknownEncodingError: the encoding is unknown, so the duration is too; nothing was sent.
        """
        self._check_open()
        step = self._frame_size()
        audio, self._rest = self._rest + audio, b""
        whole = len(audio) // step * step
        if await self._send_audio(audio[:whole]):
            self._rest += audio[whole:]

    async def flush(self) -> None:
        """Send the audio that `play` has buffered, as a frame of less than 20 ms. A partial sample stays buffered."""
        self._check_open()
        if self._rest:
            whole = len(self._rest) // self.audio_format.sample_size * self.audio_format.sample_size
            audio, self._rest = self._rest[:whole], self._rest[whole:]
            await self._send_audio(audio)

    def _frame_size(self) -> int:
        return max(self.audio_format.bytes_in(_FRAME_MILLISECONDS), self.audio_format.sample_size)

    async def _send_audio(self, audio: bytes) -> bool:
        """Send whole samples in real time; return whether all of them were sent before a `clear`."""
        step, clears = self._frame_size(), self._clears
        for begin in range(0, len(audio), step):
            frame = audio[begin : begin + step]
            await self._send("media", media={"payload": b64encode(frame).decode("ascii")})
            seconds = len(frame) / self.audio_format.sample_size / self.audio_format.sample_rate
            self._plays_until = max(self._plays_until, self.now()) + seconds
            wait = self._plays_until - self.now() - _MAX_AHEAD
            if wait > 0:
                await self.sleep(wait)
            if self._clears != clears:
                return False
        return True

    async def mark(self, name: str) -> None:
        """`flush`, then wait until all audio that was sent has been played or cleared.

        Args:
            name: name of this point in the audio; it may be used again.

        Raises:
            InvalidRequestError: the name is empty, no valid text, or too long for ``frame_limit``; nothing was sent.
        """
        self._check_open()
        if not _is_text(name):
            raise InvalidRequestError(f"{name!r} is not a mark name: pass a str that is not empty")
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise InvalidRequestError("a mark's name contains a lone surrogate: pass text that can be encoded as UTF-8")
        if len(self._message("mark", mark={"name": name})) + _ECHO_MARGIN > self._max_message:
            raise InvalidRequestError("a mark's name is so long that its echo would exceed frame_limit: shorten it")
        await self.flush()
        played: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # It keeps its place even if nothing waits for it any more, since its echo still arrives.
        self._marks.setdefault(name, deque()).append(played)
        try:
            await self._send("mark", mark={"name": name})
        except StreamsError:  # not for a cancellation: the message is written by then
            self._forget(name, played)
            raise
        await played

    async def clear(self) -> None:
        """Drop the audio that was not played yet, here and in the Space; its marks return immediately."""
        self._clears += 1
        self._rest = b""
        await self._send("clear")
        self._plays_until = self.now()

    async def send_dtmf(self, digits: str) -> None:
        """Send DTMF digits.

        Args:
            digits: ``0`` to ``9``, ``*``, ``#`` and ``A`` to ``D``; at least one.

        Raises:
            InvalidRequestError: one of them is not a DTMF digit; nothing was sent.
        """
        if not _is_text(digits) or not _KEYS.issuperset(digits):
            raise InvalidRequestError(f"{digits!r} are not DTMF digits: use 0 to 9, *, # and A to D")
        for digit in digits:
            await self._send("dtmf", dtmf={"digit": digit})

    def _on_mark(self, name: str) -> None:
        """Called when a mark returns."""
        if name in self._marks:
            played = self._marks[name][0]
            self._forget(name, played)
            if not played.done():
                played.set_result(None)

    def _close(self) -> None:
        """Called when the stream has ended; no further mark returns."""
        self._is_closed = True
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
        if self._is_closed:
            raise TransportError("the stream has ended, so nothing can be sent")

    def _message(self, event: str, **body: Mapping[str, str]) -> str:
        return json.dumps({"event": event, "streamSid": self.stream_sid, **body})

    async def _send(self, event: str, **body: Mapping[str, str]) -> None:
        self._check_open()
        try:
            await self.socket.send_str(self._message(event, **body))
        except ConnectionError as error:
            raise TransportError(f"the stream's connection broke while sending: {type(error).__name__}") from error


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""
