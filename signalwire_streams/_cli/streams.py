"""The commands ``conferences`` and ``calls``."""

import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import click
from attrs import asdict, frozen

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
    CONFERENCE_ONLY,
    ENVIRONMENT,
    Account,
    account_options,
    conference_options,
    limit_option,
    refuse_conference_options,
    start_options,
)
from signalwire_streams._cli.output import (
    OUTCOMES,
    Column,
    Interruption,
    clean,
    is_terminal,
    noting,
    silenced,
    write_aligned,
    write_json,
    write_note,
    write_table,
)

Noun = Literal["conference", "call"]
_Item = TypeVar("_Item", Conference, Call, Participant)
_Stream = ConferenceStream | CallStream

_PAGE_SIZE = 200
_DATE_TEXT = "_text"
_SID, _STATUS, _CREATED = Column("SID", whole=True), Column("STATUS", whole=True), Column("CREATED (UTC)", spare=True)


def example(command: str) -> str:
    """Return the epilog of a command that needs an account."""
    return f"{ENVIRONMENT}\n\b\nExample:\n  signalwire-streams {command}\n"


def _write_listing(
    account: Account,
    limit: int | None,
    listing: Callable[[StreamsClient, int], Paginator[_Item]],
    columns: Sequence[Column],
    row: Callable[[_Item], Sequence[object]],
) -> None:
    """Write a table of items, or each as JSON as soon as it is read, so that the reader of a pipe can stop it."""

    async def work(client: StreamsClient) -> None:
        rows: list[Sequence[object]] = []
        seen = 0
        async for item in listing(client, min(limit or _PAGE_SIZE, _PAGE_SIZE)):
            if account.as_json:
                write_json(_item_facts(item))
            else:
                rows.append(row(item))
            seen += 1
            if seen == limit:
                break
        if not account.as_json:
            write_table(columns, rows)

    account.run(work)


@click.group()
def conferences() -> None:
    """List and show conferences; start and stop streams on them."""


@click.group()
def calls() -> None:
    """List and show calls; start and stop streams on them."""


@conferences.command("list", epilog=example("conferences list --status in-progress --limit 20"))
@click.option("--status", type=click.Choice([word.value for word in ConferenceStatus]), help="Filter by status.")
@click.option("--friendly-name", metavar="NAME", help="Filter by friendly name.")
@limit_option
@account_options
def list_conferences(account: Account, *, limit: int | None, **filters: Any) -> None:  # noqa: ANN401
    """List the project's conferences.

    Writes a table on a terminal, plain columns into a pipe, and with --json one object per line with all fields.
    """
    _write_listing(
        account,
        limit,
        lambda client, page_size: client.conferences.list(page_size=page_size, **filters),
        [_SID, _STATUS, Column("NAME"), _CREATED],
        lambda one: (one.sid, one.status, one.friendly_name, _created(one)),
    )


@calls.command("list", epilog=example("calls list --status in-progress --from +12015550100"))
@click.option("--status", type=click.Choice([word.value for word in CallStatus]), help="Filter by status.")
@click.option("--from", "from_", metavar="ADDRESS", help="Filter by the caller's number or address.")
@click.option("--to", metavar="ADDRESS", help="Filter by the called number or address.")
@limit_option
@account_options
def list_calls(account: Account, *, limit: int | None, **filters: Any) -> None:  # noqa: ANN401
    """List the project's calls.

    Writes a table on a terminal, plain columns into a pipe, and with --json one object per line with all fields.
    """
    _write_listing(
        account,
        limit,
        lambda client, page_size: client.calls.list(page_size=page_size, **filters),
        [_SID, _STATUS, Column("FROM"), Column("TO"), _CREATED],
        lambda one: (one.sid, one.status, one.from_, one.to, _created(one)),
    )


@conferences.command("participants", epilog=example("conferences participants CONFERENCE_SID"))
@click.argument("conference_sid")
@click.option("--muted/--not-muted", default=None, help="Only participants who are muted, or who are not.")
@click.option("--hold/--not-on-hold", default=None, help="Only participants on hold, or not on hold.")
@limit_option
@account_options
def list_participants(account: Account, *, conference_sid: str, limit: int | None, **filters: Any) -> None:  # noqa: ANN401
    """List the participants of a conference.

    Writes a table on a terminal, plain columns into a pipe, and with --json one object per line with all fields.
    """
    columns = [
        Column("CALL SID", whole=True),
        _STATUS,
        Column("MUTED"),
        Column("HOLD"),
        Column("JOINED (UTC)", spare=True),
    ]
    _write_listing(
        account,
        limit,
        lambda client, page_size: client.conferences.participants(conference_sid, page_size=page_size, **filters),
        columns,
        lambda one: (one.call_sid, one.status, _yes_or_no(one.muted), _yes_or_no(one.hold), _created(one)),
    )


