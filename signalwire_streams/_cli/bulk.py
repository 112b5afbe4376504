"""``signalwire-streams bulk resume``, ``stop`` and ``status``: what is done with a run that there is already."""

from collections import Counter
from datetime import datetime

import click
from attrs import asdict, evolve

from signalwire_streams import BulkJournal, JournalStatus, StreamsClient, StreamsError
from signalwire_streams._cli.bulk_runner import Job, Knobs, bulk_command, carry_out, resend_option, run_options, words
from signalwire_streams._cli.bulk_start import start
from signalwire_streams._cli.bulk_targets import Secrets, by_target, read_lines, read_source
from signalwire_streams._cli.options import ENVIRONMENT, Account, account_options, secret_options
from signalwire_streams._cli.output import Column, clean, failure_of, write_aligned, write_json, write_table

_SHOWN_ERRORS = 10
_STATES = ("started", "already_started", "stopped", "rejected", "unknown", "not_attempted", "intended")


@click.command(
    epilog="""\b
Examples:
  signalwire-streams bulk status run.db
  signalwire-streams bulk status run.db --list unknown

An item is intended from when it is about to be sent until its outcome is
known; if the run was killed, such a stream may be running.

It reads the file only; no Space and no token are needed.
""",
)
@click.argument("journal")
@click.option("--list", "states", multiple=True, type=click.Choice(_STATES), help="List the items in this state.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON; with --list one object per item.")
def status(*, journal: str, states: tuple[str, ...], as_json: bool) -> None:
    """Show how far a run is, from its journal; also while it goes on."""
    book = BulkJournal(journal)
    try:
        if states:
            _list(book, states, as_json=as_json)
        elif as_json:
            write_json(asdict(book.status()))
        else:
            _write(book, book.status())
    except StreamsError as error:
        raise failure_of(error, as_json=as_json) from None


