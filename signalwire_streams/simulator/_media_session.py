"""One stream's audio socket: the encoding of its frames, and the session that sends them and plays received audio.

https://signalwire.com/docs/compatibility-api/rest/streams. The second dialect is Twilio's, which some servers for
SignalWire expect: ``streamSid`` on every frame, version 1.0.0, a body in ``stop``.
"""

import asyncio
import json
import socket
from base64 import b64encode
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count, zip_longest
from math import gcd
from typing import Any, Literal, TypeAlias

import aiohttp
from attrs import field, frozen

from signalwire_streams.simulator._endpoint_messages import EndpointRule, InvalidMessageError, parse_message
from signalwire_streams.simulator._faults import FaultKind, FaultRule, frame_faults
from signalwire_streams.simulator._sources import Codec, NoFrames, Sound, codec_of
from signalwire_streams.simulator._state import SpaceSettings, Stream

_SLOTS_PER_TURN = 16  # of a session that is not in real time, before other tasks have a turn

TRACKS: Mapping[str, tuple[str, ...]] = {
    "inbound_track": ("inbound",),
    "outbound_track": ("outbound",),
    "both_tracks": ("inbound", "outbound"),
}

TrackPayload: TypeAlias = tuple[str, str]
"""A track, and its audio in one frame."""

NoticedBy: TypeAlias = Literal["both", "receiver", "space"]
"""Which end of a socket notices that it was lost."""

_CACHED_BYTES = 1 << 25  # of one track; frames beyond are encoded each time


class _EncodedTrack:
    """Encodes frames when they are first needed, so that a long file does not hold up the event loop."""

    def __init__(self, sound: Sound, track: str, codec: Codec) -> None:
        self._track = track
        self._codec = codec
        self._clip = sound.clip(track, codec.rate)
        # A loop of the clip need not be a whole number of frames: after this many, both begin together.
        loop, step = self._clip.length * 1_000, codec.rate * codec.packet_time
        self._period = loop // gcd(loop, step) if self._clip.repeats else None
        self._frames: list[TrackPayload] = []
        self._cacheable = _CACHED_BYTES // (codec.frame_start(1) * codec.width)

    def __iter__(self) -> Iterator[TrackPayload]:
        for number in count():
            index = number if self._period is None else number % self._period
            if index < len(self._frames):
                yield self._frames[index]
                continue
            frame = self._encode(index)
            if frame is None:
                return
            if index == len(self._frames) < self._cacheable:
                self._frames.append(frame)
            yield frame

    def _encode(self, index: int) -> TrackPayload | None:
        samples = self._clip.samples(self._codec.frame_start(index), self._codec.frame_start(index + 1))
        return (self._track, b64encode(self._codec.encode(samples)).decode("ascii")) if samples else None


class EncodedAudio:
    """A sound cut into encoded frames, once for all streams of the same codec."""

    def __init__(self, sound: Sound) -> None:
        self.is_empty = isinstance(sound, NoFrames)
        self._sound = sound
        self._tracks: dict[tuple[str, str | None], _EncodedTrack] = {}

    def slots(self, stream: Stream) -> Iterator[tuple[TrackPayload, ...]]:
        """Yield the frames of each packet time, one for each track that has not ended. Raises as `Sound.clip` does."""
        for slot in zip_longest(*(self._track(track, stream.codec) for track in TRACKS[stream.track])):
            yield tuple(filter(None, slot)) if None in slot else slot

    def _track(self, track: str, codec: str | None) -> _EncodedTrack:
        key = track, codec
        if key not in self._tracks:
            self._tracks[key] = _EncodedTrack(self._sound, track, codec_of(codec))
        return self._tracks[key]


