"""The commands that read: conferences, calls and participants."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

import click
from attrs import asdict

from signalwire_streams import Call, CallStatus, Conference, ConferenceStatus, Listing, Participant, StreamsClient
from signalwire_streams.cli.account import ENVIRONMENT, Account, account_options
from signalwire_streams._cli.output import Column, clean, on_terminal, write_aligned, write_json, write_table

_Item = TypeVar("_Item", Conference, Call, Participant)
_PAGE_SIZE = 200
_DATE_TEXT = "_text"

_SID, _STATUS, _CREATED = Column("SID", whole=True), Column("STATUS", whole=True), Column("CREATED (UTC)", spare=True)
_JOINED = Column("JOINED (UTC)", spare=True)


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


@click.command(
    "get",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams conferences get CONFERENCE_SID
""",
)
@click.argument("conference_sid")
@account_options
def get_conference(account: Account, *, conference_sid: str) -> None:
    """Show one conference."""

    async def work(client: StreamsClient) -> None:
        conference = await client.conferences.get(conference_sid)
        if account.as_json:
            write_json(_item_facts(conference))
            return
        rows = {
            "sid": conference.sid,
            "name": conference.friendly_name,
            "status": conference.status,
            "region": conference.region,
            "created": _moment(conference.date_created, conference.date_created_text),
            "updated": _moment(conference.date_updated, conference.date_updated_text),
        }
        _write_fields(rows)

    account.perform(work)


@click.command(
    "get",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams calls get CALL_SID
""",
)
@click.argument("call_sid")
@account_options
def get_call(account: Account, *, call_sid: str) -> None:
    """Show one call."""

    async def work(client: StreamsClient) -> None:
        call = await client.calls.get(call_sid)
        if account.as_json:
            write_json(_item_facts(call))
            return
        rows = {
            "sid": call.sid,
            "status": call.status,
            "direction": call.direction,
            "from": call.from_,
            "to": call.to,
            "answered by": call.answered_by,
            "duration": None if call.duration is None else f"{call.duration:,} s",
            "created": _moment(call.date_created, call.date_created_text),
            "started": _moment(call.start_time, call.start_time_text),
            "ended": _moment(call.end_time, call.end_time_text),
        }
        _write_fields(rows)

    account.perform(work)


@click.command(
    "participants",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams conferences participants CONFERENCE_SID
""",
)
@click.argument("conference_sid")
@click.option("--muted/--not-muted", default=None, help="Only participants who are muted, or who are not.")
@click.option("--hold/--not-on-hold", default=None, help="Only participants on hold, or not on hold.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Maximum number of results.")
@account_options
def list_participants(
    account: Account, *, conference_sid: str, muted: bool | None, hold: bool | None, limit: int | None
) -> None:
    """List the participants of a conference.

    A table on a terminal, plain columns into a pipe, and with --json one object per line with every field.
    """

    async def work(client: StreamsClient) -> None:
        listing = client.conferences.participants(conference_sid, muted=muted, hold=hold, page_size=_page_size(limit))
        if account.as_json:
            await _write_each(listing, limit)
            return
        columns = [Column("CALL SID", whole=True), _STATUS, Column("MUTED"), Column("HOLD"), _JOINED]
        rows = [
            (one.call_sid, one.status, _yes_or_no(one.muted), _yes_or_no(one.hold), _created(one))
            for one in await _first(listing, limit)
        ]
        write_table(columns, rows)

    account.perform(work)


def _yes_or_no(value: bool | None) -> str | None:  # noqa: FBT001  (a cell)
    return None if value is None else "yes" if value else "no"


def _write_fields(rows: Mapping[str, object]) -> None:
    """Write the fields of one item, without those that the Space left out."""
    write_aligned([(label, clean(value)) for label, value in rows.items() if value is not None])


def _page_size(limit: int | None) -> int:
    return min(limit or _PAGE_SIZE, _PAGE_SIZE)


async def _first(listing: Listing[_Item], limit: int | None) -> list[_Item]:
    items: list[_Item] = []
    await _visit(listing, limit, items.append)
    return items


async def _write_each(listing: Listing[_Item], limit: int | None) -> None:
    """Write each item as soon as it is read, so that a long list can be cut short by its reader."""
    await _visit(listing, limit, lambda item: write_json(_item_facts(item)))


async def _visit(listing: Listing[_Item], limit: int | None, visit: Callable[[_Item], None]) -> None:
    seen = 0
    async for item in listing:
        visit(item)
        seen += 1
        if seen == limit:
            return


def _item_facts(item: Conference | Call | Participant) -> dict[str, object]:
    """Give every field under its name; each date twice, as the Space wrote it and in ISO 8601 where it is readable."""
    facts: dict[str, object] = {}
    for name, value in asdict(item).items():
        if name.endswith(_DATE_TEXT):
            date = name.removesuffix(_DATE_TEXT)
            moment: datetime | None = getattr(item, date)
            facts[date] = moment.isoformat() if moment is not None else None
        facts[name.removesuffix("_")] = value
    return facts


def _created(item: Conference | Call | Participant) -> str | None:
    moment, text = item.date_created, item.date_created_text
    if on_terminal() and (moment := _utc(moment)) is not None:
        this_year = moment.year == datetime.now(UTC).year
        return moment.strftime("%b %d %H:%M" if this_year else "%b %d  %Y")
    return _moment(moment, text)


def _moment(moment: datetime | None, text: str | None) -> str | None:
    """Return a date in UTC, or as the Space wrote it where it can't be read."""
    moment = _utc(moment)
    return text if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _utc(moment: datetime | None) -> datetime | None:
    try:
        return moment and moment.astimezone(UTC)
    except OverflowError:  # a date at the very end or beginning of the calendar
        return None
