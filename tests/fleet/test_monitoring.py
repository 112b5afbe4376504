"""The ports on which a worker says that it runs, and what it has done."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from signalwire_streams import InvalidRequestError, StreamsClient
from signalwire_streams.fleet import Fleet, FleetWorker
from signalwire_streams.simulator import SimulatedSpace
from tests.forks import fork
from tests.ports import free_port
from tests.redis_server import RedisServer

from .helpers import all_results, on_conferences, until


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return redis_server.url


async def read(port: int, host: str = "127.0.0.1") -> str:
    async with aiohttp.ClientSession() as http, http.get(f"http://{host}:{port}/") as response:
        return f"{response.status} {await response.text()}"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
async def test_worker_of_the_command_line_serves_health_and_metrics(
    space: SimulatedSpace, redis_server: RedisServer, fleet: Fleet
) -> None:
    health, metrics = free_port(), free_port()
    environment = {
        "SIGNALWIRE_SPACE": space.base_url,
        "SIGNALWIRE_PROJECT_ID": space.project,
        "SIGNALWIRE_API_TOKEN": space.token,
        "SIGNALWIRE_FLEET_REDIS": redis_server.url,
    }
    process = await fork(
        *("fleet", "worker", "--rate", "1000", "--monitoring-host", "127.0.0.2"),
        *("--health-port", str(health), "--metrics-port", str(metrics)),
        imports=["signalwire_streams._cli.fleet"],
        environment=os.environ | environment,
    )
    try:

        async def works() -> bool:
            return bool(await fleet.workers())

        await until(works)
        run = await fleet.submit(on_conferences(space.conference_sids))
        await all_results(fleet, run)
        assert await read(health, "127.0.0.2") == "200 OK"
        text = await read(metrics, "127.0.0.2")
        assert 'signalwire_streams_attempts_total{operation="conference_start"' in text.replace("otel_scope", "x")
        assert space.token not in text
    finally:
        process.terminate()
        await process.wait()
    with pytest.raises(aiohttp.ClientConnectorError):
        await read(health, "127.0.0.2")


async def test_metrics_of_a_worker_are_those_of_its_client(
    client: StreamsClient, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[str, int | None]] = []

    class Server:
        def __init__(self, host: str, port: int | None) -> None:
            served.append((host, port))

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("signalwire_streams.fleet._worker.metrics_server", Server)
    before: Callable[..., Any] = client._dispatcher.handler
    worker = FleetWorker(redis_server.url, client, metrics_port=9000, monitoring_host="127.0.0.2")
    running = asyncio.create_task(worker.run())

    async def is_instrumented() -> bool:
        return client._dispatcher.handler is not before

    await until(is_instrumented)
    worker.stop()
    await running
    assert served == [("127.0.0.2", 9000)]
    assert client._dispatcher.handler is before


async def test_port_that_is_taken_is_said(client: StreamsClient, redis_server: RedisServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = FleetWorker(redis_server.url, client, health_port=port)
        with pytest.raises(InvalidRequestError, match=rf"can't listen on 127.0.0.1 port {port}: Address already"):
            await worker.run()


@pytest.mark.parametrize("port", [0, 70_000, "80", True])
async def test_wrong_port_is_said(client: StreamsClient, port: object) -> None:
    with pytest.raises(InvalidRequestError, match="metrics_port must be a whole number from 1 to 65535"):
        FleetWorker("redis://localhost", client, metrics_port=port)  # type: ignore[arg-type]


@pytest.mark.parametrize("port", [1, 65_535])
async def test_first_and_last_port_are_accepted(client: StreamsClient, port: int) -> None:
    FleetWorker("redis://localhost", client, health_port=port, metrics_port=port)
