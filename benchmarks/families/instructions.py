"""Instructions per start, per frame and of an import, counted by callgrind, compared with others in the same run."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.callgrind import compile_helper, count_program, counted_child
from benchmarks.families import audio
from benchmarks.families.imports import BASELINE, CLIENT, IMPORTS, NO_CERTIFICATES, environment, python
from benchmarks.families.starts import COMMON, HAND, SINGLE, ask
from benchmarks.figures import Plan, Rounds, Section
from benchmarks.processes import PINNED_HEAP, Contender, child, start_all
from benchmarks.sender import FrameCount
from benchmarks.servers import server

_SOCKETS = 10
_FRAMES = 100
_RECEIVERS = ((audio.HAND, "receivers:aiohttp"), (audio.OURS, "receivers:media_receiver"))
_PACES: tuple[audio.Pace, ...] = ("one frame a wake", "as fast as read")
_START_AIMS = {SINGLE: "≤ 0.80", "this client, bulk": "≤ 0.95", "this client, bulk with journal": "≤ 1.15"}
_TRACED = "with telemetry, OpenTelemetry's API alone"
_TRACED_STARTS = (
    (SINGLE, "starters:single"),
    (_TRACED, "starters:traced"),
    ("with telemetry and OpenTelemetry's SDK", "starters:traced_by_sdk"),
)
_IMPORT_AIMS = {CLIENT: "≤ 1.45"}
_FRAME_AIMS = {audio.OURS: "≤ 0.92"}


def measure(plan: Plan) -> list[Section]:
    """Count after a warm-up; a few hundred items are enough, since the counts hardly vary.

    They do not depend on what else runs either, so there are two counts at a time. A trial run leaves out TLS.

    Raises:
        CallgrindMissingError: valgrind or gcc is not installed.
    """
    rounds = plan.pick(full=2, quick=1)
    with TemporaryDirectory() as name, audio.certificate() as certificate, ThreadPoolExecutor(2) as pool:
        helper = compile_helper(Path(name))
        starts = plan.pick(full=150, quick=60)
        cpu = _cpu(plan)
        certificates = plan.pick(full=(None, certificate), quick=(None,))
        tasks: list[Callable[[], list[Section]]] = [
            partial(_starts, helper, rounds, starts, beside=cpu),
            partial(_traced_starts, helper, rounds, starts),
            *(partial(_frames, helper, rounds, one) for one in certificates),
            partial(_imports, helper.parent, plan.pick(full=IMPORTS, quick=(BASELINE, CLIENT))),
        ]
        return [section for sections in pool.map(lambda task: task(), tasks) for section in sections]


def _cpu(plan: Plan) -> Section:
    """Measure the same starts in CPU time, with more rounds, since that varies."""
    used, starts = Rounds(), plan.pick(full=300, quick=100)
    contenders = [Contender(name, target) for name, target in COMMON]
    with server() as running, ExitStack() as stack:
        children, _ = start_all(stack, contenders, base_url=running.base_url)
        for number in range(-1, plan.pick(full=9, quick=3)):
            for name in plan.shuffled(children, number):
                answer = ask(name, children[name], running, starts=starts, tag=f"round-{number}")
                if number >= 0:
                    used.add(name, answer["cpu"] / starts * 1e6)
    return Section(title="CPU", unit="µs", series=used.series(children), baseline=HAND)


def _starts(helper: Path, rounds: int, starts: int, *, beside: Section) -> list[Section]:
    costs, note = _count_starts(COMMON, helper, rounds, starts)
    return [
        Section(
            title="Instructions per start",
            unit="thousands",
            series=costs.series(),
            baseline=HAND,
            ours=SINGLE,
            aims=_START_AIMS,
            beside=(beside,),
            plotted=True,
            notes=(note,),
        )
    ]


def _traced_starts(helper: Path, rounds: int, starts: int) -> list[Section]:
    costs, note = _count_starts(_TRACED_STARTS, helper, rounds, starts)
    title, aims = "Instructions per start with telemetry", {_TRACED: "≤ 1.08"}
    return [
        Section(title=title, unit="thousands", series=costs.series(), baseline=SINGLE, aims=aims, notes=(note,)),
    ]


def _count_starts(contenders: Sequence[tuple[str, str]], helper: Path, rounds: int, starts: int) -> tuple[Rounds, str]:
    costs = Rounds()
    with server() as running:
        for name, target in contenders:
            with counted_child(target, helper, base_url=running.base_url) as (client, instructions):
                for number in range(-1, rounds):
                    ask(name, client, running, starts=starts, tag=f"round-{number}", counted=number >= 0)
                    if number >= 0:
                        costs.add(name, instructions() / starts / 1e3)
    return costs, f"{starts} starts a round, from 16 workers; the server is {running.name}"


def _frames(helper: Path, rounds: int, certificate: str | None) -> list[Section]:
    costs = {pace: Rounds() for pace in _PACES}
    with TemporaryDirectory() as directory, ExitStack() as stack:
        handled = Path(directory, "handled")
        FrameCount.create(handled)
        settings: dict[str, Any] = {"handled": str(handled), "certificate": certificate}
        sender = stack.enter_context(child("sender:serve", **settings))
        for name, target in _RECEIVERS:
            with counted_child(target, helper, environment=PINNED_HEAP, **settings) as (receiver, instructions):
                for number in range(-1, rounds):
                    for pace, found in costs.items():
                        _, received = audio.send(
                            *(_SOCKETS, _FRAMES, sender, receiver),
                            pace=pace,
                            tls=certificate is not None,
                            counted=number >= 0,
                        )
                        if number >= 0:
                            found.add(name, instructions() / received["frames"] / 1e3)
    return [
        Section(
            title=f"Instructions per frame, {pace}, {'plain' if certificate is None else 'TLS'}",
            unit="thousands",
            series=found.series(),
            baseline=audio.HAND,
            ours=audio.OURS,
            aims=_FRAME_AIMS if (pace, certificate) == (_PACES[0], None) else {},
            plotted=True,
            notes=(f"{_FRAMES} frames a round on each of {_SOCKETS} sockets",),
        )
        for pace, found in costs.items()
    ]


def _imports(directory: Path, statements: Sequence[str]) -> list[Section]:
    costs = Rounds()
    started = count_program("pass", directory, environment())
    for statement in statements:
        python(statement)  # which compiles the modules
        costs.add(statement, (count_program(statement, directory, environment()) - started) / 1e6)
    return [
        Section(
            title="Instructions of an import",
            unit="millions",
            series=costs.series(),
            baseline=BASELINE,
            aims=_IMPORT_AIMS,
            plotted=True,
            notes=(f"without the {started / 1e6:.0f} of an interpreter that imports nothing more", NO_CERTIFICATES),
        )
    ]
