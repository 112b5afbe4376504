"""Sending over a bidirectional stream: audio in real time, marks, DTMF.

According to the documentation, streams started over REST only send audio to you; bidirectional ones come from cXML
(``<Connect><Stream>``). The protocol does not say which kind a stream is, so the receiver needs ``bidirectional=True``.

Source: https://signalwire.com/docs/compatibility-api/cxml/voice/stream
"""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial

from attrs import define

from signalwire_streams.errors import InvalidRequestError, StreamsError, TransportError
from signalwire_streams.receiver._heard_audio import HeardAudio, SentMark, Utterance
from signalwire_streams.receiver._socket import TextSender
from signalwire_streams.receiver._statistics import StreamStatistics
from signalwire_streams.receiver.audio._formats import PCM_SIZE, AudioFormat, whole_number
from signalwire_streams.receiver.audio._resampling import Resampler, check_packages, is_prepared

_KEYS = frozenset("0123456789*#ABCD")
_PACKET_TIME = 20  # milliseconds, as long as no frame has arrived
_MAX_AHEAD = 0.1  # seconds of audio that the Space may hold beyond what is playing
_ECHO_MARGIN = 128  # bytes by which the echo of a mark may be longer than the mark
_MAX_MARKS = 1_000  # that are remembered though nothing waits for them, if the Space returns none
_FINISH = "signalwire-streams-finish"
_MAX_PCM_RATE = 768_000
_MILLISECONDS = 1000


@define(eq=False)
class _Mark:
    name: str
    sent: SentMark
    played: "asyncio.Future[None]"
    utterance: Utterance | None  # that ends with it, if it is the one of `finish`


