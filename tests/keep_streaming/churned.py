"""Keepers in processes of their own, against a Space whose conferences and calls come and go.

What a keeper sends and receives goes over sockets. All share one `LeapingClock`.
"""

import asyncio
import json
import logging
import resource
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import trustme
from aiohttp import web
from attrs import asdict, frozen

from signalwire_streams import StreamsClient
from signalwire_streams.callbacks import CallbackEvent, CallbackReceiver
from signalwire_streams.keep_streaming import Keeper
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.simulator import Churn, NoFrames, SimulatedSpace
from signalwire_streams.simulator._request_log import ReceivedRequest, RequestLog
from tests.leaping_clock import LeapingClock

_NAME = "audit"
_SAMPLES = 8  # of each keeper's memory and tasks
_RESTART = 5.0  # seconds after which a killed keeper is started again
_LEAVING = 120.0  # seconds in which the keepers have to end


@frozen(kw_only=True)
class Sample:
    """What a keeper's process holds at one time."""

    at: float
    targets: int
    tasks: int
    sockets: int
    memory: int  # bytes


@frozen(kw_only=True)
class Orders:
    """What a keeper's process has to do."""

    base_url: str
    project: str
    token: str
    signing_key: str
    certificate: str
    link: int
    now: float
    began: float
    ends: float
    journal: str
    options: dict[str, Any]
    receives: bool
    report: str

    async def keep(self, clock: LeapingClock) -> None:
        keepers: list[Keeper] = []
        events: Counter[str] = Counter()

        async def on_callback(event: CallbackEvent) -> None:
            for keeper in keepers:
                await keeper.handle_status_callback(event)

        async with AsyncExitStack() as stack:
            callbacks = await stack.enter_async_context(self._callbacks(on_callback))
            template: dict[str, Any] = {"url": "wss://rx.example.com/audio", "status_callback": callbacks}
            options = dict(self.options)
            if self.receives:
                receiver = MediaReceiver(_listen, bearer_tokens=["another-one"])
                server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                server.load_cert_chain(self.certificate)
                options["receivers"] = [receiver]
                template["url"] = await stack.enter_async_context(receiver.serve(ssl_context=server))
            client = await stack.enter_async_context(
                StreamsClient(base_url=self.base_url, project=self.project, token=self.token, clock=clock.clock())
            )
            keeping = client.keep_streaming(template, name=_NAME, journal=self.journal, **options)
            keeper = await stack.enter_async_context(keeping)
            keepers.append(keeper)
            reading = asyncio.create_task(_read(keeper, events))
            for number in range(_SAMPLES):
                due = self.began + (number + 1) * (self.ends - self.began) / _SAMPLES
                if due > clock.now:
                    await asyncio.sleep(due - clock.now)
                    self._write({"sample": asdict(_sample(keeper, clock)), "events": dict(events)})
                    events.clear()
            reading.cancel()
            await asyncio.wait({reading})

    @asynccontextmanager
    async def _callbacks(self, handler: Any) -> AsyncIterator[str]:
        receiver = CallbackReceiver(handler, keys=[self.signing_key], allowed_hosts=["127.0.0.1"])
        application = web.Application()
        application.router.add_post("/callbacks", receiver.handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/callbacks"
        finally:
            await receiver.aclose()
            await runner.cleanup()

    def _write(self, row: dict[str, Any]) -> None:
        with Path(self.report).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


async def _listen(session: StreamSession) -> None:
    await session.wait_closed()


async def _read(keeper: Keeper, events: Counter[str]) -> None:
    async for event in keeper:
        events[type(event).__name__ + " " + str(getattr(event, "reason", ""))] += 1


def _sample(keeper: Keeper, clock: LeapingClock) -> Sample:
    return Sample(
        at=clock.now,
        targets=len(keeper._targets),
        tasks=len(asyncio.all_tasks()),
        sockets=len(list(Path("/proc/self/fd").iterdir())),
        memory=int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize(),
    )


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


@frozen(kw_only=True)
class Scene:
    """Keepers that know nothing of each other, and their Space.

    Attributes:
        kind: "conference" or "call".
        receives: whether the keepers receive the streams themselves.
        keepers: how many.
        kills: how often the keepers are killed.
        options: further arguments of `StreamsClient.keep_streaming`.
        duplicate_names: how the Space treats a second stream of a name.
        foreign_streams: fraction of targets on which somebody else uses the keepers' name.
    """

    kind: str = "conference"
    receives: bool = True
    keepers: int = 1
    kills: int = 0
    options: dict[str, Any] = {}
    duplicate_names: Any = "stream-error"
    foreign_streams: float = 0.0

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
                foreign_name=f"{_NAME}-{{sid}}",
                **rates,
            ),
        )
        self.space.requests = _Polls()
        self.processes: dict[int, Popen[bytes]] = {}

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
                    while self.clock.is_shared:
                        await asyncio.sleep(0.5)
                codes = [process.wait() for process in self.processes.values()]
                assert codes == [0] * len(codes), codes
            finally:
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
        link = self.clock.connect()
        scene, space = self.scene, self.space
        is_call = scene.kind == "call"
        orders = Orders(
            base_url=space.base_url,
            project=space.project,
            token=space.token,
            signing_key=space.signing_key,
            certificate=str(self.certificate),
            link=link.fileno(),
            now=self.clock.now,
            began=self.ends - self.seconds,
            ends=self.ends,
            journal=str(self.directory / f"kept-{number}.db"),
            options={"calls": is_call, "conferences": not is_call, **scene.options},
            receives=scene.receives,
            report=str(self._report_of(number)),
        )
        with link:
            command = [sys.executable, "-m", "tests.keep_streaming.churned", json.dumps(asdict(orders))]
            self.processes[number] = Popen(command, pass_fds=[link.fileno()])  # noqa: S603

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
        polls = [one.received_at for one in self.space.requests if one.answered == 200 and one.fault != "list-torn"]
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
        for row in sum(rows, []):
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


def main() -> None:
    orders = Orders(**json.loads(sys.argv[1]))
    clock = LeapingClock(socket.socket(fileno=orders.link), now=orders.now)
    logging.getLogger("signalwire_streams").setLevel(logging.ERROR)  # of what goes wrong all the time
    clock.run(lambda: orders.keep(clock))


if __name__ == "__main__":
    main()
