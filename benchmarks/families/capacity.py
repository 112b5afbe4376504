"""How many streams with both tracks one core can receive, found by trying numbers of them."""

import os

from benchmarks.families.audio import COALESCED, HAND, MAIN, OURS, send, warm_up_of
from benchmarks.figures import NotMeasuredError, Plan, Section
from benchmarks.processes import PINNED_HEAP, Child, Contender, MissingPackageError, child
from benchmarks.search import Searches
from benchmarks.sender import FRAME_SECONDS

TRACKS = 2
_CPUS = 2
_LATEST = {COALESCED: 0.15}
_LATEST_OF_OTHERS = 0.02
"""Seconds of delay that one frame of a hundred may exceed."""
_TRIES = 3
_SENDER_SHARE = 0.25
"""Share of that delay above which the sender's own delay shows that the sender was the limit."""


def measure(plan: Plan) -> list[Section]:
    """Search for each receiver in turn, which has one core, while the sender has the other.

    Raises:
        NotMeasuredError: there is one processor, or another system than Linux.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cpus) < _CPUS:
        raise NotMeasuredError("it needs Linux and two processors")
    searches, notes, warm_up = Searches(plan), list[str](), warm_up_of(plan)
    contenders = [Contender(name, target) for name, target in MAIN]
    for number in range(plan.pick(full=3, quick=1)):
        for contender in plan.shuffled(contenders, number):
            try:
                with (
                    child("sender:serve", cpu=cpus[1]) as sender,
                    child(contender.target, environment=PINNED_HEAP, cpu=cpus[0]) as receiver,
                ):
                    trials = _Trials(searches.seconds, warm_up, contender.name, sender, receiver)
                    searches.search(contender.name, trials.failure)
            except MissingPackageError as error:
                notes.append(f"left out: {contender.name}, since {error}")
                contenders.remove(contender)
    about = (
        f"both tracks, 100 frames a second, from a sender on another core; {searches.seconds:.0f} s a trial "
        f"after {warm_up:g} s of warm-up; a trial that fails is repeated once; nothing dropped, "
        f"99th percentile of the delay under {_LATEST_OF_OTHERS * 1e3:.0f} ms "
        f"(coalesced: {_LATEST[COALESCED] * 1e3:.0f} ms)"
    )
    names = [name for name, _ in MAIN]
    return [
        Section(
            title="Streams with both tracks that one core receives",
            unit="streams",
            series=searches.found.series(names),
            baseline=HAND,
            ours=OURS,
            aims={OURS: "> 1", COALESCED: "≥ 1.8"},
            plotted=True,
            notes=(about, *searches.limits(names), *notes),
        )
    ]


class _Trials:
    """Tries numbers of streams with one receiver."""

    def __init__(self, seconds: float, warm_up: float, name: str, sender: Child, receiver: Child) -> None:
        self._frames = int((warm_up + seconds) / FRAME_SECONDS) * TRACKS
        self._warm_up = warm_up
        self._latest = _LATEST.get(name, _LATEST_OF_OTHERS)
        self._sender, self._receiver = sender, receiver

    def failure(self, streams: int) -> str:
        """Try a number, again if the sender was late; return what it failed by, or nothing."""
        for _ in range(_TRIES):
            sent, received = send(
                *(streams, self._frames, self._sender, self._receiver),
                pace="real time",
                tracks=TRACKS,
                warm_up=self._warm_up,
            )
            if sent["p99"] <= self._latest * _SENDER_SHARE:
                break
        lost = streams * self._frames - received["frames"]
        if not lost and received["p99"] < self._latest:
            return ""
        own = sent["p99"]
        by = f"{lost:,} frames were dropped" if lost else f"a delay of {received['p99'] * 1e3:.0f} ms"
        limit = ", so that it may have been the limit" if own > self._latest * _SENDER_SHARE else ""
        return f"{by}; the sender's own delay was {own * 1e3:.1f} ms{limit}"
