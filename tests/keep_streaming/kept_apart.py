"""A keeper with its receiver of streams and of callbacks, in a process of its own if need be."""

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
from typing import Any

from aiohttp import web
from attrs import asdict, frozen

from signalwire_streams import StreamsClient
from signalwire_streams.callbacks import CallbackEvent, CallbackReceiver
from signalwire_streams.keep_streaming import Keeper
from signalwire_streams.receiver import MediaReceiver, StreamSession
from tests.leaping_clock import LeapingClock

NAME = "audit"
_SAMPLES = 8  # of each keeper's memory and tasks


@frozen(kw_only=True)
class Sample:
    """What a keeper's process holds at one time."""

    at: float
    targets: int
    tasks: int
    descriptors: int
    memory: int  # bytes


@frozen(kw_only=True)
class Orders:
    """What a keeper's process has to do."""

    base_url: str
    project: str
    token: str
    signing_key: str
    certificate: str
    now: float
    began: float
    ends: float
    link: int | None
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
            template: Any = {"url": "wss://rx.example.com/audio", "status_callback": callbacks}
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
            keeping = client.keep_streaming(template, name=NAME, journal=self.journal, **options)
            keeper = await stack.enter_async_context(keeping)
            keepers.append(keeper)
            reading = asyncio.create_task(_read(keeper, events))
            for number in range(_SAMPLES):
                due = self.began + (number + 1) * (self.ends - 1.0 - self.began) / _SAMPLES
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
        events[type(event).__name__] += 1


def _sample(keeper: Keeper, clock: LeapingClock) -> Sample:
    return Sample(
        at=clock.now,
        targets=len(keeper._targets),
        tasks=len(asyncio.all_tasks()),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        memory=int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize(),
    )


def main() -> None:
    orders = Orders(**json.loads(sys.stdin.readline()))
    clock = LeapingClock(socket.socket(fileno=orders.link), now=orders.now)
    logging.getLogger("signalwire_streams").setLevel(logging.ERROR)  # of what goes wrong all the time
    clock.run(lambda: orders.keep(clock))


if __name__ == "__main__":
    main()
