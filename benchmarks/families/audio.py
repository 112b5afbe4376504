"""CPU cost, page faults and delay of received audio frames."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

import trustme
from attrs import frozen

from benchmarks.figures import Plan, Rounds, Section, Series
from benchmarks.processes import PINNED_HEAP, Child, Contender, child, on_loop, start_all
from benchmarks.report import number, ratio
from benchmarks.sender import FRAME_SECONDS, OCTETS
from signalwire_streams.receiver import MediaReceiver

HAND, FASTAPI = "hand-written aiohttp + json", "FastAPI + uvicorn + json"
OURS, COALESCED = "MediaReceiver", "MediaReceiver(coalesce=0.1)"
MAIN = (
    (HAND, "receivers:aiohttp"),
    (OURS, "receivers:media_receiver"),
    *([(COALESCED, "receivers:coalescing")] if "coalesce" in signature(MediaReceiver).parameters else []),
    (FASTAPI, "receivers:fastapi"),
)
_FASTAPI_AIMS = {OURS: "≤ 0.55", COALESCED: "≤ 0.30"}
_AIMS = {OURS: "≤ 0.70", COALESCED: "≤ 0.35"}
_OTHERS = (("aiohttp that decodes no frame", "receivers:ignoring"), ("websockets + json", "receivers:websockets"))
_HEAD_START = 0.2  # seconds until the first frame is due
_ENCODING = 0.00003  # seconds to encode one frame before that

Pace: TypeAlias = Literal["real time", "as fast as read", "one frame a wake"]


@frozen
class _Load:
    """Parameters of the audio: streams of one track each."""

    sockets: int
    frames: int
    pace: Pace
    tls: bool
    rounds: int

    @property
    def title(self) -> str:
        how = "in real time" if self.pace == "real time" else self.pace
        return f"{self.sockets} sockets, {how}, {'TLS' if self.tls else 'plain'}"

    @property
    def aims(self) -> dict[str, str]:
        return _AIMS if self.pace == "real time" and not self.tls else {}


def measure(plan: Plan) -> list[Section]:
    """Send to all receivers in turn, plain and by TLS, on each loop; their heaps keep what they were given."""
    fast, slow = plan.pick(full=500, quick=100), _real_time(plan)
    rounds = plan.pick(full=5, quick=1)
    loads = [_Load(50, fast, "as fast as read", tls, rounds) for tls in (False, True)]
    loads += [_Load(sockets, slow, "real time", tls, rounds) for tls in (False, True) for sockets in (60, 200)]
    sections = []
    for loop in plan.loops:
        contenders = MAIN if plan.quick or loop != plan.loops[0] else (*MAIN, *_OTHERS)
        sections += _sections(plan, loop, loads, contenders=contenders, environment=PINNED_HEAP)
    return sections


def measure_unpinned(plan: Plan) -> list[Section]:
    """Do the same with the heap as it is by default: what it gives back depends on its layout, so on luck."""
    loads = [_Load(sockets, _real_time(plan), "real time", False, plan.pick(full=5, quick=1)) for sockets in (60, 200)]
    return _sections(plan, plan.loops[0], loads, contenders=MAIN, environment={})


def _real_time(plan: Plan) -> int:
    return int(plan.pick(full=2.0, quick=0.5) / FRAME_SECONDS)


def _sections(
    plan: Plan,
    loop: str,
    loads: list[_Load],
    *,
    contenders: tuple[tuple[str, str], ...],
    environment: dict[str, str],
) -> list[Section]:
    on_this = [Contender(on_loop(name, loop), target, loop) for name, target in contenders]
    about = loop if environment else f"{loop}, heap not pinned"
    with certificate() as path, ExitStack() as stack:
        sender = stack.enter_context(child("sender:serve"))
        plain, notes = start_all(stack, on_this, environment=environment)
        by_tls, _ = start_all(stack, on_this, environment=environment, certificate=path)
        return [
            _measure(
                *(plan, load, sender), receivers=by_tls if load.tls else plain, loop=loop, about=about, notes=notes
            )
            for load in loads
        ]


def _measure(
    plan: Plan, load: _Load, sender: Child, *, receivers: dict[str, Child], loop: str, about: str, notes: list[str]
) -> Section:
    costs, faults, medians, tails, lost, own = (Rounds() for _ in range(6))
    for turn in range(0 if load.pace == "real time" else -1, load.rounds):
        for name in plan.shuffled(receivers, load, about, turn):
            sent, received = send(load.sockets, load.frames, sender, receivers[name], pace=load.pace, tls=load.tls)
            if turn < 0:  # warm-up
                continue
            costs.add(name, received["cpu"] / received["frames"] * 1e6)
            faults.add(name, received["faults"] / received["frames"])
            lost.add(name, load.sockets * load.frames - received["frames"])
            if "p50" in received:  # unknown if no frame is decoded
                medians.add(name, received["p50"] * 1e3)
                tails.add(name, received["p99"] * 1e3)
            if load.pace == "real time":
                own.add("median", sent["p50"] * 1e3)
                own.add("99th percentile", sent["p99"] * 1e3)
    aims = load.aims if loop == "asyncio" else {}
    parts = ", ".join(f"{number(one.spread.median)} ms ({one.name})" for one in own.series())
    return Section(
        title=f"CPU per frame: {load.title}, {about}",
        unit="µs",
        series=costs.series(receivers),
        baseline=on_loop(HAND, loop),
        aims=aims,
        beside=(
            Section(title="faults a frame", unit="", series=faults.series(receivers)),
            Section(title="delay", unit="ms", series=medians.series(receivers)),
            Section(title="its 99 %", unit="ms", series=tails.series(receivers)),
        ),
        plotted=True,
        notes=(
            f"{load.frames} frames of {OCTETS} octets on each socket; the CPU is the receiving process's",
            *((f"of each delay the sender's own part: {parts}",) if parts else ()),
            *_over_fastapi(costs, loop, with_aims=bool(aims)),
            *notes,
            *_losses(lost.series(), load),
        ),
    )


def _over_fastapi(costs: Rounds, loop: str, *, with_aims: bool) -> Iterator[str]:
    found = {series.name: series for series in costs.series()}
    fastapi = found.get(on_loop(FASTAPI, loop))
    for name, aim in _FASTAPI_AIMS.items():
        ours = found.get(on_loop(name, loop))
        if ours is not None and fastapi is not None:
            yield f"{ours.name} ÷ FastAPI: {ratio(ours.over(fastapi))}" + (f"; aim: {aim}" if with_aims else "")


def send(
    sockets: int,
    frames: int,
    sender: Child,
    receiver: Child,
    *,
    pace: Pace,
    tls: bool = False,
    tracks: int = 1,
    counted: bool = False,
) -> tuple[dict[str, float], dict[str, float]]:
    """Send frames to a receiver on new sockets; return what both sides measured.

    Args:
        sockets: the number of streams.
        frames: the frames of each stream, of all its tracks.
        sender: sends them.
        receiver: receives them.
        pace: when each is sent; "one frame a wake" takes two children that share a `FrameCount`.
        tls: whether the receiver serves by TLS.
        tracks: the tracks of each stream.
        counted: whether the receiver counts instructions meanwhile.
    """
    one_by_one = pace == "one frame a wake"
    sender.ask(connect=receiver.ask()["port"], sockets=sockets, tls=tls, tracks=tracks)
    epoch = time.monotonic() + _HEAD_START + frames * _ENCODING if pace == "real time" else None
    receiver.ask(sockets=sockets, epoch=epoch, counted=counted, one_by_one=one_by_one)
    sent = sender.ask(send=frames, epoch=epoch, tracks=tracks, one_by_one=one_by_one)
    received = receiver.ask(frames=sockets * frames)
    sender.ask()
    assert received["octets"] == received["frames"] * OCTETS
    return sent, received


@contextmanager
def certificate() -> Iterator[str]:
    """Create a file with a certificate for the loopback address and its key."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "certificate.pem"
        trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
        yield str(path)


def _losses(lost: tuple[Series, ...], load: _Load) -> list[str]:
    sent = load.sockets * load.frames
    return [
        f"{series.name} did not deliver {series.spread.median / sent:.1%} of the frames"
        for series in lost
        if any(series.rounds)
    ]
