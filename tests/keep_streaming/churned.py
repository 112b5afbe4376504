"""The real keeper, with sockets, against a Space whose conferences and calls come and go.

``python -m tests.keep_streaming.churned`` plays two hours of 5,000 of them; words choose some of the scenes.
"""

import argparse
import asyncio
import json
import logging
import ssl
import sys
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory
from typing import Any

import trustme
from attrs import asdict, evolve, field, frozen

from signalwire_streams.simulator import Churn, NoFrames, SimulatedSpace
from signalwire_streams.simulator._request_log import ReceivedRequest, RequestLog
from tests.keep_streaming.kept_apart import NAME, Orders, Sample
from tests.leaping_clock import LeapingClock

_RESTART = 5.0  # seconds after which a killed keeper is started again
_GROWTH = 1.2  # that is none
_LEAVING = 120.0  # seconds in which the keepers have to end


class _Polls(RequestLog):
    """Keeps the lists only."""

    def add(self, request: ReceivedRequest) -> None:
        if request.operation.startswith("list-"):
            super().add(request)
        else:
            self._count(request.operation, request.target_sid)


@frozen(kw_only=True)
class Report:
    """What became of all conferences or calls.

    Attributes:
        targets: how many there were.
        most_at_once: how many lived at once, at most.
        doubled: how many ever had two streams at once.
        missed: how many saw more than two answered polls of each keeper, and were never streamed.
        longest_missed: seconds that the longest-lived of those lived.
        share: the fraction of their lives in which they were streamed.
        requests: how many of each operation.
        events: how many of each, of all keepers.
        samples: those of each keeper.
        leaps: of the clock.
    """

    targets: int
    most_at_once: int
    doubled: int
    missed: int
    longest_missed: float
    share: float
    requests: dict[str, int]
    events: dict[str, int]
    samples: tuple[tuple[Sample, ...], ...]
    leaps: int

    @property
    def starts(self) -> int:
        return sum(count for operation, count in self.requests.items() if operation.startswith("start-"))

    @property
    def growth(self) -> list[str]:
        """What grew in the second half, though no more conferences or calls live then."""
        problems = []
        for number, samples in enumerate(self.samples):
            half, last = samples[len(samples) // 2 - 1], samples[-1]
            for name in ("tasks", "descriptors", "memory"):
                before, after = getattr(half, name), getattr(last, name)
                if after > before * _GROWTH * max(last.targets / max(half.targets, 1), 1.0):
                    problems.append(f"keeper {number}: {before:,} {name}, then {after:,}")
            if last.targets > self.most_at_once:
                problems.append(f"keeper {number}: a state of {last.targets} targets")
        return problems


@frozen(kw_only=True)
class Scene:
    """Keepers that know nothing of each other, and their Space.

    Attributes:
        kind: "conference" or "call".
        receives: whether the keepers receive the streams themselves.
        keepers: how many.
        kills: how often the keepers are killed.
        apart: whether they have a process each. Without it all is in one, which takes a fraction of the time.
        journal: that of each keeper, by its number. A lease that a server keeps does not share the `LeapingClock`.
        options: further arguments of `StreamsClient.keep_streaming`.
        duplicate_names: how the Space treats a second stream of a name.
        foreign_streams: fraction of targets on which somebody else uses the keepers' name.
    """

    kind: str = "conference"
    receives: bool = True
    keepers: int = 1
    kills: int = 0
    apart: bool = False
    journal: str = "{directory}/kept-{number}.db"
    options: dict[str, Any] = field(factory=dict)
    duplicate_names: Any = "stream-error"
    foreign_streams: float = 0.0

    def broken_promises(self, report: Report) -> list[str]:
        """Return what two hours should not have shown. Calls that restart may be doubled, those that hold missed."""
        is_call, restarts = self.kind == "call", self.options == _RESTART_CALLS
        wrong = {
            "there were none": not report.targets,
            "some were doubled": report.doubled and not restarts,
            "some were missed": report.missed and not is_call,
            "they were streamed for too little of their lives": report.share < (0.9 if is_call else 0.98),
        }
        return [problem for problem, is_wrong in wrong.items() if is_wrong]

    def play(self, directory: Path, *, targets: int, seconds: float, life: float = 600.0, seed: int = 1) -> Report:
        play = _Play(self, directory, targets=targets, seconds=seconds, life=life, seed=seed)
        return play.clock.run(play.run)


class _Play:
    def __init__(self, scene: Scene, directory: Path, *, targets: int, seconds: float, life: float, seed: int) -> None:
        self.scene, self.directory, self.seconds = scene, directory, seconds
        self.clock = LeapingClock()
        self.ends = self.clock.now + seconds
        authority = trustme.CA()
        self.certificate = directory / "server.pem"
        authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(self.certificate)
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        rates = {f"{scene.kind}s_per_hour": targets * 3600.0 / seconds}
        self.space = SimulatedSpace(
            participants=0,
            seed=seed,
            audio=NoFrames() if scene.receives else None,
            ssl_context=trust,
            callbacks=True,
            duplicate_names=scene.duplicate_names,
            clock=self.clock.time,
            monotonic=self.clock.time,
            churn=Churn(
                mean_life=life,
                lost_sockets=0.02,
                half_open=0.2,
                foreign_streams=scene.foreign_streams,
                foreign_name=f"{NAME}-{{sid}}",
                **rates,
            ),
        )
        self.space.requests = _Polls()
        self.processes: dict[int, Popen[bytes]] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def run(self) -> Report:
        self._add_faults()
        began = self.clock.now
        async with self.space:
            try:
                for number in range(self.scene.keepers):
                    self._start(number)
                outage = asyncio.create_task(self._cut_off())
                kills = self.scene.kills
                for number in range(kills):
                    await asyncio.sleep(began + (number + 1) * self.seconds / (kills + 1) - self.clock.now)
                    await self._kill()
                await asyncio.sleep(self.ends - self.clock.now)
                report = self._report()
                await outage
                async with asyncio.timeout(_LEAVING):
                    await asyncio.gather(*self.tasks)
                    while self.clock.is_shared:  # noqa: ASYNC110  (there is no event)
                        await asyncio.sleep(0.5)
                codes = [process.wait() for process in self.processes.values()]
                assert codes == [0] * len(codes), codes
            finally:
                for task in self.tasks:
                    task.cancel()
                for process in self.processes.values():
                    process.kill()
                    process.wait()
        return report

    def _add_faults(self) -> None:
        add = self.space.faults.add
        add("disconnect", executed=True, every_nth=30)
        add("disconnect", executed=False, every_nth=30)
        add("executed-late", every_nth=60, seconds=7.0)
        add("executed-late", every_nth=60, seconds=45.0)
        add("list-torn", every_nth=20, every=50)
        add("latency", seconds=0.2)
        add("callback-lost", every_nth=5)
        add("callback-delayed", every_nth=20, seconds=40.0)

    async def _cut_off(self) -> None:
        """Be away for three minutes, in three ways."""
        await asyncio.sleep(self.seconds / 4)
        async with self.space.refuse_connections():
            await asyncio.sleep(60.0)
        for fault in ("502", "hang"):
            rule = self.space.faults.add(fault)
            self.space.faults._rules.insert(0, self.space.faults._rules.pop())  # before all others
            await asyncio.sleep(60.0)
            rule.remove()

    def _start(self, number: int) -> None:
        scene, space = self.scene, self.space
        link = self.clock.connect() if scene.apart or scene.kills else None
        is_call = scene.kind == "call"
        orders = Orders(
            base_url=space.base_url,
            project=space.project,
            token=space.token,
            signing_key=space.signing_key,
            certificate=str(self.certificate),
            link=None if link is None else link.fileno(),
            now=self.clock.now,
            began=self.ends - self.seconds,
            ends=self.ends,
            journal=scene.journal.format(directory=self.directory, number=number),
            options={"calls": is_call, "conferences": not is_call, **scene.options},
            receives=scene.receives,
            report=str(self._report_of(number)),
        )
        if link is None:
            self.tasks.append(asyncio.create_task(orders.keep(self.clock)))
            return
        command = [sys.executable, "-m", "tests.keep_streaming.kept_apart"]
        with link:
            process = self.processes[number] = Popen(command, pass_fds=[link.fileno()], stdin=PIPE)  # noqa: S603
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(json.dumps(asdict(orders)).encode() + b"\n")

    def _report_of(self, number: int) -> Path:
        return self.directory / f"report-{number}.jsonl"

    async def _kill(self) -> None:
        """End all keepers at once, and start them again."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        await asyncio.sleep(_RESTART)
        for number in range(self.scene.keepers):
            self._start(number)

    def _report(self) -> Report:
        now, lives = self.clock.now, self.space.lifetimes
        polls = [one.received_at for one in self.space.requests if one.status == 200 and one.fault != "list-torn"]
        ends = [now if life.ended is None else life.ended for life in lives]
        living = {life.target_sid: end - life.began for life, end in zip(lives, ends, strict=True)}
        least = 2 * self.scene.keepers
        missed = [
            end - life.began
            for life, end in zip(lives, ends, strict=True)
            if not life.streamed and sum(life.began < poll < end for poll in polls) > least
        ]
        changes = sorted([(life.began, 1) for life in lives] + [(end, -1) for end in ends])
        at_once = most = 0
        for _, change in changes:
            at_once += change
            most = max(most, at_once)
        rows: list[list[dict[str, Any]]] = [
            [json.loads(line) for line in self._report_of(number).read_text(encoding="utf-8").splitlines()]
            for number in range(self.scene.keepers)
        ]
        events: Counter[str] = Counter()
        for row in chain.from_iterable(rows):
            events.update(row["events"])
        return Report(
            targets=len(lives),
            most_at_once=most,
            doubled=sum(life.most_streams > 1 for life in lives),
            missed=len(missed),
            longest_missed=max(missed, default=0.0),
            share=sum(life.streamed for life in lives) / sum(living.values()),
            requests=self.space.requests.counts(),
            events=dict(events),
            samples=tuple(tuple(Sample(**row["sample"]) for row in each) for each in rows),
            leaps=self.clock.leaps,
        )


_HOLD = {"in_doubt": "hold"}
_RESTART_CALLS = {"in_doubt": "restart"}

CONFERENCES = {
    "conferences, received here": Scene(apart=True),
    "conferences, received elsewhere": Scene(receives=False),
    "conferences, received here, keeper killed five times": Scene(kills=5),
    "conferences, received elsewhere, keeper killed five times": Scene(receives=False, kills=5),
    "conferences, two keepers that know nothing of each other": Scene(receives=False, keepers=2),
    "conferences, two such keepers, received by each": Scene(keepers=2),
}
CALLS = {
    "calls that hold": Scene(kind="call", duplicate_names="allow", options=_HOLD),
    "calls that restart": Scene(kind="call", duplicate_names="allow", options=_RESTART_CALLS),
}


def describe(report: Report) -> str:
    return (
        f"streamed {report.share:.1%} of {report.targets:,} lives, at most {report.most_at_once:,} at once; "
        f"{report.doubled:,} doubled, {report.missed:,} missed (of at most {report.longest_missed:.0f} s), "
        f"{report.events.get('StreamingInDoubt', 0):,} times in doubt, {report.starts:,} starts, "
        f"{report.leaps:,} leaps"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.keep_streaming.churned", description=__doc__)
    parser.add_argument("words", nargs="*", help="only the scenes whose description has one of these words")
    parser.add_argument("--targets", type=int, default=5_000, help="how many (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=7_200.0, help="of the Space (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="of the Space (default: %(default)s)")
    parser.add_argument("--together", action="store_true", help="in one process, unless the keeper is killed")
    given = parser.parse_args()
    logging.getLogger("signalwire_streams").setLevel(logging.ERROR)
    is_good = True
    for name, listed in (CONFERENCES | CALLS).items():
        if given.words and not any(word in name for word in given.words):
            continue
        scene = evolve(listed, apart=listed.apart and not given.together)
        began = time.monotonic()
        with TemporaryDirectory() as directory:
            report = scene.play(Path(directory), targets=given.targets, seconds=given.seconds, seed=given.seed)
        growth = [] if scene.kills else report.growth
        is_good &= not (scene.broken_promises(report) or growth)
        sys.stdout.write(f"{name}: {describe(report)} ({time.monotonic() - began:.0f} s)\n")
        for problem in [*scene.broken_promises(report), *growth]:
            sys.stdout.write(f"  {problem}\n")
        sys.stdout.flush()
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
