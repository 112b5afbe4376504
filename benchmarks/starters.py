"""Contenders that start streams: by hand, with other libraries and with this client. Each runs in its own child."""
# ruff: noqa: PLC0415  (a child imports only the library that it measures; the others may not be installed)

import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlencode

from attrs import frozen

from benchmarks.callgrind import counting
from benchmarks.figures import cpu, peak_memory, percentile
from benchmarks.processes import Respond, Target

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from signalwire_streams import StreamsClient

STREAM_URL = "wss://rx.example.com/audio"
WORKERS = 16
PROJECT = "3f1c2a68-0000-4000-8000-1f6f0d6a5b11"
TOKEN = "PT0123456789abcdef0123456789abcdef0123456789abcdef"  # noqa: S105  (nobody checks it)

Item: TypeAlias = tuple[str, str]
"""A conference's or call's sid, and the name of the stream."""

Start: TypeAlias = Callable[[str, str], Awaitable[bool]]
"""Starts a stream with a sid and a name; returns whether the answer was 200 with a valid body."""

Run: TypeAlias = Callable[[Sequence[Item]], Awaitable[int]]
"""Starts a stream for each item; returns how many were answered with 200 and a valid body."""

SIDS = tuple(f"3f1c2a68-0000-4000-8000-{number:012x}" for number in range(200))
_UNLIMITED = 1_000_000_000  # requests in ten seconds: the rate limiter runs as usual, and never delays a start


@frozen(kw_only=True)
class Site:
    """The settings of a child.

    Attributes:
        base_url: the server.
        concurrency: the concurrency of a bulk run; None leaves it to the run.
        utilization: the share of the Space's limit to use; None removes the limit.
    """

    base_url: str
    concurrency: int | None = None
    utilization: float | None = None

    @property
    def conferences(self) -> str:
        """The URL of the conferences."""
        return f"{self.base_url}/api/laml/2010-04-01/Accounts/{PROJECT}/Conferences"


def _measured(starter: Callable[[Site], AbstractAsyncContextManager[Run]]) -> Target:
    @asynccontextmanager
    async def target(settings: dict[str, Any]) -> AsyncIterator[Respond]:
        async with starter(Site(**settings)) as run:

            async def respond(command: dict[str, Any]) -> dict[str, Any]:
                items = [(SIDS[n % len(SIDS)], f"{command['tag']}-{n}") for n in range(command["starts"])]
                gc.collect()
                memory, began, used = peak_memory(), time.perf_counter(), cpu()
                with counting(enabled=command.get("counted", False)):
                    confirmed = await run(items)
                return {
                    "cpu": cpu() - used,
                    "seconds": time.perf_counter() - began,
                    "confirmed": confirmed,
                    "grown": peak_memory() - memory,
                }

            yield respond

    return target


async def _from_workers(start: Start, items: Iterable[Item]) -> int:
    remaining = iter(items)
    confirmed = 0

    async def work() -> None:
        nonlocal confirmed
        for sid, name in remaining:
            is_confirmed = await start(sid, name)  # on its own line: others change the number meanwhile
            confirmed += is_confirmed

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    return confirmed


def _by_hand(session: "ClientSession", site: Site, **authorization: Any) -> Start:  # noqa: ANN401
    """Return the start that aiohttp's documentation suggests."""

    async def start(sid: str, name: str) -> bool:
        form = {"Url": STREAM_URL, "Name": name}
        async with session.post(f"{site.conferences}/{sid}/Streams", data=form, **authorization) as response:
            response.raise_for_status()
            return bool((await response.json())["sid"])

    return start


@_measured
@asynccontextmanager
async def aiohttp_plain(site: Site) -> AsyncIterator[Run]:
    """Use aiohttp with ``auth=``, as most people know it."""
    import aiohttp

    async with aiohttp.ClientSession() as session:
        yield partial(_from_workers, _by_hand(session, site, auth=aiohttp.BasicAuth(PROJECT, TOKEN)))