class FrameEncoder:
    def __init__(self, stream: Stream, settings: SpaceSettings) -> None:
        self._stream = stream
        self._project = settings.project
        self._call_sid = stream.target_sid if stream.target_kind == "call" else None
        self._is_twilio = settings.dialect == "twilio"
        self._names_replies = {"streamSid": stream.sid} if settings.plays(stream) else {}
        self._sequence = 0
        self._chunks: dict[str, int] = {}
        self._media_sid = f'"streamSid": "{stream.sid}", ' if self._is_twilio else ""

    def connected(self) -> str:
        version = "1.0.0" if self._is_twilio else "0.2.0"
        return json.dumps({"event": "connected", "protocol": "Call", "version": version})

    def start(self) -> str:
        codec = codec_of(self._stream.codec)
        body: dict[str, object] = {
            "streamSid": self._stream.sid,
            "accountSid": self._project,
            "tracks": list(TRACKS[self._stream.track]),
            "mediaFormat": {"encoding": codec.encoding, "sampleRate": codec.rate, "channels": 1},
        }
        if self._call_sid is not None:
            body["callSid"] = self._call_sid
        if self._stream.parameters:
            body["customParameters"] = dict(self._stream.parameters)
        return self._numbered("start", start=body)

    def media(self, timestamp: int, slot: Sequence[TrackPayload]) -> list[str]:
        # Without json, since each track needs fifty a second.
        frames = []
        for track, payload in slot:
            self._sequence += 1
            chunk = self._chunks[track] = self._chunks.get(track, 0) + 1
            frames.append(
                f'{{"event": "media", "sequenceNumber": "{self._sequence}", {self._media_sid}"media": '
                f'{{"track": "{track}", "chunk": "{chunk}", "timestamp": "{timestamp}", "payload": "{payload}"}}}}'
            )
        return frames

    def dtmf(self, digit: str, milliseconds: int) -> str:
        body: dict[str, object] = {"digit": digit, "duration": milliseconds}
        if self._is_twilio:
            body["track"] = "inbound_track"
        return self._numbered("dtmf", **self._names_replies, dtmf=body)

    def mark(self, name: str) -> str:
        body = {"mark": {"name": name}}
        if self._is_twilio:  # which alone numbers these
            return self._numbered("mark", **body)
        return json.dumps({"event": "mark", **self._names_replies, **body})

    def stop(self) -> str:
        if self._is_twilio:
            return self._numbered("stop", stop={"accountSid": self._project, "callSid": self._call_sid})
        return self._numbered("stop")

    def _numbered(self, event: str, **body: object) -> str:
        self._sequence += 1
        sid = {"streamSid": self._stream.sid} if self._is_twilio else {}
        return json.dumps({"event": event, "sequenceNumber": str(self._sequence), **sid, **body})


@frozen
class _Queued:
    """Audio, or a mark if ``mark`` is not None; times are in seconds."""

    begins: float
    ends: float
    payload: bytes = field(default=b"", repr=False)
    mark: str | None = None


class Player:
    """Plays audio to a call (pure; the caller reads the clock)."""

    def __init__(self, octets_per_second: int | None, played: bytearray | None = None) -> None:
        """Create an idle player; without a rate, audio is played at once."""
        self.played_audio = bytearray() if played is None else played
        self.until = float("-inf")  # when the queue has been played
        self._rate = octets_per_second
        self._queue: deque[_Queued] = deque()

    def play(self, payload: bytes, now: float) -> None:
        begins = max(now, self.until)
        self.until = begins if self._rate is None else begins + len(payload) / self._rate
        self._queue.append(_Queued(begins, self.until, payload))

    def mark(self, name: str, now: float) -> None:
        moment = max(now, self.until)
        self._queue.append(_Queued(moment, moment, mark=name))

    def clear(self, now: float) -> list[str]:
        """Drop unplayed audio; return the marks that this completes."""
        marks = self.advance(now)
        if self._queue and self._rate is not None and self._queue[0].begins < now:
            playing = self._queue[0]
            self.played_audio += playing.payload[: round((now - playing.begins) * self._rate)]
        marks += [queued.mark for queued in self._queue if queued.mark is not None]
        self._queue.clear()
        self.until = now
        return marks

    def advance(self, now: float) -> list[str]:
        marks = []
        while self._queue and self._queue[0].ends <= now:
            queued = self._queue.popleft()
            self.played_audio += queued.payload
            if queued.mark is not None:
                marks.append(queued.mark)
        return marks

    def next_mark(self) -> float | None:
        return next((queued.ends for queued in self._queue if queued.mark is not None), None)


class OutboundCall:
    """The connection of one stream, from the first attempt to its end."""

    def __init__(self, stream: Stream, rules: Sequence[FaultRule]) -> None:
        self.stream = stream
        self.rules = rules
        self.stopped = asyncio.Event()  # the stream is to end, or the other end has closed the socket
        self.audio_sent = asyncio.Event()  # or it ended before
        self.media: MediaSession | None = None

    def rule(self, kind: FaultKind) -> FaultRule | None:
        return next((rule for rule in self.rules if rule.kind is kind), None)


