"""What a bulk run came to, for people and for programs: counts, latencies, errors with what to do, and how to go on."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from attrs import frozen

from signalwire_streams import ApiError, BulkReport, BulkState, RunEndedError
from signalwire_streams.cli.bulk.conduct import words
from signalwire_streams._cli.output import clean, write_aligned, write_json
from signalwire_streams._cli.progress import spell_seconds
from signalwire_streams.cli.wording import for_command_line

_SHOWN_ERRORS = 10
_MILLISECONDS = 1_000
_ADVICE = {
    "AuthenticationError": "The Space does not know this project with this token: check SIGNALWIRE_PROJECT_ID and "
    "SIGNALWIRE_API_TOKEN.",
    "PermissionDeniedError": "The token may not do this: give it the scope in the dashboard.",
    "NotFoundError": "There is no such conference, call or stream (any more): check the id, or let it be.",
    "ApiError": "The Space refuses the request with a status of its own: its words are above.",
    "BadRequestError": "The Space refuses the request as it is: its own words are above.",
    "UnprocessableError": "The Space refuses a field: its own words are above.",
    "RateLimitedError": "Others use up the Space's limit: go on later, or with a lower --rate.",
    "ServerError": "The Space failed: go on when it works again.",
    "TransportError": "No answer came: check the network, then go on.",
    "CircuitOpenError": "The Space kept failing, so these were not sent: go on when it works again.",
    "MalformedResponseError": "Something answered that is not the API, perhaps a proxy: check SIGNALWIRE_SPACE.",
    "StreamOutcomeUnknown": "These may be running. Resuming sends those on conferences again under their names, so "
    "that the Space can refuse a second stream. Those on calls are sent again with --resend-call-starts only, which "
    "may start a second stream; those without a name never are.",
    "InvalidRequestError": "These can't be right, and were not sent.",
    "JournalError": "The journal can't be written, so these were not sent: make room on the disk, then go on.",
}


@frozen(kw_only=True)
class Closing:
    """The end of a run.

    Attributes:
        report: what it came to.
        doing: ``start`` or ``stop``.
        planned: how many items there were.
        early: items that an earlier part of the run had carried out.
        stuck: unknown starts that a resumed run would only report again.
        repeats: attempts that were followed by another one.
        journal: the run's file.
        options: the options that a further command needs to find the Space.
        interrupted: whether a signal ended it.
        has_secrets: whether its requests have secrets, which no journal keeps.
    """

    report: BulkReport
    doing: str
    planned: int
    early: int
    stuck: int = 0
    repeats: int
    journal: Path
    options: Sequence[str]
    interrupted: bool
    has_secrets: bool

    @property
    def go_on(self) -> str | None:
        """The command that does the rest, or None when there is none."""
        ok = sum(count for state, count in self.report.counts.items() if state in _DONE)
        if ok + self.stuck >= self.planned:
            return None
        return self._command("resume" if self.doing == "start" else "stop")

    def write_json(self) -> None:
        """Write it as one JSON object."""
        report = self.report
        write_json(
            {
                "report": {
                    "ok": report.ok and not self.go_on,
                    "planned": self.planned,
                    "ended": report.total,
                    "earlier": self.early,
                    "counts": dict(report.counts),
                    "attempts": report.attempts,
                    "repeated": self.repeats,
                    "errors": dict(report.errors),
                    "seconds": round(report.seconds, 3),
                    "latencies": {f"p{percent}": round(value, 4) for percent, value in report.latencies.items()},
                    "interrupted": self.interrupted,
                    "journal": str(self.journal),
                    "go_on": self.go_on,
                }
            }
        )

    def write(self) -> None:
        """Write it for a person."""
        report = self.report
        if self.planned == 0:
            click.echo(f"There is nothing left to {self.doing}.")
            return
        done = sum(count for state, count in report.counts.items() if state in _DONE)
        verb = "Started" if self.doing == "start" else "Stopped"
        click.echo(f"{verb} {done:,} of {self.planned:,} streams in {spell_seconds(report.seconds)}.")
        waiting = report.errors.get(RunEndedError.__name__, 0)
        counts = {**report.counts, BulkState.NOT_ATTEMPTED: report.counts.get(BulkState.NOT_ATTEMPTED, 0) - waiting}
        waiting += max(self.planned - report.total, 0)
        rows = [(words(state), f"{count:,}") for state, count in sorted(counts.items()) if count]
        if self.early:
            rows.append(("of them before", f"{self.early:,}"))
        if waiting:
            rows.append(("not tried yet", f"{waiting:,}"))
        rows.append(("attempts", f"{report.attempts:,}, {self.repeats:,} of them followed by another one"))
        if report.attempts:
            rows.append(("time for one", _spell(report.latencies)))
        write_aligned(rows, indent="  ")
        self._write_errors()
        click.echo(f"Its journal is {self.journal}")
        if self.go_on is not None:
            again = " (and give its secrets again)" if self.has_secrets else ""
            click.echo(f"Go on with it{again}:\n  {self.go_on}")
        if self.doing == "start" and report.total:
            click.echo(f"Stop what it started:\n  {self._command('stop')}")

    def _write_errors(self) -> None:
        errors = [entry for entry in self.report.errors.items() if entry[0] != RunEndedError.__name__]
        if not errors:
            return
        click.echo("Most frequent errors:")
        examples = {}
        for outcome in reversed(self.report.failures):
            if outcome.error is not None:
                examples[type(outcome.error).__name__] = clean(for_command_line(str(outcome.error)))
        for label, count in errors[:_SHOWN_ERRORS]:
            kind = label.partition(" ")[0]
            click.echo(f"  {count:,} x {label}")
            if kind in examples:
                click.echo(f"      for example: {examples[kind]}")
            click.echo(f"      {_ADVICE.get(kind, _ADVICE[ApiError.__name__])}")

    def _command(self, verb: str) -> str:
        return bulk_command(verb, self.options, self.journal)


def bulk_command(verb: str, options: Sequence[str], journal: Path) -> str:
    """Spell a command about a run, to be pasted into a shell."""
    file = str(journal)
    return shlex.join(["signalwire-streams", "bulk", verb, *options, *(["--"] if file.startswith("-") else []), file])


_DONE = {"started", "already_started", "stopped"}


def _spell(latencies: Mapping[int, float]) -> str:
    spelled = (
        f"{'max' if percent == 100 else f'p{percent}'} {seconds * _MILLISECONDS:,.0f}"  # noqa: PLR2004  (all of it)
        for percent, seconds in latencies.items()
    )
    return ", ".join(spelled) + " ms"
