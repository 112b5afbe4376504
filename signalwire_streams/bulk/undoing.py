"""Stopping what a journaled run started, and keeping book of it in the run's own journal."""

from typing import Any, TypeAlias

from attrs import define, field

from signalwire_streams.bulk._journal import Holder
from signalwire_streams.bulk.outcomes import BulkOutcome
from signalwire_streams.bulk.starting import Stopping
from signalwire_streams.bulk._journal_file import when_free
from signalwire_streams.models import CallStream, ConferenceStream
from signalwire_streams._http.messages import Errand, Progress

_Stream: TypeAlias = ConferenceStream | CallStream


@define(eq=False)
class Undoing:
    """Stops the streams that a run started.

    Attributes:
        stopping: how one stream is stopped.
        holder: has the journal.
    """

    stopping: Stopping
    holder: Holder
    _rows: dict[Progress, int] = field(init=False, factory=dict)

    async def begin(self) -> None:
        """Open the journal, and record there that the run is being stopped."""
        journal = await self.holder.open()
        try:
            await when_free(self.holder.clock, journal.begin_undoing)
        except BaseException:  # also when it is cancelled: nobody else closes the journal
            await self.end()
            raise

    async def end(self) -> None:
        """Write what waits and close the journal."""
        await self.holder.close()

    def note(self, progress: Progress, outcome: BulkOutcome[Any]) -> None:
        """Note what came of a stop."""
        row = self._rows.pop(progress, None)
        if row is not None:
            self.holder.journal.settle_undoing(row, outcome)

    async def __call__(self, stream: _Stream, errand: Errand) -> _Stream:
        """Stop one stream."""
        progress = errand.progress
        if not progress.attempts:  # else the breaker sent it back before it was tried
            row = self.holder.journal.find_stream(_target_of(stream), stream.name, stream.sid)
            self._rows[progress] = row
            await self.holder.journal.intend_undoing(row)
        return await self.stopping(stream, errand)


def _target_of(stream: _Stream) -> str:
    return stream.conference_sid if isinstance(stream, ConferenceStream) else stream.call_sid
