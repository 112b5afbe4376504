"""Signed tokens between processes: what one has minted, another one admits."""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import aiohttp
import pytest
import trustme

from signalwire_streams import SignedTokens
from signalwire_streams.simulator import SimulatedSpace, Tone

KEY = token_urlsafe(32)
PATIENCE = 30.0
REPLICA = """
import asyncio, json, ssl, sys
from signalwire_streams import SignedTokens
from signalwire_streams.receiver import MediaReceiver

async def handle(session):
    async for event in session:
        pass
    print(json.dumps([session.claims.target, session.claims.custom]), flush=True)

async def main(certificate, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with MediaReceiver(handle, bearer_tokens=SignedTokens(key)).serve(ssl_context=context) as url:
        print(url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main(sys.argv[1], sys.stdin.readline().strip()))
"""


class Replica:
    """A receiver in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.url = ""

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return (await self.process.stdout.readline()).decode().strip()


@asynccontextmanager
async def replica(certificate: Path) -> AsyncIterator[Replica]:
    pipes: dict[str, Any] = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", REPLICA, str(certificate), **pipes)
    assert process.stdin is not None
    process.stdin.write(f"{KEY}\n".encode())
    found = Replica(process)
    try:
        found.url = await found.line()
        yield found
    finally:
        process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0


async def test_token_minted_here_is_admitted_once_in_each_replica(
    tmp_path: Path, authority: trustme.CA, trust: ssl.SSLContext, client_for: Any
) -> None:
    certificate = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    tokens = SignedTokens(KEY, claims={"tenant": "acme"})
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(replica(certificate)) for _ in range(2)]
        space = SimulatedSpace(calls=2, audio=Tone(seconds=0.1), real_time=False, ssl_context=trust)
        await stack.enter_async_context(space)
        client = client_for(space)
        for one, sid in zip((first, second), space.call_sids, strict=True):
            await client.calls.start_stream(sid, url=one.url, authorization_bearer_token=tokens)
            assert json.loads(await one.line()) == [sid, {"tenant": "acme"}]

        token = space.streams[0].authorization_bearer_token
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)))
        headers = {"Authorization": f"Bearer {token}"}
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await http.ws_connect(first.url, headers=headers)
        async with http.ws_connect(second.url, headers=headers):
            pass
