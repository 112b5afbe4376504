"""One stream's socket, from the first frame to the last: what the Space says, and what it is told."""

import asyncio
import json
import socket
from base64 import b64decode
from binascii import Error as Base64Error
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final, Protocol

import aiohttp
from attrs import define, field, frozen

from signalwire_streams.simulator._audio.frames import Speech, Spelling
from signalwire_streams.simulator._audio.sources import codec_of
from signalwire_streams.simulator._faults import FaultKind, FaultRule
from signalwire_streams.simulator._state import Stream

_PAYLOAD: Final = '"payload": "'
_NO_BASE64: Final = "!"


class Spoiling(Protocol):
    """What happens to frames on their way."""

    def take(self, frames: Sequence[str]) -> list[str]:
        """Take the frames of one slot; give those that go out."""
        ...

    def rest(self) -> list[str]:
        """Give what is still held back at the end."""
        ...


@define(eq=False)
class _EveryNth:
    """Puts something else in the place of every n-th frame.

    Attributes:
        instead: gives what goes out in a frame's place.
        every: n.
    """

    instead: Callable[[str], list[str]]
    every: int
    _count: int = field(init=False, default=0)

    def take(self, frames: Sequence[str]) -> list[str]:
        """See `Spoiling.take`."""
        taken = []
        for frame in frames:
            self._count += 1
            taken += [frame] if self._count % self.every else self.instead(frame)
        return taken

    def rest(self) -> list[str]:
        """See `Spoiling.rest`."""
        return []


@define(eq=False)
class _Reordered:
    """Lets every n-th frame be overtaken by the one after it."""

    every: int
    _count: int = field(init=False, default=0)
    _held: str | None = field(init=False, default=None)

    def take(self, frames: Sequence[str]) -> list[str]:
        """See `Spoiling.take`."""
        taken = []
        for frame in frames:
            self._count += 1
            if self._held is None and self._count % self.every == 0:
                self._held = frame
            else:
                taken += [frame, *self.rest()]
        return taken

    def rest(self) -> list[str]:
        """See `Spoiling.rest`."""
        held, self._held = self._held, None
        return [] if held is None else [held]


@define(eq=False)
class _InBursts:
    """Holds so many frames back, and lets them go at once."""

    frames: int
    _held: list[str] = field(init=False, factory=list)

    def take(self, frames: Sequence[str]) -> list[str]:
        """See `Spoiling.take`."""
        self._held += frames
        return self.rest() if len(self._held) >= self.frames else []

    def rest(self) -> list[str]:
        """See `Spoiling.rest`."""
        held, self._held = self._held, []
        return held


_INSTEAD: Final[Mapping[FaultKind, Callable[[str], list[str]]]] = MappingProxyType(
    {
        FaultKind.FRAMES_LOST: lambda _: [],
        FaultKind.FRAMES_DUPLICATED: lambda frame: [frame, frame],
        FaultKind.FRAMES_CORRUPTED: lambda frame: [frame.replace(_PAYLOAD, _PAYLOAD + _NO_BASE64)],
    }
)


def spoilings_of(rules: Sequence[FaultRule]) -> list[Spoiling]:
    """Make what the rules of one stream ask for, in their order."""
    spoilings: list[Spoiling] = []
    for rule in rules:
        if rule.kind is FaultKind.FRAMES_IN_BURSTS:
            spoilings.append(_InBursts(rule.settings.frames))
        elif rule.kind is FaultKind.FRAMES_REORDERED:
            spoilings.append(_Reordered(rule.settings.every))
        elif rule.kind in _INSTEAD:
            spoilings.append(_EveryNth(_INSTEAD[rule.kind], rule.settings.every))
    return spoilings


@frozen
class _Queued:
    """Audio, or a mark where ``mark`` is not None; times are in seconds."""

    begins: float
    ends: float
    payload: bytes = field(default=b"", repr=False)
    mark: str | None = None


@define(eq=False)
class Player:
    """Plays audio to a call.

    Attributes:
        rate: bytes that take one second; None plays at once.
        heard: what has been played so far.
    """

    rate: int | None
    heard: bytearray = field(factory=bytearray, repr=False)
    _queue: deque[_Queued] = field(init=False, factory=deque)
    _until: float = field(init=False, default=float("-inf"))

    def play(self, payload: bytes, now: float) -> None:
        """Take audio in, behind what is queued."""
        begins = max(now, self._until)
        self._until = begins if self.rate is None else begins + len(payload) / self.rate
        self._queue.append(_Queued(begins, self._until, payload))

    def mark(self, name: str, now: float) -> None:
        """Take a mark in, behind what is queued."""
        moment = max(now, self._until)
        self._queue.append(_Queued(moment, moment, mark=name))

    def clear(self, now: float) -> list[str]:
        """Forget what was not played yet; give the marks that come back for it."""
        marks = self.played(now)
        if self._queue and self.rate is not None and self._queue[0].begins < now:
            playing = self._queue[0]
            self.heard += playing.payload[: round((now - playing.begins) * self.rate)]
        marks += [queued.mark for queued in self._queue if queued.mark is not None]
        self._queue.clear()
        self._until = now
        return marks

    def played(self, now: float) -> list[str]:
        """Play up to now; give the marks that were reached."""
        marks = []
        while self._queue and self._queue[0].ends <= now:
            queued = self._queue.popleft()
            self.heard += queued.payload
            if queued.mark is not None:
                marks.append(queued.mark)
        return marks

    def next_mark(self) -> float | None:
        """Tell when the next mark will be reached."""
        return next((queued.ends for queued in self._queue if queued.mark is not None), None)


