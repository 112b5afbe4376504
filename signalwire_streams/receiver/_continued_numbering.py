"""Events of a stream that was started again, as those of one stream with a gap. Pure.

The numbering of the new stream restarts. It is continued from the one before, as if the frames of the gap had been
sent and were missing. So timelines, mixers, recorders and statistics know of a restart no more than of any other loss.
"""

from signalwire_streams.receiver._protocol import AudioEvent, MediaEvent, decode_event
from signalwire_streams.receiver._statistics import FARTHEST, StreamStatistics, TrackStatistics

_MILLISECONDS = 1000
_MAX_TRACKS = 8  # a peer that makes up names must not fill the memory


class ContinuedNumbering:
    """Continues timestamps and chunk numbers after a gap."""

    def __init__(self, statistics: StreamStatistics, elapsed: float, packet_time: int) -> None:
        """Continue those of *statistics*, when the new stream begins *elapsed* seconds after the session did.

        A frame lasts *packet_time* milliseconds.
        """
        self._tracks, self._packet_time = statistics.tracks, packet_time
        stamps = [last[1] for track in self._tracks.values() if (last := track._sequence.last) is not None]  # noqa: SLF001  (private to users, not to us)
        # A stream that is faster than real time was further on.
        self._offset = max([round(elapsed * _MILLISECONDS), *(at + packet_time for at in stamps if at is not None)])
        self._shifts: dict[str | None, int] = {}

    def decode(self, frame: str | bytes, *, elapsed: float) -> AudioEvent:
        """Decode a frame of the new stream; the errors are those of `decode_event`."""
        return self.shift(decode_event(frame), elapsed)

    def shift(self, event: AudioEvent, elapsed: float) -> AudioEvent:
        if isinstance(event, MediaEvent):
            event.elapsed = elapsed
            if event.timestamp is not None:
                event.timestamp += self._offset
            if event.chunk is not None:
                if event.track not in self._shifts and len(self._shifts) < _MAX_TRACKS:
                    self._shifts[event.track] = self._next_number(event) - event.chunk
                event.chunk += self._shifts.get(event.track, 0)
        return event

    def _next_number(self, first: MediaEvent) -> int:
        """Return the number of a track's first frame after the gap."""
        track: TrackStatistics | None = self._tracks.get(first.track or "")
        last = None if track is None else track._sequence.last  # noqa: SLF001  (the same)
        if last is None:
            return first.chunk or 1
        number, timestamp = last
        if timestamp is None or first.timestamp is None:
            return number + 1
        missing = round((first.timestamp - timestamp) / self._packet_time) - 1
        return number + 1 + min(max(0, missing), FARTHEST)
