"""PCM frames that follow the clock, and drop audio that is late. Pure."""

from collections.abc import Iterable
from math import gcd

from signalwire_streams.receiver._protocol import MediaEvent
from signalwire_streams.receiver.audio._pcm_mixer import Mixer, PcmFrame, PcmOptions
from signalwire_streams.receiver.audio._track_buffer import TrackBuffer

_SPAN = 1.0  # seconds: the least delayed frame is that of the current span and the one before
_EPSILON = 1e-6  # chunks
_MAX_PACKET = 0.5  # seconds of a frame that delay all audio; a longer one is late
_JITTER = 0.01  # seconds that a long frame may be late, at least


class _Transit:
    """The least delay of a track's frames: arrival less the end of its place, in seconds, of the last one to two s."""

    def __init__(self, transit: float, at: float) -> None:
        self.least = self._least_of_span = transit
        self._ends = at + _SPAN

    def note(self, transit: float, at: float) -> None:
        if at >= self._ends:
            self.least = min(self._least_of_span, transit)
            self._least_of_span = transit
            self._ends = at + _SPAN
        else:
            self._least_of_span = min(self._least_of_span, transit)
            self.least = min(self.least, transit)


class DropMixer(Mixer):
    """Follows the clock, and drops audio that is late.

    A chunk goes out at the time of its end on the timeline, plus the least delay of all tracks, plus ``delay_ms``. The
    number of chunks follows the clock all the same: silence goes out if there are too few, and a chunk that would go
    out a whole frame too late is dropped. A track whose frames are all late, compared with the other one, is shifted.
    """

    def __init__(self, options: PcmOptions, now: float, announced: Iterable[str]) -> None:
        super().__init__(options, now, announced)
        # One chunk is in the resampler, and has to go in a frame earlier.
        self._started_at = now - (self._seconds if self._resampler is not None else 0.0)
        self._transits: dict[TrackBuffer, _Transit] = {}
        self._least = 0.0  # transit of all tracks
        self._hold = self._delay
        self._packet = 0  # samples of the last frame

    def add(self, event: MediaEvent, at: float) -> None:
        """Add a media event that arrived at a time."""
        samples = len(event.payload) // self._sample_size
        if samples != self._packet and samples <= _MAX_PACKET * self._rate:
            # The first part of a long frame has to wait for the last one.
            self._packet = samples
            if wait := samples - gcd(samples, self._chunk):
                self._hold = max(self._hold, wait / self._rate + _JITTER)
        placed = self._place(event, at)
        if placed is None:
            return
        track, end = placed
        transit = at - end / self._rate
        if (noted := self._transits.get(track)) is None:
            noted = self._transits[track] = _Transit(transit, at)
        else:
            noted.note(transit, at)
        self._least = min(other.least for other in self._transits.values())
        for other, its in self._transits.items():
            late = its.least - self._least
            other.shift = round(late * self._rate) if late > self._hold else 0

    def frame(self, now: float) -> PcmFrame | None:
        """Return the next frame that is due; None, with `next_at` set, if there is none."""
        while True:
            if self.is_finished and self._horizon() <= self._cursor:
                return self._flush() or self._report(now)
            owed_at = self._started_at + self._chunks * self._seconds
            due_at = self._due_at()
            owed, overdue = (now - owed_at) / self._seconds, (now - due_at) / self._seconds
            if overdue >= 1 - _EPSILON:
                self._discard(int(overdue + _EPSILON) * self._chunk)
                continue
            if overdue >= -_EPSILON and owed >= -_EPSILON:
                frame = self._mix()
            elif overdue < -_EPSILON and owed >= 1 - _EPSILON:
                frame = self._send_silence()
            else:
                self.next_at = min(owed_at + self._seconds, max(owed_at, due_at))
                return None
            if frame is not None:
                return frame

    def _report(self, now: float) -> PcmFrame | None:
        """Return a frame of silence, in its time, that reports what was dropped after the last one."""
        self.next_at = self._started_at + (self._chunks + 1) * self._seconds
        if not self._has_lost or now < self.next_at - _EPSILON:
            return None
        return self._silent_frame()

    def _discard(self, samples: int) -> None:
        for track in self._buffers:
            track.discard(samples)
        self._cursor += samples

    def _due_at(self) -> float:
        """Return when the next chunk is due; infinity if no audio has arrived yet."""
        if not self._has_begun:
            return float("inf")
        return self._least + self._hold + (self._cursor + self._chunk) / self._rate