class MediaSession:
    """Sends audio on one socket until the sound or the stream ends, or the other end closes it."""

    def __init__(
        self,
        call: OutboundCall,
        socket: aiohttp.ClientWebSocketResponse,
        audio: EncodedAudio,
        settings: SpaceSettings,
    ) -> None:
        codec = codec_of(call.stream.codec)
        octets_per_second = codec.rate * codec.width if settings.real_time else None
        self._call = call
        self._socket = socket
        self._time = asyncio.get_running_loop().time
        self._audio = audio
        self._encoder = FrameEncoder(call.stream, settings)
        self._player = Player(octets_per_second, call.stream.played_audio) if settings.plays(call.stream) else None
        self._real_time = settings.real_time
        self._packet_time = codec.packet_time
        self._received = asyncio.Event()
        self._receiving: asyncio.Task[None] | None = None
        self.noticed_by: NoticedBy | None = None  # if the connection was lost
        drops = (rule.settings.after for rule in call.rules if rule.kind is FaultKind.CONNECTION_DROPPED)
        self._frames_until_drop = min(drops, default=None)

    async def run(self) -> None:
        self._receiving = asyncio.create_task(self._receive())
        others = [self._receiving, asyncio.create_task(self._return_marks_when_due())]
        try:
            with suppress(ConnectionError):  # the other end is gone
                await self._send_stream()
        finally:  # also when the Space is closed
            try:
                if self.noticed_by != "space":
                    await self._socket.close()
            finally:
                for task in others:
                    task.cancel()
                await asyncio.wait(others)

    async def close(self) -> None:
        await self._socket.close()

    def lose(self, noticed_by: NoticedBy) -> None:
        """Lose the connection: nothing more is sent or received, and an end that does not notice it goes on."""
        if self.noticed_by is not None or self._receiving is None:
            return
        self.noticed_by = noticed_by
        if noticed_by != "both":
            self._receiving.cancel()
        if noticed_by == "space":
            self._call.stopped.set()
        else:
            self._drop()

    async def send_dtmf(self, digits: str, milliseconds: int) -> None:
        for digit in digits:
            await self._socket.send_str(self._encoder.dtmf(digit, milliseconds))

    async def _send_stream(self) -> None:
        await self._socket.send_str(self._encoder.connected())
        await self._socket.send_str(self._encoder.start())
        if await self._send_audio() and self._call.rule(FaultKind.NO_STOP) is None:
            await self._socket.send_str(self._encoder.stop())

    async def _send_audio(self) -> bool:
        """Send the media frames when they are due; return False if a fault has dropped the connection."""
        faults = frame_faults(self._call.rules)
        began, packet_time = self._time(), self._packet_time
        if self._audio.is_empty:
            self._call.audio_sent.set()
            await self._call.stopped.wait()
        for number, slot in enumerate(self._audio.slots(self._call.stream)):
            if self._real_time:
                await asyncio.sleep(began + number * packet_time / 1_000 - self._time())
            elif number % _SLOTS_PER_TURN == 0:
                await asyncio.sleep(0)
            if self._call.stopped.is_set():
                break
            frames = self._encoder.media(number * packet_time, slot)
            for fault in faults:
                frames = fault.process(frames)
            if not await self._send(frames):
                return False
        frames = []
        for fault in faults:
            frames = [*fault.process(frames), *fault.flush()]
        return await self._send(frames) and self.noticed_by is None

    async def _send(self, frames: Sequence[str]) -> bool:
        for frame in () if self.noticed_by else frames:
            await self._socket.send_str(frame)
            self._call.audio_sent.set()
            if self._frames_until_drop is not None:
                self._frames_until_drop -= 1
                if not self._frames_until_drop:
                    self._drop()
                    return False
        return True

    def _drop(self) -> None:
        """End the connection as a lost network does, without a close frame."""
        self._socket.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    async def _receive(self) -> None:
        async for message in self._socket:
            try:
                marks = self._handle(message.data, self._time())
            except InvalidMessageError:
                self._call.stream.ignored_messages += 1
                continue
            self._received.set()
            await self._return_marks(marks)
        self._call.stopped.set()

    def _handle(self, data: object, now: float) -> list[str]:
        """Execute a message; return the marks that it completes.

        Raises:
            InvalidMessageError: it is invalid, or the stream is one-way.
        """
        if self._player is None:
            raise InvalidMessageError(EndpointRule.SENT_ONE_WAY, "a message over a one-way stream")
        event, value = parse_message(data, self._call.stream.sid)
        return self._execute(self._player, event, value, now)

    def _execute(self, player: Player, event: str, value: Any, now: float) -> list[str]:  # noqa: ANN401  (the event's)
        match event:
            case "media":
                player.play(value, now)
            case "mark":
                player.mark(value, now)
            case "clear":
                return player.clear(now)
            case _:
                self._call.stream.dtmf_received += value
        return player.advance(now)

    async def _return_marks_when_due(self) -> None:
        player, clock = self._player, self._time
        while player is not None:
            self._received.clear()
            due = player.next_mark()
            try:
                await asyncio.wait_for(self._received.wait(), None if due is None else max(due - clock(), 0.0))
            except TimeoutError:
                await self._return_marks(player.advance(clock()))

    async def _return_marks(self, marks: Sequence[str]) -> None:
        with suppress(ConnectionError):  # the other end is gone
            for mark in marks:
                await self._socket.send_str(self._encoder.mark(mark))
