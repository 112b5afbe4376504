"""The demo's result, in words and as JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

import click
from attrs import frozen

from signalwire_streams import Attempt, BulkReport, Event, Kind
from signalwire_streams.cli.demo_audio import CONFERENCES, Listening
from signalwire_streams.cli.demo_run import Job
from signalwire_streams._cli.output import bare_table, on_terminal, write_aligned, write_rich
from signalwire_streams.simulator import SimulatedSpace

_SECONDS = ("start_seconds", "stop_seconds")

Section = tuple[str, Sequence[tuple[str, str]]]


@frozen(kw_only=True)
class Report:
    """What came of a job: by the client's account, and by the Space's own count.

    Attributes:
        job: the client's account.
        listening: what was heard.
        conferences: how many conferences there were to find.
        seed: the seed of the Space.
        created: the streams that ever ran.
        refused: the repeated starts whose stream ran already, so that the Space let no second one live.
        alive: the streams that still run.
        doubled: the conferences that ever had two streams of one name at a time.
    """

    job: Job
    listening: Listening
    conferences: int
    seed: int
    created: int
    refused: int
    alive: int
    doubled: int

    @classmethod
    def of(cls, job: Job, listening: Listening, space: SimulatedSpace, conferences: int, seed: int) -> Self:
        """Ask the Space."""
        created = sum(stream.error is None for stream in space.streams)
        return cls(
            job=job,
            listening=listening,
            conferences=conferences,
            seed=seed,
            created=created,
            refused=len(space.streams) - created,
            alive=len(space.streams.alive()),
            doubled=len(space.streams.doubled()),
        )

    @property
    def is_good(self) -> bool:
        """Whether each stream was started once and stopped, none is left, and nothing was misheard."""
        return self._is_done and self.listening.is_good

    @property
    def _is_done(self) -> bool:
        job = self.job
        counts = {len(job.found), len(job.streams), job.stopped, self.created}
        return counts == {self.conferences} and not (self.alive or self.doubled or job.failures)

    def facts(self) -> Mapping[str, object]:
        """Give everything for JSON; times are in seconds."""
        job = self.job
        return {
            "ok": self.is_good,
            "seed": self.seed,
            "conferences": self.conferences,
            "found": len(job.found),
            "started": len(job.streams),
            "started_by_repeated_attempt": self._repeated(is_start=True),
            "stopped": job.stopped,
            "stopped_by_repeated_attempt": self._repeated(is_start=False),
            "attempts": len(job.attempts),
            "retries": len(job.repeats),
            "retries_by_event": dict(Counter(attempt.event for attempt in job.repeats)),
            **{name: _percentiles(report) for name, report in zip(_SECONDS, job.reports, strict=True)},
            "seconds": round(job.seconds, 3),
            "streams_created": self.created,
            "streams_refused_as_duplicates": self.refused,
            "streams_alive": self.alive,
            "streams_doubled": self.doubled,
            "failures": job.failures,
            "audio": self.listening.facts(),
        }

    def write(self) -> None:
        """Write it for a person."""
        sections = self._sections()
        click.echo()
        if on_terminal():
            _write_drawn(sections)
        else:
            write_aligned([row for title, facts in sections for row in ((title, ""), *_indented(facts))])
        click.echo()
        click.echo(self._sentence())

    def _sections(self) -> Sequence[Section]:
        job, wanted = self.job, len(self.job.found)
        client: Sequence[tuple[str, str]] = [
            ("live conferences found", f"{wanted:,}"),
            ("streams started", f"{len(job.streams):,} of {wanted:,}"),
            ("  of them by a repeated attempt", f"{self._repeated(is_start=True):,}"),
            ("streams stopped", f"{job.stopped:,} of {wanted:,}"),
            ("  of them by a repeated attempt", f"{self._repeated(is_start=False):,}"),
            ("attempts", f"{len(job.attempts):,}"),
            ("  followed by another one", f"{len(job.repeats):,}"),
            *((f"    {cause}", f"{count:,}") for cause, count in Counter(map(_in_words, job.repeats)).most_common()),
            ("time to start a stream", _in_milliseconds(job.reports[0])),
            ("time to stop a stream", _in_milliseconds(job.reports[1])),
            ("time for everything", f"{job.seconds:.1f} s"),
        ]
        space: Sequence[tuple[str, str]] = [
            ("streams that ever ran", f"{self.created:,}"),
            ("second starts, refused", f"{self.refused:,}"),
            ("streams still running", f"{self.alive:,}"),
            ("streams doubled", f"{self.doubled:,}"),
        ]
        heard, tracks = self.listening, CONFERENCES * 2
        audio: Sequence[tuple[str, str]] = [
            ("tracks recorded, to the sample", f"{heard.faithful:,} of {tracks:,}"),
            ("frames of 20 ms", f"{heard.frames:,}"),
            ("  lost", f"{heard.missing + heard.dropped:,}"),
            ("jitter, at most", f"{heard.jitter:.1f} ms"),
            ("streams still running", f"{heard.alive:,}"),
        ]
        return (
            ("What the client did", client),
            ("What the Space counted", space),
            (f"What was heard on {CONFERENCES} conferences", audio),
        )

    def _sentence(self) -> str:
        if not self._is_done:
            return "Something went wrong: this is not one stream per conference, each of them stopped."
        if not self.listening.is_good:
            return "Something went wrong: what was heard is not all that was said."
        return (
            f"Every conference got its stream exactly once, although {len(self.job.repeats):,} attempts failed,\n"
            "what was heard is what was said, and none was left running."
        )

    def _repeated(self, *, is_start: bool) -> int:
        """Count the conferences on which a start, or a stop, needed more than one attempt."""
        return len(
            {
                attempt.target
                for attempt in self.job.repeats
                if attempt.kind is not Kind.READ and attempt.kind.is_start is is_start
            }
        )


def _in_words(attempt: Attempt) -> str:
    if attempt.event is Event.BROKEN:
        return "no answer, connection reset"
    return f"HTTP {attempt.status}: {attempt.event}" if attempt.status is not None else str(attempt.event)


def _percentiles(report: BulkReport) -> Mapping[str, float]:
    names = {100: "max"}
    return {names.get(percent, f"p{percent}"): round(value, 4) for percent, value in report.latencies.items()}


def _in_milliseconds(report: BulkReport) -> str:
    return ", ".join(f"{name} {value * 1000:.0f}" for name, value in _percentiles(report).items()) + " ms"


def _indented(facts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"  {label}", value) for label, value in facts]


def _write_drawn(sections: Sequence[Section]) -> None:
    table = bare_table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for title, facts in sections:
        table.add_row(f"[bold]{title}[/bold]")
        for row in _indented(facts):
            table.add_row(*row)
    write_rich(table)