def _yes_or_no(value: bool | None) -> str | None:  # noqa: FBT001  (a cell)
    return None if value is None else "yes" if value else "no"


@conferences.command("get", epilog=example("conferences get CONFERENCE_SID"))
@click.argument("sid", metavar="CONFERENCE_SID")
@account_options
def get_conference(account: Account, *, sid: str) -> None:
    """Show one conference."""
    _write_item(account, lambda client: client.conferences.get(sid), _conference_rows)


@calls.command("get", epilog=example("calls get CALL_SID"))
@click.argument("sid", metavar="CALL_SID")
@account_options
def get_call(account: Account, *, sid: str) -> None:
    """Show one call."""
    _write_item(account, lambda client: client.calls.get(sid), _call_rows)


def _write_item(
    account: Account,
    get: Callable[[StreamsClient], Awaitable[_Item]],
    rows: Callable[[_Item], Mapping[str, object]],
) -> None:
    """Write the fields of one item, without those that the Space left out."""

    async def work(client: StreamsClient) -> None:
        item = await get(client)
        if account.as_json:
            write_json(_item_facts(item))
        else:
            write_aligned([(label, clean(value)) for label, value in rows(item).items() if value is not None])

    account.run(work)


def _conference_rows(conference: Conference) -> Mapping[str, object]:
    return {
        "sid": conference.sid,
        "name": conference.friendly_name,
        "status": conference.status,
        "region": conference.region,
        "created": _moment(conference.date_created, conference.date_created_text),
        "updated": _moment(conference.date_updated, conference.date_updated_text),
    }


