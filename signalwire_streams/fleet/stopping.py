"""The book that is kept while a run's streams are stopped."""

from collections import deque
from typing import Any

from attrs import define, field

from signalwire_streams.bulk._journal import Entry
from signalwire_streams.bulk._operations import Key
from signalwire_streams.bulk.outcomes import BulkOutcome, BulkState
from signalwire_streams.fleet.keys import RunKeys
from signalwire_streams.fleet.scripts import UNDO
from signalwire_streams.fleet.steps import Step
from signalwire_streams.fleet.writer import Writer
from signalwire_streams.models import CallStream, ConferenceStream
from signalwire_streams._http.messages import Progress


@define(eq=False)
class StopLedger:
    """Keeps book of which streams were stopped.

    Attributes:
        run: the run.
        writer: writes in Redis.
        keys: what the run's things are called; known when its first stream comes.
        keep: seconds that Redis keeps what it hears of them.
    """

    run: str
    writer: Writer
    keys: RunKeys = field(init=False)
    keep: int = field(init=False)
    _waiting: dict[Key, deque[int]] = field(init=False, factory=dict)
    _rows: dict[Progress, int] = field(init=False, factory=dict)

    def expect(self, index: int, stream: ConferenceStream | CallStream) -> None:
        """Hear which stream comes next."""
        handle = stream.name or stream.sid
        if isinstance(stream, ConferenceStream):
            key = Key("conference", stream.conference_sid, handle)
        else:
            key = Key("call", stream.call_sid, handle)
        self._waiting.setdefault(key, deque()).append(index)

    async def begin(self) -> None:
        """Do nothing."""

    async def end(self) -> None:
        """Do nothing."""

    def known(self, key: Key, progress: Progress) -> Entry | None:
        """See Ledger.known: a stop can be sent as often as it takes, so nothing needs to be known."""
        waiting = self._waiting[key]
        self._rows[progress] = waiting.popleft()
        if not waiting:
            del self._waiting[key]
        return None

    async def intend(self, key: Key, progress: Progress, entry: Entry | None) -> None:
        """Do nothing: a stop can be sent as often as it takes."""

    def note(self, progress: Progress, outcome: BulkOutcome[Any]) -> None:
        """See Ledger.note."""
        index = self._rows.pop(progress, None)
        if index is None or outcome.state is not BulkState.STOPPED:
            return
        step = Step(UNDO, (self.keys.facts,), self.keys.undone, (index, self.keep))
        _ = self.writer.later(step)  # the fleet waits for it when it is closed
