"""Execution of ``keep``: the keeper, the receiver that records its streams, what is shown, and the summary."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from signal import Signals
from typing import Any

import click
from attrs import asdict
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from signalwire_streams import (
    AuthenticationError,
    Paginator,
    PermissionDeniedError,
    StreamsClient,
    StreamsError,
)
from signalwire_streams._cli.listen_options import notes_on
from signalwire_streams._cli.listen_server import Ended, RecordingServer, Report, ServerOptions, error_in
from signalwire_streams._cli.options import Account
from signalwire_streams._cli.output import (
    FAILED,
    INTERRUPTED,
    TERMINATED,
    bare_table,
    clean,
    for_command_line,
    in_words,
    is_terminal,
    listening_errors,
    write_json,
    write_report,
)
from signalwire_streams._cli.progress import Reporter, as_plain, draw_rows, format_duration, live_page, live_table
from signalwire_streams._signals import ignore_interrupts, on_signals
from signalwire_streams.bulk._journal_file import journal_path
from signalwire_streams.keep_streaming import (
    Keeper,
    KeeperEvent,
    KeepStatus,
    Obstacle,
    OnExit,
    StandbyStarted,
    StartsPaused,
    StartsResumed,
    StreamingInDoubt,
    StreamingRestarted,
    StreamingStarted,
    TargetEnded,
    TargetEvent,
    TargetFailing,
    TargetReleased,
    TargetSnapshot,
)
from signalwire_streams.models import TargetKind
from signalwire_streams.models._validation import redact_url
from signalwire_streams.receiver._health import serve_health

_STATUSES = [KeepStatus.FAILING, KeepStatus.IN_DOUBT, KeepStatus.WAITING, KeepStatus.STREAMING]
"""Those that need attention first."""

_STYLES = {KeepStatus.FAILING: "red", KeepStatus.IN_DOUBT: "yellow", KeepStatus.STREAMING: "green"}
_WIDE = 110  # columns of a terminal that has room for whole sids and for names
_LONG_SID, _SHORT_SID, _NAME, _STATUS = 36, 13, 28, 9
_WITH_RECEIVER = "streams ended with the receiver"
_AT_THE_END = {
    "streams stopped": " and stop the streams",
    "streams left running": " and leave the streams running",
    _WITH_RECEIVER: "; the streams to this receiver end with it",
}
_UPPER = re.compile(r"(?<!^)(?=[A-Z])")


class KeepRunner(Reporter):
    """Runs a keeper until a signal, and decides whether the command succeeded."""

    def __init__(
        self,
        account: Account,
        prepare: Callable[[], ServerOptions] | None,
        *,
        template: Mapping[str, Any],
        kinds: Sequence[TargetKind],
        journal: str,
        on_exit: str,
        page: int | None = None,
        health: tuple[str, int | None] = ("127.0.0.1", None),
        **options: Any,  # noqa: ANN401  (arguments of keep_streaming)
    ) -> None:
        super().__init__(as_json=account.as_json)
        self._prepare, self._template, self._kinds = prepare, template, kinds
        self._page, self._health = page, health
        self._journal, self._on_exit, self._options = journal, OnExit(on_exit), options
        self._shown_journal = clean(redact_url(journal) if "://" in journal else journal)
        is_left = self._on_exit is OnExit.LEAVE
        self._fate = "streams stopped" if not is_left else "streams left running" if prepare is None else _WITH_RECEIVER
        self._keeper: Keeper | None = None
        self._final: Sequence[TargetSnapshot] | None = None  # when it has ended
        self._counts: Counter[str] = Counter()  # of events
        self._reasons: dict[str, str] = {}  # of targets that are failing or in doubt
        self._missed = 0  # targets that ended like that
        self._recorded = self._not_recorded = 0
        self._seconds = 0.0
        self._stopped_by: Signals | None = None
        self._is_aborted = False
        self._task: asyncio.Task[Any] | None = None
        self._started_at = time.monotonic()

    async def run(self, client: StreamsClient) -> None:
        self._task = asyncio.current_task()
        try:
            with on_signals(self._interrupt):
                async with AsyncExitStack() as stack:
                    self._display = await stack.enter_async_context(live_table(self._draw, as_json=self._as_json))
                    await self._keep(client, stack)
        except asyncio.CancelledError:
            if self._task is None or not self._is_aborted:
                raise
            self._task.uncancel()
        finally:
            ignore_interrupts()
        self._raise_output_error()
        self._write_json() if self._as_json else self._write_summary()

    def end(self) -> None:
        if self._is_aborted:
            raise click.exceptions.Exit(INTERRUPTED if self._stopped_by is Signals.SIGINT else TERMINATED)
        if not self.is_well:
            raise click.exceptions.Exit(FAILED)

    async def _keep(self, client: StreamsClient, stack: AsyncExitStack) -> None:
        await self._serve_health(stack)
        options = None if self._prepare is None else self._prepare()
        receivers, url = [], None
        if options is not None:
            server = RecordingServer(options, self._report)
            url = await stack.enter_async_context(server.serve())
            receivers = [server.receiver]
        template: Any = {"url": url, **self._template}
        self._keeper = client.keep_streaming(
            template,
            conferences=TargetKind.CONFERENCE in self._kinds,
            calls=TargetKind.CALL in self._kinds,
            journal=self._journal,
            receivers=receivers,
            on_exit=self._on_exit,
            **self._options,
        )
        page = live_page(self._page, self._display.warn, receivers=receivers, keepers=[self._keeper])
        await stack.enter_async_context(page)
        # A new journal would keep a wrong Space or project; one that exists says if it is of another one.
        is_new = "://" not in self._journal and not journal_path(self._journal).exists()
        is_any_live = is_new and await self._check_access(client, is_new=True)
        reading: set[asyncio.Task[None]] = set()
        try:
            async with self._keeper:
                is_any_live = is_any_live if is_new else await self._check_access(client, is_new=False)
                self._announce(client, url, options, is_any_live=is_any_live)
                reading = {asyncio.create_task(self._read(self._keeper))}
                await self._ending.wait()
                self._final = self._keeper.snapshot  # before the keeper stops them
            if self._on_exit is OnExit.LEAVE:  # before the receiver closes its sockets, but with what was in flight
                self._final = self._keeper.snapshot
        finally:
            if reading:
                await asyncio.wait(reading)

    async def _serve_health(self, stack: AsyncExitStack) -> None:
        host, port = self._health
        if port is not None:
            with listening_errors(host, port):
                await stack.enter_async_context(serve_health(lambda: not self._ending.is_set(), host=host, port=port))

    async def _check_access(self, client: StreamsClient, *, is_new: bool) -> bool:
        """Return whether anything is in progress.

        An outage ends only a keeper that has no journal yet, and therefore no streams: its settings may be wrong.
        """
        lists: Mapping[TargetKind, Callable[..., Paginator[Any]]] = {
            TargetKind.CONFERENCE: client.conferences.list,
            TargetKind.CALL: client.calls.list,
        }
        for kind in self._kinds:
            try:
                async for _ in lists[kind](status="in-progress", page_size=1):
                    return True
            except (AuthenticationError, PermissionDeniedError):
                raise
            except StreamsError:
                if is_new:
                    raise
                return True
        return False

    async def _read(self, keeper: Keeper) -> None:
        try:
            async for event in keeper:
                self.note(event)
        except StreamsError:  # which the keeper raises when its block ends
            pass
        finally:
            self._ending.set()

    def _interrupt(self, number: Signals) -> None:
        if self._stopped_by is None:
            self._stopped_by = number
            self._ending.set()
        elif self._task is not None and not self._is_aborted:
            self._is_aborted = True
            self._task.cancel()

    # --- What happens

    def note(self, event: KeeperEvent) -> None:
        self._count(event)
        self._report_event(event)

    def _count(self, event: KeeperEvent) -> None:
        self._counts[_name_of(event)] += 1
        match event:
            case TargetFailing() | StreamingInDoubt():
                self._reasons[event.target] = _reason_of(event)
            case StreamingStarted() | StreamingRestarted() | TargetReleased():
                self._reasons.pop(event.target, None)
            case TargetEnded():
                self._missed += self._reasons.pop(event.target, None) is not None

    def _report_event(self, event: KeeperEvent) -> None:
        name, reason = _name_of(event), _reason_of(event)
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if self._as_json:
            self._write({"event": name, "at": at, **asdict(event), **({"reason": reason} if reason else {})})
        elif not (isinstance(event, TargetEvent) and self._display.is_live and is_terminal()):  # the table shows these
            self._write(f"{at} {_line(event)}")

    @property
    def _obstacles(self) -> Sequence[Obstacle]:
        return () if self._keeper is None else self._keeper.obstacles

    def _report(self, report: Report) -> None:
        if (error := error_in(report)) is not None:
            self._display.warn(error)
        if isinstance(report, Ended):
            self._recorded += 1
            self._not_recorded += error is not None
            self._seconds += report.facts["seconds"] or 0.0
            self._write({"recording": report.facts} if self._as_json else report.line)

    # --- What is shown

    def _announce(
        self, client: StreamsClient, url: str | None, options: ServerOptions | None, *, is_any_live: bool
    ) -> None:
        if self._as_json:
            ready = {"space": client.origin, "project": client.project, "journal": self._shown_journal, "url": url}
            self._write({"ready": ready})
            return
        kinds = " and ".join(self._kinds)
        self._write(f"Keeping one stream on each {kinds} of {client.origin} (project {clean(client.project)}).")
        self._write(f"Journal: {self._shown_journal}")
        if options is not None and url is not None:
            self._write(f"Recordings: {clean(options.recording.directory)}; listening on {url}")
            for note in notes_on(url, options):
                self._write(note)
        if not is_any_live:
            self._write(f"Nothing is in progress now: each {kinds} gets a stream when it begins.")
        self._write(f"Press Ctrl-C to end{_AT_THE_END[self._fate]}.")

    def _draw(self, console: Console) -> Group:
        width, height = console.size
        return draw_targets(self._targets, self.last_line, width=width, height=height, plain=console.options.ascii_only)

    @property
    def _targets(self) -> Sequence[TargetSnapshot]:
        if self._final is not None:
            return self._final
        return () if self._keeper is None else self._keeper.snapshot

    @property
    def _statuses(self) -> Mapping[str, int]:
        """The number of targets in each status, if there are any."""
        counts = Counter(target.status for target in self._targets)
        return {in_words(status): counts[status] for status in reversed(_STATUSES) if counts[status]}

    @property
    def last_line(self) -> str:
        title = "Keeping" if self._stopped_by is None else "Ending (interrupt again to abort requests in flight)"
        counts = {"live": len(self._targets), **self._statuses, "ended": self._counts["target_ended"]}
        numbers = ", ".join(f"{count:,} {word}" for word, count in counts.items())
        return "; ".join([f"{title}: {numbers}", *map(_line, self._obstacles)])

    @property
    def is_well(self) -> bool:
        statuses = set() if self._on_exit is OnExit.STOP else {target.status for target in self._targets}
        has_trouble = self._reasons or self._missed or self._not_recorded
        is_free = all(isinstance(obstacle, StandbyStarted) for obstacle in self._obstacles)
        return is_free and statuses <= {KeepStatus.STREAMING} and not has_trouble

    def _write_json(self) -> None:
        counts = Counter(target.status.value for target in self._targets)
        write_json(
            {
                "report": {
                    "ok": self.is_well and not self._is_aborted,
                    "live": len(self._targets),
                    "counts": {status.value: counts[status] for status in _STATUSES},
                    "events": dict(self._counts),
                    "missed": self._missed,
                    "obstacles": [_line(obstacle) for obstacle in self._obstacles],
                    "recordings": self._recorded,
                    "incomplete_recordings": self._not_recorded,
                    "seconds": round(time.monotonic() - self._started_at, 3),
                    "on_exit": self._on_exit,
                    "aborted": self._is_aborted,
                    "journal": self._shown_journal,
                }
            }
        )

    def _write_summary(self) -> None:
        rows = [("events", ", ".join(f"{count:,} {_words(name)}" for name, count in self._counts.items()) or "none")]
        if self._missed:
            rows.append(("ended while failing or in doubt", f"{self._missed:,}"))
        if self._recorded:
            lost = f" ({self._not_recorded:,} incomplete)" if self._not_recorded else ""
            rows.append(("recordings", f"{self._recorded:,}{lost}, {format_duration(self._seconds)} of audio"))
        duration = format_duration(time.monotonic() - self._started_at)
        write_report(
            f"Aborted after {duration}: check which streams run."
            if self._is_aborted
            else f"Ended after {duration}, {self._fate}.",
            self._statuses,
            *rows,
            errors=dict(
                [*((_line(event), 1) for event in self._obstacles), *Counter(self._reasons.values()).most_common()]
            ),
            steps=[f"Journal: {self._shown_journal}", "Run the same command to resume."],
        )


def _line(event: KeeperEvent) -> str:
    reason = _reason_of(event)
    return f"{_subject(event)}{_words(_name_of(event))}{f': {reason}' if reason else ''}"


def _name_of(event: KeeperEvent) -> str:
    """Return an event's name as a machine word: ``streaming_started``."""
    return _UPPER.sub("_", type(event).__name__).lower()


