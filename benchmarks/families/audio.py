"""CPU cost and delay of received audio frames."""

import time
from contextlib import ExitStack

from attrs import frozen

from benchmarks.figures import Plan, Rounds, Section, Series
from benchmarks.processes import Child, Contender, child, on_loop, start_all
from benchmarks.sender import FRAME_SECONDS, OCTETS

HAND, OURS = "hand-written aiohttp + json", "MediaReceiver"
_RECEIVERS = (
    (HAND, "receivers:aiohttp"),
    (OURS, "receivers:media_receiver"),
    ("aiohttp that decodes no frame", "receivers:ignoring"),
    ("websockets + json", "receivers:websockets"),
    ("FastAPI + uvicorn + json", "receivers:fastapi"),
)
_HEAD_START = 0.2  # seconds until the first frame is due
_ENCODING = 0.00003  # seconds to encode one frame before that


@frozen
class _Load:
    """Parameters of the audio: streams of one track each."""

    sockets: int
    frames: int
    real_time: bool

    @property
    def title(self) -> str:
        return f"{self.sockets} sockets in real time" if self.real_time else f"{self.sockets} sockets, as fast as read"


def measure(plan: Plan) -> list[Section]:
    """Send to all receivers in turn."""
    seconds = plan.pick(full=2.0, quick=1.0)
    counts = plan.pick(full=(50, 200, 500), quick=(50, 200))
    loads = [_Load(50, plan.pick(full=1_000, quick=300), real_time=False)]
    loads += [_Load(count, int(seconds / FRAME_SECONDS), real_time=True) for count in counts]
    sections = []
    with ExitStack() as stack:
        sender = stack.enter_context(child("sender:serve"))
        for loop in plan.loops:
            contenders = [Contender(on_loop(name, loop), target, loop) for name, target in _RECEIVERS]
            receivers, notes = start_all(stack, contenders)
            # Other loops are measured as fast as possible and with the middle number of sockets only.
            for load in loads if loop == plan.loops[0] else (loads[0], loads[2]):
                sections += _measure(plan.long_rounds, load, sender, receivers=receivers, loop=loop, notes=notes)
    return sections


def _measure(
    rounds: int, load: _Load, sender: Child, *, receivers: dict[str, Child], loop: str, notes: list[str]
) -> list[Section]:
    costs, medians, tails, lost, own = Rounds(), Rounds(), Rounds(), Rounds(), Rounds()
    for number in range(0 if load.real_time else -1, rounds):
        for name, receiver in receivers.items():
            sent, received = send(load.sockets, load.frames, sender, receiver, real_time=load.real_time)
            if number < 0:  # warm-up
                continue
            costs.add(name, received["cpu"] / received["frames"] * 1e6)
            lost.add(name, load.sockets * load.frames - received["frames"])
            if "p50" in received:  # unknown if no frame is decoded
                medians.add(name, received["p50"] * 1e3)
                tails.add(name, received["p99"] * 1e3)
            if load.real_time:
                own.add("median", sent["p50"] * 1e3)
                own.add("99th percentile", sent["p99"] * 1e3)
    about = f"{load.frames} frames of {OCTETS} octets on each socket; the CPU is the receiving process's"
    cost = Section(
        title=f"CPU per frame, {load.title}, {loop}",
        unit="µs",
        series=costs.series(),
        baseline=on_loop(HAND, loop),
        ours=on_loop(OURS, loop),
        plotted=True,
        notes=(about, *notes, *_losses(lost.series(), load)),
    )
    if not load.real_time:
        return [cost]
    parts = tuple(f"the sender's own part, {one.name}: {one.spread.median:.2f} ms" for one in own.series())
    where = f"{load.title}, {loop}"
    return [
        cost,
        Section(title=f"Delay, median, {where}", unit="ms", series=medians.series(), notes=parts[:1]),
        Section(title=f"Delay, 99th percentile, {where}", unit="ms", series=tails.series(), notes=parts[1:]),
    ]


def send(
    sockets: int, frames: int, sender: Child, receiver: Child, *, real_time: bool, counted: bool = False
) -> tuple[dict[str, float], dict[str, float]]:
    """Send frames to a receiver on new sockets; return what both sides measured."""
    sender.ask(connect=receiver.ask()["port"], sockets=sockets)
    epoch = time.monotonic() + _HEAD_START + frames * _ENCODING if real_time else None
    receiver.ask(sockets=sockets, epoch=epoch, counted=counted)
    sent = sender.ask(send=frames, epoch=epoch)
    received = receiver.ask(frames=sockets * frames)
    sender.ask()
    assert received["octets"] == received["frames"] * OCTETS
    return sent, received


def _losses(lost: tuple[Series, ...], load: _Load) -> list[str]:
    sent = load.sockets * load.frames
    return [
        f"{series.name} did not deliver {series.spread.median / sent:.1%} of the frames"
        for series in lost
        if any(series.rounds)
    ]
