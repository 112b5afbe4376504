"""Instructions per frame of `StreamSession.pcm`, compared with ``async for`` and decoding by hand."""

import asyncio
import json
from array import array
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soxr

from benchmarks.callgrind import compile_helper, counted_child, counting
from benchmarks.figures import Plan, Rounds, Section
from benchmarks.processes import Respond
from signalwire_streams.receiver import EndReason, MediaEvent, Playback, StartEvent, StreamSession, decode_event
from signalwire_streams.receiver._event_queue import QueueLimits
from signalwire_streams.receiver._statistics import StreamStatistics
from signalwire_streams.receiver.audio import AudioFormat, pcm_to_mulaw
from signalwire_streams.receiver.audio._resampling import Resampler

HAND = "async for, by hand"
_TRACKS = ("inbound", "outbound")
_RATE = 8000  # of the stream
_WARM_UP = 50  # frames of each track


def measure(plan: Plan) -> list[Section]:
    """Count on a clock that skips waiting: the sockets' part is left out, which is the same for all.

    Raises:
        CallgrindMissingError: valgrind or gcc is not installed.
    """
    frames = plan.pick(full=400, quick=50)
    with TemporaryDirectory() as directory:
        helper = compile_helper(Path(directory))
        return [_section(helper, rate, tracks, frames) for rate in (_RATE, 16_000) for tracks in ("inbound", "mixed")]


def _section(helper: Path, rate: int, tracks: str, frames: int) -> Section:
    costs, number = Rounds(), 1 if tracks == "inbound" else 2
    contenders = {f"pcm({rate}, tracks={tracks!r}, late={late!r})": late for late in ("keep", "drop")}
    for name, late in {HAND: None, **contenders}.items():
        with counted_child("families.pcm:consumer", helper) as (child, instructions):
            child.ask(rate=rate, tracks=tracks, late=late, frames=frames)
            costs.add(name, instructions() / frames / number / 1e3)
    steps = ["decodes"]
    if tracks == "mixed":
        steps.append("mixes with numpy")
    if rate != _RATE:
        steps.append("resamples with soxr")
    return Section(
        title=f"Instructions per frame and track, as PCM: {tracks}, {rate} Hz",
        unit="thousands",
        series=costs.series(),
        baseline=HAND,
        ours=next(iter(contenders)),
        plotted=False,
        notes=(
            f"{frames} frames of 20 ms µ-law on each track; the clock is virtual, and there is no socket",
            f"by hand: {', '.join(steps)}, and takes each frame as it comes",
        ),
    )


@asynccontextmanager
async def consumer(_: dict[str, Any]) -> AsyncIterator[Respond]:
    """Consume a stream that is made in this process."""

    async def respond(command: dict[str, Any]) -> dict[str, Any]:
        Resampler(_RATE, 16_000)  # so that no packages are imported meanwhile
        options = {name: command[name] for name in ("rate", "tracks", "late")}
        tracks = _TRACKS[: 1 if options["tracks"] == "inbound" else 2]
        session = _session(tracks)
        by_hand = options["late"] is None
        consuming = asyncio.create_task(_by_hand(session, options["rate"]) if by_hand else _pcm(session, options))
        sent = [_frame(track, number) for number in range(_WARM_UP + command["frames"]) for track in tracks]
        with _skipped_waits():
            await _send(session, sent[: _WARM_UP * len(tracks)], len(tracks))
            with counting(enabled=True):
                await _send(session, sent[_WARM_UP * len(tracks) :], len(tracks))
            session._close(EndReason.STOPPED)  # noqa: SLF001
            return {"octets": await consuming}

    yield respond


async def _send(session: StreamSession, frames: list[str], tracks: int) -> None:
    """Have the frames arrive in their time, each as when a socket's bytes are read: in a callback of the loop."""
    loop = asyncio.get_running_loop()
    began, remaining, sent = loop.time(), iter(frames), loop.create_future()

    def receive(number: int) -> None:
        if (frame := next(remaining, None)) is None:
            sent.set_result(None)
            return
        loop.call_at(began + 0.02 * ((number + 1) // tracks) + 0.001 * ((number + 1) % tracks), receive, number + 1)
        session._enqueue(decode_event(frame, elapsed=loop.time()), loop.time())  # noqa: SLF001
        session._on_read()  # noqa: SLF001

    receive(0)
    await sent


async def _by_hand(session: StreamSession, rate: int) -> int:
    octets, decode, waiting = 0, session.audio_format.to_pcm, dict[int | None, bytes]()
    resampler = soxr.ResampleStream(_RATE, rate, 1, dtype="float32") if rate != _RATE else None
    async for event in session:
        if not isinstance(event, MediaEvent):
            continue
        pcm = decode(event.payload)
        if session.start.tracks == _TRACKS:
            if (other := waiting.pop(event.timestamp, None)) is None:
                waiting[event.timestamp] = pcm
                continue
            both = np.frombuffer(pcm, "<i2").astype(np.int32)
            both += np.frombuffer(other, "<i2")
            pcm = both.clip(-32768, 32767).astype("<i2").tobytes()
        if resampler is not None:
            resampled = resampler.resample_chunk(np.frombuffer(pcm, "<i2").astype(np.float32))
            pcm = np.rint(resampled).clip(-32768, 32767).astype("<i2").tobytes()
        octets += len(pcm)
    return octets


async def _pcm(session: StreamSession, options: dict[str, Any]) -> int:
    octets = 0
    async for frame in session.pcm(**options):
        octets += len(frame.data)
    return octets


def _session(tracks: tuple[str, ...]) -> StreamSession:
    start = decode_event(json.dumps({"event": "start", "start": {"streamSid": "s", "tracks": tracks}}))
    assert isinstance(start, StartEvent)
    audio_format = AudioFormat("audio/x-mulaw")
    socket: Any = None
    playback = Playback(socket, "s", audio_format, bidirectional=False)
    return StreamSession(
        start,
        audio_format=audio_format,
        playback=playback,
        statistics=StreamStatistics(),
        limits=QueueLimits(500, 500 * 4096),
    )


def _frame(track: str, number: int) -> str:
    noise = Random(f"{track} {number}")  # noqa: S311  (as loud as speech)
    pcm = array("h", (int(noise.gauss(0, 3000)) for _ in range(160)))
    payload = b64encode(pcm_to_mulaw(pcm.tobytes())).decode()
    media = {"track": track, "chunk": str(number + 1), "timestamp": str(20 * number), "payload": payload}
    return json.dumps({"event": "media", "sequenceNumber": str(number + 1), "media": media})


@contextmanager
def _skipped_waits() -> Iterator[None]:
    """Advance the loop's clock to its next timer instead of waiting."""
    loop: Any = asyncio.get_running_loop()
    select, time = loop._selector.select, loop.time  # noqa: SLF001
    now = time()

    def skip(seconds: float | None) -> Any:  # noqa: ANN401
        nonlocal now
        events = select(seconds and 0)
        now += seconds if seconds and not events else 0.0
        return events

    loop._selector.select, loop.time = skip, lambda: now  # noqa: SLF001
    try:
        yield
    finally:
        loop._selector.select, loop.time = select, time  # noqa: SLF001
