"""``signalwire-streams bulk resume``, ``stop`` and ``status``: what is done with a run that there is already."""

import click
from attrs import evolve

from signalwire_streams import BulkJournal, JournalStatus, StreamsClient, StreamsError
from signalwire_streams.cli.account import ENVIRONMENT, Account, account_options
from signalwire_streams._cli.bulk.targets import read_lines
from signalwire_streams._cli.bulk.runner import Job, Knobs, carry_out, resend_option, run_options
from signalwire_streams.cli.bulk.source import read_source
from signalwire_streams.cli.bulk.withheld import Secrets, by_target
from signalwire_streams.cli.failures import failure_of
from signalwire_streams._cli.options import secret_options


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
            has_secrets=any(not planned.complete for planned in book.requests()),
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
            run=client.stop_run(book.path, concurrency=concurrency),
            doing="stop",
            planned=sum(1 for _ in book.streams()),
            journal=book.path,
        )

    carry_out(_whose(account, status), Knobs(concurrency, rate), prepare)
