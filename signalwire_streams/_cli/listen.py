"""The command ``listen``: a receiver that records streams, and shows them in a live table."""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from signal import Signals

import click
from attrs import evolve
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from signalwire_streams import SignedTokens
from signalwire_streams._cli.listen_options import RecordingSettings, notes_on, self_signed_recording_options
from signalwire_streams._cli.listen_recording import StreamState
from signalwire_streams._cli.listen_server import (
    Ended,
    ProcessLost,
    RecordingProcesses,
    RecordingServer,
    Report,
    ServerOptions,
    Started,
    check_platform,
    error_in,
)
from signalwire_streams._cli.options import (
    BEARER,
    FiniteRange,
    json_option,
    read_secret_file,
    read_token_keys,
)
from signalwire_streams._cli.output import FAILED, bare_table, clean
from signalwire_streams._cli.progress import Reporter, as_plain, draw_rows, format_duration, live_table, page_option
from signalwire_streams._signals import ignore_interrupts, on_signals
from signalwire_streams.receiver.audio._levels import FLOOR

_MAX_PROCESSES = 64
_MAX_NAMED = 5  # streams in the line about a lost process


def _read_tokens(
    source: str | None, key_source: str | None, *, allow_anonymous: bool
) -> SignedTokens | tuple[str, ...] | None:
    options = {
        "--bearer-token-file": source is not None,
        "--token-key-file": key_source is not None,
        "--allow-anonymous": allow_anonymous,
    }
    given = [option for option, is_given in options.items() if is_given]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} contradict each other: write one of them")
    if allow_anonymous:
        return None
    if key_source is not None:
        return read_token_keys(key_source)
    text = os.environ.get(BEARER, "") if source is None else read_secret_file(source)
    tokens = tuple(dict.fromkeys(text.split()))
    if tokens:
        return tokens
    if source is not None:
        raise click.UsageError("--bearer-token-file contains no token: write into it the token that your starts pass")
    raise click.UsageError(
        f"set {BEARER}, or name a --bearer-token-file or --token-key-file, so that only your streams are accepted; "
        "--allow-anonymous accepts those of anyone who can reach the address"
    )


_BAR, _EIGHTHS = 8, " ▏▎▍▌▋▊▉"
_LOUD, _HOT = -6.0, -1.0
_SHORT = {"inbound": "in", "outbound": "out"}
_MAX_TRACK = 4
_MAX_LEVELS = 2
_NUMBERS = {"TIME", "FRAMES", "LOST"}
_MIN_WIDTHS = {"TIME": 0, "LEVEL": 56, "FRAMES": 72, "LOST": 0, "STATUS": 72}
"""The columns, and the width that a terminal needs for each, so that there is room for the sid."""


def draw(streams: Sequence[StreamState], last_line: str, *, width: int, height: int, plain: bool = False) -> Group:
    return draw_rows(streams, last_line, height=height, make_table=lambda shown: _table(shown, width, plain=plain))


def _table(streams: Sequence[StreamState], width: int, *, plain: bool) -> Table:
    titles = [title for title, needed in _MIN_WIDTHS.items() if width >= needed]
    table = bare_table()
    table.add_column("STREAM")  # cut first: half a sid is enough, since all of it is printed at the end
    for title in titles:
        table.add_column(title, no_wrap=True, justify="right" if title in _NUMBERS else "left")
    for one in streams:
        sid = Text(as_plain(one.sid, plain=plain), no_wrap=True, overflow="crop" if plain else "ellipsis")
        cells = {
            "TIME": Text("-" if one.seconds is None else str(timedelta(seconds=int(one.seconds)))),
            "LEVEL": _levels(one.levels, plain=plain),
            "FRAMES": Text(f"{one.frames:,}"),
            "LOST": Text(f"{one.lost:,}", style="red" if one.lost else ""),
            "STATUS": Text(one.status),
        }
        table.add_row(sid, *(cells[title] for title in titles))
    return table


def _levels(levels: Sequence[tuple[str, float | None]], *, plain: bool) -> Text:
    text = Text()
    for name, level in levels[:_MAX_LEVELS]:
        text.append(f"{_SHORT.get(name) or as_plain(name, plain=plain)[:_MAX_TRACK]} ", style="dim")
        style = "green" if level is None or level < _LOUD else "yellow" if level < _HOT else "red"
        text.append(bar(level, plain=plain), style=style)
        text.append(" ")
    return text


