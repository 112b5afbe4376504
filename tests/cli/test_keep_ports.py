"""``keep --page`` and ``--health-port``: what it keeps in a browser, and whether it takes on anything."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from signalwire_streams.simulator import Certificates, SimulatedSpace, Tone
from tests.ports import free_port

from .shell import PATIENCE, Shell
from .test_keep import AUDIT, keeping, posix_only, until
from .test_pages import link_of, opened, shown


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=2, calls=0) as running:
        yield running


@posix_only
async def test_page_shows_what_is_kept(space: SimulatedSpace, tmp_path: Path) -> None:
    async with keeping(space, tmp_path, "--page", "--parameter", "tenant=hush-value") as keeper:
        async with opened(await link_of(keeper.child)) as page:
            row = await shown(page, "targets")
        async with opened(await link_of(keeper.child, "another browser")) as page:
            assert (await shown(page, "targets"))["target"] in space.conference_sids
        ran, _ = await keeper.end()
    assert row["target"] in space.conference_sids
    assert (ran.code, "hush" in ran.err) == (0, False)


@posix_only
async def test_page_shows_what_is_received_as_well(tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "chain.pem")
    certificates = Certificates.make()
    authority.configure_trust(certificates.trust)
    async with SimulatedSpace(conferences=1, calls=0, audio=Tone(), ssl_context=certificates.trust) as space:
        options = ("--receive", str(tmp_path / "wav"), "--cert", str(tmp_path / "chain.pem"), "--page")
        async with keeping(space, tmp_path, *options, target=("--name", "audit")) as keeper:
            async with opened(await link_of(keeper.child)) as page:
                row = await shown(page, "rows")
            await keeper.end()
        assert row["target"] == space.conference_sids[0]


@posix_only
async def test_health_is_not_ready_while_it_drains(space: SimulatedSpace, tmp_path: Path) -> None:
    """A start is in flight when the signal comes."""
    port = free_port()
    slow = space.faults.add("latency", on="start", seconds=600.0)
    async with (
        keeping(space, tmp_path, "--health-host", "127.0.0.2", "--health-port", str(port)) as keeper,
        aiohttp.ClientSession(f"http://127.0.0.2:{port}") as probe,
    ):

        async def status(path: str) -> int:
            async with probe.get(path) as response:
                return response.status

        await until(lambda: space.requests.count("start-conference-stream") == 2)
        assert [await status("/healthz"), await status("/readyz"), await status("/metrics")] == [200, 200, 404]
        keeper.child.send_signal(signal.SIGTERM)

        async def is_draining() -> bool:
            return await status("/readyz") == 503

        await until(is_draining)
        assert await status("/healthz") == 200
        slow.remove()
        await keeper.end()
    assert await asyncio.wait_for(keeper.child.wait(), PATIENCE) != 0


@posix_only
async def test_port_in_use_is_one_sentence(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    shell.environment.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("--health-port", "--page"):
            ran = await shell("keep", *AUDIT, option, str(port))
            assert (ran.code, ran.out) == (1, "")
            assert ran.err.startswith(f"error: can't listen on 127.0.0.1 port {port}: ")
            assert len(ran.err.splitlines()) == 1
    assert space.requests.count("start-conference-stream") == 0
