"""Speaks to a receiver over plain sockets, as cheaply as can be, so that it is never what is measured.

All sockets get the same frames, which are spelled, masked and framed once, before the time runs.
"""

import json
import random
import selectors
import socket
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from attrs import define, field

from benchmarks.child import Respond
from benchmarks.figures import percentile

TOKEN: Final = "benchmark-bearer-token"  # noqa: S105  (it guards nothing)
FRAME_SECONDS: Final = 0.02
OCTETS: Final = 160  # 20 ms of μ-law at 8 kHz
_MASK = b"\x37\xfa\x21\x3d"
_TEXT, _CLOSE = 0x81, 0x88
_LONG = 126
_NAP = 0.0005  # seconds; shorter ones cost more than they bring
_PATIENCE = 60.0
_UPGRADE = (
    "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
).encode()


def framed(opcode: int, payload: bytes) -> bytes:
    """Mask and frame a message of up to 64 KiB, as a WebSocket client has to."""
    size = len(payload)
    head = bytes([opcode, 0x80 | size]) if size < _LONG else bytes([opcode, 0x80 | _LONG]) + size.to_bytes(2)
    mask = (_MASK * (size // 4 + 1))[:size]
    return head + _MASK + (int.from_bytes(payload) ^ int.from_bytes(mask)).to_bytes(size)


def media(count: int) -> list[bytes]:
    """Spell one track's first frames."""
    generator = random.Random(1)  # noqa: S311  (noise)
    frames = []
    for number in range(count):
        payload = b64encode(generator.randbytes(OCTETS)).decode()
        body = {"track": "inbound", "chunk": str(number + 1), "timestamp": str(number * 20), "payload": payload}
        text = json.dumps({"event": "media", "sequenceNumber": str(number + 2), "media": body})
        frames.append(framed(_TEXT, text.encode()))
    return frames


def opening(number: int, phase: float) -> bytes:
    """Spell what comes before the audio."""
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


@define(eq=False)
class _Line:
    """One socket, and what it would not take yet."""

    socket: socket.socket
    left: bytes | memoryview = field(init=False, default=b"")

    def send(self, data: bytes) -> None:
        self.left = bytes(self.left) + data if self.left else data
        self.push()

    def push(self) -> bool:
        """Send what is left, and tell whether all is gone."""
        try:
            sent = self.socket.send(self.left)
        except BlockingIOError:
            return False
        self.left = self.left[sent:]
        return not self.left


class _Speaker:
    def __init__(self) -> None:
        self._lines: list[_Line] = []

    def dial(self, port: int, sockets: int) -> dict[str, Any]:
        for _ in range(sockets):
            self._lines.append(_Line(socket.create_connection(("127.0.0.1", port), timeout=30)))
            self._lines[-1].socket.sendall(_UPGRADE)
        for number, line in enumerate(self._lines):
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += line.socket.recv(1)
            assert answer.startswith(b"HTTP/1.1 101"), answer
            line.socket.sendall(opening(number, number * FRAME_SECONDS / sockets))
            line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.socket.setblocking(False)
        return {}

    def speak(self, frames: Sequence[bytes], epoch: float) -> dict[str, Any]:
        """Send each frame when it is due, and tell how late that was."""
        step = FRAME_SECONDS / len(self._lines)
        lateness = []
        for number, frame in enumerate(frames):
            due = epoch + number * FRAME_SECONDS
            for line in self._lines:
                while (early := due - time.monotonic()) > 0:
                    time.sleep(max(early, _NAP))
                line.send(frame)
                lateness.append(-early)
                due += step
        self._finish()
        return {"p50": percentile(lateness, 0.5), "p99": percentile(lateness, 0.99)}

    def blast(self, frames: Sequence[bytes]) -> dict[str, Any]:
        """Send everything as fast as it is taken."""
        everything = memoryview(b"".join(frames))
        for line in self._lines:
            line.left = everything
        self._finish()
        return {}

    def _finish(self) -> None:
        until = time.monotonic() + _PATIENCE
        with selectors.DefaultSelector() as selector:
            for line in self._lines:
                if line.left:
                    selector.register(line.socket, selectors.EVENT_WRITE, line)
            while selector.get_map() and time.monotonic() < until:
                for key, _ in selector.select(1.0):
                    if key.data.push():
                        selector.unregister(key.fileobj)

    def hang_up(self) -> dict[str, Any]:
        for line in self._lines:
            line.send(framed(_CLOSE, (1000).to_bytes(2)))
        for line in self._lines:
            line.socket.settimeout(5)
            while line.socket.recv(4096):  # until the other end has closed in its turn
                pass
            line.socket.close()
        self._lines.clear()
        return {}


@asynccontextmanager
async def serve(_: dict[str, Any]) -> AsyncIterator[Respond]:
    """Dial, speak and hang up when told so."""
    speaker = _Speaker()

    async def respond(command: dict[str, Any]) -> dict[str, Any]:
        if "dial" in command:
            return speaker.dial(command["dial"], command["sockets"])
        if "speak" in command:
            frames = media(command["speak"])
            return speaker.blast(frames) if command["epoch"] is None else speaker.speak(frames, command["epoch"])
        return speaker.hang_up()

    yield respond
