"""PCM frames that drop no audio, however late it is. Pure."""

from collections import deque
from collections.abc import Iterable

from signalwire_streams.receiver._protocol import MediaEvent
from signalwire_streams.receiver.audio._pcm_mixer import Mixer, PcmFrame, PcmOptions

_PATIENCE, _MAX_PATIENCE, _MARGIN = 0.1, 0.18, 0.06  # seconds without a frame until silence goes out
_MAX_PIECES = 1000  # frames of a track that wait for a missing one


class KeepMixer(Mixer):
    """Drops no audio, and never lets the consumer wait for long.

    A chunk goes out as soon as it is complete, or ``delay_ms`` after it could have been. If nothing arrives, silence
    goes out after a short wait, in real time. That silence is a debt: as many samples of later silence are left out.
    """

    def __init__(self, options: PcmOptions, now: float, announced: Iterable[str]) -> None:
        super().__init__(options, now, announced)
        self._debt = 0  # samples of silence that went out for want of audio
        self._reached: deque[tuple[int, float]] = deque()  # ends of the audio that is there, and since when it is
        self._patience = max(_PATIENCE, min(self._seconds + _MARGIN, _MAX_PATIENCE))
        self._silent_at = now + self._patience  # when silence goes out

    def add(self, event: MediaEvent, at: float) -> None:
        """Add a media event that arrived at a time."""
        placed = self._place(event, at)
        if placed is None:
            return
        track, _ = placed
        if track.cursor < self._cursor:  # a late frame
            self._debt += self._cursor - track.cursor
            self._start_at(track.cursor)
        horizon = self._horizon()
        if not self._reached or horizon > self._reached[-1][0]:
            self._reached.append((horizon, at))
        packet = len(event.payload) / self._sample_size / self._rate
        if packet + _MARGIN > self._patience:
            self._patience = min(packet + _MARGIN, max(self._patience, _MAX_PATIENCE))

    def _first_position(self, begin: int) -> int:
        if not self._origin:
            return 0
        self._debt = 0
        return max(0, begin - self._chunk)

    @property
    def is_empty(self) -> bool:
        """True if a finished mixer has no more frames."""
        return True

    def frame(self, now: float, *, fill: bool = True) -> PcmFrame | None:
        """Return the next frame that is due; None if there is none.

        Args:
            now: the time.
            fill: whether silence may go out for want of audio.
        """
        if self._dropped:
            lost = self._take_dropped()
            self._debt += lost
            self._lost_time += lost
        while True:
            until = self._cursor + self._chunk
            horizon = self._horizon()
            if horizon >= until or (self.is_finished and horizon > self._cursor):
                if self._is_due(until, now):
                    if self._debt and self._skip(now):
                        continue
                    frame = self._send(self._mix(self._chunk), until - self._chunk)
                    if frame is not None:
                        self._silent_at = now + self._patience
                        return frame
                    continue
            elif self.is_finished:
                return self._flush()
            if not fill or now < self._silent_at:
                return None
            self._debt += self._chunk
            self._silent_at = max(self._silent_at + self._seconds, now - self._patience)
            if (frame := self._send(self._silence(), self._cursor)) is not None:
                return frame

    def _is_due(self, until: int, now: float) -> bool:
        """Whether nothing can change the audio before a sample, or it has waited long enough."""
        if self.is_finished or all(track.is_complete(until) for track in self._expected):
            return True
        return now >= self._due_at(until) or any(len(track) > _MAX_PIECES for track in self._buffers)

    def _due_at(self, until: int) -> float:
        reached = self._reached
        while reached and reached[0][0] <= self._cursor:
            reached.popleft()
        return next((since + self._delay for end, since in reached if end >= until), self._silent_at)

    def _skip(self, now: float) -> bool:
        """Leave out silence that is owed; return whether there was some."""
        begin = min(track.begin for track in self._buffers)
        samples = min(self._debt, begin - self._cursor)
        if samples > 0 and not self._is_due(self._cursor + samples, now):
            samples = min(samples, self._chunk)
        if samples <= 0:
            samples = min(self._debt, self._chunk)
            if not all(track.is_quiet(self._cursor + samples) for track in self._buffers):
                return False
        for track in self._buffers:
            track.take(samples)
        self._cursor += samples
        self._debt -= samples
        return True

    def next_at(self) -> float:
        """Return when to ask for a frame again if nothing is added before."""
        until = self._cursor + self._chunk
        return min(self._silent_at, self._due_at(until)) if self._horizon() >= until else self._silent_at
