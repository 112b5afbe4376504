"""The commands that read: conferences, calls and participants."""

import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Literal, TypeVar, Unpack

import click
from attrs import asdict, define, field

from signalwire_streams import (
    Attempt,
    Call,
    CallStatus,
    CallStream,
    Conference,
    ConferenceStatus,
    ConferenceStream,
    Paginator,
    Participant,
    StreamsClient,
)
from signalwire_streams._cli.options import (
    ENVIRONMENT,
    Account,
    StartFields,
    account_options,
    conference_options,
    start_options,
)
from signalwire_streams._cli.output import (
    OUTCOMES,
    Column,
    Interruption,
    clean,
    noting,
    on_terminal,
    silenced,
    write_aligned,
    write_json,
    write_note,
    write_table,
)

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


async def _first(listing: Paginator[_Item], limit: int | None) -> list[_Item]:
    items: list[_Item] = []
    await _visit(listing, limit, items.append)
    return items


async def _write_each(listing: Paginator[_Item], limit: int | None) -> None:
    """Write each item as soon as it is read, so that a long list can be cut short by its reader."""
    await _visit(listing, limit, lambda item: write_json(_item_facts(item)))


async def _visit(listing: Paginator[_Item], limit: int | None, visit: Callable[[_Item], None]) -> None:
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


Noun = Literal["conference", "call"]
Stream = ConferenceStream | CallStream


@define(eq=False)
class Start:
    """One start from the command line.

    Attributes:
        account: where it goes.
        noun: what the stream is started on.
        target: the sid of that.
        send: calls the client.
    """

    account: Account
    noun: Noun
    target: str
    send: Callable[[StreamsClient], Awaitable[Stream]]
    _attempts: list[Attempt] = field(factory=list, init=False)

    def run(self) -> None:
        """Start the stream and say how it is stopped."""
        with silenced(OUTCOMES):
            try:
                self.account.perform(self._work, on_attempt=self._attempts.append)
            except Interruption:
                raise self._interruption() from None

    async def _work(self, client: StreamsClient) -> None:
        stream = await self.send(client)
        # A sid that came after a repeated attempt may be that of the refused second stream; the name is sure.
        handle = stream.name if stream.ambiguous and stream.name else stream.sid or stream.name
        stop = self._stop_command(handle) if handle else None
        way = "" if stop is None else f"; stop it with: {stop}"
        handle_note = f"the stream was started: sid {stream.sid or '-'}, name {stream.name or '-'}{way}"
        if sys.stdout is None:  # the shell closed it
            write_note(handle_note)
        with noting(handle_note, also_for_pipes=True):
            if self.account.as_json:
                write_json({**_facts(stream), "stop_command": stop})
                return
            click.echo(f"Started a stream on {self.noun} {clean(self.target)}.")
            _write(stream)
            if stream.ambiguous:
                click.echo("An earlier attempt may have started it. Its name is the handle; the sid may be wrong.")
            if stop is not None:
                click.echo(f"Stop it with:\n  {stop}")

    def _interruption(self) -> Interruption:
        """Return what an interrupted start may have left behind."""
        name = self._attempts[-1].name if self._attempts else None
        was_sent = any(attempt.sent != "no" for attempt in self._attempts)
        stop = self._stop_command(name) if was_sent and name else None
        way = f"stop it with: {stop}" if stop else f"end the {self.noun} to stop it"
        return Interruption(
            f"interrupted: the stream may be running; {way}" if was_sent else "interrupted: nothing was sent",
            {
                "sent": "maybe" if was_sent else "no",
                "attempts": len(self._attempts),
                "target": self.target,
                "name": name,
                "stop_command": stop,
            },
            as_json=self.account.as_json,
        )

    def _stop_command(self, handle: str) -> str:
        words = ["signalwire-streams", f"{self.noun}s", "stop-stream", *self.account.options]
        if self.target.startswith("-") or handle.startswith("-"):
            words.append("--")
        return shlex.join([*words, self.target, handle])


