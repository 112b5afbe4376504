"""``listen`` with few file descriptors and many clients that send nothing: its streams are recorded all the same."""

import asyncio
import contextlib
import signal
import socket
import sys
from pathlib import Path

import pytest

from .bulk_runs import until
from .shell import PATIENCE, line_of
from .test_listen import begin, dialled, files_in, listening, sound_of, speak, stop

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits and signals")

DESCRIPTORS = 128
SLOW_CLIENTS = 190
LIMITED = (
    "import resource, sys\n"
    f"resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))\n"
    "from signalwire_streams.__main__ import main\n"
    "sys.exit(main())"
)
PATIENT = (
    "import sys\n"
    "from signalwire_streams.receiver import _aiohttp_socket, _media_receiver, _server\n"
    "for module in (_aiohttp_socket, _server):\n"
    "    module.CLOSE_TIMEOUT = 3600.0\n"
    "_aiohttp_socket._CLOSE_TIMEOUT = _media_receiver._GRACE = 3600.0\n"
)
"""What a process runs first, so that it gives up on no peer by itself."""
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize(
    ("sent", "most_lines"),
    [
        (b"", 1),
        (b"GET / HTTP/1.1\r\nHost: x\r\nUpgr", 1),
        (b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n", 1),
        (b"hush\x00\r\n\r\n", 1),
        (UPGRADE, 11),  # ten of them say why no stream began
    ],
    ids=["nothing", "half a head", "another path", "no HTTP", "no start"],
)
async def test_streams_are_recorded_beside_slow_clients(tmp_path: Path, sent: bytes, most_lines: int) -> None:
    """Live streams continue, new ones are accepted at once, and stderr stays short."""
    async with contextlib.AsyncExitStack() as stack:
        listener = await stack.enter_async_context(listening(tmp_path, code=LIMITED))
        peers = [await stack.enter_async_context(dialled(listener.url)) for _ in range(3)]
        for number, peer in enumerate(peers):
            await begin(peer, f"before-{number}")
        port = int(listener.url.rsplit(":", 1)[1].strip("/"))

        async def connect_slowly() -> None:
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
            with contextlib.suppress(ConnectionError):
                client.send(sent)

        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(connect_slowly() for _ in range(SLOW_CLIENTS)))
            for number in range(3):
                peer = await stack.enter_async_context(dialled(listener.url))
                await begin(peer, f"after-{number}")
                peers.append(peer)
        for peer in peers:
            await speak(peer)
            await stop(peer)
        facts = [await listener.ended() for _ in peers]
        ran = await listener.end()
    assert sorted(told["sid"] for told in facts) == [f"{when}-{n}" for when in ("after", "before") for n in range(3)]
    assert {told["end"] for told in facts} == {"stopped"}
    assert all(len(sound_of(told["files"][0])[1]) == 1600 for told in facts)
    assert (ran.code, ran.out) == (0, "")
    assert len(ran.err.splitlines()) <= most_lines
    assert "hush" not in ran.err
    assert "Traceback" not in ran.err


async def test_files_of_streams_get_descriptors_of_silent_clients(tmp_path: Path) -> None:
    """As many streams are recorded as there are descriptors for, although half of them belong to silent clients."""
    streams = 28  # of three descriptors each
    async with contextlib.AsyncExitStack() as stack:
        listener = await stack.enter_async_context(listening(tmp_path, "--mono", code=LIMITED))
        address = "127.0.0.1", int(listener.url.rsplit(":", 1)[1].strip("/"))
        for _ in range(DESCRIPTORS // 2):
            stack.enter_context(socket.create_connection(address))
        peers = []
        for number in range(streams):
            peers.append(await stack.enter_async_context(dialled(listener.url)))
            await begin(peers[-1], f"s-{number}")
        for peer in peers:
            await stop(peer)
        facts = [await listener.ended() for _ in peers]
        ran = await listener.end()
    assert [told["error"] for told in facts if told["error"]] == []
    assert (ran.code, len(files_in(tmp_path))) == (0, 2 * streams)


async def test_second_interrupt_ends_listen_at_once(tmp_path: Path) -> None:
    """Even if a peer does not answer the close frame; the recording is complete, and stderr is empty."""
    patient = f"{PATIENT}from signalwire_streams.__main__ import main\nsys.exit(main())\n"
    async with listening(tmp_path, code=patient) as listener:
        port = int(listener.url.rsplit(":", 1)[1].strip("/"))
        _, silent = await asyncio.open_connection("127.0.0.1", port)  # reads nothing, and answers nothing
        silent.write(UPGRADE)
        async with dialled(listener.url) as peer:
            await begin(peer)
            await speak(peer)
            start = b'{"event":"start","start":{"streamSid":"silent","tracks":["inbound"],"mediaFormat":'
            start += b'{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}}}'
            silent.write(b"\x81\xfe" + len(start).to_bytes(2) + bytes(4) + start)
            await until(lambda: len(files_in(tmp_path)) == 2)
            listener.child.send_signal(signal.SIGINT)
            told = await line_of(listener.child)
            ran = await listener.end(signal.SIGINT)
        silent.transport.abort()
    assert "shutdown" in told
    assert (ran.code, ran.err) == (0, "")
    assert len(sound_of(tmp_path / "s-1.wav")[1]) == 1600
