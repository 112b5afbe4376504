"""The command ``bulk``: start streams on many conferences or calls, resume and roll back such runs."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from textwrap import fill, indent
from typing import Any

import click
from attrs import asdict, evolve, field, frozen

from signalwire_streams import BulkJournal, BulkRun, BulkStatus, JournalStatus, PlannedRequest, StreamsClient
from signalwire_streams._cli.bulk_runner import RunOptions, execute, run_options
from signalwire_streams._cli.bulk_secrets import Secrets, by_target, secret_options
from signalwire_streams._cli.bulk_targets import SIDS, Start, make_request, make_requests, read_lines, read_source
from signalwire_streams._cli.options import (
    ENVIRONMENT,
    FIELDS,
    Account,
    account_options,
    bulk_start_options,
    command_line,
    json_option,
    passing,
    reject_conference_options,
)
from signalwire_streams._cli.output import (
    Column,
    UsageError,
    clean,
    in_words,
    moment,
    write_aligned,
    write_json,
    write_note,
    write_report,
    write_table,
)
from signalwire_streams._cli.streams import Noun, resource_of
from signalwire_streams.models._validation import SECRET

_HIDDEN = "***"
_PAGE_SIZE = 1_000

_COLUMNS = ", ".join(name for name in FIELDS if name not in {"conference_sid", "parameters"})
FILES = f"""\b
FILE has one sid per line, and comments that begin with "# "; or it is CSV
whose first line names its columns, as spreadsheets save it; or it has one
JSON object per line. CSV and JSON may have these fields for each stream:
{indent(fill(f"conference_sid or call_sid, {_COLUMNS},", 72), "  ")}
  and parameters (JSON: an object; CSV: a column parameters.NAME for each)
"""


@frozen
class Targets:
    file: str | None
    defaults: Mapping[str, Any] = field(repr=False)
    kind: Noun
    skip_invalid: bool
    dry_run: bool

    def find(self, account: Account) -> Sequence[Start]:
        """Return the requests to start. If there are none, or on a dry run, print that and return nothing."""
        requests = account.run(self._list_live) if self.file is None else self._read(self.file, account)
        if self.dry_run:
            _write_dry_run(requests, as_json=account.as_json)
            return []
        if not requests and account.as_json:
            write_json({"report": {"ok": True, "planned": 0, "completed": 0}})
        elif not requests:
            click.echo("There is nothing to start.")
        return requests

    def _read(self, file: str, account: Account) -> Sequence[Start]:
        requests, bad = make_requests(read_lines(read_source(file), f"{self.kind}_sid"), self.defaults)
        for line in bad:
            write_note(f"{clean(file)}:{line.number}: {clean(line.why)}")
        if any(line.hides_more for line in bad):
            raise UsageError("nothing was started, since not every line could be read: fix the file first")
        if bad and not self.skip_invalid:
            lines = [{"line": line.number, "message": line.why} for line in bad]
            raise UsageError(
                f"{len(bad):,} of {len(bad) + len(requests):,} lines are invalid, and nothing was started: fix them, "
                "or skip them with --skip-invalid",
                {"error": "InvalidLines", "lines": lines} if account.as_json else None,
            )
        if bad:
            write_note(f"{len(bad):,} invalid lines skipped.")
        return list(requests.values())

    async def _list_live(self, client: StreamsClient) -> Sequence[Start]:
        live = resource_of(client, self.kind).list(status="in-progress", page_size=_PAGE_SIZE)
        # An item can move to the next page while the list is read, and appear twice.
        sids = dict.fromkeys([item.sid async for item in live])
        return [make_request({f"{self.kind}_sid": sid}, self.defaults) for sid in sids]


def _write_dry_run(requests: Sequence[Start], *, as_json: bool) -> None:
    if as_json:
        for request in requests:
            write_json(_request_facts(request))
        return
    if requests:
        write_aligned([_request_cells(request) for request in requests])
    click.echo(f"{len(requests):,} streams would be started. Nothing was sent.")


def _request_facts(request: Start) -> Mapping[str, Any]:
    """Return the JSON object of a request in a dry run; secrets are masked."""
    stored = PlannedRequest.from_request(request).request
    facts: dict[str, Any] = {"kind": request.kind, "target": request.target}
    for name in (name for name in FIELDS if name not in SIDS):
        value = getattr(request, name)
        if value in (None, {}):
            continue
        if FIELDS[name].metadata.get(SECRET) is True or value != getattr(stored, name):
            value = dict.fromkeys(value, _HIDDEN) if isinstance(value, Mapping) else _HIDDEN
        facts[name] = value
    facts["name"] = request.name if request.name or request.unnamed else f"sws-RUN-{request.target}"
    return facts


def _request_cells(request: Start) -> tuple[str, ...]:
    facts = dict(_request_facts(request))
    first = [facts.pop(name) or "-" for name in ("kind", "target", "name", "url")]
    facts = {name: ",".join(value) if isinstance(value, dict) else value for name, value in facts.items()}
    words = [f"{name}={value}" for name, value in facts.items() if (name, value) != ("unnamed", False)]
    return (*map(clean, first), clean(" ".join(words)))


def _make_targets(
    *, file: str | None, all_in_progress: bool, kind: Noun, skip_invalid: bool, dry_run: bool, **defaults: object
) -> Targets:
    if (file is None) is not all_in_progress:
        raise click.UsageError("pass a FILE of sids, - for standard input, or --all-in-progress")
    defaults["unnamed"] = defaults["unnamed"] or None
    if kind == "call":
        reject_conference_options(defaults, "calls")
    # An invalid option is reported once, not for each line.
    make_request({f"{kind}_sid": "any"}, {**defaults, "url": defaults["url"] or "wss://any.example.com"})
    return Targets(file, defaults, kind, skip_invalid, dry_run)


target_options = passing(
    "targets",
    _make_targets,
    click.argument("file", required=False),
    click.option("--all-in-progress", is_flag=True, help="All live conferences or calls, instead of a FILE."),
    click.option(
        "--kind",
        type=click.Choice(["conference", "call"]),
        default="conference",
        help="Whether bare sids and --all-in-progress mean conferences or calls.",
    ),
    click.option("--skip-invalid", is_flag=True, help="Skip invalid lines instead of rejecting the FILE."),
    click.option("--dry-run", is_flag=True, help="Print the requests, and send nothing."),
    bulk_start_options,
)


@click.group(short_help="Start, resume and stop thousands of streams.")
def bulk() -> None:
    """Start streams on thousands of conferences or calls; resume after a crash; stop them all."""


@bulk.command(
    short_help="Start a stream on each of many conferences or calls.",
    epilog=f"""{FILES}
{ENVIRONMENT}
\b
Examples:
  signalwire-streams bulk start --all-in-progress \\
      --url wss://audio.example.com/live
  signalwire-streams bulk start targets.csv --dry-run \\
      --url wss://audio.example.com/live
