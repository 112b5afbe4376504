"""An agent's speech over a `Playback`: segments that are played one after the other, and what was heard of each."""

import asyncio
from collections.abc import Callable

from signalwire_streams.errors import TransportError
from signalwire_streams.receiver import Playback
from signalwire_streams.receiver.audio._resampling import Resampler

_MAX_ECHO = 5.0  # seconds after which a mark is lost
_MILLISECONDS = 1000
_PIECES, _SAMPLE = 50, 2  # per second, since a pause has to wait for the end of one; bytes


class AgentSpeech:
    """Plays segments of PCM in real time: 16 bits, little-endian, one channel. Its methods return at once.

    Each segment is reported as finished once: when all of it was heard, when it is interrupted, or when the stream has
    ended. A segment ends with `end_segment`, or with an interruption.

    Args:
        playback: that of the session, on which nothing else plays.
        on_started: called when the first audio of a segment is sent.
        on_finished: called with the seconds that were heard of a segment, and whether it was interrupted.
    """

    def __init__(
        self, playback: Playback, *, on_started: Callable[[], None], on_finished: Callable[[float, bool], None]
    ) -> None:
        self._playback = playback
        self._on_started, self._on_finished = on_started, on_finished
        self._pieces: asyncio.Queue[tuple[bytes, int] | None] = asyncio.Queue()  # None ends a segment
        self._segments, self._is_open = 0, False  # those that are not finished; whether the last one may grow
        self._began_at: int | None = None  # position of the playback at which the first one began
        self._sent = 0.0  # milliseconds of it that were sent
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._player: asyncio.Task[None] | None = None

    def check_rate(self, rate: int) -> None:
        """Raise an error if audio of a rate can't be added.

        Raises:
            InvalidRequestError: the rate is invalid.
            ModuleNotFoundError: it is not the stream's, and the extra ``audio`` is not installed.
        """
        Resampler(rate, self._playback.audio_format.sample_rate)  # which raises both

    def add(self, pcm: bytes, rate: int) -> None:
        """Add audio to the segment, or begin the next one."""
        if not self._is_open:
            self._is_open, self._segments = True, self._segments + 1
        step = _SAMPLE * max(1, rate // _PIECES)
        for begin in range(0, len(pcm), step):
            self._pieces.put_nowait((pcm[begin : begin + step], rate))
        if self._player is None or self._player.done():
            self._player = asyncio.create_task(self._play())

    def end_segment(self) -> None:
        """End the segment, if there is one."""
        if self._is_open:
            self._is_open = False
            self._pieces.put_nowait(None)

    def interrupt(self) -> None:
        """End and clear all segments, and report them."""
        self._is_open = False
        if self._player is not None and self._segments:
            self._player.cancel()
            self._report_interrupted()
            self._player = asyncio.create_task(self._play(clear=True))

    def pause(self) -> None:
        """Send nothing until `resume`; what was sent is still played, about 100 ms of it."""
        self._resumed.clear()

    def resume(self) -> None:
        """Resume after `pause`."""
        self._resumed.set()

    async def _play(self, *, clear: bool = False) -> None:
        """Play until all segments are finished."""
        try:
            if clear:
                await self._playback.clear()
            while self._segments:
                while (piece := await self._pieces.get()) is not None:
                    await self._resumed.wait()
                    if self._began_at is None:
                        self._began_at, self._sent = self._playback.position, 0.0
                        self._on_started()
                    pcm, rate = piece
                    await self._playback.play_pcm(pcm, rate=rate)
                    self._sent += len(pcm) * _MILLISECONDS / (_SAMPLE * rate)
                heard = await self._finish()
                self._began_at, self._segments = None, self._segments - 1
                self._on_finished(heard / _MILLISECONDS, False)
        except TransportError:  # the caller has hung up
            self._report_interrupted()

    async def _finish(self) -> int:
        try:
            async with asyncio.timeout(_MAX_ECHO):
                return await self._playback.finish()
        except TimeoutError:
            return self._heard()

    def _heard(self) -> int:
        """Return the milliseconds that were heard of the first segment."""
        return 0 if self._began_at is None else min(self._playback.position - self._began_at, round(self._sent))

    def _report_interrupted(self) -> None:
        """Report all segments, of which only the first can have been heard."""
        heard, segments = self._heard(), self._segments
        self._began_at, self._segments, self._pieces = None, 0, asyncio.Queue()
        for _ in range(segments):
            self._on_finished(heard / _MILLISECONDS, True)
            heard = 0
