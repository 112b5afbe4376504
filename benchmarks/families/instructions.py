"""Instructions per start and per frame, counted by callgrind, compared with hand-written code in the same run."""

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.callgrind import compile_helper, counted_child
from benchmarks.families import audio
from benchmarks.families.starts import COUNTED, HAND, SINGLE, ask
from benchmarks.figures import Plan, Rounds, Section
from benchmarks.processes import child
from benchmarks.servers import server

_SOCKETS = 10


def measure(plan: Plan) -> list[Section]:
    """Count after a warm-up; a few hundred items are enough, since the counts hardly vary.

    Raises:
        CallgrindMissingError: valgrind or gcc is not installed.
    """
    rounds = plan.pick(full=2, quick=1)
    with TemporaryDirectory() as directory:
        helper = compile_helper(Path(directory))
        return [_starts(helper, rounds, plan.pick(full=150, quick=60)), _frames(helper, rounds)]


def _starts(helper: Path, rounds: int, starts: int) -> Section:
    costs = Rounds()
    with server() as running:
        for name, target in COUNTED:
            with counted_child(target, helper, base_url=running.base_url) as (client, instructions):
                for number in range(-1, rounds):
                    ask(name, client, running, starts=starts, tag=f"round-{number}", counted=number >= 0)
                    if number >= 0:
                        costs.add(name, instructions() / starts / 1e3)
    return Section(
        title="Instructions per start",
        unit="thousands",
        series=costs.series(),
        baseline=HAND,
        ours=SINGLE,
        plotted=True,
        notes=(f"{starts} starts a round, from 16 workers; the server is {running.name}",),
    )


def _frames(helper: Path, rounds: int, frames: int = 100) -> Section:
    costs = Rounds()
    with child("sender:serve") as sender:
        for name, target in ((audio.HAND, "receivers:aiohttp"), (audio.OURS, "receivers:media_receiver")):
            with counted_child(target, helper) as (receiver, instructions):
                for number in range(-1, rounds):
                    _, received = audio.send(_SOCKETS, frames, sender, receiver, real_time=False, counted=number >= 0)
                    if number >= 0:
                        costs.add(name, instructions() / received["frames"] / 1e3)
    return Section(
        title="Instructions per frame",
        unit="thousands",
        series=costs.series(),
        baseline=audio.HAND,
        ours=audio.OURS,
        plotted=True,
        notes=(f"{frames} frames a round on each of {_SOCKETS} sockets, as fast as read",),
    )
