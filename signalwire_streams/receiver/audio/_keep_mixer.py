"""PCM frames that drop no audio, however late it is. Pure."""

from collections import deque
from collections.abc import Iterable
from math import inf

from signalwire_streams.receiver._protocol import MediaEvent
from signalwire_streams.receiver.audio._pcm_mixer import Mixer, PcmFrame, PcmOptions

_PATIENCE, _MAX_PATIENCE, _MARGIN = 0.1, 0.18, 0.06  # seconds without a frame until silence goes out
_SILENCE = 100  # per second: shorter silence is part of the sound
_MAX_PIECES = 1000  # frames of a track that wait for a missing one


class KeepMixer(Mixer):
    """Drops no audio, and never lets the consumer wait for long.

    - A chunk goes out when no track can change it any more, or ``delay_ms`` after it could have been complete.
    - If nothing has gone out for a while, silence does, in real time.
    - That silence is a debt, and so is the time for which late audio moves the cursor back: as many samples of silence
      are left out later, but for a frame now and then so that the consumer does not wait.
    """

    def __init__(self, options: PcmOptions, now: float, announced: Iterable[str]) -> None:
        super().__init__(options, now, announced)
        self._debt = 0  # samples
        self._reached: deque[tuple[int, float]] = deque()  # ends of the audio that is there, and since when it is
        self._patience = max(_PATIENCE, self._seconds + _MARGIN)
        # When silence goes out, and when the consumer has waited for long.
        self._silent_at = self._hungry_at = now + self._patience

    def add(self, event: MediaEvent, at: float) -> None:
        """Add a media event that arrived at a time."""
        placed = self._place(event, at)
        if placed is None:
            return
        track, _ = placed
        if track.cursor < self._cursor:  # a late frame
            self._debt += self._cursor - track.cursor
            self._start_at(track.cursor)
        horizon, reached = self._horizon(), self._reached
        while reached and reached[0][0] <= self._cursor:
            reached.popleft()
        if not reached or horizon > reached[-1][0]:
            reached.append((horizon, at))
        packet = len(event.payload) / self._sample_size / self._rate + _MARGIN
        if packet > self._patience:
            self._patience = max(self._patience, min(packet, _MAX_PATIENCE))

    def _first_position(self, begin: int) -> int:
        if not self._origin:
            return 0
        self._debt = 0
        return max(0, begin - self._chunk)

    def frame(self, now: float) -> PcmFrame | None:
        """Return the next frame that is due; None, with `next_at` set, if there is none."""
        while True:
            until, horizon = self._cursor + self._chunk, self._horizon()
            due_at = inf
            if horizon >= until or (self.is_finished and horizon > self._cursor):
                due_at = now if self._is_complete(until) else self._due_at(until)
            if now >= due_at:
                if self._debt and now < self._hungry_at and self._skip():
                    continue
                frame = self._mix()
                silent_at = now + self._patience
                if frame is None:  # it is in the resampler until the next chunk arrives
                    self._silent_at = max(self._silent_at, now + self._seconds + _MARGIN)
            elif self.is_finished:
                return self._flush()
            elif now >= self._silent_at:
                self._debt += self._chunk
                frame = self._send_silence()
                silent_at = self._next_silence(now)
            else:
                self.next_at = min(due_at, self._silent_at)
                return None
            if frame is not None:
                self._silent_at, self._hungry_at = silent_at, now + self._patience
                return frame

    def _next_silence(self, now: float) -> float:
        """Return when silence goes out after other silence: in real time, unless more than that went out before."""
        if self._opened_at + self._chunks * self._seconds > now:
            return now + self._patience
        return max(self._silent_at + self._seconds, now - self._patience)

    def _is_complete(self, until: int) -> bool:
        """Whether nothing can change the audio before a sample."""
        for track in self._expected:
            if not track.is_complete(until):
                return self.is_finished or any(len(track) > _MAX_PIECES for track in self._buffers)
        return True

    def _due_at(self, until: int) -> float:
        """Return when audio before a sample goes out although it is not complete."""
        return next((since + self._delay for end, since in self._reached if end >= until), 0.0)

    def _skip(self) -> bool:
        """Leave out silence that is owed; return whether there was some."""
        samples = min(self._debt, self._chunk)
        until = self._cursor + max(samples, self._rate // _SILENCE)
        if not all(track.is_quiet(until) for track in self._buffers):
            return False
        for track in self._buffers:
            track.take(samples)
        self._cursor += samples
        self._debt -= samples
        return samples > 0