def _subject(event: KeeperEvent) -> str:
    if isinstance(event, TargetEvent):
        return f"{event.kind} {clean(event.target)} "
    return f"{event.receiver} " if isinstance(event, StartsPaused | StartsResumed) else ""


def _words(name: str) -> str:
    return in_words(name).removeprefix("target ")


def _reason_of(source: KeeperEvent | TargetSnapshot) -> str:
    return clean(for_command_line(getattr(source, "reason", None) or ""))


def draw_targets(
    targets: Sequence[TargetSnapshot], last_line: str, *, width: int, height: int, plain: bool = False
) -> Group:
    ranked = sorted(targets, key=lambda target: _STATUSES.index(target.status))

    def table(shown: Sequence[TargetSnapshot]) -> Table:
        found = bare_table()
        is_wide = width >= _WIDE
        found.add_column("SID", width=_LONG_SID if is_wide else _SHORT_SID)
        if is_wide:
            found.add_column("NAME", width=_NAME)
        found.add_column("STATUS", width=_STATUS)
        found.add_column("REASON")
        for target in shown:
            texts = [target.target, *([target.label] if is_wide else []), in_words(target.status), _reason_of(target)]
            cells = [
                Text(as_plain(clean(text), plain=plain), no_wrap=True, overflow="crop" if plain else "ellipsis")
                for text in texts
            ]
            cells[-2].style = _STYLES.get(target.status, "")
            found.add_row(*cells)
        return found

    return draw_rows(ranked, last_line, height=height, make_table=table)
