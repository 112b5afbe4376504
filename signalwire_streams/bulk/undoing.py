"""Stopping what a journaled run started, and keeping book of it in the run's own journal."""

from collections.abc import Callable
from typing import Any, TypeAlias

from attrs import define, field

from signalwire_streams.bulk.journal import Journal
from signalwire_streams.bulk.outcomes import BulkOutcome
from signalwire_streams.bulk.starting import Stopping
from signalwire_streams.models import CallStream, ConferenceStream
from signalwire_streams.wire.exchange import Errand, Progress

_Stream: TypeAlias = ConferenceStream | CallStream


@define(eq=False)
class Undoing:
    """Stops the streams that a run started.

    A stream that the Space answered with its id did run, so when the Space does not know it any more, it has
    ended, and that is all that was wanted. Of a stream that is known by its name only, "no such stream" is no
    proof, and stays the error that it is; "stopped already" is.

    Attributes:
        stopping: how one stream is stopped.
        opening: opens the journal, when the stopping begins.
    """

    stopping: Stopping
    opening: Callable[[], Journal]
    _journal: Journal = field(init=False)
    _is_open: bool = field(init=False, default=False)
    _rows: dict[Progress, int] = field(init=False, factory=dict)

    def begin(self) -> None:
        """Open the journal, and note there that from now on the run is being stopped."""
        self._journal = self.opening()
        self._is_open = True
        self._journal.begin_undoing()

    def end(self) -> None:
        """Write what waits and let go of the journal."""
        if self._is_open:
            self._is_open = False
            self._journal.close()

    def note(self, progress: Progress, outcome: BulkOutcome[Any]) -> None:
        """Note what came of a stop."""
        row = self._rows.pop(progress, None)
        if row is not None:
            self._journal.settle_undoing(row, outcome)

    async def __call__(self, stream: _Stream, errand: Errand) -> _Stream:
        """Stop one stream."""
        progress = errand.progress
        if not progress.attempts:  # else the breaker sent it back before it was tried
            row = self._journal.find_stream(_target_of(stream), stream.name, stream.sid)
            self._rows[progress] = row
            await self._journal.intend_undoing(row)
        progress.may_be_done = True
        return await self.stopping(stream, errand)


def _target_of(stream: _Stream) -> str:
    return stream.conference_sid if isinstance(stream, ConferenceStream) else stream.call_sid