@_measured
@asynccontextmanager
async def aiohttp_header(site: Site) -> AsyncIterator[Run]:
    """Use aiohttp with the header that 3.14 recommends instead of ``auth=``."""
    import aiohttp

    headers = {"Authorization": aiohttp.encode_basic_auth(PROJECT, TOKEN)}
    async with aiohttp.ClientSession() as session:
        yield partial(_from_workers, _by_hand(session, site, headers=headers))


@_measured
@asynccontextmanager
async def aiohttp_tuned(site: Site) -> AsyncIterator[Run]:
    """Use aiohttp, with everything prepared or left out that can be."""
    import aiohttp
    from yarl import URL

    headers = {
        "Authorization": aiohttp.encode_basic_auth(PROJECT, TOKEN),
        "Content-Type": "application/x-www-form-urlencoded",
    }
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def start(sid: str, name: str) -> bool:
            url = URL(f"{site.conferences}/{sid}/Streams", encoded=True)
            form = urlencode({"Url": STREAM_URL, "Name": name}).encode()
            async with session.post(url, data=form, headers=headers, allow_redirects=False) as response:
                response.raise_for_status()
                return bool((await response.json())["sid"])

        yield partial(_from_workers, start)


@_measured
@asynccontextmanager
async def httpx_plain(site: Site) -> AsyncIterator[Run]:
    """Use httpx, as its documentation suggests."""
    import httpx

    async with httpx.AsyncClient(auth=(PROJECT, TOKEN)) as client:

        async def start(sid: str, name: str) -> bool:
            form = {"Url": STREAM_URL, "Name": name}
            response = await client.post(f"{site.conferences}/{sid}/Streams", data=form)
            response.raise_for_status()
            return bool(response.json()["sid"])

        yield partial(_from_workers, start)


@_measured
@asynccontextmanager
async def signalwire_sdk(site: Site) -> AsyncIterator[Run]:
    """Use SignalWire's own SDK, which is synchronous, from as many threads as the others have workers."""
    os.environ["SIGNALWIRE_LOG_MODE"] = "off"  # its log is not what is measured
    from signalwire.rest.client import RestClient

    local = threading.local()

    def create_client() -> None:
        local.client = RestClient(project=PROJECT, token=TOKEN, host="localhost")
        local.client._http._base_url = site.base_url  # noqa: SLF001  (it offers https only)

    def start(item: Item) -> bool:
        sid, name = item
        return bool(local.client.compat.conferences.start_stream(sid, Url=STREAM_URL, Name=name)["sid"])

    with ThreadPoolExecutor(WORKERS, initializer=create_client) as pool:

        async def run(items: Sequence[Item]) -> int:
            return sum(pool.map(start, items))

        yield run


@_measured
@asynccontextmanager
async def telnyx(site: Site) -> AsyncIterator[Run]:
    """Use Telnyx's asyncio client, and the action of its API that is closest to a start."""
    from telnyx import AsyncTelnyx

    async with AsyncTelnyx(api_key=TOKEN, base_url=f"{site.base_url}/v2") as client:

        async def start(sid: str, name: str) -> bool:
            answer = await client.calls.actions.start_streaming(sid, stream_url=STREAM_URL, command_id=name)
            return answer.data is not None and answer.data.result == "ok"

        yield partial(_from_workers, start)


@_measured
@asynccontextmanager
async def twilio(site: Site) -> AsyncIterator[Run]:
    """Use Twilio's asyncio client, whose call streams are alike."""
    from twilio.http.async_http_client import AsyncTwilioHttpClient
    from twilio.rest import Client

    http = AsyncTwilioHttpClient()
    send = http.request

    async def send_here(method: str, url: str, **fields: Any) -> Any:  # noqa: ANN401  (Twilio's own)
        return await send(method, site.base_url + url.removeprefix("https://api.twilio.com"), **fields)

    http.request = send_here
    client = Client(PROJECT, TOKEN, http_client=http)
    try:

        async def start(sid: str, name: str) -> bool:
            stream = await client.calls(sid).streams.create_async(url=STREAM_URL, name=name)
            return stream.status == "in-progress" and bool(stream.sid)

        yield partial(_from_workers, start)
    finally:
        await http.close()


