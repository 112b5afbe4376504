"""Sends audio to a receiver over plain sockets or TLS, as cheaply as possible, so that it is never what is measured.

All sockets get the same frames, which are encoded, masked and framed once, before the measurement.
"""

import json
import mmap
import random
import selectors
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.figures import percentile
from benchmarks.processes import Respond

TOKEN = "benchmark-bearer-token"  # noqa: S105  (it protects nothing)
FRAME_SECONDS = 0.02
OCTETS = 160  # 20 ms of μ-law at 8 kHz
_TRACKS = ["inbound", "outbound"]
_MASK = b"\x37\xfa\x21\x3d"
_TEXT, _CLOSE, _PING, _PONG = 0x81, 0x88, 0x89, 0x8A
_LONG = 126
_SHORTEST_SLEEP = 0.0005  # seconds; shorter ones are no more precise
_TIMEOUT = 60.0
_SHORT = 4096  # octets; receivers send nothing longer
_TOGETHER = 50  # sockets that are opened at once: fewer than a listener has places for
_PLAIN_WRITE, _TLS_WRITE = 1 << 18, 1 << 14  # octets; a larger write by TLS may be accepted in part only
_POLL = 0.00002  # seconds; the other end takes longer than that for a frame
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


def media(count: int, tracks: int = 1) -> list[bytes]:
    """Encode the first frames of a stream; those of a second track fall between those of the first."""
    generator = random.Random(1)  # noqa: S311  (noise)
    frames = []
    for number in range(count):
        payload = b64encode(generator.randbytes(OCTETS)).decode()
        body = {
            "track": _TRACKS[number % tracks],
            "chunk": str(number // tracks + 1),
            "timestamp": str(number * 20 // tracks),
            "payload": payload,
        }
        text = json.dumps({"event": "media", "sequenceNumber": str(number + 2), "media": body})
        frames.append(framed(_TEXT, text.encode()))
    return frames


def opening(number: int, phase: float, tracks: int = 1) -> bytes:
    """Encode the frames before the audio."""
    start = {
        "streamSid": f"{number:032x}",
        "accountSid": "3f1c2a68-0000-4000-8000-1f6f0d6a5b11",
        "tracks": _TRACKS[:tracks],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"phase": repr(phase)},
    }
    connected = {"event": "connected", "protocol": "Call", "version": "0.2.0"}
    documents = (connected, {"event": "start", "sequenceNumber": "1", "start": start})
    return b"".join(framed(_TEXT, json.dumps(document).encode()) for document in documents)


class FrameCount:
    """The number of frames that a receiver has handled, in memory that it shares with the sender through a file."""

    def __init__(self, path: str) -> None:
        with Path(path).open("r+b") as file:
            self._number = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")

    @classmethod
    def create(cls, path: Path) -> "FrameCount":
        """Create the file."""
        path.write_bytes(bytes(8))
        return cls(str(path))

    @property
    def value(self) -> int:
        """The number."""
        return self._number[0]

    def add(self) -> None:
        """Add one."""
        self._number[0] += 1


class _Socket:
    """One socket, and the bytes that it has not accepted yet."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection if tls is None else tls.wrap_socket(connection)
        self.pending: bytes | memoryview = b""
        self._largest = _PLAIN_WRITE if tls is None else _TLS_WRITE

    def open(self, first: bytes) -> None:
        """Wait for the answer to the upgrade, and send what comes before the audio."""
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += self.connection.recv(1)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        self.connection.sendall(first)
        self.connection.setblocking(False)

    def send(self, data: bytes) -> None:
        self.pending = bytes(self.pending) + data if self.pending else data
        self.flush()

    def flush(self) -> bool:
        """Send what is pending; return whether nothing is left."""
        try:
            while self.pending:
                self.pending = self.pending[self.connection.send(self.pending[: self._largest]) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            return False
        except OSError:  # the receiver gave up, and is missing the rest
            self.pending = b""
        return True

    def close(self) -> None:
        try:
            self.connection.settimeout(_TIMEOUT)
            while self.connection.recv(_SHORT):  # until the other end has closed too
                pass
        except OSError:
            pass
        self.connection.close()


class _Sender:
    def __init__(self) -> None:
        self._sockets: list[_Socket] = []
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE  # what is sent is noise

    def connect(self, port: int, sockets: int, *, tls: bool, tracks: int) -> dict[str, Any]:
        for first in range(0, sockets, _TOGETHER):
            together = range(first, min(first + _TOGETHER, sockets))
            opened = [_Socket(port, self._tls if tls else None) for _ in together]
            for one in opened:
                one.connection.sendall(_UPGRADE)
            for number, one in zip(together, opened, strict=True):
                one.open(opening(number, number * FRAME_SECONDS / tracks / sockets, tracks))
            self._sockets += opened
        return {}

    def send_in_real_time(self, frames: Sequence[bytes], epoch: float, interval: float) -> dict[str, Any]:
        """Send each frame when it is due; return percentiles of the sender's own delay."""
        step = interval / len(self._sockets)
        delays = []
        for number, frame in enumerate(frames):
            due = epoch + number * interval
            for one in self._sockets:
                while (early := due - time.monotonic()) > 0:
                    time.sleep(max(early, _SHORTEST_SLEEP))
                one.send(frame)
                delays.append(-early)
                due += step
        self._flush()
        return {"p50": percentile(delays, 0.5), "p99": percentile(delays, 0.99)}

    def send_one_by_one(self, frames: Sequence[bytes], handled: FrameCount) -> dict[str, Any]:
        """Send each frame once the one before it, on any socket, has been handled."""
        expected = handled.value
        until = time.monotonic() + _TIMEOUT
        for frame in frames:
            for one in self._sockets:
                one.send(frame)
                expected += 1
                while handled.value < expected and time.monotonic() < until:
                    time.sleep(_POLL)
        return {}

    def send_at_once(self, frames: Sequence[bytes]) -> dict[str, Any]:
        """Send everything as fast as it is read."""
        everything = memoryview(b"".join(frames))
        for one in self._sockets:
            one.pending = everything
        self._flush()
        return {}

    def ping(self) -> dict[str, Any]:
        """Ping all; return percentiles of the seconds until the pings were read, and so everything before them."""
        began, taken = time.monotonic(), list[float]()
        with selectors.DefaultSelector() as selector:
            for one in self._sockets:
                one.send(framed(_PING, b""))
                selector.register(one.connection, selectors.EVENT_READ)
            while selector.get_map() and time.monotonic() - began < _TIMEOUT:
                for key, _ in selector.select(1.0):
                    answer = key.fileobj.recv(_SHORT)  # type: ignore[union-attr]
                    assert answer[:1] in (b"", bytes([_PONG])), answer
                    taken.append(time.monotonic() - began if answer else _TIMEOUT)
                    selector.unregister(key.fileobj)
        taken += [_TIMEOUT] * (len(self._sockets) - len(taken))
        return {"p50": percentile(taken, 0.5), "p99": percentile(taken, 0.99)}

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
        self._flush()
        for one in self._sockets:
            one.close()
        self._sockets.clear()
        return {}


@asynccontextmanager
async def serve(settings: dict[str, Any]) -> AsyncIterator[Respond]:
    """Connect, send and close on command; the setting ``handled`` is the file of a `FrameCount`."""
    sender = _Sender()
    handled = FrameCount(settings["handled"]) if "handled" in settings else None

    async def respond(command: dict[str, Any]) -> dict[str, Any]:
        if "connect" in command:
            return sender.connect(command["connect"], command["sockets"], tls=command["tls"], tracks=command["tracks"])
        if "ping" in command:
            return sender.ping()
        if "send" not in command:
            return sender.close()
        tracks, epoch = command["tracks"], command["epoch"]
        frames = media(command["send"], tracks)
        if epoch is not None:
            return sender.send_in_real_time(frames, epoch, FRAME_SECONDS / tracks)
        if command.get("one_by_one", False):
            assert handled is not None
            return sender.send_one_by_one(frames, handled)
        return sender.send_at_once(frames)

    yield respond
