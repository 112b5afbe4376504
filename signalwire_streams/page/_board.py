"""What a live page shows: rows of streams with their meters, runs and keepers, as messages to browsers.

The board is drawn only while a page is open. All pages get the same messages, so they are encoded once. A page that
reads too slowly skips messages and gets the whole board instead.
"""
# ruff: noqa: SLF001  (what is private to users of sessions is not to this package)

import asyncio
import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from signalwire_streams.page._rows import IDS, TICK, KeeperRows, RunRow, StreamRow
from signalwire_streams.receiver import MediaReceiver, StreamSession

_TURN = round(1 / TICK)  # ticks in which each row's numbers are read once
_BATCH = 2  # streams that are measured before other tasks get a turn
_KEPT_MESSAGES = 20
_MAX_CARDS = 20  # runs, and keepers; the latest are shown
_KEPT_ENDED = 10.0  # seconds that the row of an ended stream stays


class Board:
    """The rows, and the messages of the last ticks."""

    def __init__(self, receivers: Iterable[MediaReceiver], max_rows: int) -> None:
        self.tick = 0
        self.streams: dict[int, StreamRow] = {}
        self.runs: deque[RunRow] = deque(maxlen=_MAX_CARDS)
        self.keepers: deque[KeeperRows] = deque(maxlen=_MAX_CARDS)
        self._receivers, self._max_rows = tuple(receivers), max_rows
        self._rows: dict[StreamSession, StreamRow] = {}
        self._numbers = WeakKeyDictionary[StreamSession, int]()  # kept while no page is open, for one that comes back
        self._hidden = 0
        self._cards: set[int] = set()  # that were shown
        self._messages: deque[tuple[int, str]] = deque(maxlen=_KEPT_MESSAGES)
        self._changed = asyncio.Event()
        self._pages = 0
        self._drawing: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to draw, if this is the first page."""
        self._pages += 1
        if self._drawing is None:
            self._drawing = asyncio.create_task(self._draw())

    async def close(self) -> None:
        """Stop drawing, if this was the last page."""
        self._pages -= 1
        if self._pages == 0 and self._drawing is not None:
            drawing, self._drawing = self._drawing, None
            drawing.cancel()
            for row in self._rows.values():
                row.close()
            self._rows.clear()
            self.streams.clear()
            for keeper in self.keepers:
                keeper.facts, keeper.targets = {}, {}
            self._messages.clear()
            await asyncio.wait([drawing])

    async def wait(self, tick: int) -> None:
        """Wait until there is something after this tick."""
        while self.tick <= tick:
            await self._changed.wait()

    def since(self, tick: int) -> Sequence[str]:
        """Return what a page lacks that has everything up to this tick; the whole board if that is too long ago."""
        if tick and (not self._messages or self._messages[0][0] <= tick + 1):
            return [text for number, text in self._messages if number > tick]
        return [
            _encode(
                {
                    "all": True,
                    "rows": [row.row() for row in self.streams.values() if row.facts],
                    "runs": [run.facts for run in self.runs if run.facts],
                    "keepers": [keeper.facts for keeper in self.keepers if keeper.facts],
                    "targets": [row for keeper in self.keepers for row in keeper.targets.values()],
                    "hidden": self._hidden,
                    "receives": bool(self._receivers),
                }
            )
        ]

    async def _draw(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._update(loop.time())
            await asyncio.sleep(TICK)

    async def _update(self, now: float) -> None:
        gone = self._find_rows(now)
        levels: list[int] = []
        changed: list[StreamRow] = []
        for number, row in enumerate(list(self.streams.values())):
            if number % _BATCH == _BATCH - 1:
                await asyncio.sleep(0)
            has_changed = row.measure(now)
            if self._is_due(row) and row.refresh(now):
                changed.append(row)
            elif has_changed:
                levels += (row.id, *row.levels)
        runs = [run.facts for run in self.runs if self._is_due(run) and run.refresh(now)]
        keepers: list[Mapping[str, Any]] = []
        targets: list[Mapping[str, Any]] = []
        for keeper in list(self.keepers):
            if self._is_due(keeper):
                has_changed, rows, ended = await keeper.refresh()
                keepers += [keeper.facts] * has_changed
                targets += rows
                gone += ended
        cards = {run.id for run in self.runs} | {keeper.id for keeper in self.keepers}
        gone += self._cards - cards
        self._cards = cards
        parts = {
            "gone": gone,
            "rows": [row.row() for row in changed],
            "levels": levels,
            "runs": runs,
            "keepers": keepers,
            "targets": targets,
        }
        message = {name: value for name, value in parts.items() if value}
        self.tick += 1
        self._messages.append((self.tick, _encode(message | {"hidden": self._hidden})))
        before, self._changed = self._changed, asyncio.Event()
        before.set()

    def _is_due(self, row: StreamRow | RunRow | KeeperRows) -> bool:
        return not row.facts or (row.id + self.tick) % _TURN == 0

    def _find_rows(self, now: float) -> list[int]:
        """Add the rows of new streams, and remove those of streams that ended a while ago."""
        found = set[StreamSession]().union(*(receiver.sessions for receiver in self._receivers))
        over = [row for row in self._rows.values() if row.ended_at is not None and now - row.ended_at > _KEPT_ENDED]
        for row in over:
            row.close()
            del self._rows[row.session], self.streams[row.id]
        # The handler of a stream that has ended may go on.
        new = [session for session in found - self._rows.keys() if session.end_reason is None]
        new.sort(key=lambda session: session._started_at or now)
        room = max(self._max_rows - len(self._rows), 0)
        self._hidden = len(new[room:])
        for session in new[:room]:
            row = self._rows[session] = StreamRow(session, self._numbers.setdefault(session, next(IDS)))
            self.streams[row.id] = row
        return [row.id for row in over]


def _encode(message: Mapping[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"))
