"""What a live page shows: rows of streams with their meters, runs and keepers, as messages to browsers.

The board is drawn only while a page is open. All pages get the same messages, so they are encoded once. A page that
reads too slowly skips messages and gets the whole board instead.
"""
# ruff: noqa: SLF001  (what is private to users of sessions, runs and keepers is not to this package)

import asyncio
import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import count
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

from signalwire_streams.bulk import BulkReport, BulkRun, BulkStatus
from signalwire_streams.bulk._results import advice
from signalwire_streams.errors import StreamsError
from signalwire_streams.keep_streaming import (
    Keeper,
    Obstacle,
    PollingFailed,
    StandbyStarted,
    StartsPaused,
    TargetSnapshot,
)
from signalwire_streams.keep_streaming._template import TARGET
from signalwire_streams.receiver import DtmfEvent, MarkEvent, MediaReceiver, StreamSession
from signalwire_streams.receiver._taps import Monitor
from signalwire_streams.receiver.audio import AudioFormat
from signalwire_streams.receiver.audio._levels import FLOOR, LevelMeter
from signalwire_streams.receiver.audio._pcm_frames import PcmOptions

TICK = 0.2
"""Seconds between two messages: a browser that draws ten a second takes twice the CPU of one that draws five."""

FRAME_MS = 20
"""Milliseconds of a frame that a browser plays."""

_LOG = logging.getLogger("signalwire_streams.page")
_LOG_EVERY = 60.0  # seconds between two reports of bugs in drawing
_TURN = round(1 / TICK)  # ticks in which each row's numbers are read once
_STREAMS_AT_ONCE = 2  # streams that are measured before other tasks get a turn
_KEPT_MESSAGES = 20
_MAX_CARDS = 20  # runs, and keepers; the latest are shown
_KEPT_ENDED = 10.0  # seconds that the row of an ended stream stays
_PAST = 60  # seconds that waveforms and rates go back
_WAVE = round(_PAST / TICK)
_MAX_WAITING = 400  # media events of one stream between two ticks; there are 20, unless the loop was blocked
_MAX_EVENTS, _MAX_ERRORS, _MAX_TEXT = 50, 5, 300
_STALLED = 3.0  # seconds without audio; 50 frames a second are expected
_COUNTS = ("frames", "bytes", "missing", "gaps", "duplicates", "out_of_order", "dropped")
_TIMES = ("jitter", "delay_ms", "max_delay_ms")
_TARGETS_AT_ONCE = 50  # targets of a keeper that are read before other tasks get a turn
# Without digits and names, which are private.
_EVENTS: Mapping[type[object], str] = {DtmfEvent: "a key was pressed", MarkEvent: "a mark was played"}
_IDS = count(1)


def _shown(text: object) -> str:
    """Return a peer's text at a length that fits; browsers write it as text only."""
    return str(text)[:_MAX_TEXT]


