"""Status of runs and workers, as stored in Redis."""

import json
from collections.abc import Iterator, Mapping

from attrs import fields_dict, frozen

from signalwire_streams.fleet._redis import Connection, Keys, RunKeys

QUEUED, RESUMED, STOPPING = "queued", "resumed", "stopping"
"""Fields of a run: all of it was queued, the run that resumes it, its streams are being, or were, rolled back."""


@frozen(kw_only=True)
class WorkerStatus:
    """A worker, as it last reported itself.

    Attributes:
        name: the worker's name.
        host: the machine it runs on.
        pid: its process there.
        started_at: when it started, in ISO 8601.
        active_batches: batches that it is working on.
        completed: starts that succeeded since then.
        rate: attempts per second over the last few seconds.
        limit: requests per second that all workers on its rate limiter may send together, or None if it shares none.
        draining: True if it accepts no new batches.
    """

    name: str
    host: str
    pid: int
    started_at: str
    active_batches: int
    completed: int
    rate: float
    limit: float | None
    draining: bool

    @classmethod
    def from_json(cls, text: bytes | str) -> "WorkerStatus":
        # A newer worker may report more than this reader knows.
        return cls(**{name: value for name, value in json.loads(text).items() if name in fields_dict(cls)})


@frozen(kw_only=True)
class FleetStatus:
    """Progress of a run.

    Attributes:
        run: its id, which is part of its streams' names.
        started_at: when it was submitted, in ISO 8601.
        planned: number of starts.
        counts: starts by state: a `BulkStatus` as text, ``in_doubt`` (sent by a live or dead worker) or
            ``pending`` (not started).
        attempts: attempts of the starts that have ended, without those of workers that died.
        errors: number of errors by class and code, most frequent first.
        cancelled: ``cancelled`` if it accepts no further starts, or None.
        cancel_reason: the reason for that, or None.
        fully_submitted: True if all of it was queued; otherwise repeat its submit, or its resume.
        rolled_back: number of its streams that were stopped again.
        is_rolling_back: True if its streams were stopped, or are being stopped.
        resumed_as: the run that resumes this one, or None.
        workers: the workers of this project.
    """

    run: str
    started_at: str
    planned: int
    counts: Mapping[str, int]
    attempts: int
    errors: Mapping[str, int]
    cancelled: str | None
    cancel_reason: str | None
    fully_submitted: bool
    rolled_back: int
    is_rolling_back: bool
    resumed_as: str | None
    workers: tuple[WorkerStatus, ...] = ()

    @property
    def completed(self) -> int:
        """Number of starts that have ended."""
        return sum(count for state, count in self.counts.items() if state not in {"in_doubt", "pending"})

    @property
    def unfinished(self) -> int:
        """Number of starts that were not attempted or ended unknown; `Fleet.resume` submits them again."""
        return self.counts.get("not_attempted", 0) + self.counts.get("unknown", 0)

    @property
    def is_finished(self) -> bool:
        """True if every start has ended."""
        return self.completed >= self.planned

    @property
    def rate(self) -> float:
        """Attempts per second of all workers over the last few seconds, for all runs together."""
        return sum(worker.rate for worker in self.workers)

    @property
    def limit(self) -> float | None:
        """Requests per second that all workers together may send, or None if they share no limit."""
        return max((worker.limit for worker in self.workers if worker.limit is not None), default=None)


@frozen(kw_only=True)
class RunRecord:
    keys: RunKeys
    batch_size: int
    retention: int
    status: FleetStatus  # without the workers

    @classmethod
    def from_hash(cls, run: str, keys: Keys, fields: Mapping[str, str]) -> "RunRecord | None":
        """Return None if there is no such run, or if it has expired."""
        if "digest" not in fields:
            return None
        planned = int(fields["planned"])
        counts = {state: count for state, count in _counts(fields, "c:") if count > 0}
        pending = planned - sum(counts.values())
        status = FleetStatus(
            run=run,
            started_at=fields["started_at"],
            planned=planned,
            counts=counts | ({"pending": pending} if pending > 0 else {}),
            attempts=int(fields.get("attempts", 0)),
            errors=dict(sorted(_counts(fields, "e:"), key=lambda entry: (-entry[1], entry[0]))),
            cancelled=fields.get("ended"),
            cancel_reason=fields.get("reason"),
            fully_submitted=QUEUED in fields,
            rolled_back=int(fields.get("stopped", 0)),
            is_rolling_back=STOPPING in fields,
            resumed_as=fields.get(RESUMED),
        )
        run_keys = RunKeys(keys.run(run), fields["plan"])
        batch_size, retention = int(fields["batch_size"]), int(fields["retention"])
        return cls(keys=run_keys, batch_size=batch_size, retention=retention, status=status)

    @property
    def batches(self) -> int:
        return -(-self.status.planned // self.batch_size)


def _counts(fields: Mapping[str, str], prefix: str) -> Iterator[tuple[str, int]]:
    return ((name.removeprefix(prefix), int(count)) for name, count in fields.items() if name.startswith(prefix))


async def read_run(connection: Connection, keys: Keys, run: str) -> RunRecord | None:
    return RunRecord.from_hash(run, keys, await connection.hash(keys.run(run)))