def _list(book: BulkJournal, states: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        for item in book.items(*states):
            write_json(asdict(item))
        return
    columns = [Column("KIND", whole=True), Column("TARGET", whole=True), Column("STATE", whole=True)]
    columns += [Column("SID", spare=True), Column("NAME", spare=True), Column("MESSAGE")]
    write_table(
        columns,
        [
            (item.kind, item.target, words(item.status), item.sid, item.name, item.message)
            for item in book.items(*states)
        ],
    )


def _write(book: BulkJournal, found: JournalStatus) -> None:
    began = datetime.fromisoformat(found.started_at).strftime("%Y-%m-%d %H:%M:%S UTC")
    click.echo(f"Run {clean(found.run)} began on {began}, to {found.operation} streams on {clean(found.origin)}.")
    rows = [] if found.planned is None else [("planned", f"{found.planned:,}")]
    rows += [(words(state), f"{count:,}") for state, count in found.counts.items()]
    rows += [("attempts", f"{found.attempts:,}")]
    if found.rollback_started_at is not None:
        rows += [("stopped again", f"{found.rolled_back:,}")]
    write_aligned(rows, indent="  ")
    if found.errors:
        click.echo("Errors:")
        write_aligned(
            [(f"{count:,} x", label) for label, count in list(found.errors.items())[:_SHOWN_ERRORS]], indent="  "
        )
    click.echo(_what_now(book, found))


def _what_now(book: BulkJournal, found: JournalStatus) -> str:
    resume = f"Go on with it:\n  {bulk_command('resume', (), book.path)}"
    stop = f"Stop what it started:\n  {bulk_command('stop', (), book.path)}"
    if found.is_locked:
        return "A process works on it now."
    if found.operation == "stop":
        return "No process works on it now."
    if found.rollback_started_at is not None:
        return stop if any(True for _ in book.streams()) else "All that it started was stopped."
    stuck = _stuck(book, found)
    if found.planned is not None and found.remaining > sum(stuck.values()):
        return f"{resume}\n{stop}"
    lines = []
    if stuck["calls"]:
        lines.append(
            f"{stuck['calls']:,} streams on calls may be running; a resumed run does not start them again, since a "
            f"call may take a second stream of the same name. To start them again all the same:\n"
            f"  {bulk_command('resume', ('--resend-call-starts',), book.path)}"
        )
    if stuck["unnamed"]:
        lines.append(
            f"{stuck['unnamed']:,} streams without a name may be running, and are never started again: end their "
            "conference or call to stop them."
        )
    return "\n".join([*lines, stop])


def _stuck(book: BulkJournal, found: JournalStatus) -> Counter[str]:
    """Count the starts that a resumed run would only report as unknown again."""
    stuck: Counter[str] = Counter()
    if found.planned is not None and found.remaining:
        for item in book.items("unknown", "intended"):
            if item.name is None:
                stuck["unnamed"] += 1
            elif item.kind == "call":
                stuck["calls"] += 1
    return stuck


def _status(journal: str, account: Account) -> JournalStatus:
    try:
        return BulkJournal(journal).status()
    except StreamsError as error:
        raise failure_of(error, as_json=account.as_json) from None


def _whose(account: Account, status: JournalStatus) -> Account:
    """Take from the journal what the command line does not say: whose run it is."""
    return evolve(account, space=account.space or status.origin, project=account.project or status.project)


@click.command(
    epilog=f"""{ENVIRONMENT}
\b
Space and project are the journal's own, where they are not said.

\b
Examples:
  signalwire-streams bulk resume bulk-20261121T101500Z-1f3a.db
  signalwire-streams bulk resume run.db targets.csv --bearer-token-file token.txt
""",
)
@click.argument("journal")
@click.argument("file", required=False)
@run_options
@resend_option
@secret_options
@account_options
def resume(
    account: Account,
    *,
    journal: str,
    file: str | None,
    concurrency: int | None,
    rate: float | None,
    resend_call_starts: bool,
    parameters: dict[str, str],
    authorization_bearer_token: str | None,
    status_callback: str | None,
) -> None:
    """Go on with a run that ended early.

    What runs is not sent again. What may run is sent again under its name, so that the Space can tell; on a
    call, or without a name, it is only told. Everything else is started.

    A journal keeps no secrets. Where the run had some, give them again: by the options, or by the FILE that they
    came from.
    """
    status = _status(journal, account)
    if status.planned is None:
        raise click.UsageError(
            f"{journal} was begun by a program, which knows what is left: resume it there, with resume=True"
        )
    secrets = Secrets(
        parameters,
        authorization_bearer_token,
        status_callback,
        {} if file is None else by_target(read_lines(read_source(file), "conference_sid")),
    )
    book = BulkJournal(journal)
    try:
        for _ in secrets.complete(book.requests()):  # all are there and right, before anything is sent
            pass
    except StreamsError as error:
        raise failure_of(error, as_json=account.as_json) from None

    async def prepare(client: StreamsClient) -> Job:
        requests = secrets.complete(book.requests())
        return Job(
            run=client.start_streams(requests, journal=book.path, resume=True, concurrency=concurrency),
            doing="start",
            planned=status.planned or 0,
            journal=book.path,
            has_secrets=any(not planned.is_complete for planned in book.requests()),
        )

    carry_out(_whose(account, status), Knobs(concurrency, rate, resend_call_starts), prepare)


@click.command(
    epilog=f"""{ENVIRONMENT}
\b
Space and project are the journal's own, where they are not said.

\b
Example:
  signalwire-streams bulk stop bulk-20261121T101500Z-1f3a.db
""",
)
@click.argument("journal")
@run_options
@account_options
def stop(account: Account, *, journal: str, concurrency: int | None, rate: float | None) -> None:
    """Stop every stream that a run started, or may have started.

    Each is stopped by its sid, or by its name where only that is known. It can be repeated until nothing is
    left. A run that is being stopped can't be resumed.
    """
    status = _status(journal, account)
    book = BulkJournal(journal)

    async def prepare(client: StreamsClient) -> Job:
        return Job(
            run=client.stop_started(book.path, concurrency=concurrency),
            doing="stop",
            planned=sum(1 for _ in book.streams()),
            journal=book.path,
        )

    carry_out(_whose(account, status), Knobs(concurrency, rate), prepare)


@click.group()
def bulk() -> None:
    """Start streams on thousands of conferences or calls; go on after a crash; stop them all."""


bulk.add_command(start)
bulk.add_command(resume)
bulk.add_command(status)
bulk.add_command(stop)
