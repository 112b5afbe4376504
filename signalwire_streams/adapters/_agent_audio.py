"""The audio of one stream as an agent hears and answers it: decoded, resampled, what was heard of it, and its end."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from inspect import isawaitable
from typing import Any, Literal, TypeAlias

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver import StartEvent
from signalwire_streams.receiver._heard_audio import HeardAudio
from signalwire_streams.receiver.audio import AudioFormat
from signalwire_streams.receiver.audio._resampling import Resampler

AgentTrack: TypeAlias = Literal["inbound", "outbound"]
"""The track that an agent hears."""

_TRACKS: tuple[AgentTrack, ...] = ("inbound", "outbound")
_FRAMES = 50  # per second
_PAUSE = 0.35  # seconds without audio, after which what follows is another answer


def check_track(track: AgentTrack) -> None:
    """Raise `InvalidRequestError` unless it is a track."""
    if track not in _TRACKS:
        raise InvalidRequestError(f"track must be 'inbound' or 'outbound', not {track!r}")


def check_format(audio_format: AudioFormat) -> None:
    """Raise an error if an agent can't hear or speak a format.

    Raises:
        InvalidRequestError: there are several channels.
        UnknownEncodingError: the encoding is unknown.
    """
    if audio_format.sample_size and audio_format.channels != 1:  # an unknown encoding raises here
        raise InvalidRequestError(
            f"the stream has {audio_format.channels} channels in each track, and an agent takes one"
        )


async def end_call(hang_up: Callable[[], object]) -> None:
    """Call a function, async or not, that ends the call.

    Raises:
        RuntimeError: it was cancelled, and the task that calls this was not: that would end unnoticed.
    """
    task = asyncio.current_task()
    try:
        if isawaitable(ending := hang_up()):
            await ending
    except asyncio.CancelledError as error:
        if task is None or task.cancelling():
            raise
        raise RuntimeError("hang_up was cancelled, so the call may go on") from error


class AgentAudio:
    """Converts one track's payloads to linear PCM and an agent's PCM to payloads: 16 bits, little-endian, one channel.

    At another rate than the stream's, it holds back the last 10 ms, and what is sent waits until it is a whole frame,
    as long as those that arrive: 20 ms before any has. The times are seconds of one clock.

    Raises:
        InvalidRequestError: the stream has several channels, or only the other track.
        UnknownEncodingError: the encoding is unknown.
    """

    def __init__(self, start: StartEvent, track: AgentTrack) -> None:
        if not isinstance(start, StartEvent):
            raise InvalidRequestError("start must be the StartEvent that decode_event returns")
        check_format(audio_format := AudioFormat.from_start_event(start))
        if start.tracks and track not in start.tracks and set(start.tracks) <= set(_TRACKS):
            other = start.tracks[0]
            raise InvalidRequestError(
                f"the stream has only its {other} track: write track={other!r}, or start it with both tracks"
            )
        self._stream_sid, self._format = start.stream_sid, audio_format
        self._heard = HeardAudio(audio_format.sample_rate)
        self._inbound: Resampler | None = None
        self._outbound: tuple[int, Resampler] | None = None
        self._frame_size = audio_format.sample_size * max(1, audio_format.sample_rate // _FRAMES)
        self._unsent = b""

    @property
    def rate(self) -> int:
        """Samples per second of the stream."""
        return self._format.sample_rate

    def receive(self, payload: bytes, rate: int, *, last: bool = False) -> bytes:
        """Return the PCM that a payload completes; with ``last`` what was held back as well."""
        if self._inbound is None:
            self._inbound = Resampler(self.rate, rate)
        size = self._format.sample_size
        self._frame_size = len(payload) // size * size or self._frame_size
        return self._inbound.process(self._format.to_pcm(payload), last=last)

    def send(self, pcm: bytes, rate: int, now: float, *, channels: int = 1) -> str | None:
        """Return the message that sends PCM now; None if it completes no frame."""
        if channels != 1:
            raise InvalidRequestError(f"audio with {channels} channels was sent, and the stream takes one")
        if self._outbound is None or self._outbound[0] != rate:
            self._outbound = rate, Resampler(rate, self.rate)
        audio = self._unsent + self._format.from_pcm(self._outbound[1].process(pcm))
        end = len(audio) - len(audio) % self._frame_size
        payload, self._unsent = audio[:end], audio[end:]
        if not payload:
            return None
        if not self._heard.waiting(now - _PAUSE):
            self._heard.on_heard(self._heard.end_utterance())
        self._heard.send(len(payload) // self._format.sample_size, now)
        return self.message({"event": "media", "media": {"payload": b64encode(payload).decode("ascii")}})

    def message(self, document: Mapping[str, Any]) -> str:
        """Return a message to the Space, with the stream's id."""
        return json.dumps({**document, "streamSid": self._stream_sid})

    def waiting(self, now: float) -> float:
        """Return the seconds of audio that were sent and not played."""
        return self._heard.waiting(now)

    def interrupt(self, now: float) -> int:
        """Drop what was not played. Return the milliseconds that were heard of the last answer."""
        self._outbound, self._unsent = None, b""
        return self._heard.milliseconds(self._heard.clear(now))