""",
)
@click.option("--journal", metavar="PATH", help="The run's journal; by default bulk-TIME.db in this folder.")
@click.option("--no-journal", is_flag=True, help="Write no journal: the run can't be resumed or rolled back.")
@run_options(resend=True, page=True)
@target_options
@account_options
def start(account: Account, *, targets: Targets, journal: str | None, no_journal: bool, options: RunOptions) -> None:
    """Start a stream on each of many conferences or calls, from a file or on all that are live.

    All lines are checked before anything is sent, and all invalid ones are reported. The run is recorded in a
    journal, so that `bulk resume` continues it after a kill, a crash or Ctrl-C without starting a stream twice,
    and `bulk stop` stops what it started. Ctrl-C lets requests in flight finish; a second one aborts them.
    """
    if no_journal and journal is not None:
        raise click.UsageError("--journal and --no-journal contradict each other: write one of the two")
    requests = targets.find(account)
    if not requests:
        return

    if journal is None and not no_journal:
        journal = f"bulk-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{token_hex(2)}.db"

    def start_run(client: StreamsClient) -> BulkRun[Start]:
        if journal is None:
            write_note("No journal: this run can't be resumed after a crash, nor rolled back with 'bulk stop'.")
            return client.start_streams(requests, concurrency=options.concurrency)
        client.create_journal(requests, journal=journal)
        return client.start_streams(requests, journal=journal, resume=True, concurrency=options.concurrency)

    execute(
        account,
        options,
        start_run,
        total=len(requests),
        journal=None if journal is None else Path(journal),
        has_secrets=not all(PlannedRequest.from_request(request).is_complete for request in requests),
    )


_OF_THE_JOURNAL = """
\b
Space and project default to those of the journal.
"""


@bulk.command(
    epilog=f"""{ENVIRONMENT}{_OF_THE_JOURNAL}
\b
Examples:
  signalwire-streams bulk resume bulk-20261121T101500Z-1f3a.db
  signalwire-streams bulk resume run.db targets.csv
"""
)
@click.argument("journal")
@click.argument("file", required=False)
@run_options(resend=True, page=True)
@secret_options
@account_options
def resume(account: Account, *, journal: str, file: str | None, options: RunOptions, secrets: Secrets) -> None:
    """Resume a run that ended early.

    Streams that are running are not started again. Starts whose outcome is unknown are sent again under their
    names, so that the Space can reject a duplicate; on a call, or without a name, they are only reported.
    Everything else is started.

    A journal contains no secrets. If the run had some, pass them again, with the options or with the original
    FILE.
    """
    run_journal = BulkJournal(journal)
    status = run_journal.status()
    if status.planned is None:
        raise click.UsageError(
            f"{journal} was created by a program, which knows what is left: resume it there, with resume=True"
        )
    if file is not None:
        sid_field = next((planned.request.kind.target_key for planned in run_journal.requests()), "conference_sid")
        secrets = evolve(secrets, lines=by_target(read_lines(read_source(file), sid_field)))
    for _ in secrets.complete(run_journal.requests):  # all are there and valid before anything is sent
        pass
    execute(
        account.or_else(space=status.origin, project=status.project),
        options,
        lambda client: client.start_streams(
            secrets.complete(run_journal.requests),
            journal=run_journal.path,
            resume=True,
            concurrency=options.concurrency,
        ),
        total=status.planned,
        journal=run_journal.path,
        has_secrets=not all(planned.is_complete for planned in run_journal.requests()),
    )


@bulk.command(
    epilog=f"""{ENVIRONMENT}{_OF_THE_JOURNAL}