def stop(account: Account, noun: Noun, target: str, send: Callable[[StreamsClient], Awaitable[Stream]]) -> None:
    """Stop a stream and say so."""

    async def work(client: StreamsClient) -> None:
        stream = await send(client)
        with noting("the stream was stopped"):
            if account.as_json:
                write_json(_facts(stream))
                return
            ended = " It had already ended." if stream.already_ended else ""
            click.echo(f"Stopped a stream on {noun} {clean(target)}.{ended}")
            _write(stream)

    try:
        account.perform(work)
    except Interruption:
        message = "interrupted: the stream may still be running; stop it again"
        raise Interruption(message, as_json=account.as_json) from None


def _write(stream: Stream) -> None:
    facts = (("sid", stream.sid), ("name", stream.name), ("status", stream.status))
    write_aligned([(label, clean(value or "-")) for label, value in facts], indent="  ")


def _facts(stream: Stream) -> dict[str, object]:
    """Give the fields that the client knows; others could repeat a secret of the start."""
    facts = asdict(stream, filter=lambda attribute, _: attribute.name != "extra")
    moment = stream.date_updated
    return {**facts, "date_updated": moment.isoformat() if moment is not None else None}


@click.group()
def calls() -> None:
    """List and show calls; start and stop streams on them."""


calls.add_command(list_calls)
calls.add_command(get_call)


def _refuse(_: click.Context, option: click.Parameter, value: object) -> None:
    if value is not None:
        raise click.UsageError(f"--{option.name} is for conference streams only: leave it out on a call")


def _conference_options(command: Callable[..., None]) -> Callable[..., None]:
    """Take the options that only a conference's start has, to say so."""
    for names, is_switch in ((("--codec",), False), (("--realtime/--no-realtime",), True)):
        command = click.option(
            *names, default=None, is_flag=is_switch, hidden=True, expose_value=False, callback=_refuse
        )(command)
    return command


@calls.command(
    "start-stream",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams calls start-stream CALL_SID --url wss://audio.example.com/live
""",
)
@click.argument("call_sid")
@start_options
@_conference_options
@account_options
def start_call_stream(account: Account, *, call_sid: str, **fields: Unpack[StartFields]) -> None:
    """Copy a call's audio to a WebSocket server.

    That a Space refuses a second stream of the same name is documented for conferences only. So a start on a
    call whose answer was lost is not sent again: the error then says that the stream may be running.
    """
    Start(account, "call", call_sid, lambda client: client.calls.start_stream(call_sid, **fields)).run()


@calls.command(
    "stop-stream",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams calls stop-stream CALL_SID audit-1
""",
)
@click.argument("call_sid")
@click.argument("stream")
@account_options
def stop_call_stream(account: Account, *, call_sid: str, stream: str) -> None:
    """Stop a call's stream, given by its sid or its name."""
    stop(account, "call", call_sid, lambda client: client.calls.stop_stream(call_sid, stream))


@click.group()
def conferences() -> None:
    """List and show conferences; start and stop streams on them."""


conferences.add_command(list_conferences)
conferences.add_command(get_conference)
conferences.add_command(list_participants)


@conferences.command(
    "start-stream",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams conferences start-stream CONFERENCE_SID \\
      --url wss://audio.example.com/live --codec PCMU --parameter tenant=acme
""",
)
@click.argument("conference_sid")
@start_options
@conference_options
@account_options
def start_conference_stream(
    account: Account, *, conference_sid: str, codec: str | None, realtime: bool | None, **fields: Unpack[StartFields]
) -> None:
    """Copy a conference's audio to a WebSocket server.

    A lost answer is followed by another attempt under the same name, so that the stream is started once. When
    it can't be told whether it runs, that is what the error says.
    """
    Start(
        account,
        "conference",
        conference_sid,
        lambda client: client.conferences.start_stream(conference_sid, codec=codec, realtime=realtime, **fields),
    ).run()


@conferences.command(
    "stop-stream",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams conferences stop-stream CONFERENCE_SID audit-1
""",
)
@click.argument("conference_sid")
@click.argument("stream")
@account_options
def stop_conference_stream(account: Account, *, conference_sid: str, stream: str) -> None:
    """Stop a conference's stream, given by its sid or its name."""
    stop(
        account,
        "conference",
        conference_sid,
        lambda client: client.conferences.stop_stream(conference_sid, stream),
    )
