"""What a frame of audio costs the process that receives it, and how late it is."""

import time
from contextlib import ExitStack

from attrs import frozen

from benchmarks.children import Child, Contender, child, line_up
from benchmarks.figures import Rounds, Section, Series
from benchmarks.hearing.speaking import FRAME_SECONDS, OCTETS
from benchmarks.plan import Plan

_OURS, _HAND = "MediaReceiver", "hand-written aiohttp + json"
_RECEIVERS = (
    (_HAND, "benchmarks.hearing.by_hand:aiohttp"),
    (_OURS, "benchmarks.hearing.this_receiver:sessions"),
    ("aiohttp that reads no frame", "benchmarks.hearing.by_hand:deaf"),
    ("websockets + json", "benchmarks.hearing.with_websockets:websockets"),
    ("FastAPI + uvicorn + json", "benchmarks.hearing.with_fastapi:fastapi"),
)
_HEAD_START = 0.2  # seconds until the first frame is due
_PREPARING = 0.00003  # seconds that one frame takes to be spelled before that


@frozen
class _Field:
    """Who listens, on one event loop.

    Attributes:
        loop: the event loop.
        receivers: the children.
        notes: who could not take part.
    """

    loop: str
    receivers: dict[str, Child]
    notes: list[str]

    def called(self, name: str) -> str:
        """Give a receiver's name as the tables have it."""
        return name if self.loop == "asyncio" else f"{name}, {self.loop}"


@frozen
class _Load:
    """What is sent.

    Attributes:
        sockets: how many streams, of one track each.
        frames: on each.
        real: whether in real time.
    """

    sockets: int
    frames: int
    real: bool

    @property
    def title(self) -> str:
        return f"{self.sockets} sockets at real pace" if self.real else f"{self.sockets} sockets, as fast as taken"


def measure(plan: Plan) -> list[Section]:
    """Speak to all receivers in turns."""
    seconds = plan.pick(full=2.0, quick=1.0)
    loads = [_Load(50, plan.pick(full=1_000, quick=300), real=False)]
    loads += [
        _Load(n, int(seconds / FRAME_SECONDS), real=True) for n in plan.pick(full=(50, 200, 500), quick=(50, 200))
    ]
    sections = []
    with ExitStack() as stack:
        speaker = stack.enter_context(child("benchmarks.hearing.speaking:serve"))
        for loop in plan.loops:
            field = _line_up(stack, loop)
            # uvloop is another dimension: its receivers are measured in blast and on the middle number of sockets.
            for load in loads if loop == plan.loops[0] else (loads[0], loads[2]):
                sections += _measure(plan.long_rounds, load, speaker, field)
    return sections


def _line_up(stack: ExitStack, loop: str) -> _Field:
    field = _Field(loop, {}, [])
    contenders = [Contender(field.called(name), target, loop) for name, target in _RECEIVERS]
    return _Field(loop, *line_up(stack, contenders))


def _measure(rounds: int, load: _Load, speaker: Child, field: _Field) -> list[Section]:
    costs, middle, tails, lost, sender = Rounds(), Rounds(), Rounds(), Rounds(), Rounds()
    for number in range(0 if load.real else -1, rounds):
        for name, receiver in field.receivers.items():
            said, heard = _speak(load, speaker, receiver)
            if number < 0:  # the first blast warms up
                continue
            costs.add(name, heard["cpu"] / heard["frames"] * 1e6)
            lost.add(name, load.sockets * load.frames - heard["frames"])
            if "p50" in heard:  # who reads no frame can't say how late it was
                middle.add(name, heard["p50"] * 1e3)
                tails.add(name, heard["p99"] * 1e3)
            if load.real:
                sender.add("median", said["p50"] * 1e3)
                sender.add("99th percentile", said["p99"] * 1e3)
    about = f"{load.frames} frames of {OCTETS} octets on each socket; the CPU is the receiving process's"
    costly = Section(
        title=f"CPU per frame, {load.title}, {field.loop}",
        unit="µs",
        series=costs.series(),
        yardstick=field.called(_HAND),
        ours=field.called(_OURS),
        plotted=True,
        notes=(about, *field.notes, *_losses(lost.series(), load)),
    )
    if not load.real:
        return [costly]
    own = tuple(f"the sender's own part, {series.name}: {series.spread.median:.2f} ms" for series in sender.series())
    where = f"{load.title}, {field.loop}"
    return [
        costly,
        Section(title=f"Lateness, median, {where}", unit="ms", series=middle.series(), notes=own[:1]),
        Section(title=f"Lateness, 99th percentile, {where}", unit="ms", series=tails.series(), notes=own[1:]),
    ]


def _speak(load: _Load, speaker: Child, receiver: Child) -> tuple[dict[str, float], dict[str, float]]:
    port = receiver.ask()["port"]
    speaker.ask(dial=port, sockets=load.sockets)
    epoch = time.monotonic() + _HEAD_START + load.frames * _PREPARING if load.real else None
    receiver.ask(sockets=load.sockets, epoch=epoch)
    said = speaker.ask(speak=load.frames, epoch=epoch)
    heard = receiver.ask(frames=load.sockets * load.frames)
    speaker.ask()
    assert heard["octets"] == heard["frames"] * OCTETS
    return said, heard


def _losses(lost: tuple[Series, ...], load: _Load) -> list[str]:
    sent = load.sockets * load.frames
    return [
        f"{series.name} did not hand over {series.spread.median / sent:.1%} of the frames"
        for series in lost
        if any(series.rounds)
    ]