def _client(site: Site) -> "StreamsClient":
    from signalwire_streams import RateLimit, StreamsClient

    limit = RateLimit(requests=_UNLIMITED) if site.utilization is None else RateLimit(utilization=site.utilization)
    return StreamsClient(base_url=site.base_url, project=PROJECT, token=TOKEN, rate_limit=limit)


@_measured
@asynccontextmanager
async def single(site: Site) -> AsyncIterator[Run]:
    """Use this client, one start at a time in each worker."""
    async with _client(site) as client:
        yield partial(_from_workers, _by_client(client))


def _by_client(client: "StreamsClient") -> Start:
    async def start(sid: str, name: str) -> bool:
        return (await client.conferences.start_stream(sid, url=STREAM_URL, name=name)).sid is not None

    return start


@asynccontextmanager
async def _bulk_runs(site: Site, *, with_journal: bool) -> AsyncIterator[Run]:
    from signalwire_streams import BulkStatus, StartConferenceStream

    numbers = count()
    with TemporaryDirectory() as directory:
        async with _client(site) as client:

            async def run(items: Sequence[Item]) -> int:
                requests = (StartConferenceStream(conference_sid=sid, url=STREAM_URL, name=name) for sid, name in items)
                journal = Path(directory) / f"{next(numbers)}.db" if with_journal else None
                confirmed = 0
                async for outcome in client.start_streams(requests, concurrency=site.concurrency, journal=journal):
                    stream = outcome.stream
                    confirmed += outcome.status is BulkStatus.STARTED and stream is not None and stream.sid is not None
                return confirmed

            yield run


@asynccontextmanager
async def _traced(site: Site, *, sdk: bool) -> AsyncIterator[Run]:
    """One start after the other with telemetry: OpenTelemetry's API alone, which records nothing, or its SDK."""
    from signalwire_streams.telemetry import instrument

    providers: dict[str, Any] = {}
    if sdk:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider

        providers = {
            "tracer_provider": TracerProvider(),
            "meter_provider": MeterProvider([InMemoryMetricReader()]),
        }
    async with _client(site) as client:
        with instrument(client, **providers):
            yield partial(_from_workers, _by_client(client))


traced = _measured(partial(_traced, sdk=False))
traced_by_sdk = _measured(partial(_traced, sdk=True))
bulk = _measured(partial(_bulk_runs, with_journal=False))
journaled = _measured(partial(_bulk_runs, with_journal=True))


@asynccontextmanager
async def latency(settings: dict[str, Any]) -> AsyncIterator[Respond]:
    """Start by hand and with this client alternately in one process; answer with percentiles in microseconds."""
    import aiohttp

    site, sid = Site(**settings), SIDS[0]
    async with aiohttp.ClientSession() as session, _client(site) as client:
        by_hand = _by_hand(session, site, auth=aiohttp.BasicAuth(PROJECT, TOKEN))
        ours = _by_client(client)

        async def respond(command: dict[str, Any]) -> dict[str, Any]:
            gc.collect()
            times: dict[str, list[float]] = {"hand": [], "ours": []}
            sides = [(by_hand, times["hand"]), (ours, times["ours"])]
            for number in range(command["pairs"]):
                for start, taken in sides:
                    began = time.perf_counter()
                    assert await start(sid, f"{command['tag']}-{number}")
                    taken.append((time.perf_counter() - began) * 1e6)
                sides.reverse()  # so that neither always comes second
            return {
                side: {"median": percentile(taken, 0.5), "p99": percentile(taken, 0.99)}
                for side, taken in times.items()
            }

        yield respond
