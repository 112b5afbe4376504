"""``signalwire-streams bulk status``."""

from collections import Counter
from datetime import datetime

import click
from attrs import asdict

from signalwire_streams import BulkJournal, JournalStatus, StreamsError
from signalwire_streams.cli.bulk.conduct import words
from signalwire_streams.cli.bulk.summary import bulk_command
from signalwire_streams.cli.failures import failure_of
from signalwire_streams._cli.output import Column, clean, write_aligned, write_json, write_table

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
            (item.kind, item.target, words(item.state), item.sid, item.name, item.message)
            for item in book.items(*states)
        ],
    )


def _write(book: BulkJournal, found: JournalStatus) -> None:
    began = datetime.fromisoformat(found.began).strftime("%Y-%m-%d %H:%M:%S UTC")
    click.echo(f"Run {clean(found.run)} began on {began}, to {found.doing} streams on {clean(found.origin)}.")
    rows = [] if found.planned is None else [("planned", f"{found.planned:,}")]
    rows += [(words(state), f"{count:,}") for state, count in found.counts.items()]
    rows += [("attempts", f"{found.attempts:,}")]
    if found.undone_since is not None:
        rows += [("stopped again", f"{found.undone:,}")]
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
    if found.held:
        return "A process works on it now."
    if found.doing == "stop":
        return "No process works on it now."
    if found.undone_since is not None:
        return stop if any(True for _ in book.streams()) else "All that it started was stopped."
    stuck = _stuck(book, found)
    if found.planned is not None and found.unfinished > sum(stuck.values()):
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
    if found.planned is not None and found.unfinished:
        for item in book.items("unknown", "intended"):
            if item.name is None:
                stuck["unnamed"] += 1
            elif item.kind == "call":
                stuck["calls"] += 1
    return stuck