class StreamRow:
    """One stream: its meters for every page, its waveform and events for those that opened it."""

    def __init__(self, session: StreamSession, number: int) -> None:
        self.id = number
        self.session = session
        self.levels = [0, 0]  # of the inbound and the outbound track, from 0 to 60
        self.wave: deque[int] = deque(maxlen=2 * _WAVE)
        self.events: deque[tuple[float, str]] = deque([(0.0, "started")], maxlen=_MAX_EVENTS)
        self.watchers = 0  # pages that opened it
        self.facts: dict[str, Any] = {}
        self.ended_at: float | None = None
        self._clock = asyncio.get_running_loop().time
        self._began_at = session._started_at or self._clock()
        self._monitor = Monitor(_MAX_WAITING)
        self._meters = [LevelMeter(session.audio_format) for _ in self.levels]
        self._audio_at = self._lost = 0.0
        self._state = ""
        self._can_play = _can_play(session.audio_format)
        session._listeners.add(self._monitor)

    def close(self) -> None:
        self.session._listeners.remove(self._monitor)

    @property
    def age(self) -> float:
        return round(self._clock() - self._began_at, 1)

    def measure(self, now: float) -> bool:
        """Bring the levels up to date; return whether they changed.

        Usually the last frame of each track is enough for a meter. If a page shows the waveform, all are measured.
        """
        waiting = list(self._monitor.events)
        self._monitor.events.clear()
        while self._monitor.others:
            self._note(_EVENTS.get(type(self._monitor.others.popleft()), "another event"))
        if waiting:
            self._audio_at = now
        if not self.watchers:
            waiting = list({event.track: event for event in waiting}.values())
        if self.session.audio_format.is_supported:
            for event in waiting:
                self._meters[event.track == "outbound"].add(event.payload, now)
        levels = [_to_bar(meter.level(now)) for meter in self._meters]
        self.wave.extend(levels)
        has_changed, self.levels = levels != self.levels, levels
        return has_changed

    def refresh(self, now: float) -> bool:
        """Read the numbers; return whether what the table shows changed."""
        session, tracks = self.session, self.session.statistics.tracks.values()
        lost = sum(track.missing + track.dropped for track in tracks)
        frames = sum(track.frames for track in tracks)
        state = self._find_state(frames, now)
        if lost > self._lost:
            self._note(f"{lost - self._lost:,.0f} frames lost")
        if self._state and state != self._state:
            self._note("audio arrives" if state == "live" else state)
        self._lost, self._state = lost, state
        facts = {
            "id": self.id,
            "name": _shown(session.stream_sid or session.label),
            "target": _shown(session._target or session.start.custom_parameters.get(TARGET, "")),
            "state": state,
            "lost": lost,
            "frames": frames,
            "delay": round(max((track.delay_ms for track in tracks), default=0.0)),
        }
        before, self.facts = self.facts, facts
        return any(facts[name] != before.get(name) for name in facts if name != "frames")

    def _find_state(self, frames: int, now: float) -> str:
        if self.session.end_reason is not None:
            self.ended_at = self.ended_at or now
            return f"ended: {self.session.end_reason.replace('_', ' ')}"
        if not frames:
            return "waiting"
        if not self._audio_at:
            self._audio_at = now
        return "no audio" if now - self._audio_at > _STALLED else "live"

    def _note(self, text: str) -> None:
        self.events.append((self.age, text))

    @property
    def is_playable(self) -> bool:
        return self._can_play and self.session.end_reason is None

    def row(self) -> Mapping[str, Any]:
        return self.facts | {"age": self.age, "levels": self.levels}

    def details(self) -> Mapping[str, Any]:
        session = self.session
        tracks = {
            _shown(name or "unnamed"): {key: round(getattr(track, key), 1) for key in (*_COUNTS, *_TIMES)}
            for name, track in session.statistics.tracks.items()
        }
        audio = session.audio_format
        return {
            "id": self.id,
            "format": _shown(f"{audio.encoding} at {audio.sample_rate:,} Hz"),
            "playable": self.is_playable,
            "malformed": session.statistics.malformed,
            "tracks": tracks,
            "events": list(self.events),
        }


def _can_play(audio: AudioFormat) -> bool:
    """Return whether audio can be sent to browsers, which get it at its own rate."""
    try:
        PcmOptions(
            audio_format=audio, rate=audio.sample_rate, tracks="stereo", frame_ms=FRAME_MS, late="drop", delay_ms=0
        )
    except StreamsError:
        return False
    return True


def _to_bar(level: float | None) -> int:
    return 0 if level is None else max(0, min(round(level - FLOOR), round(-FLOOR)))


class RunRow:
    """One bulk run, with its rate over the last minute."""

    def __init__(self, run: BulkRun[Any], title: str, total: int | None, rate_limit: float | None) -> None:
        self.id = next(_IDS)
        self._run = run
        self._title = _shown(title) or ("Starting streams" if run._pool.operation.is_start else "Stopping streams")
        items = run._pool._items
        self._total = len(items) if total is None and isinstance(items, Sized) else total
        self._limit = rate_limit
        self._rates: deque[float] = deque(maxlen=_PAST)
        self._last: tuple[float, int] | None = None
        self.facts: dict[str, Any] = {}

    def refresh(self, now: float) -> bool:
        report, has_ended = self._run.snapshot, self._run._seconds is not None
        if self._last is not None and not self.facts["ended"]:
            since, attempts = self._last
            self._rates.append(round((report.attempts - attempts) / max(now - since, TICK), 1))
        self._last = now, report.attempts
        facts = {
            "id": self.id,
            "title": self._title,
            "done": report.total,
            "total": self._total,
            "counts": {status: number for status, number in report.counts.items() if number},
            "attempts": report.attempts,
            "retries": report.attempts - self._run._builder._latencies.total(),
            "seconds": round(report.seconds, 1),
            "left": None if has_ended else self._seconds_left(report),
            "ended": has_ended,
            "limit": self._limit,
            "rates": list(self._rates),
            "errors": list(self._errors(report)),
        }
        before, self.facts = self.facts, facts
        return facts != before

    def _seconds_left(self, report: BulkReport) -> float | None:
        rates = list(self._rates)[-10:]
        attempted = report.total - report.counts.get(BulkStatus.NOT_ATTEMPTED, 0)
        if self._total is None or not any(rates) or not attempted:
            return None
        per_second = sum(rates) / len(rates) / max(report.attempts / attempted, 1.0)
        return round((self._total - report.total) / per_second, 1)

    def _errors(self, report: BulkReport) -> Iterable[Mapping[str, Any]]:
        for label, number in list(report.errors.items())[:_MAX_ERRORS]:
            kind = label.partition(" ")[0]
            examples = (one.error for one in report.failures if type(one.error).__name__ == kind)
            yield {
                "label": label,
                "count": number,
                "example": _shown(next(examples, "")),
                "advice": "These may be running: stop each by its name."
                if kind == "StreamOutcomeUnknownError"
                else advice(kind, "resume the run"),
            }


