"""A call that tests an endpoint: what the caller does, and what is observed of the endpoint meanwhile."""

import asyncio
import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

import aiohttp
from attrs import define, field, frozen

from signalwire_streams.simulator._endpoint_messages import EndpointRule, InvalidMessageError
from signalwire_streams.simulator._faults import FaultKind
from signalwire_streams.simulator._media_session import EncodedAudio, MediaSession, OutboundCall, Player
from signalwire_streams.simulator._sources import Clip, Samples, Sound, codec_of
from signalwire_streams.simulator._state import SpaceSettings

CLOSE_SECONDS = 5.0  # that the endpoint has to close the socket
STALLED_SECONDS = 5.0  # that one frame may take to be sent
HEARD_BEFORE_BARGE_IN = 0.3  # seconds
_START_DELAY = 0.25  # seconds between connected and start, to notice what is sent too early
_QUIET = 1.0  # seconds without audio after which an answer has ended
NO_CODE = 1005  # RFC 6455, 7.1.5


class Caller:
    """A sound that says another one from the first frame on, and again when told to, and is silent otherwise."""

    def __init__(self, sound: Sound) -> None:
        self.begins = [0]  # samples
        self._sound = sound
        self._speaks_next = False

    def speak(self) -> None:
        """Speak with the next frame."""
        self._speaks_next = True

    def speech(self, rate: int) -> Clip:
        return self._sound.clip("inbound", rate)

    def clip(self, track: str, rate: int) -> Clip:
        speech = self._sound.clip(track, rate)

        def read(start: int, stop: int) -> Samples:
            if self._speaks_next:
                self._speaks_next = False
                self.begins.append(start)
            samples = speech.samples(start - self.begins[-1], stop - self.begins[-1])
            return samples + array("h", [0]) * (stop - start - len(samples))

        return Clip(sys.maxsize, repeats=False, read=read)


@frozen(kw_only=True)
class Limits:
    """What is expected of the endpoint, beyond the protocol."""

    patience: float  # seconds that the caller listens after speaking
    max_first_audio_ms: float | None
    max_clear_ms: float | None  # None: the caller does not interrupt
    require_mark: bool
    one_way: bool


@define(eq=False)
class Observations:
    """What happened. Times are those of the loop's clock, in seconds; None for what has not happened."""

    started_at: float | None = None  # the start event was sent
    began_at: float = 0.0  # the first frame was due
    slots: int = 0  # packet times for which frames were sent
    spoken_at: float | None = None  # the caller has finished speaking, for the last time so far
    first_audio_at: float | None = None
    first_audio_since: Literal["start", "speech"] | None = None
    first_audio_begin: float | None = None  # of the time that it took
    interrupted_at: float | None = None
    cleared_at: float | None = None  # the first time after that
    stopped_at: float | None = None  # by the caller
    closed_at: float | None = None  # by the endpoint
    close_code: int | None = None
    not_closed: bool = False  # the endpoint ignored the end of the call
    stalled: bool = False  # the endpoint did not read
    unheard: float = 0.0  # seconds of audio that the end of the call cut off, if above 0
    ahead: float = 0.0  # most seconds of audio that waited to be played
    unmarked: float = 0.0  # seconds of audio since the last mark or clear
    after_clear: float = 0.0  # seconds of audio that the endpoint sent after that while the caller was speaking
    payload_sizes: Counter[int] = field(factory=Counter)
    marks: int = 0
    marks_returned: int = 0
    clears: int = 0
    invalid: Counter[tuple[EndpointRule, str]] = field(factory=Counter)
    heard: list[tuple[float, bytearray]] = field(factory=list)  # pieces of audio, and when they begin

    @property
    def first_audio_ms(self) -> int | None:
        return _milliseconds(self.first_audio_begin, self.first_audio_at)

    @property
    def clear_ms(self) -> int | None:
        return _milliseconds(self.interrupted_at, self.cleared_at)

    @property
    def close_ms(self) -> int | None:
        return _milliseconds(self.stopped_at, self.closed_at)

    @property
    def closed_early(self) -> bool:
        return self.closed_at is not None and self.stopped_at is None


