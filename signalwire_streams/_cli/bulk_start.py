"""``signalwire-streams bulk start``."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any, Literal

import click
from attrs import asdict

from signalwire_streams import Call, Conference, PlannedRequest, StartConferenceStream, StreamsClient
from signalwire_streams._cli.bulk_runner import Job, Knobs, carry_out, resend_option, run_options
from signalwire_streams._cli.bulk_targets import Defaults, Requests, Start, read_lines, read_source
from signalwire_streams._cli.options import (
    ENVIRONMENT,
    Account,
    account_options,
    bulk_start_options,
    conference_options,
)
from signalwire_streams._cli.output import Misuse, clean, write_aligned, write_json

_HIDDEN = "***"


def write_dry_run(requests: Sequence[Start], *, as_json: bool) -> None:
    """Write the requests, one per line."""
    if as_json:
        for request in requests:
            write_json(_facts(request))
        return
    if requests:
        write_aligned([_cells(request) for request in requests])
    click.echo(f"{len(requests):,} streams would be started. Nothing was sent.")


def _facts(request: Start) -> Mapping[str, Any]:
    planned = PlannedRequest.from_request(request)
    fields = asdict(planned.request)
    kind = "conference" if isinstance(request, StartConferenceStream) else "call"
    fields.pop(f"{kind}_sid")
    hidden: dict[str, Any] = {"parameters": dict.fromkeys(planned.parameters, _HIDDEN)}
    if planned.bearer_token:
        hidden["authorization_bearer_token"] = _HIDDEN
    if planned.status_callback:
        hidden["status_callback"] = _HIDDEN
    return {
        "kind": kind,
        "target": request.target,
        **{name: value for name, value in {**fields, **hidden}.items() if value not in (None, {})},
        "name": request.name if request.name or request.unnamed else f"sws-RUN-{request.target}",
    }


def _cells(request: Start) -> tuple[str, ...]:
    facts = dict(_facts(request))
    first = [facts.pop(name) or "-" for name in ("kind", "target", "name", "url")]
    words = [f"{name}={_spell(value)}" for name, value in facts.items() if (name, value) != ("unnamed", False)]
    return (*map(clean, first), clean(" ".join(words)))


def _spell(value: object) -> str:
    return ",".join(value) if isinstance(value, dict) else str(value)


Kind = Literal["conference", "call"]
_IN_PROGRESS = "in-progress"
_PAGE_SIZE = 1_000


FILES = """\b
FILE has one id per line, and comments that begin with "# "; or it is CSV whose
first line names its columns, as spreadsheets save it; or it has one JSON object
per line. CSV and JSON can say more of each stream:
  conference_sid or call_sid, url, name, unnamed, track, codec, realtime,
  status_callback, status_callback_method, authorization_bearer_token,
  and parameters (JSON: an object; CSV: a column parameters.NAME for each)
"""


@click.command(
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
@click.argument("file", required=False)
@click.option("--all-in-progress", is_flag=True, help="Instead of FILE: all that are live now.")
@click.option(
    "--kind",
    type=click.Choice(["conference", "call"]),
    default="conference",
    show_default=True,
    help="What bare ids are, and what --all-in-progress lists.",
)
@click.option("--journal", metavar="PATH", help="The run's journal; bulk-TIME.db in this folder if left out.")
@click.option("--skip-invalid", is_flag=True, help="Start the good lines although others are wrong.")
@click.option("--dry-run", is_flag=True, help="Write what would be sent, and send nothing.")
@run_options
@resend_option
@bulk_start_options
@conference_options
@account_options
def start(
    account: Account,
    *,
    file: str | None,
    all_in_progress: bool,
    kind: Kind,
    journal: str | None,
    skip_invalid: bool,
    dry_run: bool,
    concurrency: int | None,
    rate: float | None,
    resend_call_starts: bool,
    parameters: dict[str, str],
    **fields: Any,  # noqa: ANN401  (the fields of a request, which checks them)
) -> None:
    """Start a stream on each of many conferences or calls, from a file or on all that are live.

    Every line is checked before anything is sent, and all bad ones are told. The run then keeps a journal, from
    which `bulk resume` goes on after a kill, a crash or Ctrl-C without starting a stream twice, and `bulk stop`
    stops what it started. Ctrl-C lets what is under way end; a second one cuts it.
    """
    if (file is None) is not all_in_progress:
        raise click.UsageError("name a FILE of ids, - for standard input, or write --all-in-progress")
    if kind == "call" and {fields["codec"], fields["realtime"]} != {None}:
        raise click.UsageError("--codec and --realtime are for conference streams only: leave them out on calls")
    fields["unnamed"] = fields["unnamed"] or None
    defaults = Defaults(fields, parameters)
    knobs = Knobs(concurrency, rate, resend_call_starts)
    if file is not None:
        lines = read_lines(read_source(file), f"{kind}_sid")
        requests = checked(Requests.of(lines, defaults), file, account, skip_invalid=skip_invalid)
        if dry_run:
            write_dry_run(requests, as_json=account.as_json)
            return

    async def prepare(client: StreamsClient) -> Job | None:
        found = requests if file is not None else await live(client, kind, defaults)
        if dry_run:
            write_dry_run(found, as_json=account.as_json)
            return None
        if not found:
            say_nothing_to_do(as_json=account.as_json)
            return None
        path = client.create_journal(found, journal=_new_path() if journal is None else journal).path
        return Job(
            run=client.start_streams(found, journal=path, resume=True, concurrency=concurrency),
            doing="start",
            planned=len(found),
            journal=path,
            has_secrets=not all(PlannedRequest.from_request(request).is_complete for request in found),
        )

    carry_out(account, knobs, prepare)


def checked(requests: Requests, file: str, account: Account, *, skip_invalid: bool) -> Sequence[Start]:
    """Tell every bad line.

    Raises:
        Misuse: there are some, and they are not to be skipped.
    """
    for line in requests.bad:
        click.echo(f"{clean(file)}:{line.number}: {clean(line.why)}", err=True)
    if any(line.hides_more for line in requests.bad):
        raise Misuse("nothing was started, since not every line could be read: fix the file first")
    if requests.bad and skip_invalid:
        click.echo(f"{len(requests.bad):,} lines are left out.", err=True)
    if requests.bad and not skip_invalid:
        count = len(requests.bad)
        raise Misuse(
            f"{count:,} of {count + len(requests.good):,} lines are wrong, and nothing was started: fix them, or "
            "leave them out with --skip-invalid",
            {
                "error": "InvalidLines",
                "lines": [{"line": line.number, "message": line.why} for line in requests.bad],
            }
            if account.as_json
            else None,
        )
    return requests.good


def say_nothing_to_do(*, as_json: bool) -> None:
    """Say that there is nothing to start."""
    if as_json:
        write_json({"report": {"ok": True, "planned": 0, "ended": 0}})
    else:
        click.echo("There is nothing to start.")


async def live(client: StreamsClient, kind: Kind, defaults: Defaults) -> Sequence[Start]:
    """Make a request for each conference or call that is live now."""
    listing: AsyncIterator[Conference | Call]
    if kind == "conference":
        listing = aiter(client.conferences.list(status=_IN_PROGRESS, page_size=_PAGE_SIZE))
    else:
        listing = aiter(client.calls.list(status=_IN_PROGRESS, page_size=_PAGE_SIZE))
    # What starts or ends while the list is read can move an item to the next page as well: once is enough.
    sids = dict.fromkeys([item.sid async for item in listing])
    return [defaults.request({f"{kind}_sid": sid}) for sid in sids]


def _new_path() -> str:
    return f"bulk-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{token_hex(2)}.db"
