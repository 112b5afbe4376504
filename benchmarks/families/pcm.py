"""Instructions per frame of `StreamSession.pcm`, compared with ``async for`` and decoding by hand."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.callgrind import compile_helper, counted_child, counting
from benchmarks.figures import Plan, Rounds, Section
from benchmarks.processes import Respond
from signalwire_streams.receiver import EndReason, MediaEvent, Playback, StartEvent, StreamSession, decode_event
from signalwire_streams.receiver._event_queue import QueueLimits
from signalwire_streams.receiver._statistics import StreamStatistics
from signalwire_streams.receiver.audio import AudioFormat
from signalwire_streams.receiver.audio._resampling import Resampler

HAND = "async for, decoded by hand"
_TRACKS = ("inbound", "outbound")
_PCM = {
    f"pcm({rate}, tracks={tracks!r}, late={late!r})": {"rate": rate, "tracks": tracks, "late": late}
    for rate in (8000, 16_000)
    for tracks in ("inbound", "mixed")
    for late in ("keep", "drop")
}
_WARM_UP = 50  # frames of each track


def measure(plan: Plan) -> list[Section]:
    """Count on a clock that skips waiting: the sockets' part is left out, which is the same for all.

    Raises:
        CallgrindMissingError: valgrind or gcc is not installed.
    """
    frames = plan.pick(full=400, quick=50)
    sections = []
    with TemporaryDirectory() as directory:
        helper = compile_helper(Path(directory))
        for tracks in (1, 2):
            costs = Rounds()
            for name, options in {HAND: None, **_PCM}.items():
                if options is None or (tracks == 1) == (options["tracks"] == "inbound"):
                    with counted_child("families.pcm:consumer", helper) as (child, instructions):
                        child.ask(options=options, tracks=tracks, frames=frames)
                        costs.add(name, instructions() / frames / tracks / 1e3)
            sections.append(_section(costs, tracks, frames))
    return sections


def _section(costs: Rounds, tracks: int, frames: int) -> Section:
    series = costs.series()
    return Section(
        title=f"Instructions per frame of {tracks} track{'s' * (tracks > 1)}, as PCM",
        unit="thousands",
        series=series,
        baseline=HAND,
        ours=next(name for name in _PCM if name in {one.name for one in series}),
        plotted=False,
        notes=(f"{frames} frames of 20 ms µ-law on each track; the clock is virtual, and there is no socket",),
    )


@asynccontextmanager
async def consumer(_: dict[str, Any]) -> AsyncIterator[Respond]:
    """Consume a stream that is made in this process."""

    async def respond(command: dict[str, Any]) -> dict[str, Any]:
        Resampler(8000, 16_000)  # so that no packages are imported meanwhile
        tracks = _TRACKS[: command["tracks"]]
        session = _session(tracks)
        consume = _consume_pcm(session, command["options"]) if command["options"] else _consume_by_hand(session)
        consuming = asyncio.create_task(consume)
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


async def _consume_by_hand(session: StreamSession) -> int:
    octets, decode = 0, session.audio_format.to_pcm
    async for event in session:
        if isinstance(event, MediaEvent):
            octets += len(decode(event.payload))
    return octets


async def _consume_pcm(session: StreamSession, options: dict[str, Any]) -> int:
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
    payload = b64encode(Random(number).randbytes(160)).decode()  # noqa: S311
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