class Playback:
    """Sends audio, marks and DTMF over one bidirectional stream.

    Every method raises `InvalidRequestError` unless the receiver has ``bidirectional=True``, and `TransportError` if
    the stream has ended, or ends before everything was sent.

    If the stream is lost and started again (`MediaReceiver.open` with ``when_lost="restart"``), what was not heard by
    then is cleared (`GapEvent.unheard_ms`), and calls that are made meanwhile wait.

    Audio is sent in real time and in whole frames, which are as long as those that arrive (20 ms until one has).
    It may be split over calls at any byte: an incomplete frame waits for more, or for `flush`, `mark` or
    `finish`, which fill the frame up with silence.

    Methods that send audio run one after the other, in the order of their calls. `clear` also drops the audio of those
    that are waiting.

    What the caller has heard is estimated: from the pace of the audio, and from marks as they return. The audio between
    two calls of `clear` or `finish` is one utterance. Milliseconds are rounded down.

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
        statistics: StreamStatistics | None = None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        max_message: int = 64 * 1024,
    ) -> None:
        """Created by `MediaReceiver`. A message from the Space may have *max_message* bytes."""
        self.socket: TextSender = socket
        self.stream_sid: str | None = stream_sid
        self.audio_format = audio_format
        self.bidirectional = bidirectional
        self.now = now
        self.sleep = sleep
        self._statistics = statistics or StreamStatistics()
        self._max_message = max_message
        self._rest = b""  # less than a frame, kept for the next call
        self._pcm: tuple[int, Resampler] | None = None  # the rate of the last `play_pcm`, and what converts it
        self._heard = HeardAudio(audio_format.sample_rate)
        self._marks: list[_Mark] = []  # in the order in which they were sent
        self._is_closed = False
        self._turn = asyncio.Lock()
        self._clears = self._finishes = 0
        self._survives = False  # whether another socket may follow when this one is lost
        self._connected = asyncio.Event()
        self._connected.set()
        self._unheard = 0  # milliseconds that were dropped when the socket was lost

    @property
    def position(self) -> int:
        """Milliseconds that the caller has heard since the stream's start, including silence that pads frames."""
        return self._heard.milliseconds(self._heard.position(self.now()))

    @property
    def packet_time(self) -> int:
        """Milliseconds of one frame: the mean of those that have arrived, rounded; 20 if none has."""
        track = next((track for track in self._statistics.tracks.values() if track.bytes), None)
        if track is None:
            return _PACKET_TIME
        samples = track.bytes / track.frames / self.audio_format.sample_size
        return round(samples * _MILLISECONDS / self.audio_format.sample_rate) or _PACKET_TIME

    async def play(self, audio: bytes) -> int:
        """Send audio in real time.

        Return once the Space has at most 100 ms of audio beyond what is playing, so that a loop sends evenly. `clear`
        makes it return at once; the rest of the audio is not sent.

        Args:
            audio: raw audio, encoded as `audio_format` says, without a header, of any length.

        Returns:
            Milliseconds of this audio that the caller hears: all of it, or what was heard before `clear`.

        Raises:
            InvalidRequestError: the audio is not bytes; nothing was sent.
            UnknownEncodingError: the encoding is unknown, so the duration is too; nothing was sent.
        """
        self._check_open()
        audio = _checked(audio)
        samples = len(audio) / self.audio_format.sample_size
        return await self._play(lambda: self._end_pcm() + audio, samples, self.audio_format.sample_rate)

    async def play_pcm(self, pcm: bytes, *, rate: int) -> int:
        """Convert linear PCM to the stream's encoding and rate, and `play` it.

        A rate other than the stream's needs the extra ``audio``, and holds back the last 10 ms until more follows, or
        until `flush`, `mark` or `finish`.

        Args:
            pcm: one channel of 16-bit samples, little-endian, of any length.
            rate: samples per second.

        Returns:
            As `play`.

        Raises:
            InvalidRequestError: not bytes, an invalid rate, or a stream with several channels; nothing was sent.
            ModuleNotFoundError: the rates differ, and the extra ``audio`` is not installed; nothing was sent.
            UnknownEncodingError: the encoding is unknown; nothing was sent.
        """
        self._check_open()
        audio_format = self.audio_format
        if audio_format.sample_size and audio_format.channels != 1:
            raise InvalidRequestError(f"the stream has {audio_format.channels} channels: use play, with encoded audio")
        pcm, rate = _checked(pcm), whole_number("rate", rate, 1, _MAX_PCM_RATE)
        check_packages(rate, audio_format.sample_rate)
        samples = len(pcm) / PCM_SIZE * audio_format.sample_rate / rate
        return await self._play(partial(self._convert, pcm, rate), samples, rate)

    def _convert(self, pcm: bytes, rate: int) -> bytes:
        end = b""
        if self._pcm is None or self._pcm[0] != rate:
            end, self._pcm = self._end_pcm(), (rate, Resampler(rate, self.audio_format.sample_rate))
        return end + self.audio_format.from_pcm(self._pcm[1].process(pcm))

    def _end_pcm(self) -> bytes:
        """Return the audio that the resampler holds back."""
        if self._pcm is None:
            return b""
        (_, resampler), self._pcm = self._pcm, None
        return self.audio_format.from_pcm(resampler.process(b"", last=True))

    async def _play(self, encode: Callable[[], bytes], samples: float, rate: int) -> int:
        clears, rates = self._clears, (rate, self.audio_format.sample_rate)
        async with self._turn:
            await self._wait_connected(clears)
            if not is_prepared(*rates):
                await asyncio.get_running_loop().run_in_executor(None, Resampler, *rates)
            if self._clears != clears:
                return 0
            self._check_open()
            utterance = self._heard.utterance
            begin = utterance.accepted
            utterance.accepted += samples
            audio, self._rest = self._rest + encode(), b""
            whole = len(audio) - len(audio) % self._frame_size()
            try:
                if await self._send_audio(audio[:whole]):
                    self._rest += audio[whole:]
            except BaseException:  # cancelled, for instance: the rest is lost
                utterance.accepted = utterance.sent
                raise
        if utterance.is_cleared:
            samples = min(max(utterance.heard - begin, 0), samples)
        return self._heard.milliseconds(samples)

    async def flush(self) -> None:
        """Send the audio of an incomplete frame, padded with silence. A partial sample stays in the buffer."""
        self._check_open()
        clears = self._clears
        async with self._turn:
            await self._wait_connected(clears)
            await self._flush()

    async def _flush(self) -> None:
        self._rest += self._end_pcm()
        if not self._rest:
            return
        audio_format = self.audio_format
        audio = audio_format.trim(self._rest)
        self._rest = self._rest[len(audio) :]
        if audio:
            missing = -len(audio) % self._frame_size()
            padding = missing // audio_format.sample_size
            await self._send_audio(audio + audio_format.silence * padding, padding)

    def _frame_size(self) -> int:
        return max(self.audio_format.bytes_in(self.packet_time), self.audio_format.sample_size)

    async def _send_audio(self, audio: bytes, padding: int = 0) -> bool:
        """Send whole frames in real time; return whether all of them were sent before a `clear`."""
        step, utterance, sample_size = self._frame_size(), self._heard.utterance, self.audio_format.sample_size
        for begin in range(0, len(audio), step):
            frame = audio[begin : begin + step]
            # Before it is sent, since that may have to wait, and a `clear` meanwhile comes after it.
            self._heard.send(
                len(frame) // sample_size, self.now(), padding=padding if begin + step >= len(audio) else 0
            )
            try:
                await self._send("media", media={"payload": b64encode(frame).decode("ascii")})
            except TransportError as error:
                error.sent = "maybe" if begin else error.sent
                raise
            wait = self._heard.waiting(self.now()) - _MAX_AHEAD
            if wait > 0:
                await self.sleep(wait)
            if utterance.is_cleared:
                return False
        return True

    async def mark(self, name: str) -> None:
        """`flush`, then wait until all audio that was sent has been played or cleared.

        It waits for as long as the Space does not confirm that; limit it with ``asyncio.timeout``.

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
        clears = self._clears
        async with self._turn:
            await self._wait_connected(clears)
            await self._flush()
            mark = await self._send_mark(name)
        await mark.played

    async def finish(self) -> int:
        """`flush`, then wait until the caller has heard all of the audio, or it was cleared. This ends the utterance.

        It sends a mark, which the session does not yield as an event, and waits for it as `mark` does. Audio that is
        passed meanwhile belongs to the next utterance.

        Returns:
            Milliseconds of the utterance that were heard.
        """
        self._check_open()
        clears = self._clears
        async with self._turn:
            await self._wait_connected(clears)
            utterance = self._heard.utterance
            await self._flush()
            if not utterance.is_cleared:
                self._heard.end_utterance()
            self._finishes += 1
            mark = await self._send_mark(f"{_FINISH}-{self._finishes}", utterance)
        await mark.played
        return self._heard.milliseconds(utterance.heard)

    async def _send_mark(self, name: str, utterance: Utterance | None = None) -> _Mark:
        sent = self._heard.mark(self.now())
        mark = _Mark(name, sent, asyncio.get_running_loop().create_future(), utterance)
        # It keeps its place even if nothing waits for it any more, since its echo still arrives.
        self._marks.append(mark)
        if len(self._marks) > _MAX_MARKS and self._marks[0].played.done():
            del self._marks[0]
        try:
            await self._send("mark", mark={"name": name})
        except StreamsError:  # not for a cancellation: the message is written by then
            with suppress(ValueError):  # the stream may have ended meanwhile
                self._marks.remove(mark)
            self._heard.forget(mark.sent)
            raise
        return mark

    async def clear(self) -> int:
        """Drop the audio that has not been played, here and at the Space; its marks return at once.

        This ends all utterances.

        Returns:
            Milliseconds of the current utterance that the caller heard, so that a model can forget the rest of its
            answer; 0 if there was none.
        """
        self._check_open()
        heard = self._drop(self.now())
        if self._connected.is_set():
            await self._send("clear")
        else:
            self._connected.set()  # those that wait to play need not any more
            self._connected.clear()
        return heard

    def _drop(self, now: float) -> int:
        """Drop the audio that was not played by then. Return what `clear` does."""
        self._clears += 1
        self._rest, self._pcm = b"", None
        return self._heard.milliseconds(self._heard.clear(now))

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
            while not self._connected.is_set():
                await self._connected.wait()
            if not await self._send("dtmf", dtmf={"digit": digit}):
                raise TransportError("the stream was lost while a digit was sent", sent="maybe")

    def _on_mark(self, name: str) -> bool:
        """Called when a mark returns. Return whether it is an event of the session."""
        mark = next((mark for mark in self._marks if mark.name == name), None)
        if mark is None:
            return True
        self._marks.remove(mark)
        self._heard.on_mark(mark.sent, self.now())
        if mark.utterance is not None:
            self._heard.on_heard(mark.utterance)
        if not mark.played.done():
            mark.played.set_result(None)
        return mark.utterance is None

    def _close(self) -> None:
        """Called when the stream has ended; no further mark returns."""
        self._is_closed = True
        for mark in self._marks:
            if not mark.played.done():
                mark.played.set_exception(TransportError("the stream ended before the mark was played", sent="yes"))
        self._marks.clear()
        self._connected.set()

    def _survive(self) -> None:
        """Called if another socket may follow when this one is lost."""
        self._survives = True

    def _interrupt(self, seconds: float) -> None:
        """Called when the socket is lost, and has received nothing for some seconds."""
        self._connected.clear()
        _ = self._drop(self.now() - seconds)
        self._unheard += self._heard.milliseconds(self._heard.dropped)
        for mark in self._marks:
            if not mark.played.done():
                mark.played.set_result(None)
        self._marks.clear()

    def _resume(self, other: "Playback") -> int:
        """Continue over another stream's socket. Return the milliseconds of audio that were not heard."""
        self.socket, self.stream_sid = other.socket, other.stream_sid
        self._connected.set()
        unheard, self._unheard = self._unheard, 0
        return unheard

    async def _wait_connected(self, clears: int) -> None:
        """Wait in a gap until another socket has opened, or what there was to send is cleared."""
        while not self._connected.is_set() and clears == self._clears:
            await self._connected.wait()

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

    async def _send(self, event: str, **body: Mapping[str, str]) -> bool:
        """Send a message. Return False if it was dropped, since the socket is lost and another one may follow."""
        self._check_open()
        socket = self.socket
        try:
            if self._connected.is_set():
                await socket.send_str(self._message(event, **body))
                return True
        except ConnectionError as error:
            if not self._survives or self._is_closed:
                raise TransportError(f"the stream's connection broke while sending: {type(error).__name__}") from error
        if socket is self.socket:
            self._interrupt(0.0)
        return False


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _checked(audio: bytes) -> bytes:
    if not isinstance(audio, bytes | bytearray | memoryview):
        raise InvalidRequestError(f"audio must be bytes, not {type(audio).__name__}")
    return bytes(audio)
