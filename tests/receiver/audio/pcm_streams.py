"""Streams of which no two moments sound alike, and a mixer that is driven in virtual time."""

import random
from array import array
from collections.abc import Iterable, Iterator
from itertools import pairwise

from attrs import frozen

from signalwire_streams.receiver import MediaEvent
from signalwire_streams.receiver.audio import AudioFormat, PcmFrame
from signalwire_streams.receiver.audio._mixers import mixer_for
from signalwire_streams.receiver.audio._pcm_frames import PcmOptions

# No byte is part of silence in any encoding, and two samples together are not too loud.
_CODES = random.Random(5).randbytes(1 << 20).translate(bytes(0x20 | byte & 0x1F for byte in range(256)))  # noqa: S311
_OFFSET = {"inbound": 0, "outbound": 100_001 * 4}
Arrival = tuple[float, MediaEvent]


@frozen
class Sound:
    """Audio of which no two moments are alike, for each track."""

    audio: AudioFormat

    def of(self, track: str, begin: int, samples: int) -> bytes:
        """Return a payload."""
        size, offset = self.audio.sample_size, _OFFSET[track]
        return _CODES[offset + begin * size : offset + (begin + samples) * size]

    def event(self, track: str, number: int, ms: float = 20, *, start_ms: float = 0) -> MediaEvent:
        """Return the frame of a number, from 0."""
        begin, end = (round((start_ms + n * ms) * self.audio.sample_rate / 1000) for n in (number, number + 1))
        return MediaEvent(track, self.of(track, begin, end - begin), number + 1, int(start_ms + number * ms))


class Timeline:
    """What a stream's frames sound like in their places: a simple reference."""

    def __init__(self, audio: AudioFormat, tracks: str = "inbound") -> None:
        self.audio = audio
        self.tracks = ("inbound", "outbound") if tracks in {"mixed", "stereo"} else (tracks,)
        self._is_stereo = tracks == "stereo"
        self._pcm = {track: array("h") for track in self.tracks}

    def add(self, event: MediaEvent, begin: int | None = None) -> None:
        assert event.track is not None
        assert event.timestamp is not None
        pcm = self._pcm[event.track]
        begin = self.audio.samples_in(event.timestamp) if begin is None else begin
        samples = array("h", self.audio.to_pcm(event.payload))
        pcm.extend([0] * (begin + len(samples) - len(pcm)))
        pcm[begin : begin + len(samples)] = samples

    @property
    def end(self) -> int:
        return max(map(len, self._pcm.values()))

    def slice(self, begin: int, end: int) -> bytes:
        parts = []
        for pcm in self._pcm.values():
            part = pcm[begin:end]
            part.extend([0] * (end - begin - len(part)))
            parts.append(part)
        if len(parts) == 1:
            return parts[0].tobytes()
        if self._is_stereo:
            return array("h", [sample for pair in zip(*parts, strict=True) for sample in pair]).tobytes()
        return array("h", [min(max(sum(pair), -32768), 32767) for pair in zip(*parts, strict=True)]).tobytes()


class Whole:
    """A whole number as numpy has them: of no type that is an int."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


def options(audio: AudioFormat, **changes: object) -> PcmOptions:
    chosen = {"rate": audio.sample_rate, "tracks": "inbound", "frame_ms": 20, "late": "keep", "delay_ms": 60, **changes}
    return PcmOptions(audio_format=audio, **chosen)  # type: ignore[arg-type]


def play(
    chosen: PcmOptions,
    arrivals: Iterable[Arrival],
    *,
    announced: Iterable[str] = ("inbound", "outbound"),
    until: float = 0.0,
) -> Iterator[tuple[float, PcmFrame]]:
    """Add the events in their time, and yield each frame with its time. The mixer is finished at *until*."""
    mixer = mixer_for(chosen, 0.0, announced)
    now = 0.0

    def take(now: float) -> Iterator[tuple[float, PcmFrame]]:
        return ((now, frame) for frame in mixer.frames(now))

    def wait(end: float) -> Iterator[tuple[float, PcmFrame]]:
        nonlocal now
        while not mixer.is_empty and (at := max(mixer.next_at, now + 0.001)) < end:
            now = at
            yield from take(now)

    yield from take(now)
    for at, event in arrivals:
        yield from wait(at)
        now = max(now, at)
        mixer.add(event, now)
        yield from take(now)
    yield from wait(until)
    now = max(now, until)
    mixer.finish()
    yield from take(now)
    yield from wait(float("inf"))


def longest_wait(frames: list[tuple[float, PcmFrame]]) -> float:
    return max(later - earlier for earlier, later in pairwise([0.0, *(at for at, _ in frames)]))


def check_in_place(frames: Iterable[tuple[float, PcmFrame]], timeline: Timeline) -> set[int]:
    """Check that each frame is silence, or has the audio of its place; return the places of the latter, in frames."""
    places = set()
    for _, frame in frames:
        assert frame.rate == timeline.audio.sample_rate
        if any(frame.data):
            samples = len(frame.data) // 2 // frame.channels
            begin = round(frame.timestamp_ms * frame.rate / 1000)
            assert frame.data == timeline.slice(begin, begin + samples), frame.timestamp_ms
            assert begin not in places
            places.add(begin)
    return places
