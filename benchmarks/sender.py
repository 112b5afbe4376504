"""Sends audio to a receiver over plain sockets, as cheaply as possible, so that it is never what is measured.

All sockets get the same frames, which are encoded, masked and framed once, before the measurement.
"""

import json
import random
import selectors
import socket
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.figures import percentile
from benchmarks.processes import Respond

TOKEN = "benchmark-bearer-token"  # noqa: S105  (it protects nothing)
FRAME_SECONDS = 0.02
OCTETS = 160  # 20 ms of μ-law at 8 kHz
_MASK = b"\x37\xfa\x21\x3d"
_TEXT, _CLOSE = 0x81, 0x88
_LONG = 126
_SHORTEST_SLEEP = 0.0005  # seconds; shorter ones are no more precise
_TIMEOUT = 60.0
_UPGRADE = (
    "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
).encode()


def framed(opcode: int, payload: bytes) -> bytes:
    """Mask and frame a message of up to 64 KiB, as a WebSocket client must."""
    size = len(payload)
    head = bytes([opcode, 0x80 | size]) if size < _LONG else bytes([opcode, 0x80 | _LONG]) + size.to_bytes(2)
    mask = (_MASK * (size // 4 + 1))[:size]
    return head + _MASK + (int.from_bytes(payload) ^ int.from_bytes(mask)).to_bytes(size)


def media(count: int) -> list[bytes]:
    """Encode the first frames of one track."""
    generator = random.Random(1)  # noqa: S311  (noise)
    frames = []
    for number in range(count):
        payload = b64encode(generator.randbytes(OCTETS)).decode()
        body = {"track": "inbound", "chunk": str(number + 1), "timestamp": str(number * 20), "payload": payload}
        text = json.dumps({"event": "media", "sequenceNumber": str(number + 2), "media": body})
        frames.append(framed(_TEXT, text.encode()))
    return frames


def opening(number: int, phase: float) -> bytes:
    """Encode the frames before the audio."""
    start = {
        "streamSid": f"{number:032x}",
        "accountSid": "3f1c2a68-0000-4000-8000-1f6f0d6a5b11",
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"phase": repr(phase)},
    }
    connected = {"event": "connected", "protocol": "Call", "version": "0.2.0"}
    documents = (connected, {"event": "start", "sequenceNumber": "1", "start": start})
    return b"".join(framed(_TEXT, json.dumps(document).encode()) for document in documents)


class _Socket:
    """One socket, and the bytes that it has not accepted yet."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pending: bytes | memoryview = b""

    def send(self, data: bytes) -> None:
        self.pending = bytes(self.pending) + data if self.pending else data
        self.flush()

    def flush(self) -> bool:
        """Send what is pending; return whether all was accepted."""
        try:
            sent = self.connection.send(self.pending)
        except BlockingIOError:
            return False
        self.pending = self.pending[sent:]
        return not self.pending


class _Sender:
    def __init__(self) -> None:
        self._sockets: list[_Socket] = []

    def connect(self, port: int, sockets: int) -> dict[str, Any]:
        for _ in range(sockets):
            self._sockets.append(_Socket(socket.create_connection(("127.0.0.1", port), timeout=30)))
            self._sockets[-1].connection.sendall(_UPGRADE)
        for number, one in enumerate(self._sockets):
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += one.connection.recv(1)
            assert answer.startswith(b"HTTP/1.1 101"), answer
            one.connection.sendall(opening(number, number * FRAME_SECONDS / sockets))
            one.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.connection.setblocking(False)
        return {}

    def send_in_real_time(self, frames: Sequence[bytes], epoch: float) -> dict[str, Any]:
        """Send each frame when it is due; return percentiles of the sender's own delay."""
        step = FRAME_SECONDS / len(self._sockets)
        delays = []
        for number, frame in enumerate(frames):
            due = epoch + number * FRAME_SECONDS
            for one in self._sockets:
                while (early := due - time.monotonic()) > 0:
                    time.sleep(max(early, _SHORTEST_SLEEP))
                one.send(frame)
                delays.append(-early)
                due += step
        self._flush()
        return {"p50": percentile(delays, 0.5), "p99": percentile(delays, 0.99)}

    def send_at_once(self, frames: Sequence[bytes]) -> dict[str, Any]:
        """Send everything as fast as it is read."""
        everything = memoryview(b"".join(frames))
        for one in self._sockets:
            one.pending = everything
        self._flush()
        return {}

    def _flush(self) -> None:
        until = time.monotonic() + _TIMEOUT
        with selectors.DefaultSelector() as selector:
            for one in self._sockets:
                if one.pending:
                    selector.register(one.connection, selectors.EVENT_WRITE, one)
            while selector.get_map() and time.monotonic() < until:
                for key, _ in selector.select(1.0):
                    if key.data.flush():
                        selector.unregister(key.fileobj)

    def close(self) -> dict[str, Any]:
        for one in self._sockets:
            one.send(framed(_CLOSE, (1000).to_bytes(2)))
        for one in self._sockets:
            one.connection.settimeout(_TIMEOUT)
            while one.connection.recv(4096):  # until the other end has closed too
                pass
            one.connection.close()
        self._sockets.clear()
        return {}


@asynccontextmanager
async def serve(_: dict[str, Any]) -> AsyncIterator[Respond]:
    """Connect, send and close on command."""
    sender = _Sender()

    async def respond(command: dict[str, Any]) -> dict[str, Any]:
        if "connect" in command:
            return sender.connect(command["connect"], command["sockets"])
        if "send" in command:
            frames, epoch = media(command["send"]), command["epoch"]
            return sender.send_at_once(frames) if epoch is None else sender.send_in_real_time(frames, epoch)
        return sender.close()

    yield respond
