"""The health endpoints of a receiver's server."""

import asyncio

import aiohttp
import pytest
from fastapi import FastAPI
from yarl import URL

from signalwire_streams import Clock, InvalidRequestError
from signalwire_streams.receiver import MediaReceiver, StreamSession
from tests.uvicorn_server import running
from tests.waiting import until


async def status_of(address: str | None, path: str, method: str = "GET") -> int:
    async with aiohttp.ClientSession() as http, http.request(method, f"{address}{path}") as response:
        return response.status


async def test_process_is_alive_and_ready() -> None:
    receiver = MediaReceiver()
    async with receiver.serve(health_port=0):
        for path, status in (("/healthz", 200), ("/readyz", 200), ("/", 404), ("/metrics", 404)):
            assert await status_of(receiver.health_url, path) == status
        assert await status_of(receiver.health_url, "/healthz", "HEAD") == 200
        assert await status_of(receiver.health_url, "/healthz", "POST") == 405
    with pytest.raises(aiohttp.ClientConnectorError):
        await status_of(receiver.health_url, "/healthz")


async def test_receiver_that_drains_is_alive_and_not_ready() -> None:
    may_end = asyncio.Event()

    async def handler(_: StreamSession) -> None:
        await may_end.wait()

    receiver = MediaReceiver(handler, bearer_tokens=None)
    leave = asyncio.Event()

    async def serve() -> None:
        async with receiver.serve(health_port=0, shutdown_timeout=60) as url, aiohttp.ClientSession() as http:
            socket = await http.ws_connect(url)
            await socket.send_json({"event": "start", "streamSid": "s", "start": {}})
            await until(lambda: receiver.sessions)
            await leave.wait()

    serving = asyncio.create_task(serve())
    await until(lambda: receiver.sessions)
    assert await status_of(receiver.health_url, "/readyz") == 200
    draining = asyncio.create_task(receiver.aclose(60))
    await asyncio.sleep(0)
    assert await status_of(receiver.health_url, "/readyz") == 503
    assert await status_of(receiver.health_url, "/healthz") == 200
    may_end.set()
    leave.set()
    await asyncio.gather(draining, serving)


async def test_asgi_application_has_the_same_health_endpoints() -> None:
    """Below its mount, so that a probe needs no code of the user's."""
    receiver = MediaReceiver()
    application = FastAPI()
    application.mount("/audio", receiver.asgi)
    async with running(application, "wsproto") as server:
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/audio"
        for path, status in (("/healthz", 200), ("/readyz", 200), ("/readyz/", 200), ("/", 400), ("/metrics", 400)):
            assert await status_of(address, path) == status
        assert await status_of(address, "/readyz", "HEAD") == 200
        assert await status_of(address, "/readyz", "POST") == 405
        await receiver.aclose()
        async with aiohttp.ClientSession() as http, http.get(f"{address}/readyz") as response:
            assert (response.status, await response.text()) == (503, "draining\n")
            assert response.headers["Cache-Control"] == "no-store"
            assert response.content_type == "text/plain"
        assert await status_of(address, "/healthz") == 200


async def test_without_a_port_nothing_is_served() -> None:
    receiver = MediaReceiver()
    async with receiver.serve():
        assert receiver.health_url is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"health_port": 70_000}, "health_port must be a whole number from 0 to 65535, not 70000"),
        ({"health_port": "80"}, "health_port must be a whole number"),
        ({"health_host": 1, "health_port": 0}, "health_host must be a str, such as '127.0.0.1', not int"),
    ],
)
async def test_wrong_health_address_is_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        async with MediaReceiver().serve(**options):  # type: ignore[arg-type]
            pass


async def test_health_port_that_is_taken_serves_nothing() -> None:
    first, second = MediaReceiver(), MediaReceiver()
    async with first.serve(health_port=0):
        assert first.health_url is not None
        port = int(first.health_url.rpartition(":")[2])
        with pytest.raises(OSError, match="Address already in use") as caught:
            async with second.serve(health_port=port):
                pass
    assert caught.value.filename == f"127.0.0.1 port {port}"


@pytest.mark.parametrize(
    "unfinished", [b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost"]
)
async def test_unfinished_probe_does_not_delay_the_end(idle_clock: Clock, unfinished: bytes) -> None:
    """Neither one whose body is missing, nor one whose head is."""
    receiver = MediaReceiver()
    async with receiver.serve(health_port=0):
        address = URL(receiver.health_url or "")
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(unfinished)
        await asyncio.sleep(1)
        began = idle_clock.now()
    assert idle_clock.now() - began < 1
    writer.close()
