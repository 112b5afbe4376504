"""How many streams with both tracks one core can receive, found by trying numbers of them."""

import os
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.families.audio import COALESCED, HAND, MAIN, OURS, send
from benchmarks.figures import Plan, Rounds, Section
from benchmarks.processes import PINNED_HEAP, Child, Contender, MissingPackageError, child
from benchmarks.sender import FRAME_SECONDS

_TRACKS = 2
_LATEST = {COALESCED: 0.15}
_LATEST_OF_OTHERS = 0.02
"""Seconds of delay that one frame of a hundred may exceed."""
_SENDER_SHARE = 0.25
"""Share of that delay above which the sender's own part says that the sender was the limit."""
_FIRST, _MOST = 40, 2_560


def highest(passes: Callable[[int], bool], *, first: int, most: int, precision: float) -> int:
    """Find the highest number that passes, by doubling and then bisecting.

    Args:
        passes: whether a number passes; supposed to be so for all numbers below one that does.
        first: the number to begin with.
        most: the highest number to try.
        precision: the relative distance between the result and a number that failed.

    Returns:
        The number, or 0 if even the first fails and so do those below it.
    """
    low, high = 0, first
    while passes(high):
        low, high = high, min(2 * high, most)
        if low == most:
            return most
    while high - low > max(1, precision * low):
        middle = (low + high) // 2
        if passes(middle):
            low = middle
        else:
            high = middle
    return low


def measure(plan: Plan) -> list[Section]:
    """Search for each receiver in turn, which has one core, while the sender has the other."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cpus) < _TRACKS:
        return [_section(Rounds(), ("left out: it needs Linux and two processors",))]
    found, limited, notes = Rounds(), dict[str, str](), []
    contenders = [Contender(name, target) for name, target in MAIN]
    for number in range(plan.pick(full=3, quick=1)):
        for contender in plan.shuffled(contenders, number):
            try:
                with ExitStack() as stack:
                    sender = stack.enter_context(child("sender:serve", cpu=cpus[1]))
                    started = child(contender.target, environment=PINNED_HEAP, cpu=cpus[0])
                    trial = _Trials(plan, contender.name, sender, stack.enter_context(started))
                    precision = plan.pick(full=0.05, quick=0.25)
                    found.add(contender.name, highest(trial.passes, first=_FIRST, most=_MOST, precision=precision))
                    limited[contender.name] = trial.why
            except MissingPackageError as error:
                notes.append(f"left out: {contender.name}, since {error} is not installed")
                contenders.remove(contender)
    seconds = plan.pick(full=3.0, quick=1.0)
    about = (
        f"both tracks, 100 frames a second; {seconds:.0f} s a trial, of which one that fails is repeated once; "
        f"nothing dropped, 99th percentile of the delay under {_LATEST_OF_OTHERS * 1e3:.0f} ms "
        f"(coalesced: {_LATEST[COALESCED] * 1e3:.0f} ms)"
    )
    return [_section(found, (about, *(f"{name}: {why}" for name, why in limited.items()), *notes))]


def _section(found: Rounds, notes: tuple[str, ...]) -> Section:
    return Section(
        title="Streams with both tracks that one core receives",
        unit="streams",
        series=found.series(name for name, _ in MAIN),
        baseline=HAND,
        ours=OURS,
        plotted=True,
        notes=notes,
    )


class _Trials:
    """Tries numbers of streams with one receiver.

    Attributes:
        why: what the last number that failed failed by.
    """

    def __init__(self, plan: Plan, name: str, sender: Child, receiver: Child) -> None:
        self.why = "no number failed"
        self._frames = int(plan.pick(full=3.0, quick=1.0) / FRAME_SECONDS) * _TRACKS
        self._latest = _LATEST.get(name, _LATEST_OF_OTHERS)
        self._sender, self._receiver = sender, receiver

    def passes(self, streams: int) -> bool:
        """Return whether one of two trials passes: what slows the machine for a moment hits one of them."""
        return self._passes_once(streams) or self._passes_once(streams)

    def _passes_once(self, streams: int) -> bool:
        sent, received = send(streams, self._frames, self._sender, self._receiver, pace="real time", tracks=_TRACKS)
        lost = streams * self._frames - received["frames"]
        if not lost and received["p99"] < self._latest:
            return True
        own = sent["p99"]
        by = f"{lost} frames were dropped" if lost else f"a delay of {received['p99'] * 1e3:.0f} ms"
        limit = ", so it was the limit" if own > self._latest * _SENDER_SHARE else ""
        self.why = f"at {streams}, {by}; the sender's own part of the delay: {own * 1e3:.1f} ms{limit}"
        return False
