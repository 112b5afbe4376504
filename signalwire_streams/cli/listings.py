"""The commands that list: conferences and calls."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import click
from attrs import asdict

from signalwire_streams import Call, CallStatus, Conference, ConferenceStatus, Listing, StreamsClient
from signalwire_streams.cli.account import ENVIRONMENT, Account, account_options
from signalwire_streams.cli.output import Column, on_terminal, write_json, write_table

_Item = TypeVar("_Item", Conference, Call)
_PAGE_SIZE = 200
_DATE_TEXT = "_text"

_SID, _STATUS, _CREATED = Column("SID", whole=True), Column("STATUS", whole=True), Column("CREATED (UTC)", spare=True)


@click.command(
    "list",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams conferences list --status in-progress --limit 20
""",
)
@click.option(
    "--status", type=click.Choice([word.value for word in ConferenceStatus]), help="Only those in this state."
)
@click.option("--friendly-name", metavar="NAME", help="Only the room of this name.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many.")
@account_options
def list_conferences(account: Account, *, status: str | None, friendly_name: str | None, limit: int | None) -> None:
    """List the project's conferences.

    A table on a terminal, plain columns into a pipe, and with --json one object per line with every field.
    """

    async def work(client: StreamsClient) -> None:
        listing = client.conferences.list(status=status, friendly_name=friendly_name, page_size=_page_size(limit))
        if account.as_json:
            await _write_each(listing, limit)
            return
        rows = [
            (conference.sid, conference.status, conference.friendly_name, _created(conference))
            for conference in await _first(listing, limit)
        ]
        write_table([_SID, _STATUS, Column("NAME"), _CREATED], rows)

    account.perform(work)


@click.command(
    "list",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams calls list --status in-progress --from +12015550100
""",
)
@click.option("--status", type=click.Choice([word.value for word in CallStatus]), help="Only those in this state.")
@click.option("--from", "from_", metavar="ADDRESS", help="Only those from this number or address.")
@click.option("--to", metavar="ADDRESS", help="Only those to this number or address.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many.")
@account_options
def list_calls(account: Account, *, status: str | None, from_: str | None, to: str | None, limit: int | None) -> None:
    """List the project's calls.

    A table on a terminal, plain columns into a pipe, and with --json one object per line with every field.
    """

    async def work(client: StreamsClient) -> None:
        listing = client.calls.list(status=status, from_=from_, to=to, page_size=_page_size(limit))
        if account.as_json:
            await _write_each(listing, limit)
            return
        rows = [(call.sid, call.status, call.from_, call.to, _created(call)) for call in await _first(listing, limit)]
        write_table([_SID, _STATUS, Column("FROM"), Column("TO"), _CREATED], rows)

    account.perform(work)


def _page_size(limit: int | None) -> int:
    return min(limit or _PAGE_SIZE, _PAGE_SIZE)


async def _first(listing: Listing[_Item], limit: int | None) -> list[_Item]:
    items: list[_Item] = []
    await _visit(listing, limit, items.append)
    return items


async def _write_each(listing: Listing[_Item], limit: int | None) -> None:
    """Write each item as soon as it is read, so that a long list can be cut short by its reader."""
    await _visit(listing, limit, lambda item: write_json(_facts(item)))


async def _visit(listing: Listing[_Item], limit: int | None, visit: Callable[[_Item], None]) -> None:
    seen = 0
    async for item in listing:
        visit(item)
        seen += 1
        if seen == limit:
            return


def _facts(item: Conference | Call) -> dict[str, object]:
    """Give every field under its name; each date twice, as the Space wrote it and in ISO 8601 where it is readable."""
    facts: dict[str, object] = {}
    for name, value in asdict(item).items():
        if name.endswith(_DATE_TEXT):
            date = name.removesuffix(_DATE_TEXT)
            moment: datetime | None = getattr(item, date)
            facts[date] = moment.isoformat() if moment is not None else None
        facts[name.removesuffix("_")] = value
    return facts


def _created(item: Conference | Call) -> str | None:
    moment, text = item.date_created, item.date_created_text
    if moment is None:
        return text
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:  # a date at the very end or beginning of the calendar
        return text
    if not on_terminal():
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    this_year = moment.year == datetime.now(UTC).year
    return moment.strftime("%b %d %H:%M" if this_year else "%b %d  %Y")
