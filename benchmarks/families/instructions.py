"""Instructions per start, per frame and of an import, counted by callgrind, compared with others in the same run."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.callgrind import compile_helper, count_program, counted_child
from benchmarks.families import audio
from benchmarks.families.imports import BASELINE, CLIENT, IMPORTS
from benchmarks.families.starts import COUNTED, HAND, SINGLE, ask
from benchmarks.figures import Plan, Rounds, Section
from benchmarks.processes import PINNED_HEAP, child
from benchmarks.sender import FrameCount
from benchmarks.servers import server

_SOCKETS = 10
_RECEIVERS = ((audio.HAND, "receivers:aiohttp"), (audio.OURS, "receivers:media_receiver"))


def measure(plan: Plan) -> list[Section]:
    """Count after a warm-up; a few hundred items are enough, since the counts hardly vary.

    Raises:
        CallgrindMissingError: valgrind or gcc is not installed.
    """
    rounds = plan.pick(full=2, quick=1)
    with TemporaryDirectory() as directory, audio.certificate() as certificate:
        helper = compile_helper(Path(directory))
        frames = [
            _frames(helper, rounds, pace, tls)
            for pace in ("one at a time", "as fast as read")
            for tls in (None, certificate)
        ]
        return [_starts(helper, rounds, plan.pick(full=150, quick=60)), *frames, _imports(Path(directory))]


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


def _frames(helper: Path, rounds: int, pace: audio.Pace, certificate: str | None, frames: int = 100) -> Section:
    costs = Rounds()
    handled = helper.parent / "handled"
    FrameCount.create(handled)
    shared = {"handled": str(handled)} if pace == "one at a time" else {}
    settings = shared if certificate is None else {**shared, "certificate": certificate}
    with ExitStack() as stack:
        sender = stack.enter_context(child("sender:serve", **shared))
        for name, target in _RECEIVERS:
            with counted_child(target, helper, environment=PINNED_HEAP, **settings) as (receiver, instructions):
                for number in range(-1, rounds):
                    _, received = audio.send(
                        *(_SOCKETS, frames, sender, receiver),
                        pace=pace,
                        tls=certificate is not None,
                        counted=number >= 0,
                    )
                    if number >= 0:
                        costs.add(name, instructions() / received["frames"] / 1e3)
    how = "one frame a wake" if shared else pace
    return Section(
        title=f"Instructions per frame, {how}, {'plain' if certificate is None else 'TLS'}",
        unit="thousands",
        series=costs.series(),
        baseline=audio.HAND,
        ours=audio.OURS,
        plotted=True,
        notes=(f"{frames} frames a round on each of {_SOCKETS} sockets",),
    )


def _imports(directory: Path) -> Section:
    costs = Rounds()
    started = count_program("pass", directory)
    for statement in IMPORTS:
        costs.add(statement, (count_program(statement, directory) - started) / 1e6)
    return Section(
        title="Instructions of an import",
        unit="millions",
        series=costs.series(),
        baseline=BASELINE,
        ours=CLIENT,
        plotted=True,
        notes=(f"without the {started / 1e6:.0f} of an interpreter that imports nothing more",),
    )
