"""One track's decoded audio on its way into PCM frames: placed by its timestamps, taken from the front. Pure.

Positions are samples of the track's timeline, as `TrackTimeline` returns them.
"""

import re
from collections import deque
from typing import TypeAlias

from signalwire_streams.receiver._protocol import MediaEvent
from signalwire_streams.receiver.audio._formats import PCM_SIZE, AudioFormat
from signalwire_streams.receiver.audio._timeline import TrackTimeline

_MAX_LATE = 3  # frames, one after the other: a track that goes on so is behind the other one
_SILENCE = re.compile(rb"(?:\0\0|\x08\0|\xf8\xff)*")  # A-law has no code for zero, but 8 and -8


# Audio in its place: the first sample, the end, the audio, and the frame as `Correction.frame` counts; 0 if it can't be
# moved any more. A tuple, since each frame has one.
_Piece: TypeAlias = tuple[int, int, bytes | memoryview, int]


class TrackBuffer:
    """The audio of one track that was not taken yet.

    Audio whose place was taken already is late. It is dropped, or kept: then it goes to the front, and the cursor goes
    back, which is to be done with the other track as well. A track that is always late is put behind its own audio
    instead, so it lags until it is silent for that long.

    Attributes:
        timeline: places the frames.
        others: the timelines of the other tracks.
        cursor: everything before this sample was taken.
        end: end of the audio, or ``cursor`` if that is later.
        ready: from the cursor to this sample, all audio is there and will not be moved.
        lost: samples that were dropped; the owner resets it.
        shift: samples by which frames are placed later than on the timeline.
        is_beginning: whether the cursor goes back if a correction shows that the first frames belong before it.
    """

    def __init__(self, audio_format: AudioFormat, *, keeps_late: bool) -> None:
        self.timeline = TrackTimeline(audio_format)
        self.others: tuple[TrackTimeline, ...] = ()
        self.cursor = self.end = self.ready = self.lost = self.shift = 0
        self.is_beginning = False
        self._decode = audio_format._decoder()  # noqa: SLF001
        self._keeps_late = keeps_late
        self._taken = 0  # the last sample that was taken; with late audio, the cursor goes back behind it
        self._too_late = 0  # frames for which the timeline had no place
        self._late_frames = 0  # one after the other
        self._pieces: deque[_Piece] = deque()  # in order, without overlaps
        self._held: dict[int, tuple[bytes, bool]] = {}  # frames that may be moved: audio, and whether it was placed

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def begin(self) -> int:
        """The first sample that is there; ``end`` if there is none."""
        return self._pieces[0][0] if self._pieces else self.end

    def certain_end(self, most: float) -> int:
        """Return the end of the audio, without what follows a doubtful gap of more than *most* samples."""
        if self.timeline.doubted_gap <= most:
            return self.end
        settled = max((end for _, end, _, frame in self._pieces if frame not in self._held), default=self.cursor)
        doubted = min((begin for begin, *_, frame in self._pieces if frame in self._held), default=settled)
        return self.end if doubted - settled <= most else settled

    def add(self, event: MediaEvent, timestamp: int | None, elapsed: float | None) -> int | None:
        """Place a frame. Return the end of its place on the timeline; None if it was dropped as a repeated one."""
        timeline, payload = self.timeline, event.payload
        position = timeline.place(
            timestamp, event.chunk, len(payload), other_tracks=self.others, elapsed=elapsed, payload=payload
        )
        pcm = self._decode(payload)
        if position is None and timeline.statistics.too_late > self._too_late:
            # It is new all the same, and as late as audio whose place was taken.
            self._too_late = timeline.statistics.too_late
            position = max(0, self.cursor - len(pcm) // PCM_SIZE) - self.shift
        if self._held or timeline.is_unsettled:
            self._held[timeline.calls] = pcm, position is not None
            if timeline.corrections:
                self._correct()
            self._held = {frame: self._held[frame] for frame in timeline.unsettled()}
            if position is not None:
                self._put(position + self.shift, pcm, timeline.calls)
            self._update_ready()
        elif position is not None:
            self._put(position + self.shift, pcm, timeline.calls)
        return None if position is None else position + len(pcm) // PCM_SIZE

    def _correct(self) -> None:
        """Move frames to their corrected places, unless they were taken."""
        moved = {correction.frame: correction.position for correction in self.timeline.corrections}
        there = {frame for *_, frame in self._pieces}
        self._pieces = deque(piece for piece in self._pieces if piece[-1] not in moved)
        if self.is_beginning and (begin := min(moved.values()) + self.shift) < self.cursor:
            self.cursor = self._taken = begin
            rests = [piece for piece in self._pieces if not piece[-1]]  # of frames that are taken in part
            self.lost += sum(end - begin for begin, end, *_ in rests)
            self._pieces = deque(piece for piece in self._pieces if piece[-1])
        self.end = max(self.cursor, self._pieces[-1][1] if self._pieces else 0)
        for frame, position in moved.items():
            pcm, was_placed = self._held[frame]
            if pcm and (frame in there or not was_placed):
                self._held[frame] = pcm, True
                self._put(position + self.shift, pcm, frame)

    def _put(self, position: int, pcm: bytes, frame: int) -> None:
        if position >= self.end:
            self._late_frames = 0
            self.end = end = position + len(pcm) // PCM_SIZE
            self._pieces.append((position, end, pcm, frame))
            if position == self.ready:
                self.ready = end
        elif self._keeps_late:
            self._keep(position, pcm, frame)
        else:
            self._put_or_drop(position, pcm, frame)

    def _keep(self, position: int, pcm: bytes, frame: int) -> None:
        samples = len(pcm) // PCM_SIZE
        if position < self.cursor:
            if is_quiet(pcm):  # so nothing was missed
                return
            begin = max(position, self.cursor - samples)
            if self._late_frames < _MAX_LATE and self._is_free(begin, begin + samples):
                self._late_frames += 1
                self.cursor = begin
                self._insert(begin, pcm, frame)
                return
        elif self._is_free(position, position + samples):
            self._insert(position, pcm, frame)
            return
        if not is_quiet(pcm):  # else the track catches up
            begin = self._gap_at(position, samples)
            self._make_room(begin, begin + samples)
            self._insert(begin, pcm, frame)

    def _put_or_drop(self, position: int, pcm: bytes, frame: int) -> None:
        samples = len(pcm) // PCM_SIZE
        late = min(max(0, self.cursor - position), samples)
        begin, end = self._free_part(position + late, position + samples)
        if begin < end:
            self.lost += samples - (end - begin)
            part = pcm[PCM_SIZE * (begin - position) : PCM_SIZE * (end - position)]
            self._insert(begin, part, frame if part == pcm else 0)
        else:
            self.lost += samples
            if frame in self._held:  # it may be moved to where it is in time
                self._held[frame] = pcm, False

    def _free_part(self, begin: int, end: int) -> tuple[int, int]:
        """Return the part of a place that is free, if it is the greater one; else an empty one."""
        most = (end - begin) // 2
        for begins, ends, *_ in self._pieces:
            if begins <= begin < ends:
                begin = ends
            elif begin < begins < end:
                end = begins
        return (begin, end) if end - begin > most else (begin, begin)

    def _gap_at(self, position: int, samples: int) -> int:
        """Return where late audio fits in, at least in part: at a position, or up to half of it later; else the end."""
        for begin, end, *_ in self._pieces:
            if begin <= position < end:
                position = end if end - position <= samples // 2 else self.end
        return position if position >= self.cursor and self._is_free(position, position + 1) else self.end

    def _make_room(self, begin: int, end: int) -> None:
        """Move what follows to the end of audio that is inserted: its gap may be a little too short for it."""
        for number, (begins, ends, pcm, frame) in enumerate(self._pieces):
            if begin <= begins < end:
                self._pieces[number] = end, end + ends - begins, pcm, frame
                begin, end = begins, end + ends - begins
        self.end = max(self.end, end)

    def _is_free(self, begin: int, end: int) -> bool:
        return all(ends <= begin or begins >= end for begins, ends, *_ in self._pieces)

    def _insert(self, begin: int, pcm: bytes, frame: int) -> None:
        later = [self._pieces.pop() for begins, *_ in tuple(self._pieces) if begins > begin]
        end = begin + len(pcm) // PCM_SIZE
        self._pieces.append((begin, end, pcm, frame))
        self._pieces.extend(reversed(later))
        self.end = max(self.end, end)
        self._update_ready()

    def _update_ready(self) -> None:
        self.ready = self._taken
        for begin, end, _, frame in self._pieces:
            if frame in self._held:
                self.ready = min(self.ready, begin)
                break
            if begin > self.ready:
                break
            self.ready = max(self.ready, end)

    def start_at(self, position: int) -> None:
        """Set the cursor, before anything was taken."""
        self.cursor = position
        self._taken = max(self._taken, position)
        self.end = max(self.end, position)
        self._update_ready()

    def is_quiet(self, until: int) -> bool:
        """Whether all audio that begins before a position is silence."""
        return all(begin >= until or is_quiet(pcm) for begin, _, pcm, _ in self._pieces)

    def take(self, samples: int) -> bytes:
        """Take the next samples; empty if there is no audio among them."""
        begin, pieces = self.cursor, self._pieces
        self.cursor = end = begin + samples
        # For each frame: max() would take longer than the rest.
        if end > self._taken:  # noqa: PLR1730
            self._taken = end
        if end > self.ready:  # noqa: PLR1730
            self.ready = end
        if end > self.end:  # noqa: PLR1730
            self.end = end
        if not pieces or pieces[0][0] >= end:
            return b""
        if pieces[0][0] == begin and pieces[0][1] == end:
            return bytes(pieces.popleft()[2])
        taken = bytearray(PCM_SIZE * samples)
        while pieces and pieces[0][0] < end:
            begins, ends, pcm, _ = pieces.popleft()
            size, offset = PCM_SIZE * (min(ends, end) - begins), PCM_SIZE * (begins - begin)
            taken[offset : offset + size] = pcm[:size]
            if ends > end:  # not copied, since a frame may be as long as many of ours
                pieces.appendleft((end, ends, memoryview(pcm)[size:], 0))
        self._update_ready()
        return bytes(taken)

    def discard(self, samples: int) -> None:
        """Drop the next samples, and count the audio among them."""
        end = self.cursor + samples
        self.lost += sum(min(ends, end) - begins for begins, ends, *_ in self._pieces if begins < end)
        self.take(samples)


def is_quiet(pcm: bytes | memoryview) -> bool:
    """Whether audio is silence, as each of the encodings has it."""
    return _SILENCE.fullmatch(pcm) is not None