class KeeperRows:
    """One keeper, and a row for each conference and call that it knows."""

    def __init__(self, keeper: Keeper, max_rows: int) -> None:
        self.id = next(_IDS)
        self.facts: dict[str, Any] = {}
        self.targets: dict[str, dict[str, Any]] = {}  # by their sids
        self._keeper, self._max_rows = keeper, max_rows

    async def refresh(self) -> tuple[bool, Sequence[Mapping[str, Any]], Sequence[int]]:
        """Return whether the keeper's own facts changed, the rows that did, and the numbers of those that are gone."""
        snapshot = self._keeper.snapshot
        targets: dict[str, dict[str, Any]] = {}
        changed: list[Mapping[str, Any]] = []
        for number, target in enumerate(snapshot[: self._max_rows]):
            if number % _TARGETS_AT_ONCE == _TARGETS_AT_ONCE - 1:
                await asyncio.sleep(0)
            before = self.targets.get(target.target, {})
            targets[target.target] = row = self._row(target, before.get("id") or next(_IDS))
            if row["age"] < before.get("age", inf) or row | {"age": before["age"]} != before:
                changed.append(row)
        gone = [row["id"] for sid, row in self.targets.items() if sid not in targets]
        self.targets = targets
        facts = {
            "id": self.id,
            "name": _shown(self._keeper._name),
            "notes": [_shown(note) for note in self._notes()],
            "hidden": len(snapshot) - len(targets),
        }
        before, self.facts = self.facts, facts
        return facts != before, changed, gone

    def _row(self, target: TargetSnapshot, number: int) -> dict[str, Any]:
        return {
            "id": number,
            "keeper": self.id,
            "name": _shown(target.label or target.target),
            "target": _shown(target.target if target.label else ""),
            "kind": target.kind,
            "state": target.status.replace("_", " "),
            "reason": _shown(target.reason or ""),
            "age": round(target.seconds, 1),
        }

    def _notes(self) -> Iterable[str]:
        """Return what holds the keeper up, a sentence each."""
        failure = self._keeper._tasks.failure
        if failure is not None:  # a template's error may contain anything
            return (f"It has failed: {failure if isinstance(failure, StreamsError) else type(failure).__name__}",)
        if self._keeper._has_ended:
            return ("It has ended.",)
        return map(_sentence, self._keeper.obstacles)


def _sentence(obstacle: Obstacle) -> str:
    beginning = {
        PollingFailed: "The Space does not answer polls",
        StandbyStarted: "On standby",
        StartsPaused: f"Starts to {getattr(obstacle, 'receiver', '')} wait",
    }[type(obstacle)]
    return f"{beginning}: {obstacle.reason}"


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
        self._failed_at = -inf  # when a bug was reported

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
            now = loop.time()
            with self._reporting_bugs(now):
                await self._update(now)
            await asyncio.sleep(TICK)

    @contextmanager
    def _reporting_bugs(self, now: float) -> Iterator[None]:
        """Log a bug in the block, at most once a minute: it may freeze what it concerns, and nothing else."""
        try:
            yield
        except Exception:  # noqa: BLE001  (logged once a minute)
            if now - self._failed_at >= _LOG_EVERY:
                self._failed_at = now
                _LOG.exception("a part of the live page can't be drawn")

    async def _update(self, now: float) -> None:
        gone = self._find_rows(now)
        levels: list[int] = []
        changed: list[StreamRow] = []
        for number, row in enumerate(list(self.streams.values())):
            if number % _STREAMS_AT_ONCE == _STREAMS_AT_ONCE - 1:
                await asyncio.sleep(0)
            with self._reporting_bugs(now):
                has_changed = row.measure(now)
                if self._is_due(row) and row.refresh(now):
                    changed.append(row)
                elif has_changed:
                    levels += (row.id, *row.levels)
        runs: list[Mapping[str, Any]] = []
        for run in self.runs:
            with self._reporting_bugs(now):
                if self._is_due(run) and run.refresh(now):
                    runs.append(run.facts)
        keepers: list[Mapping[str, Any]] = []
        targets: list[Mapping[str, Any]] = []
        for keeper in list(self.keepers):
            with self._reporting_bugs(now):
                if not self._is_due(keeper):
                    continue
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
            row = self._rows[session] = StreamRow(session, self._numbers.setdefault(session, next(_IDS)))
            self.streams[row.id] = row
        return [row.id for row in over]


def _encode(message: Mapping[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"))
