"""CPU cost, page faults and delay of received audio frames."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

import trustme
from attrs import frozen

from benchmarks.figures import Plan, Rounds, Section
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
_LATE = "the sender was late by more than a frame, and sent frames together, which makes them cheaper: try it again"
_TRIES = 3  # of a round, if the sender is late
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
    warm_up: float = 0.0

    @property
    def title(self) -> str:
        how = "in real time" if self.pace == "real time" else self.pace
        return f"{self.sockets} sockets, {how}, {'TLS' if self.tls else 'plain'}"


def measure(plan: Plan) -> list[Section]:
    """Send to all receivers in turn, plain and by TLS, on each loop; their heaps keep what they were given."""
    fast = plan.pick(full=500, quick=100)
    loads = [_Load(50, fast, "as fast as read", tls) for tls in (False, True)]
    loads += [_real_time(plan, sockets, tls=tls) for tls in (False, True) for sockets in (60, 200)]
    first, *others = plan.loops
    sections = _sections(plan, first, loads, environment=PINNED_HEAP, rounds=plan.pick(full=5, quick=1))
    for loop in others:
        sections += _sections(plan, loop, loads, environment=PINNED_HEAP, rounds=plan.long_rounds)
    return sections


def measure_unpinned(plan: Plan) -> list[Section]:
    """Do the same with the heap as it is by default: what it gives back depends on its layout, so on luck."""
    loads = [_real_time(plan, sockets, tls=False) for sockets in (60, 200)]
    return _sections(plan, plan.loops[0], loads, environment={}, rounds=plan.long_rounds)


def _real_time(plan: Plan, sockets: int, *, tls: bool) -> _Load:
    warm_up = warm_up_of(plan)
    return _Load(sockets, int(plan.pick(full=2.5, quick=0.5) / FRAME_SECONDS), "real time", tls, warm_up)


def warm_up_of(plan: Plan) -> float:
    """Return the seconds of a stream that are not measured, in which reads are not coalesced yet."""
    return plan.pick(full=1.0, quick=0.2)


def _sections(
    plan: Plan, loop: str, loads: Sequence[_Load], *, environment: dict[str, str], rounds: int
) -> list[Section]:
    everyone = MAIN if plan.quick or loop != plan.loops[0] or not environment else (*MAIN, *_OTHERS)
    about = loop if environment else f"{loop}, heap not pinned"
    sections = []
    with certificate() as path, ExitStack() as stack:
        sender = stack.enter_context(child("sender:serve"))
        plain, notes = start_all(stack, _on(loop, everyone), environment=environment)
        by_tls, _ = start_all(stack, _on(loop, MAIN), environment=environment, certificate=path)
        for load in loads:
            receivers, figures = by_tls if load.tls else plain, _Figures(load)
            for turn in range(0 if load.pace == "real time" else -1, rounds):  # -1 warms up
                for name in plan.shuffled(receivers, load, about, turn):
                    for _ in range(_TRIES):
                        sent, received = send(
                            *(load.sockets, load.frames, sender, receivers[name]),
                            pace=load.pace,
                            tls=load.tls,
                            warm_up=load.warm_up,
                        )
                        if sent.get("p99", 0.0) <= FRAME_SECONDS:
                            break
                    if turn >= 0:
                        figures.add(name, sent, received)
            sections.append(figures.section(loop, about, notes))
    return sections


def _on(loop: str, contenders: Iterable[tuple[str, str]]) -> list[Contender]:
    return [Contender(on_loop(name, loop), target, loop) for name, target in contenders]


class _Figures:
    """What all receivers took for one load."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._costs, self._faults, self._lost = Rounds(), Rounds(), Rounds()
        self._medians, self._tails, self._senders = Rounds(), Rounds(), Rounds()

    def add(self, name: str, sent: dict[str, float], received: dict[str, float]) -> None:
        load = self._load
        self._costs.add(name, received["cpu"] / received["of"] * 1e6)
        self._faults.add(name, received["faults"] / received["of"])
        self._lost.add(name, 1 - received["frames"] / (load.sockets * load.frames))
        if "p50" in received:  # unknown if no frame is decoded
            self._medians.add(name, received["p50"] * 1e3)
            self._tails.add(name, received["p99"] * 1e3)
        if "p50" in sent:
            self._senders.add("median", sent["p50"] * 1e3)
            self._senders.add("99th percentile", sent["p99"] * 1e3)

    def section(self, loop: str, about: str, notes: Iterable[str]) -> Section:
        load = self._load
        aims = _AIMS if load.pace == "real time" and not load.tls and loop == "asyncio" else {}
        late = max((one.spread.high for one in self._senders.series()), default=0.0)
        own = ", ".join(f"{number(one.spread.median)} ms ({one.name})" for one in self._senders.series())
        return Section(
            title=f"CPU per frame: {load.title}, {about}",
            unit="µs",
            series=self._costs.series(on_loop(name, loop) for name, _ in (*MAIN, *_OTHERS)),
            baseline=on_loop(HAND, loop),
            aims=aims,
            beside=(
                Section(title="faults a frame", unit="", series=self._faults.series()),
                Section(title="delay", unit="ms", series=self._medians.series()),
                Section(title="its 99 %", unit="ms", series=self._tails.series()),
            ),
            plotted=True,
            notes=(
                f"{load.frames} frames of {OCTETS} octets on each socket; the CPU is the receiving process's"
                + (f", without the first {load.warm_up:g} s" if load.warm_up else ""),
                *((f"of each delay the sender's own part: {own}",) if own else ()),
                *((_LATE,) if late > FRAME_SECONDS * 1e3 else ()),
                *_over_fastapi(self._costs, loop, with_aims=bool(aims)),
                *notes,
                *(
                    f"{series.name} did not deliver {series.spread.median:.1%} of the frames"
                    for series in self._lost.series()
                    if any(series.rounds)
                ),
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
    warm_up: float = 0.0,
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
        warm_up: seconds of real time before CPU, faults and delays are measured.
        counted: whether the receiver counts instructions meanwhile.
    """
    one_by_one = pace == "one frame a wake"
    sender.ask(connect=receiver.ask()["port"], sockets=sockets, tls=tls, tracks=tracks)
    epoch = time.monotonic() + _HEAD_START + frames * _ENCODING if pace == "real time" else None
    receiver.ask(sockets=sockets, epoch=epoch, warm_up=warm_up, counted=counted, one_by_one=one_by_one)
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
