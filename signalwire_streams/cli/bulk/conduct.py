"""One bulk run from the command line: shown while it goes on, drained by Ctrl-C, summed up at its end."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from signal import Signals
from typing import Any, Generic, TypeVar

from attrs import define, field

from signalwire_streams import BulkOutcome, BulkReport, BulkRun, BulkState, StartCallStream, StreamsError
from signalwire_streams.cli.failures import FAILED, INTERRUPTED, TERMINATED
from signalwire_streams._cli.output import clean, write_json
from signalwire_streams._cli.progress import Meter, Progress, shown
from signalwire_streams.cli.wording import for_command_line

_Item = TypeVar("_Item")
_SETTLING = 1.0  # seconds before a guess at the rest is worth showing


@define(eq=False)
class Conduct(Generic[_Item]):
    """Goes through a run.

    Attributes:
        run: the run.
        title: what it does.
        total: how many items it has.
        meter: hears of the attempts.
        limit: requests per second that it may use.
        as_json: whether each outcome is written as JSON.
        resend_call_starts: whether a resumed run sends unknown starts on calls again.
        early: items that an earlier part of the run had carried out.
        stuck: unknown starts that a resumed run would only report again.
        stopped_by: the first signal that came, or None.
        error: what ended the run, apart from its items, or None.
    """

    run: BulkRun[_Item]
    title: str
    total: int
    meter: Meter
    limit: float
    as_json: bool
    resend_call_starts: bool = False
    early: int = field(init=False, default=0)
    stuck: int = field(init=False, default=0)
    stopped_by: Signals | None = field(init=False, default=None)
    error: StreamsError | None = field(init=False, default=None)
    _done: int = field(init=False, default=0)
    _counts: Counter[BulkState] = field(init=False, factory=Counter)
    _show: Callable[[], None] = field(init=False, default=lambda: None)
    _began: float = field(init=False, factory=time.monotonic)

    async def perform(self) -> BulkReport:
        """Go through the run, and tell what it came to. What ended it early is in ``error`` and ``stopped_by``."""
        with self._signals():
            async with shown(self._progress, as_json=self.as_json) as self._show:
                try:
                    async with contextlib.aclosing(aiter(self.run)) as outcomes:
                        async for outcome in outcomes:
                            self._note(outcome)
                except StreamsError as error:
                    self.error = error
        return self.run.so_far

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        if self.stopped_by is not None:
            return INTERRUPTED if self.stopped_by is Signals.SIGINT else TERMINATED
        return 0 if self.error is None and self.run.so_far.ok else FAILED

    def _note(self, outcome: BulkOutcome[Any]) -> None:
        self._done += 1
        self._counts[outcome.state] += 1
        self.early += outcome.ok and not outcome.attempts
        self.stuck += outcome.state is BulkState.UNKNOWN and not self._can_be_resent(outcome.item)
        if self.as_json:
            write_json(facts_of(outcome))

    def _can_be_resent(self, item: Any) -> bool:  # noqa: ANN401  (a request, or a stream to stop)
        if getattr(item, "unnamed", False):
            return False
        return self.resend_call_starts or not isinstance(item, StartCallStream)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (Signals.SIGINT, Signals.SIGTERM)
        try:
            for number in numbers:
                loop.add_signal_handler(number, self._interrupt, number)
        except (NotImplementedError, RuntimeError):  # Windows' loops, and other threads', take no signals
            yield
            return
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _interrupt(self, number: Signals) -> None:
        if self.stopped_by is not None:
            self.run.drain(0)
            return
        self.stopped_by = number
        self.run.drain()
        self._show()

    def _progress(self) -> Progress:
        outcomes = tuple(f"{count:,} {words(state)}" for state, count in self._counts.most_common())
        if self.stopped_by is not None:
            ending = "interrupted: 5 s for what is under way, interrupt again to cut it"
            return Progress(title="Ending", done=self._done, total=self.total, facts=(ending, *outcomes))
        seconds = time.monotonic() - self._began
        tried = self._done - self.early
        rate = f"{self.meter.rate:,.0f} of {self.limit:,{'.0f' if self.limit >= 1 else '.1f'}} requests/s"
        return Progress(
            title=self.title,
            done=self._done,
            total=self.total,
            facts=(rate, f"{self.meter.repeats:,} repeated", *outcomes),
            left=(self.total - self._done) * seconds / tried if tried and seconds > _SETTLING else None,
        )


def words(state: str) -> str:
    """Give a state as people say it."""
    return state.replace("_", " ")


def facts_of(outcome: BulkOutcome[Any]) -> dict[str, object]:
    """Give an outcome as JSON has it."""
    item, stream, error = outcome.item, outcome.stream, outcome.error
    kind = "conference" if hasattr(item, "conference_sid") else "call"
    name = stream.name if stream is not None else getattr(error, "name", None) or item.name
    return {
        "index": outcome.index,
        "kind": kind,
        "target": getattr(item, f"{kind}_sid"),
        "state": outcome.state,
        "sid": stream.sid if stream is not None else None,
        "name": name,
        "ambiguous": stream.ambiguous if stream is not None else False,
        "attempts": outcome.attempts,
        "seconds": round(outcome.seconds, 4),
        "error": type(error).__name__ if error is not None else None,
        "message": clean(for_command_line(str(error))) if error is not None else None,
    }