KEYS: Final = frozenset("0123456789*#ABCD")
"""What a telephone has."""

_A_WHILE: Final = 16  # slots after which a stream that is not in real time lets others have a turn


@define(eq=False, kw_only=True)
class Conversation:
    """Speaks on one socket until the sound or the stream ends, or the other end hangs up.

    Attributes:
        stream: the stream.
        socket: its WebSocket.
        speech: what is heard.
        spelling: how it is spelled.
        player: what is played to the call, for a bidirectional stream.
        real_time: whether audio goes out as it is spoken; if not, as fast as the other end takes it.
        rules: the faults that it runs into.
        spoke: hears that audio went out.
        stopped: set when it is to end, or the other end has gone.
    """

    stream: Stream
    socket: aiohttp.ClientWebSocketResponse
    speech: Speech
    spelling: Spelling
    player: Player | None
    real_time: bool
    rules: Sequence[FaultRule]
    spoke: Callable[[], None]
    stopped: asyncio.Event
    _told: asyncio.Event = field(init=False, factory=asyncio.Event)
    _left: int | None = field(init=False)  # frames before the line is dropped

    def __attrs_post_init__(self) -> None:
        drops = (rule.settings.after for rule in self.rules if rule.kind is FaultKind.CONNECTION_DROPPED)
        self._left = min(drops, default=None)

    async def hold(self) -> None:
        """Carry it to its end."""
        others = [asyncio.create_task(self._listen()), asyncio.create_task(self._play_back())]
        try:
            with suppress(ConnectionError):  # the other end is gone, and that is that
                await self._speak()
        finally:  # also when the Space is closed over it
            try:
                await self.socket.close()
            finally:
                for task in others:
                    task.cancel()
                await asyncio.wait(others)

    async def press(self, digits: str, milliseconds: int) -> None:
        """Tell of keys that a caller pressed."""
        for digit in digits:
            await self.socket.send_str(self.spelling.dtmf(digit, milliseconds))

    async def _speak(self) -> None:
        await self.socket.send_str(self.spelling.connected())
        await self.socket.send_str(self.spelling.start())
        if await self._send_audio() and not any(rule.kind is FaultKind.NO_STOP for rule in self.rules):
            await self.socket.send_str(self.spelling.stop())

    async def _send_audio(self) -> bool:
        """Send the media frames in their time, with what befalls them on their way; whether none dropped the line."""
        spoilings = spoilings_of(self.rules)
        began, packet_time = asyncio.get_running_loop().time(), codec_of(self.stream.codec).packet_time
        for slot, heard in enumerate(self.speech.payloads(self.stream)):
            seconds = self._time_until(slot, began + slot * packet_time / 1_000)
            if seconds is not None:
                await asyncio.sleep(seconds)
            if self.stopped.is_set():
                break
            frames = self.spelling.media(slot * packet_time, heard)
            for spoiling in spoilings:
                frames = spoiling.take(frames)
            if not await self._send(frames):
                return False
        frames = []
        for spoiling in spoilings:
            frames = [*spoiling.take(frames), *spoiling.rest()]
        return await self._send(frames)

    def _time_until(self, slot: int, due: float) -> float | None:
        """Give the seconds to wait for a slot; None for not even letting others have a turn."""
        if self.real_time:
            return due - asyncio.get_running_loop().time()
        return None if slot % _A_WHILE else 0

    async def _send(self, frames: Sequence[str]) -> bool:
        for frame in frames:
            await self.socket.send_str(frame)
            self.spoke()
            if self._left is not None:
                self._left -= 1
                if not self._left:
                    self._drop()
                    return False
        return True

    def _drop(self) -> None:
        """End the connection as a lost network does, without a word."""
        self.socket.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    async def _listen(self) -> None:
        async for message in self.socket:
            try:
                marks = self._follow(json.loads(message.data), asyncio.get_running_loop().time())
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Base64Error):
                self.stream.ignored_messages += 1
                continue
            self._told.set()
            await self._give_back(marks)
        self.stopped.set()

    def _follow(self, message: Any, now: float) -> list[str]:  # noqa: ANN401  (it may be any JSON)
        """Do what a message says; give the marks that come back for it.

        Raises:
            ValueError: it can't be followed. So do KeyError, TypeError and AttributeError.
        """
        if self.player is None or message["streamSid"] != self.stream.sid:
            raise ValueError(message["event"])
        match message["event"]:
            case "media":
                self.player.play(b64decode(message["media"]["payload"], validate=True), now)
            case "mark":
                self.player.mark(message["mark"]["name"] + "", now)
            case "clear":
                return self.player.clear(now)
            case "dtmf" if message["dtmf"]["digit"] in KEYS:
                self.stream.dtmf_received += message["dtmf"]["digit"]
            case event:
                raise ValueError(event)
        return self.player.played(now)

    async def _play_back(self) -> None:
        """Let marks come back as they are reached."""
        player, clock = self.player, asyncio.get_running_loop().time
        while player is not None:
            self._told.clear()
            due = player.next_mark()
            waiting = None if due is None else max(due - clock(), 0.0)
            try:
                await asyncio.wait_for(self._told.wait(), waiting)
            except TimeoutError:
                await self._give_back(player.played(clock()))

    async def _give_back(self, marks: Sequence[str]) -> None:
        for mark in marks:
            await self.socket.send_str(self.spelling.mark(mark))
