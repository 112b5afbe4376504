"""A Redis of the test's own, workers that end with the test, and a fleet of a Space's project."""

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from attrs import define, field

from signalwire_streams import StreamsClient
from signalwire_streams.fleet import Fleet, FleetWorker
from signalwire_streams.simulator import SimulatedSpace

REDIS = shutil.which("redis-server")
_UP_WITHIN = 200


@define(eq=False)
class RedisServer:
    """A redis-server on a socket of its own, with its file beside it."""

    folder: Path
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/redis.sock"

    @property
    def kept(self) -> bytes:
        """All that it has written to its file."""
        return b"".join(path.read_bytes() for path in sorted((self.folder / "appendonlydir").iterdir()))

    def start(self) -> None:
        assert REDIS is not None
        options = ["--port", "0", "--unixsocket", "redis.sock", "--dir", str(self.folder), "--save", ""]
        options += ["--appendonly", "yes", "--maxmemory-policy", "noeviction", "--loglevel", "warning"]
        self._process = subprocess.Popen([REDIS, *options], cwd=self.folder, stdout=subprocess.DEVNULL)  # noqa: S603

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    if REDIS is None:
        pytest.skip("there is no redis-server on this machine: apt-get install redis-server")
    # A socket's path may have a hundred characters, and pytest's own folders have more.
    folder = Path(tempfile.mkdtemp(prefix="sws"))
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


Start: TypeAlias = Callable[..., FleetWorker]


@define(eq=False)
class Workers:
    """Starts workers in this process, and ends them with the test."""

    url: str
    client: StreamsClient
    running: dict[FleetWorker, "asyncio.Task[None]"] = field(factory=dict)

    def __call__(self, client: StreamsClient | None = None, **options: Any) -> FleetWorker:
        worker = FleetWorker(self.url, client or self.client, **({"lease": 2.0, "drain": 5.0} | options))
        self.running[worker] = asyncio.create_task(worker.run())
        return worker

    async def end(self, worker: FleetWorker) -> None:
        worker.stop()
        async with asyncio.timeout(20):
            await self.running.pop(worker)

    async def end_all(self) -> None:
        for worker in list(self.running):
            worker.stop()
            await self.end(worker)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """The engine's in-memory Redis, another one for each test."""
    return f"memory://{id(request)}"


@pytest.fixture
async def fleet(url: str, space: SimulatedSpace) -> AsyncIterator[Fleet]:
    async with Fleet(url, space=space.base_url, project=space.project) as fleet:
        yield fleet


@pytest.fixture
async def workers(url: str, client: StreamsClient, fleet: Fleet) -> AsyncIterator[Workers]:
    workers = Workers(url, client)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(workers.end_all)
        yield workers