def _milliseconds(begin: float | None, end: float | None) -> int | None:
    return None if begin is None or end is None else round((end - begin) * 1_000)


class DialSession(MediaSession):
    """Speaks, listens to an answer, interrupts it if wanted, hangs up, and waits for the endpoint's close."""

    def __init__(
        self,
        call: OutboundCall,
        socket: aiohttp.ClientWebSocketResponse,
        *,
        caller: Caller,
        settings: SpaceSettings,
        limits: Limits,
        on_stage: Callable[[str], None],
    ) -> None:
        super().__init__(call, socket, EncodedAudio(caller), settings)
        self.seen = Observations()
        self._caller, self._limits, self._on_stage = caller, limits, on_stage
        self._stage = ""
        self._codec = codec = codec_of(call.stream.codec)
        self._speech_slots = math.ceil(caller.speech(codec.rate).length * 1_000 / (codec.rate * codec.packet_time))
        self._silent_slot = self._speech_slots  # the first one after what is being said
        self._interrupting_slot: int | None = None
        self._closed = asyncio.Event()
        self._hung_up = False  # what comes now is no close by the endpoint

    async def run(self) -> None:
        await super().run()
        if self.seen.closed_at is None and self._call.rule(FaultKind.NO_STOP) is not None:
            self.seen.not_closed = self._socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE

    async def _send_stream(self) -> None:
        waits_for_close = True
        with suppress(ConnectionError):  # the endpoint is gone
            waits_for_close = await self._talk()
        self._enter("closing")
        if waits_for_close:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._closed.wait()
            except TimeoutError:
                self.seen.not_closed = True
        self._hung_up = True

    async def _talk(self) -> bool:
        """Carry out the call up to its stop event; return False if the endpoint need not close the socket."""
        seen = self.seen
        await self._socket.send_str(self._encoder.connected())
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_DELAY):
                await self._closed.wait()
        seen.started_at = self._time()
        await self._socket.send_str(self._encoder.start())
        seen.began_at = self._time()
        if not await self._send_audio():
            return False
        if self._closed.is_set():
            return True
        seen.stopped_at = now = self._time()
        self._cut_heard(now)
        if self._player is not None:
            seen.unheard = self._player.until - now
            await self._return_marks(self._player.advance(now))  # those that are due, even if the loop was busy
            self._player.clear(now)
        if self._call.rule(FaultKind.NO_STOP) is not None:
            return False
        return await self._send([self._encoder.stop()])

    async def _send(self, frames: Sequence[str]) -> bool:
        if not self._call.stopped.is_set():
            self._on_slot(self._time())
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                return await super()._send(frames)
        except TimeoutError:
            self.seen.stalled = True
            self._drop()
            return False

    def _on_slot(self, now: float) -> None:
        """Decide, once per packet time, what the caller does next."""
        seen = self.seen
        if seen.slots == self._silent_slot:
            seen.spoken_at = now
        if seen.slots == self._interrupting_slot:
            seen.interrupted_at = now
        seen.slots += 1
        if seen.spoken_at is None or seen.slots <= self._silent_slot:
            self._enter("speaking" if seen.interrupted_at is None else "interrupting")
        elif self._interrupts(now):
            self._caller.speak()
            self._interrupting_slot = seen.slots
            self._silent_slot = seen.slots + self._speech_slots
        elif self._is_over(seen.spoken_at, now):
            self._call.stopped.set()
        else:
            self._enter("waiting for audio" if seen.first_audio_at is None else "listening")

    def _interrupts(self, now: float) -> bool:
        seen, player = self.seen, self._player
        if self._limits.max_clear_ms is None or seen.interrupted_at is not None or seen.first_audio_at is None:
            return False
        return player is not None and seen.first_audio_at + HEARD_BEFORE_BARGE_IN <= now < player.until

    def _is_over(self, spoken_at: float, now: float) -> bool:
        seen, player = self.seen, self._player
        if player is None or now - spoken_at >= self._limits.patience:
            return True
        if seen.first_audio_at is None:
            return False
        if seen.interrupted_at is not None and seen.cleared_at is None:
            spoken_at = max(spoken_at, seen.interrupted_at + (self._limits.max_clear_ms or 0) / 1_000 - _QUIET)
        return now - max(spoken_at, player.until) >= _QUIET

    def _enter(self, stage: str) -> None:
        if stage != self._stage:
            self._stage = stage
            self._on_stage(stage)

    async def _receive(self) -> None:
        await super()._receive()
        now = self._time()
        if not self._hung_up:
            self.seen.closed_at = now
            self.seen.close_code = self._socket.close_code or NO_CODE
            if self._player is not None and self.seen.closed_early:
                self.seen.unheard = self._player.until - now
                self._cut_heard(now)
        self._closed.set()

    def _handle(self, data: object, now: float) -> list[str]:
        seen = self.seen
        if seen.stopped_at is not None:  # it was on its way
            return []
        if isinstance(data, Exception):  # aiohttp closes the socket
            self._hung_up = True
            text = "something that is no WebSocket message, or one of more than 4 MiB"
            error = InvalidMessageError(EndpointRule.INVALID_MESSAGE, text)
        elif seen.started_at is None:
            error = InvalidMessageError(EndpointRule.SENT_BEFORE_START, "a message before the start event")
        else:
            try:
                return super()._handle(data, now)
            except InvalidMessageError as invalid:
                error = invalid
        seen.invalid[error.rule, str(error)] += 1
        raise error

    def _execute(self, player: Player, event: str, value: Any, now: float) -> list[str]:  # noqa: ANN401  (the event's)
        seen = self.seen
        match event:
            case "media":
                seen.payload_sizes[len(value)] += 1
                seconds = len(value) / (self._codec.rate * self._codec.width)
                if value:
                    self._hear(value, player.until, now)
                if seen.cleared_at is not None and seen.slots <= self._silent_slot:
                    seen.after_clear += seconds
                seen.unmarked += seconds
                seen.ahead = max(seen.ahead, player.until - now + seconds, seconds)
            case "mark":
                seen.marks += 1
                seen.unmarked = 0.0
            case "clear":
                seen.clears += 1
                seen.unmarked = 0.0
                if seen.cleared_at is None and seen.interrupted_at is not None and now >= seen.interrupted_at:
                    seen.cleared_at = now
                self._cut_heard(now)
        return super()._execute(player, event, value, now)

    def _hear(self, audio: bytes, until: float, now: float) -> None:
        """Record audio that will be played until it is cut."""
        seen = self.seen
        if seen.first_audio_at is None:
            is_answer = seen.spoken_at is not None and self._speech_slots > 1  # a single frame is no speech
            seen.first_audio_at = now
            seen.first_audio_begin = seen.spoken_at if is_answer else seen.started_at
            seen.first_audio_since = "speech" if is_answer else "start"
        if until >= now and seen.heard:
            seen.heard[-1][1].extend(audio)
        else:
            seen.heard.append((now, bytearray(audio)))

    def _cut_heard(self, now: float) -> None:
        """Forget the audio that would have been heard from now on."""
        heard = self.seen.heard
        while heard and heard[-1][0] >= now:
            heard.pop()
        if heard:
            begin, audio = heard[-1]
            del audio[round((now - begin) * self._codec.rate) * self._codec.width :]

    async def _return_marks(self, marks: Sequence[str]) -> None:
        self.seen.marks_returned += len(marks)
        await super()._return_marks(marks)
