"""The Space: seeds, sockets, refused and reset connections, admin paths, closing, imports."""

import ast
import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import ClientConnectorError, ClientError, ClientOSError, ClientSession

import signalwire_streams.simulator
from signalwire_streams.simulator import SimulatedSpace
from tests.ports import free_port

from .peer import Peer, simulated
from .shapes import uuid


def test_spaces_with_one_seed_are_equal() -> None:
    first, second, other = (SimulatedSpace(conferences=3, calls=2, seed=seed) for seed in (1, 1, 2))
    for name in ("project", "token", "signing_key", "conference_sids", "call_sids"):
        assert getattr(first, name) == getattr(second, name)
        assert getattr(first, name) != getattr(other, name)
    assert uuid(first.project)
    assert all(uuid(sid) for sid in [*first.conference_sids, *first.call_sids])
    assert first.signing_key.startswith("PSK_")
    assert first.token not in repr(first)
    assert first.signing_key not in repr(first)


async def test_spaces_with_one_seed_create_the_same_sids() -> None:
    async def run() -> list[str]:
        async with simulated(seed=3) as peer:
            return [(await peer.start()).json["sid"] for _ in range(3)]

    assert await run() == await run()


def test_invalid_arguments_are_rejected() -> None:
    with pytest.raises(ValueError, match="conferences"):
        SimulatedSpace(conferences=-1)
    with pytest.raises(ValueError, match="duplicate_names"):
        SimulatedSpace(duplicate_names="never")  # type: ignore[arg-type]


async def test_space_can_be_started_and_closed_explicitly() -> None:
    space = SimulatedSpace()
    await space.start()
    assert space.base_url == f"http://127.0.0.1:{space.port}"
    assert space.port > 0
    with pytest.raises(RuntimeError, match="create a new SimulatedSpace"):
        await space.start()
    await space.close()
    await space.close()


async def test_space_that_was_not_started_can_be_closed() -> None:
    await SimulatedSpace().close()


async def test_port_in_use_is_an_oserror() -> None:
    async with simulated() as peer:
        other = SimulatedSpace(port=peer.space.port)
        with pytest.raises(OSError, match=r"[Aa]ddress"):
            await other.start()
        await other.close()


