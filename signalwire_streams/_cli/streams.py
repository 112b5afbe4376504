"""The commands ``conferences`` and ``calls``."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

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
    Decorator,
    account_options,
    adding,
    conference_options,
    reject_conference_options,
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
    write_table,
)

Noun = Literal["conference", "call"]
_Item = Conference | Call | Participant
_Stream = ConferenceStream | CallStream

_PAGE_SIZE = 200
_DATE_TEXT = "_text"
_SID, _STATUS, _CREATED = Column("SID", whole=True), Column("STATUS", whole=True), Column("CREATED (UTC)", spare=True)


def example(command: str) -> str:
    return f"{ENVIRONMENT}\n\b\nExample:\n  signalwire-streams {command}\n"


def _add_list_command(
    group: click.Group,
    name: str,
    columns: Mapping[Column, str],
    *options: Decorator,
    items: str,
    usage: str,
    list_items: Callable[..., Paginator[Any]],
) -> None:
    """Add a command that lists items, with these fields as columns of the table.

    With ``--json`` it writes each item as soon as it is read, so that the reader of a pipe can stop it.
    """

    @group.command(
        name,
        help=f"""List {items}.

        The output is a table on a terminal, plain columns in a pipe, and with --json one object per line with all
        fields.
        """,
        epilog=example(f"{group.name} {name} {usage}"),
    )
    @adding(*options)
    @click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Maximum number of results.")
    @account_options
    def list_command(account: Account, *, limit: int | None, **filters: Any) -> None:  # noqa: ANN401
        async def work(client: StreamsClient) -> None:
            rows: list[Sequence[object]] = []
            seen = 0
            async for item in list_items(client, page_size=min(limit or _PAGE_SIZE, _PAGE_SIZE), **filters):
                if account.as_json:
                    write_json(_item_facts(item))
                else:
                    rows.append([_value(item, field, short=is_terminal()) for field in columns.values()])
                seen += 1
                if seen == limit:
                    break
            if not account.as_json:
                write_table(list(columns), rows)

        account.run(work)


_LABELS = {
    "friendly_name": "name",
    "from_": "from",
    "answered_by": "answered by",
    "date_created": "created",
    "date_updated": "updated",
    "start_time": "started",
    "end_time": "ended",
}


def resource_of(client: StreamsClient, noun: Noun) -> Any:  # noqa: ANN401  (both have the same operations)
    return client.conferences if noun == "conference" else client.calls


def _value(item: _Item, field: str, *, short: bool = False) -> object:
    """Return a field as it is shown: a date in UTC, or as the Space wrote it if it could not be parsed."""
    value = getattr(item, field)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,} s"  # a call's duration, the only number
    if not hasattr(item, field + _DATE_TEXT):
        return value
    try:
        moment: datetime | None = value and value.astimezone(UTC)
    except OverflowError:  # a date at the very end or beginning of the calendar
        moment = None
    if moment is None:
        return getattr(item, field + _DATE_TEXT)
    if short:
        return moment.strftime("%b %d %H:%M" if moment.year == datetime.now(UTC).year else "%b %d  %Y")
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _item_facts(item: _Item) -> dict[str, object]:
    """Return all fields by name; each date twice, as the Space wrote it and in ISO 8601 if it could be parsed."""
    facts: dict[str, object] = {}
    for name, value in asdict(item).items():
        if name.endswith(_DATE_TEXT):
            date = name.removesuffix(_DATE_TEXT)
            moment: datetime | None = getattr(item, date)
            facts[date] = moment.isoformat() if moment is not None else None
        facts[name.removesuffix("_")] = value
    return facts


@frozen
class _Target:
    account: Account
    noun: Noun
    sid: str

    def start(self, **fields: Any) -> None:  # noqa: ANN401  (the options, which the client checks)
        attempts: list[Attempt] = []

        async def work(client: StreamsClient) -> None:
            self._write_started(await resource_of(client, self.noun).start_stream(self.sid, **fields))

        with silenced(OUTCOMES):
            try:
                self.account.run(work, on_attempt=attempts.append)
            except KeyboardInterrupt:
                raise self._interruption(attempts) from None

    def stop(self, handle: str) -> None:
        async def work(client: StreamsClient) -> None:
            stream: _Stream = await resource_of(client, self.noun).stop_stream(self.sid, handle)
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

    def end(self) -> None:
        async def work(client: StreamsClient) -> None:
            item: Conference | Call = await resource_of(client, self.noun).end(self.sid)
            with noting(f"the {self.noun} was ended"):
                if self.account.as_json:
                    write_json(_item_facts(item))
                else:
                    click.echo(f"Ended {self.noun} {clean(self.sid)}, and the streams on it.")

        try:
            self.account.run(work)
        except KeyboardInterrupt:
            message = f"interrupted: the {self.noun} may still be in progress; end it again"
            raise Interruption(message, as_json=self.account.as_json) from None

    def _write_started(self, stream: _Stream) -> None:
        # The sid of an ambiguous stream may be that of a second one, which the Space rejected; the name is certain.
        handle = stream.name if stream.ambiguous and stream.name else stream.sid or stream.name
        stop = self._stop_command(handle) if handle else None
        note = f"the stream was started: sid {stream.sid or '-'}, name {stream.name or '-'}"
        note += "" if stop is None else f"; stop it with: {stop}"
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
        sent = "maybe" if was_sent else "no"
        stop = self._stop_command(name) if was_sent and name else None
        end = self.account.command(f"{self.noun}s end", self.sid)
        remedy = f"stop it with: {stop}" if stop else f"end the {self.noun} to stop it: {end}"
        return Interruption(
            f"interrupted: the stream may be running; {remedy}" if was_sent else "interrupted: nothing was sent",
            {"sent": sent, "attempts": len(attempts), "target": self.sid, "name": name, "stop_command": stop},
            as_json=self.account.as_json,
        )

    def _stop_command(self, handle: str) -> str:
        return self.account.command(f"{self.noun}s stop-stream", self.sid, handle)


def _write_stream(stream: _Stream) -> None:
    facts = (("sid", stream.sid), ("name", stream.name), ("status", stream.status))
    write_aligned([(label, clean(value or "-")) for label, value in facts], indent="  ")


def _stream_facts(stream: _Stream) -> dict[str, object]:
    """Return the fields that the client knows; unknown ones could repeat a secret of the start."""
    facts = asdict(stream, filter=lambda attribute, _: attribute.name != "extra")
    moment = stream.date_updated
    return {**facts, "date_updated": moment.isoformat() if moment is not None else None}


def _group(noun: Noun, fields: Sequence[str], start_help: str, start_example: str) -> click.Group:
    """Create the commands of conferences or calls, except the lists; *fields* are those that ``get`` shows."""
    nouns, metavar, is_call = f"{noun}s", f"{noun.upper()}_SID", noun == "call"
    group = click.Group(nouns, help=f"List, show and end {nouns}; start and stop streams on them.")

    @group.command(help=f"Show one {noun}.", epilog=example(f"{nouns} get {metavar}"))
    @click.argument("sid", metavar=metavar)
    @account_options
    def get(account: Account, *, sid: str) -> None:
        async def work(client: StreamsClient) -> None:
            item = await resource_of(client, noun).get(sid)
            if account.as_json:
                write_json(_item_facts(item))
                return
            values = {_LABELS.get(field, field): _value(item, field) for field in fields}
            # The Space leaves some out.
            write_aligned([(label, clean(value)) for label, value in values.items() if value is not None])

        account.run(work)

    @group.command(help=start_help, epilog=example(f"{nouns} start-stream {metavar} {start_example}"))
    @click.argument("sid", metavar=metavar)
    @start_options
    @conference_options(hidden=is_call)
    @account_options
    def start_stream(account: Account, *, sid: str, **fields: Any) -> None:  # noqa: ANN401  (the client checks them)
        if is_call:
            reject_conference_options(fields, "a call")
            fields = {name: value for name, value in fields.items() if name not in CONFERENCE_ONLY}
        _Target(account, noun, sid).start(**fields)

    @group.command(
        help=f"Stop a stream on a {noun}, by its sid or its name.",
        epilog=example(f"{nouns} stop-stream {metavar} audit-1"),
    )
    @click.argument("sid", metavar=metavar)
    @click.argument("stream")
    @account_options
    def stop_stream(account: Account, *, sid: str, stream: str) -> None:
        _Target(account, noun, sid).stop(stream)

    @group.command(
        help=f"""End a {noun}, and with it the streams on it.

        It is safe to repeat: a {noun} that has ended before counts as ended.
        """,
        epilog=example(f"{nouns} end {metavar}"),
    )
    @click.argument("sid", metavar=metavar)
    @account_options
    def end(account: Account, *, sid: str) -> None:
        _Target(account, noun, sid).end()

    return group


conferences = _group(
    "conference",
    ["sid", "friendly_name", "status", "region", "date_created", "date_updated"],
    """Stream a conference's audio to a WebSocket server.

    If the response is lost, the start is retried under the same name, so that the stream is started once. If it
    stays unknown whether the stream is running, the error says so.
    """,
    "\\\n      --url wss://audio.example.com/live --codec PCMU --parameter tenant=acme",
)
calls = _group(
    "call",
    ["sid", "status", "direction", "from_", "to", "answered_by", "duration", "date_created", "start_time", "end_time"],
    """Stream a call's audio to a WebSocket server.

    Rejection of duplicate names is documented for conferences only. A start on a call is therefore not retried
    if its response is lost; the error then says that the stream may be running.
    """,
    "--url wss://audio.example.com/live",
)
_add_list_command(
    conferences,
    "list",
    {_SID: "sid", _STATUS: "status", Column("NAME"): "friendly_name", _CREATED: "date_created"},
    click.option("--status", type=click.Choice([word.value for word in ConferenceStatus]), help="Filter by status."),
    click.option("--friendly-name", metavar="NAME", help="Filter by friendly name."),
    items="the project's conferences",
    usage="--status in-progress --limit 20",
    list_items=lambda client, **filters: client.conferences.list(**filters),
)
_add_list_command(
    conferences,
    "participants",
    {
        Column("CALL SID", whole=True): "call_sid",
        _STATUS: "status",
        Column("MUTED"): "muted",
        Column("HOLD"): "hold",
        Column("JOINED (UTC)", spare=True): "date_created",
    },
    click.argument("conference_sid"),
    click.option("--muted/--not-muted", default=None, help="Only participants who are muted, or who are not."),
    click.option("--hold/--not-on-hold", default=None, help="Only participants on hold, or not on hold."),
    items="the participants of a conference",
    usage="CONFERENCE_SID",
    list_items=lambda client, conference_sid, **filters: client.conferences.participants(conference_sid, **filters),
)
_add_list_command(
    calls,
    "list",
    {_SID: "sid", _STATUS: "status", Column("FROM"): "from_", Column("TO"): "to", _CREATED: "date_created"},
    click.option("--status", type=click.Choice([word.value for word in CallStatus]), help="Filter by status."),
    click.option("--from", "from_", metavar="ADDRESS", help="Filter by the caller's number or address."),
    click.option("--to", metavar="ADDRESS", help="Filter by the called number or address."),
    items="the project's calls",
    usage="--status in-progress --from +12015550100",
    list_items=lambda client, **filters: client.calls.list(**filters),
)
