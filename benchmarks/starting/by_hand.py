"""The loop that one would have written oneself, over aiohttp: as it comes to mind, and tuned."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from benchmarks.starting.contest import PROJECT, STREAM_URL, TOKEN, Item, Run, Site, from_workers, measured


def conferences(site: Site) -> str:
    """Give where the conferences are."""
    return f"{site.base_url}/api/laml/2010-04-01/Accounts/{PROJECT}/Conferences"


def as_documented(session: aiohttp.ClientSession, site: Site, **authorisation: Any) -> Run:  # noqa: ANN401  (aiohttp's)
    """Write the loop down as aiohttp's documentation has it."""
    root = conferences(site)

    async def start(sid: str, name: str) -> bool:
        form = {"Url": STREAM_URL, "Name": name}
        async with session.post(f"{root}/{sid}/Streams", data=form, **authorisation) as response:
            response.raise_for_status()
            answer = await response.json()
            return bool(answer["sid"])

    return partial(from_workers, start)


@measured
@asynccontextmanager
async def plain(site: Site) -> AsyncIterator[Run]:
    """Say who asks in the way that most have learnt."""
    async with aiohttp.ClientSession() as session:
        yield as_documented(session, site, auth=aiohttp.BasicAuth(PROJECT, TOKEN))


@measured
@asynccontextmanager
async def with_header(site: Site) -> AsyncIterator[Run]:
    """Do the same with the header that aiohttp 3.14 recommends, since ``auth=`` is deprecated there."""
    async with aiohttp.ClientSession() as session:
        yield as_documented(session, site, headers={"Authorization": aiohttp.encode_basic_auth(PROJECT, TOKEN)})


@measured
@asynccontextmanager
async def tuned(site: Site) -> AsyncIterator[Run]:
    """Leave out all that can be left out, and prepare the rest."""
    root = conferences(site)
    headers = {
        "Authorization": aiohttp.encode_basic_auth(PROJECT, TOKEN),
        "Content-Type": "application/x-www-form-urlencoded",
    }
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def start(sid: str, name: str) -> bool:
            url = URL(f"{root}/{sid}/Streams", encoded=True)
            form = urlencode({"Url": STREAM_URL, "Name": name}).encode()
            async with session.post(url, data=form, headers=headers, allow_redirects=False) as response:
                response.raise_for_status()
                answer = await response.json()
                return bool(answer["sid"])

        async def run(items: Sequence[Item]) -> int:
            return await from_workers(start, items)

        yield run