async def test_space_can_listen_on_ipv6() -> None:
    space = SimulatedSpace(host="::1")
    try:
        await space.start()
    except OSError:
        pytest.skip("no IPv6 loopback")
    async with ClientSession() as session, session.get(f"{space.base_url}/_space") as response:
        assert space.base_url.startswith("http://[::1]:")
        assert response.status == 200
    await space.close()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (the listing's own descriptor counts on both sides)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors through /proc")
async def test_close_leaves_no_task_and_no_descriptor() -> None:
    """Also with requests that hang, are delayed or incomplete, and with idle or reset connections."""
    tasks, descriptors = asyncio.all_tasks(), _descriptors()
    space = SimulatedSpace(conferences=1)
    await space.start()
    session = ClientSession()
    peer = Peer(space, session)
    await peer.start()
    space.faults.add("hang", on="start", times=1)
    space.faults.add("latency", on="start", seconds=3600, times=1)
    space.faults.add("latency", on="start", seconds=3600, times=1, executed=False)
    space.faults.add("reset", on="stop", times=1)
    with pytest.raises(ClientOSError):
        await peer.stop("x")
    pending = [asyncio.create_task(peer.start()) for _ in range(3)]
    _, half_sent = await asyncio.open_connection(space.host, space.port)
    half_sent.write(b"POST /api/laml/2010-04-01/Accounts/x/Calls HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    await space.requests.wait_for(3, "start-conference-stream")
    await space.close()
    assert len(space.connections) == 0
    results = await asyncio.gather(*pending, return_exceptions=True)
    assert all(isinstance(result, ClientError) for result in results)
    half_sent.close()
    await session.close()
    with suppress(ConnectionError):
        await half_sent.wait_closed()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks
    assert _descriptors() == descriptors


async def test_connection_that_arrives_while_closing_is_dropped() -> None:
    tasks = asyncio.all_tasks()
    space = SimulatedSpace()
    await space.start()
    arriving = asyncio.create_task(asyncio.open_connection(space.host, space.port))
    await asyncio.sleep(0)
    await space.close()
    try:
        reader, writer = await arriving
    except OSError:
        pass
    else:
        writer.close()
        del reader
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks


async def test_refuse_connections_refuses_new_and_closes_idle_ones() -> None:
    async with simulated() as peer:
        port = peer.space.port
        await peer.start()
        assert len(peer.space.connections) == 1
        async with peer.space.refuse_connections():
            with pytest.raises(ClientConnectorError):
                await peer.start()
            assert len(peer.space.connections) == 0
        assert peer.space.port == port
        assert (await peer.start()).status == 200
        assert peer.space.connections.opened == 2
        assert peer.space.requests.count() == 2


async def test_refuse_connections_keeps_requests_that_are_being_served() -> None:
    released = asyncio.Event()

    async def sleep(_seconds: float) -> None:
        await released.wait()

    async with simulated(sleep=sleep) as peer:
        peer.space.faults.add("latency", on="start", seconds=1)
        starting = asyncio.create_task(peer.start())
        await peer.space.requests.wait_for()
        async with peer.space.refuse_connections():
            released.set()
            assert (await starting).status == 200
        assert peer.space.connections.reset_idle() == 1


async def test_port_is_free_after_refusing_and_closing() -> None:
    space = SimulatedSpace(port=free_port())
    await space.start()
    async with space.refuse_connections():
        pass
    await space.close()
    async with SimulatedSpace(port=space.port):
        pass


async def test_reset_idle_resets_before_it_returns() -> None:
    """A request that is written next fails at once."""
    async with simulated() as peer:
        reader, writer = await asyncio.open_connection("127.0.0.1", peer.space.port)
        writer.write(b"GET /_space HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert peer.space.connections.reset_idle() == 1
        with pytest.raises(ConnectionError):
            writer.get_extra_info("socket")._sock.send(b"GET /_space HTTP/1.1\r\n")
        assert peer.space.connections.resets == 1
        assert peer.space.connections.reset_idle() == 0
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_close_idle_closes_connections() -> None:
    async with simulated() as peer:
        reader, writer = await asyncio.open_connection("127.0.0.1", peer.space.port)
        writer.write(b"GET /_space HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert peer.space.connections.close_idle() == 1
        await reader.read()
        assert reader.at_eof()
        assert peer.space.connections.resets == 0
        writer.close()
        await writer.wait_closed()


async def test_busy_connections_are_not_idle() -> None:
    async with simulated() as peer:
        peer.space.faults.add("hang", times=1)
        starting = asyncio.create_task(peer.start())
        await peer.space.requests.wait_for()
        assert peer.space.connections.reset_idle() == 0
        assert peer.space.connections.close_idle() == 0
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


async def test_connections_are_kept_alive_and_numbered() -> None:
    async with simulated() as peer:
        for _ in range(3):
            await peer.start()
        await peer.send("GET", peer.path("Calls"), headers={"Connection": "close"})
        await peer.start()
        assert [request.connection for request in peer.space.requests] == [1, 1, 1, 1, 2]
        assert peer.space.connections.opened == 2


async def test_admin_paths_show_the_state_of_the_space() -> None:
    """Without authentication, without being logged, and without the Authorization header."""
    async with simulated(conferences=2, rate_limit=1, duplicate_names="allow") as peer:
        await peer.start(Name="n", AuthorizationBearerToken="bearer-of-audio")
        await peer.start(Name="n")
        peer.space.faults.add("500")
        bare = {"Authorization": ""}
        streams = (await peer.send("GET", "/_space/streams", headers=bare)).json
        assert [stream["name"] for stream in streams["streams"]] == ["n"]
        assert "authorization_bearer_token" not in streams["streams"][0]
        assert (streams["active"], streams["duplicates"]) == (1, [])
        reply = await peer.send("GET", "/_space/requests", headers=bare)
        assert reply.json["counts"] == {"start-conference-stream": 2}
        assert reply.json["max_in_window"] == 2
        assert reply.json["requests"][1]["status"] == 429
        assert reply.json["requests"][0]["fields"]["Name"] == "n"
        assert peer.authorization().encode() not in reply.body
        assert (await peer.send("GET", "/_space", headers=bare)).json == {
            "conferences": 2,
            "calls": 5,
            "streams": 1,
            "active": 1,
            "duplicates": 0,
            "requests": 2,
            "max_in_window": 2,
        }
        unknown = await peer.send("GET", "/_space/nothing")
        assert (unknown.status, unknown.json["code"]) == (404, 20404)
        assert (await peer.send("POST", "/_space", b"")).status == 404
        assert peer.space.requests.count() == 2


async def test_bytes_that_are_not_http_get_400(caplog: pytest.LogCaptureFixture) -> None:
    async with simulated() as peer:
        reader, writer = await asyncio.open_connection("127.0.0.1", peer.space.port)
        writer.write(b"nonsense\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.0 400")
        writer.close()
        await writer.wait_closed()
        assert len(peer.space.requests) == 0
    caplog.clear()


def test_simulator_imports_nothing_of_the_client() -> None:
    """It implements the protocol independently, or one typo would pass every test."""
    [folder] = signalwire_streams.simulator.__path__
    allowed = {"aiohttp", "attr", "attrs", "trustme", "yarl", *sys.stdlib_module_names}
    for module in Path(folder).rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module or ""]
            else:
                continue
            for name in names:
                own = name.startswith("signalwire_streams.simulator.")
                assert own or name.split(".")[0] in allowed, f"{module.name} imports {name}"


def test_public_names_are_sorted_and_defined() -> None:
    names = signalwire_streams.simulator.__all__
    assert names == sorted(names)
    assert all(hasattr(signalwire_streams.simulator, name) for name in names)
