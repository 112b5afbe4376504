"""One stream's socket, from the first frame to the last: what the Space says, and what it is told."""

import asyncio
import json
import socket
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import aiohttp
from attrs import define, field

from signalwire_streams.simulator.audio.encoding import codec_of
from signalwire_streams.simulator._audio.frames import Speech, Spelling
from signalwire_streams.simulator.audio.playing import Player
from signalwire_streams.simulator.audio.spoiling import spoilings_of
from signalwire_streams.simulator.fault_kinds import FaultKind
from signalwire_streams.simulator._faults import FaultRule
from signalwire_streams.simulator.streams import Stream

__all__ = ["KEYS", "Conversation"]

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
        drops = (rule.settings.after for rule in self.rules if rule.kind is FaultKind.SOCKET_DROPPED)
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
                self.stream.ignored += 1
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
                self.stream.pressed += message["dtmf"]["digit"]
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