def _call_rows(call: Call) -> Mapping[str, object]:
    return {
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


def _item_facts(item: Conference | Call | Participant) -> dict[str, object]:
    """Return all fields by name; each date twice, as the Space wrote it and in ISO 8601 if it could be parsed."""
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
    if is_terminal() and (moment := _utc(moment)) is not None:
        this_year = moment.year == datetime.now(UTC).year
        return moment.strftime("%b %d %H:%M" if this_year else "%b %d  %Y")
    return _moment(moment, text)


def _moment(moment: datetime | None, text: str | None) -> str | None:
    """Return a date in UTC, or as the Space wrote it if it could not be parsed."""
    moment = _utc(moment)
    return text if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _utc(moment: datetime | None) -> datetime | None:
    try:
        return moment and moment.astimezone(UTC)
    except OverflowError:  # a date at the very end or beginning of the calendar
        return None


@frozen
class _Target:
    account: Account
    noun: Noun
    sid: str

    def start(self, **fields: Any) -> None:  # noqa: ANN401  (the options, which the client checks)
        """Start a stream, and print how to stop it."""
        attempts: list[Attempt] = []

        async def work(client: StreamsClient) -> None:
            resource: Any = client.conferences if self.noun == "conference" else client.calls
            self._write_started(await resource.start_stream(self.sid, **fields))

        with silenced(OUTCOMES):
            try:
                self.account.run(work, on_attempt=attempts.append)
            except KeyboardInterrupt:
                raise self._interruption(attempts) from None

    def stop(self, handle: str) -> None:
        async def work(client: StreamsClient) -> None:
            resource: Any = client.conferences if self.noun == "conference" else client.calls
            stream: _Stream = await resource.stop_stream(self.sid, handle)
            with noting("the stream was stopped"):
                if self.account.as_json:
                    write_json(_stream_facts(stream))
                    return
                ended = " It had already ended." if stream.already_ended else ""
                click.echo(f"Stopped a stream on {self.noun} {clean(self.sid)}.{ended}")
                _write_stream(stream)

        try:
            self.account.run(work)
        except KeyboardInterrupt:
            message = "interrupted: the stream may still be running; stop it again"
            raise Interruption(message, as_json=self.account.as_json) from None

    def _write_started(self, stream: _Stream) -> None:
        # The sid of an ambiguous stream may be that of a second one, which the Space refused; the name is certain.
        handle = stream.name if stream.ambiguous and stream.name else stream.sid or stream.name
        stop = self._stop_command(handle) if handle else None
        note = f"the stream was started: sid {stream.sid or '-'}, name {stream.name or '-'}"
        note += "" if stop is None else f"; stop it with: {stop}"
        if sys.stdout is None:  # the shell closed it
            write_note(note)
        with noting(note, also_for_pipes=True):
            if self.account.as_json:
                write_json({**_stream_facts(stream), "stop_command": stop})
                return
            click.echo(f"Started a stream on {self.noun} {clean(self.sid)}.")
            _write_stream(stream)
            if stream.ambiguous:
                handle_is = "its name is the handle" if stream.name else "it has no other handle"
                click.echo(f"The sid may be another stream's; {handle_is}.")
            if stop is not None:
                click.echo(f"Stop it with:\n  {stop}")

    def _interruption(self, attempts: Sequence[Attempt]) -> Interruption:
        name = attempts[-1].name if attempts else None
        was_sent = any(attempt.sent != "no" for attempt in attempts)
        stop = self._stop_command(name) if was_sent and name else None
        remedy = f"stop it with: {stop}" if stop else f"end the {self.noun} to stop it"
        return Interruption(
            f"interrupted: the stream may be running; {remedy}" if was_sent else "interrupted: nothing was sent",
            {
                "sent": "maybe" if was_sent else "no",
                "attempts": len(attempts),
                "target": self.sid,
                "name": name,
                "stop_command": stop,
            },
            as_json=self.account.as_json,
        )

    def _stop_command(self, handle: str) -> str:
        words = ["signalwire-streams", f"{self.noun}s", "stop-stream", *self.account.options]
        if self.sid.startswith("-") or handle.startswith("-"):
            words.append("--")
        return shlex.join([*words, self.sid, handle])


def _write_stream(stream: _Stream) -> None:
    facts = (("sid", stream.sid), ("name", stream.name), ("status", stream.status))
    write_aligned([(label, clean(value or "-")) for label, value in facts], indent="  ")


def _stream_facts(stream: _Stream) -> dict[str, object]:
    """Return the fields that the client knows; unknown ones could repeat a secret of the start."""
    facts = asdict(stream, filter=lambda attribute, _: attribute.name != "extra")
    moment = stream.date_updated
    return {**facts, "date_updated": moment.isoformat() if moment is not None else None}


def _add_stream_commands(group: click.Group, noun: Noun, start_help: str, start_example: str) -> None:
    """Add ``start-stream`` and ``stop-stream`` to a group."""
    metavar = f"{noun.upper()}_SID"
    is_call = noun == "call"

    @group.command("start-stream", help=start_help, epilog=example(f"{noun}s start-stream {metavar} {start_example}"))
    @click.argument("sid", metavar=metavar)
    @start_options
    @conference_options(hidden=is_call)
    @account_options
    def start(account: Account, *, sid: str, **fields: Any) -> None:  # noqa: ANN401  (the client checks them)
        if is_call:
            refuse_conference_options(fields, "a call")
            fields = {name: value for name, value in fields.items() if name not in CONFERENCE_ONLY}
        _Target(account, noun, sid).start(**fields)

    @group.command(
        "stop-stream",
        help=f"Stop a stream on a {noun}, given by its sid or its name.",
        epilog=example(f"{noun}s stop-stream {metavar} audit-1"),
    )
    @click.argument("sid", metavar=metavar)
    @click.argument("stream")
    @account_options
    def stop(account: Account, *, sid: str, stream: str) -> None:
        _Target(account, noun, sid).stop(stream)


_add_stream_commands(
    conferences,
    "conference",
    """Stream a conference's audio to a WebSocket server.

    If the response is lost, the start is retried under the same name, so that the stream is started once. If it
    remains unknown whether the stream runs, the error says so.
    """,
    "\\\n      --url wss://audio.example.com/live --codec PCMU --parameter tenant=acme",
)
_add_stream_commands(
    calls,
    "call",
    """Stream a call's audio to a WebSocket server.

    Rejection of duplicate names is documented for conferences only. A start on a call is therefore not retried
    if its response is lost; the error then says that the stream may be running.
    """,
    "--url wss://audio.example.com/live",
)