def bar(level: float | None, *, plain: bool = False) -> str:
    part = 0.0 if level is None else max(0.0, min(1.0, 1 - level / FLOOR))
    if plain:
        return ("#" * round(part * _BAR)).ljust(_BAR, ".")
    whole, eighths = divmod(round(part * _BAR * len(_EIGHTHS)), len(_EIGHTHS))
    return ("█" * whole + (_EIGHTHS[eighths] if eighths else "")).ljust(_BAR, "·")


class Listener(Reporter):
    """Counts and shows the streams that a server records, and decides when the command ends."""

    def __init__(self, options: ServerOptions, *, streams: int | None, as_json: bool) -> None:
        super().__init__(as_json=as_json)
        self.is_complete = True  # every stream was fully recorded
        self._options = options
        self._streams_limit = streams
        self._server: RecordingServer | RecordingProcesses
        self._ended = self._failed = self._lost = self._files = self._lost_processes = 0
        self._seconds = 0.0

    async def run(self, server: RecordingServer | RecordingProcesses, *, seconds: float | None) -> None:
        self._server = server
        try:
            with on_signals(self._interrupt):
                async with (
                    live_table(self._draw, as_json=self._as_json) as self._display,
                    server.serve() as url,
                ):
                    self._announce(url)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await self._ending.wait()
                    self._ending.set()
        finally:
            ignore_interrupts()
        self._raise_output_error()
        if not self._as_json:
            click.echo(self._summary)

    def _interrupt(self, _: Signals) -> None:
        if self._ending.is_set():  # a second Ctrl-C; the recordings are complete by then
            self._server.abort()
        self._ending.set()

    def report(self, report: Report) -> None:
        if (error := error_in(report)) is not None:
            self._display.warn(error)
        match report:
            case Started(is_supported=True):
                if not self._as_json and not self._display.is_live:
                    self._write(report.line)
            case Ended():
                self._count(report)
            case ProcessLost():
                self._count_lost(report)
        if self._streams_limit is not None and self._ended >= self._streams_limit:
            self._ending.set()

    def _count(self, stream: Ended) -> None:
        self._ended += 1
        self._lost += stream.lost
        self._seconds += stream.facts["seconds"] or 0.0
        self._files += len(stream.facts["files"])
        if stream.facts["error"] is not None:
            self._failed += 1
            self.is_complete = False
        self._write(stream.facts if self._as_json else stream.line)

    def _count_lost(self, process: ProcessLost) -> None:
        self._lost_processes += 1
        self._ended += len(process.sids)
        self._failed += len(process.sids)
        self.is_complete = False
        text = f"process {process.number} (pid {process.pid}) {process.reason}"
        if process.sids:
            names = ", ".join(process.sids[:_MAX_NAMED])
            more = len(process.sids) - _MAX_NAMED
            text += f"; not fully recorded: {names}{f' and {more:,} more' if more > 0 else ''}"
        if not process.others:
            self._ending.set()
            text += "; no process is left"
        elif not self._ending.is_set():
            text += f"; processes still recording: {process.others}"
        self._display.warn(f"error: {text}")
        if self._as_json:
            self._write(
                {"process": process.number, "pid": process.pid, "error": process.reason, "streams": process.sids}
            )

    def _draw(self, console: Console) -> Group:
        live = self._server.streams()
        title = "Ending" if self._ending.is_set() else "Listening"
        audio = format_duration(self._seconds + sum(stream.seconds or 0.0 for stream in live))
        last_line = f"{title}: {len(live):,} live, {self._ended:,} ended, {audio} of audio"
        width, height = console.size
        return draw(live, last_line, width=width, height=height, plain=console.options.ascii_only)

    def _announce(self, url: str) -> None:
        pids, directory, authority = self._server.pids, self._options.recording.directory, self._options.ca_file
        if self._as_json:
            facts = {"url": url, "directory": str(directory), "authority": authority and str(authority)}
            self._write({**facts, "pids": pids} if pids else facts)
            return
        self._write(f"Listening on {url}")
        if pids:
            self._write(f"Processes: {len(pids)} (pids {', '.join(map(str, pids))})")
        self._write(f"Recordings: {clean(directory)}")
        for note in notes_on(url, self._options):
            self._write(note)
        if self._options.tokens is None:
            self._write("Warning: no authentication; anyone who can reach this address can send audio.")
        self._write("Press Ctrl-C to stop.")

    @property
    def _summary(self) -> str:
        counts = {
            "not fully recorded": self._failed,
            "rejected (bad token)": self._server.rejected,
            "processes lost": self._lost_processes,
        }
        further = "".join(f", {label}: {count:,}" for label, count in counts.items() if count)
        return (
            f"Ended. Streams: {self._ended:,}, files: {self._files:,}, audio: {format_duration(self._seconds)}, "
            f"lost frames: {self._lost:,}{further}."
        )


