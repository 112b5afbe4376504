"""``--page``: a live page of what a command does, for a browser on this machine."""

import asyncio
import errno
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from signalwire_streams._cli import demo, progress
from signalwire_streams.simulator import SimulatedSpace
from tests.ports import free_port
from tests.waiting import until

from .shell import PATIENCE, Shell, credentials, end_of, process
from .test_listen import begin, dialled, posix_only, speak


async def link_of(child: asyncio.subprocess.Process, whose: str = "one browser") -> URL:
    """Read a link from a command's stderr."""
    assert child.stderr is not None
    async with asyncio.timeout(PATIENCE):
        line = (await child.stderr.readline()).decode()
    found = re.fullmatch(rf"Page, for {whose} on this machine: (http://127\.0\.0\.1:\d+/\?token=\S+)\n", line)
    assert found is not None, line
    return URL(found[1])


@asynccontextmanager
async def opened(link: URL) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Follow a link as a browser does, and open the page's socket."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.get(link) as response:
            assert response.status == 200
        origin = {"Origin": str(link.origin())}
        async with session.ws_connect(link.with_query(None) / "socket", headers=origin) as page:
            yield page


async def shown(page: aiohttp.ClientWebSocketResponse, part: str) -> Any:
    """Wait for the first row or run."""
    async with asyncio.timeout(PATIENCE):
        while not (found := json.loads(await page.receive_str()).get(part)):
            pass
    return found[0]


@posix_only
async def test_listen_shows_its_streams(tmp_path: Path) -> None:
    """The link is on stderr, so that stdout stays JSON."""
    options = ("--json", "--allow-anonymous", "--directory", str(tmp_path), "--page", "--streams", "1")
    async with process("listen", *options) as child:
        link = await link_of(child)
        assert child.stdout is not None
        url = json.loads(await child.stdout.readline())["url"]
        async with opened(link) as page, dialled(url) as peer:
            await begin(peer)
            await speak(peer)
            assert (await shown(page, "rows"))["name"] == "s-1"
            async with opened(await link_of(child, "another browser")) as other:
                assert (await shown(other, "rows"))["name"] == "s-1"
            await link_of(child, "another browser")
        ran = await end_of(child)
    assert (ran.code, ran.json["sid"], ran.err) == (0, "s-1", "")


@pytest.mark.parametrize(("rate", "limit"), [((), 1242.0), (("--rate", "500"), 500.0)])
async def test_bulk_start_shows_its_run(tmp_path: Path, rate: tuple[str, ...], limit: float) -> None:
    async with SimulatedSpace(conferences=40) as space:
        space.faults.add("latency", seconds=0.3)
        options = ("--all-in-progress", "--url", "wss://rx.example.com/audio", "--concurrency", "4", "--page=0")
        journal = ("--journal", str(tmp_path / "run.db"))
        async with process("bulk", "start", *options, *journal, *rate, environment=credentials(space)) as child:
            async with opened(await link_of(child)) as page:
                run = await shown(page, "runs")
            ran = await end_of(child)
    assert (run["title"], run["total"], run["limit"]) == ("Starting streams", 40, limit)
    assert ran.code == 0
    assert "Started 40 of 40 streams" in ran.out


async def test_demo_begins_when_its_page_is_open(
    bare_shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"_PAGE_SECONDS": 0.1, "RECORDED": 2}.items():
        monkeypatch.setattr(demo, name, value)
    port = free_port()
    links: list[str] = []
    create = progress.live_page

    @asynccontextmanager
    async def remembered(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
        async with create(*arguments, **options) as page:
            assert page is not None
            links.append(page.create_link(f"http://127.0.0.1:{port}/"))
            yield page

    monkeypatch.setattr(demo, "live_page", remembered)
    running = asyncio.create_task(bare_shell("demo", "--conferences", "13", "--page", str(port), "--json"))
    await until(lambda: links)
    async with opened(URL(links[0])) as page:
        run = await shown(page, "runs")
        ran = await running
    assert (run["title"], run["total"]) == ("Starting streams", 13)
    assert (ran.code, ran.json["ok"]) == (0, True)
    assert "The demo begins when the page is open." in ran.err


async def test_page_reports_a_port_in_use(bare_shell: Shell, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ("--allow-anonymous", "--directory", str(tmp_path), "--page", str(port))
        ran = await bare_shell("listen", *options)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"error: can't listen on 127.0.0.1 port {port}: {os.strerror(errno.EADDRINUSE)}\n"


@posix_only
async def test_page_shows_one_process_only(bare_shell: Shell, tmp_path: Path) -> None:
    options = ("--allow-anonymous", "--directory", str(tmp_path), "--page", "--processes", "2")
    ran = await bare_shell("listen", *options)
    assert (ran.code, ran.out) == (2, "")
    assert "--page shows the streams of one process: omit it, or --processes" in ran.err
