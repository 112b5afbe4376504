"""What Redis knows of a run and of the workers, as values."""

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from signalwire_streams.bulk._journal_file import INTENDED
from signalwire_streams.errors import InvalidRequestError

RESUMED, STOPPING = "resumed", "stopping"
"""Facts of a run: what goes on with it, and that its streams are stopped again."""

_SETTLED = frozenset({"started", "already_started", "rejected", "unknown", "not_attempted"})


@frozen(kw_only=True)
class WorkerStatus:
    """What a worker tells of itself.

    Attributes:
        name: what it is called.
        host: the machine it runs on.
        pid: its process there.
        since: when it began, in ISO 8601.
        in_hand: batches that it works on.
        ended: starts that ended well with it since then.
        rate: attempts per second that it made over the last few seconds.
        limit: requests per second that it and all others who share its pacer may make, or None where it shares none.
        draining: whether it takes nothing new.
    """

    name: str
    host: str
    pid: int
    since: str
    in_hand: int
    ended: int
    rate: float
    limit: float | None
    draining: bool

    @classmethod
    def of(cls, name: str, facts: Mapping[str, str]) -> "WorkerStatus":
        """Read what a worker told."""
        return cls(
            name=name,
            host=facts.get("host", ""),
            pid=int(facts.get("pid", 0)),
            since=facts.get("since", ""),
            in_hand=int(facts.get("in_hand", 0)),
            ended=int(facts.get("ended", 0)),
            rate=float(facts.get("rate", 0)),
            limit=float(facts["limit"]) if facts.get("limit") else None,
            draining=facts.get("draining") == "1",
        )


@frozen(kw_only=True)
class FleetStatus:
    """How far a run is.

    Attributes:
        run: what it is called; it is part of its streams' names.
        began: when it was submitted, in ISO 8601.
        planned: how many starts it has.
        counts: starts by state: a `BulkState`'s text, ``intended`` (with a worker now, or with one that died) or
            ``waiting`` (not begun).
        attempts: attempts that the starts that ended took, those of workers that died left out.
        errors: how often each error's class and code came, most frequent first.
        ended: ``cancelled`` where it takes no further starts, or None.
        why: the reason of that in words, or None.
        queued: whether all of it was handed to the workers; if that was cut off, repeat its submit, or its resume.
        undone: how many of its streams were stopped again.
        stopping: whether its streams were stopped, or are being stopped.
        resumed: the run that goes on with what this one left, or None.
        workers: who works for this project now.
    """

    run: str
    began: str
    planned: int
    counts: Mapping[str, int]
    attempts: int
    errors: Mapping[str, int]
    ended: str | None
    why: str | None
    queued: bool
    undone: int
    stopping: bool
    resumed: str | None
    workers: tuple[WorkerStatus, ...] = ()

    @property
    def done(self) -> int:
        """How many starts have ended."""
        return sum(count for state, count in self.counts.items() if state in _SETTLED)

    @property
    def unfinished(self) -> int:
        """How many starts were not attempted, or end in nobody's knowledge: what `Fleet.resume` would try again."""
        return self.counts.get("not_attempted", 0) + self.counts.get("unknown", 0)

    @property
    def over(self) -> bool:
        """Whether every start has ended."""
        return self.done >= self.planned

    def check_over(self) -> None:
        """Make sure that every start has ended.

        Raises:
            InvalidRequestError: it has not; the message says what to do.
        """
        if not self.over and self.ended is None:
            raise InvalidRequestError(f"the run {self.run!r} goes on: wait until it is over, or cancel it first")
        if not self.over:
            raise InvalidRequestError(
                f"workers have starts of the cancelled run {self.run!r} in hand, or had when they died: a worker ends "
                "them"
            )

    @property
    def rate(self) -> float:
        """Attempts per second that all workers made over the last few seconds, for all runs together."""
        return sum(worker.rate for worker in self.workers)

    @property
    def limit(self) -> float | None:
        """Requests per second that all workers may make, as they last heard; None where they share no limit."""
        return max((worker.limit for worker in self.workers if worker.limit is not None), default=None)


@frozen
class RunFacts:
    """What Redis has of a run.

    Attributes:
        run: what it is called.
        fields: its fields, as text.
    """

    run: str
    fields: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, run: str, answer: Mapping[Any, Any]) -> "RunFacts | None":
        """Read them; None where there is no such run, or not any more."""
        fields = text_of(answer)
        return cls(run, fields) if "digest" in fields else None

    @property
    def plan(self) -> str:
        """Under which name its requests are kept."""
        return self.fields["plan"]

    @property
    def planned(self) -> int:
        """How many starts it has."""
        return int(self.fields["planned"])

    @property
    def batch(self) -> int:
        """How many starts a batch has."""
        return int(self.fields["batch"])

    @property
    def batches(self) -> int:
        """How many batches it has."""
        return -(-self.planned // self.batch)

    @property
    def keep(self) -> int:
        """How many seconds Redis keeps it."""
        return int(self.fields["keep"])

    @property
    def ended(self) -> str | None:
        """Why it takes no further starts, in words, or None."""
        return self.fields.get("why") if "ended" in self.fields else None

    def status(self, workers: tuple[WorkerStatus, ...]) -> FleetStatus:
        """Sum it up."""
        counts = {state: count for state, count in self._counts("c:").items() if count > 0}
        waiting = self.planned - sum(counts.values())
        errors = sorted(self._counts("e:").items(), key=lambda entry: (-entry[1], entry[0]))
        return FleetStatus(
            run=self.run,
            began=self.fields["began"],
            planned=self.planned,
            counts=counts | ({"waiting": waiting} if waiting > 0 else {}),
            attempts=int(self.fields.get("attempts", 0)),
            errors=dict(errors),
            ended=self.fields.get("ended"),
            why=self.ended,
            queued="queued" in self.fields,
            undone=int(self.fields.get("undone", 0)),
            stopping=STOPPING in self.fields,
            resumed=self.fields.get(RESUMED),
            workers=workers,
        )

    @property
    def in_doubt(self) -> int:
        """How many starts are with a worker now, or with one that died."""
        return int(self.fields.get(f"c:{INTENDED}", 0))

    def _counts(self, prefix: str) -> dict[str, int]:
        return {name.removeprefix(prefix): int(value) for name, value in self.fields.items() if name.startswith(prefix)}


def text_of(answer: Mapping[Any, Any]) -> dict[str, str]:
    """Read a hash as text."""
    return {_text(name): _text(value) for name, value in answer.items()}


def _text(value: Any) -> str:  # noqa: ANN401  (Redis gives bytes or text)
    return value.decode() if isinstance(value, bytes) else str(value)