@click.command(
    short_help="Receive streams, and record each in a WAV file.",
    epilog=f"""\b
Environment:
  {BEARER}  the bearer token that streams must carry, or
                            several separated by spaces; there is no option
                            for it, since others on this machine can read a
                            command line
  SIGNALWIRE_SPACE, SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN are not
  read: the command starts no streams.

\b
Files are named after the streams: SID.wav, or SID-2.wav if that exists.
With --mono, and for further tracks: SID-TRACK.wav. If the encoding is
unknown, the payloads are written to SID-TRACK.raw, one after the other. DTMF
digits and custom parameters are not recorded.

\b
Examples:
  signalwire-streams listen --self-signed --directory recordings
  signalwire-streams listen --host 0.0.0.0 --port 8443 \\
      --cert fullchain.pem --key privkey.pem
  signalwire-streams listen --allow-anonymous --self-signed --streams 1 --json
""",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="The directory for recordings; created if it does not exist.",
)
@self_signed_recording_options
@click.option(
    "--bearer-token-file",
    metavar="FILE",
    help=f"File with the tokens, instead of {BEARER}; - reads standard input.",
)
@click.option(
    "--token-key-file",
    metavar="FILE",
    help="File with the keys of signed tokens, which are accepted instead of fixed ones; - reads standard input.",
)
@click.option("--allow-anonymous", is_flag=True, help="Require no token: anyone who can reach the address can send.")
@click.option(
    "--processes",
    type=click.IntRange(1, _MAX_PROCESSES),
    default=1,
    metavar="N",
    help="Record in this many processes on one port; one per core is best (Linux only).",
)
@page_option
@click.option("--seconds", type=FiniteRange(min=0, min_open=True), metavar="N", help="Stop after this many seconds.")
@click.option("--streams", type=click.IntRange(min=1), metavar="N", help="Stop after this many streams.")
@json_option(
    "Write one JSON object when the server is ready, and one for each stream that ended and each lost process."
)
def listen(
    *,
    directory: Path,
    recording: RecordingSettings,
    bearer_token_file: str | None,
    token_key_file: str | None,
    allow_anonymous: bool,
    processes: int,
    page: int | None,
    seconds: float | None,
    streams: int | None,
    as_json: bool,
) -> None:
    """Receive streams, and record each in a WAV file.

    It runs until Ctrl-C or SIGTERM, then completes the recordings. A terminal shows the live streams with their
    levels and losses; a pipe gets a line when a stream starts and when it ends. The exit code is 0 unless a recording
    failed.

    With --processes, streams are spread over processes at random, and --streams counts those of all. A process that
    is killed is reported and not restarted: the others keep recording, and the exit code is 1.
    """
    if processes > 1:
        check_platform()
        if page is not None:
            raise click.UsageError("--page shows the streams of one process: omit it, or --processes")
    tokens = _read_tokens(bearer_token_file, token_key_file, allow_anonymous=allow_anonymous)
    options = evolve(recording.in_directory(directory, "--directory", tokens), page=page)
    listener = Listener(options, streams=streams, as_json=as_json)
    server: RecordingServer | RecordingProcesses
    if processes == 1:
        server = RecordingServer(options, listener.report)
    else:
        server = RecordingProcesses(options, processes, listener.report)
    # If the loop supports no signal handlers (Windows), Ctrl-C raises an exception.
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(listener.run(server, seconds=seconds))
    if not listener.is_complete:
        raise click.exceptions.Exit(FAILED)