\b
Example:
  signalwire-streams bulk stop bulk-20261121T101500Z-1f3a.db
"""
)
@click.argument("journal")
@run_options(resend=False, page=True)
@account_options
def stop(account: Account, *, journal: str, options: RunOptions) -> None:
    """Stop every stream that a run started, or may have started.

    Each is stopped by its sid, or by its name if only that is known. Repeat the command until none is left. The
    run can't be resumed afterwards.
    """
    run_journal = BulkJournal(journal)
    status = run_journal.status()
    execute(
        account.or_else(space=status.origin, project=status.project),
        options,
        lambda client: client.stop_started(run_journal.path, concurrency=options.concurrency),
        total=sum(1 for _ in run_journal.streams()),
        operation="stop",
        journal=run_journal.path,
    )


IN_DOUBT = "in_doubt"
"""The status of an item from just before it is sent until its outcome is known."""

_STATUSES = [*(status.value for status in BulkStatus), IN_DOUBT]


@bulk.command(
    short_help="Show the progress of a run.",
    epilog="""\b
Examples:
  signalwire-streams bulk status run.db
  signalwire-streams bulk status run.db --list unknown

An item is in doubt from just before it is sent until its outcome is known;
if the run was killed, such a stream may be running.

The command only reads the file; it needs no Space and no token.
""",
)
@click.argument("journal")
@click.option(
    "--list",
    "statuses",
    multiple=True,
    type=click.Choice(_STATUSES),
    metavar="STATUS",
    help=f"List the items with this status: {', '.join(_STATUSES)}.",
)
@json_option("Write JSON; with --list one object per item.")
def status(*, journal: str, statuses: tuple[str, ...], as_json: bool) -> None:
    """Show the progress of a run from its journal, even while it is running."""
    run_journal = BulkJournal(journal)
    if not statuses:
        found = run_journal.status()
        write_json(asdict(found)) if as_json else _write_status(run_journal, found)
        return
    items = run_journal.items(*statuses)
    if as_json:
        for item in items:
            write_json(asdict(item))
        return
    columns = [Column("KIND", whole=True), Column("TARGET", whole=True), Column("STATUS", whole=True)]
    columns += [Column("SID", spare=True), Column("NAME", spare=True), Column("MESSAGE")]
    rows = [(item.kind, item.target, in_words(item.status), item.sid, item.name, item.message) for item in items]
    write_table(columns, rows)


def _write_status(journal: BulkJournal, found: JournalStatus) -> None:
    rows = [("attempts", f"{found.attempts:,}")]
    if found.rollback_started_at is not None:
        rows += [("rolled back", f"{found.rolled_back:,}")]
    write_report(
        f"Run {clean(found.run)}, started on {moment(found.started_at)}, to {clean(found.operation)} streams on "
        f"{clean(found.origin)}.",
        found.counts,
        *rows,
        first=[] if found.planned is None else [("planned", f"{found.planned:,}")],
        errors=found.errors,
        steps=_next_steps(journal, found),
    )


def _next_steps(journal: BulkJournal, found: JournalStatus) -> Iterable[str]:
    roll_back = f"Roll back:\n  {command_line('bulk stop', str(journal.path))}"
    if found.is_locked:
        yield "It is running now."
    elif found.operation == "stop":
        yield "It is not running now."
    elif found.rollback_started_at is not None:
        yield roll_back if any(True for _ in journal.streams()) else "All streams that it started were stopped."
    else:
        yield from _resume_steps(journal, found)
        yield roll_back


def _resume_steps(journal: BulkJournal, found: JournalStatus) -> Iterable[str]:
    if found.planned is None or not found.remaining:
        return
    # A resumed run would only report these as unknown again.
    in_doubt = list(journal.items("unknown", IN_DOUBT))
    unnamed = sum(item.name is None for item in in_doubt)
    calls = sum(item.name is not None and item.kind == "call" for item in in_doubt)
    if found.remaining > unnamed + calls:
        yield f"Resume:\n  {command_line('bulk resume', str(journal.path))}"
        return
    if calls:
        yield (
            f"{calls:,} streams on calls may be running; a resumed run does not start them again, since a call may "
            "accept a second stream of the same name. To start them again anyway:\n"
            f"  {command_line('bulk resume --resend-call-starts', str(journal.path))}"
        )
    if unnamed:
        yield (
            f"{unnamed:,} streams without a name may be running, and are never started again: end their conference or "
            "call to stop them."
        )
