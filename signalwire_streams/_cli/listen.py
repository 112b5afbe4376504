"""The command ``listen``: a receiver that records streams, and shows them in a live table."""

import asyncio
import contextlib
import ipaddress
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from signal import Signals
from typing import Any, get_args

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from signalwire_streams import SignedTokens
from signalwire_streams._cli.listen_recording import FLOOR, RecordingOptions, StreamState
from signalwire_streams._cli.listen_server import (
    Ended,
    ProcessLost,
    RecordingProcesses,
    RecordingServer,
    Report,
    ServerOptions,
    Started,
    Warned,
    check_platform,
)
from signalwire_streams._cli.options import (
    BEARER,
    FiniteRange,
    address_options,
    create_directory,
    json_option,
    read_secret_file,
    read_token_keys,
)
from signalwire_streams._cli.output import FAILED, Failure, bare_table, clean, write_json
from signalwire_streams._cli.progress import Display, format_duration, live_display, repeating
from signalwire_streams._signals import ignore_interrupts, on_signals
from signalwire_streams.receiver.audio import ByteOrder
from signalwire_streams.simulator import Certificates

_CA_FILE = "authority.pem"
_MAX_PROCESSES = 64
_MAX_NAMED = 5  # streams in the line about a lost process
_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")


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


def _load_certificate(certificate: Path | None, key: Path | None, *, self_signed: bool) -> ssl.SSLContext | None:
    if self_signed and (certificate is not None or key is not None):
        raise click.UsageError("--self-signed creates a certificate: omit it, or --cert and --key")
    if key is not None and certificate is None:
        raise click.UsageError("--key has no --cert: name the certificate that the key belongs to")
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password here, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError:
        raise click.UsageError(
            "--cert and --key are not a certificate and its key: name the chain and the key, both in PEM and without "
            "a password"
        ) from None
    except OSError as error:
        raise click.UsageError(f"--cert or --key can't be read: {error.strerror}") from None
    return context


def _create_certificate(host: str, ca_file: Path) -> ssl.SSLContext:
    try:
        hosts = () if ipaddress.ip_address(host).is_unspecified else (host,)
    except ValueError:
        hosts = (host,)
    try:
        made = Certificates.make(*dict.fromkeys(("localhost", "127.0.0.1", "::1", *hosts)))
    except ValueError:
        raise click.UsageError(f"--host {host!r} is neither a name nor an address") from None
    try:
        ca_file.write_bytes(made.authority)
    except OSError as error:
        raise Failure(f"can't write {ca_file}: {error.strerror}") from None
    return made.server


_DRAWN_EVERY = 0.25
_BAR, _EIGHTHS = 8, " ▏▎▍▌▋▊▉"
_LOUD, _HOT = -6.0, -1.0
_SHORT = {"inbound": "in", "outbound": "out"}
_MAX_TRACK = 4
_MAX_LEVELS = 2
_NUMBERS = {"TIME", "FRAMES", "LOST"}
_MIN_WIDTHS = {"TIME": 0, "LEVEL": 56, "FRAMES": 72, "LOST": 0, "STATUS": 72}
"""The columns, and the width that a terminal needs for each, so that there is room for the sid."""

_OTHER_LINES = 3  # the titles, the sum, and the line of the cursor


@contextlib.asynccontextmanager
async def live_table(
    get_state: Callable[[], tuple[Sequence[StreamState], str]], *, as_json: bool
) -> AsyncIterator[Display]:
    with live_display(as_json=as_json) as (display, console):
        if not display.is_live:
            yield display
            return

        def show() -> None:
            width, height = console.size
            display.update(draw(*get_state(), width=width, height=height, plain=console.options.ascii_only))

        async with repeating(show, _DRAWN_EVERY):
            yield display


def draw(streams: Sequence[StreamState], last_line: str, *, width: int, height: int, plain: bool = False) -> Group:
    room = max(height - _OTHER_LINES, 1)
    shown = streams if len(streams) <= room else streams[: max(room - 1, 1)]
    more = len(streams) - len(shown)
    parts: list[Table | Text] = []
    if shown:
        parts.append(_table(shown, width, plain=plain))
    if more:
        parts.append(_line(f"and {more:,} more"))
    parts.append(_line(last_line))
    return Group(*parts)


def _table(streams: Sequence[StreamState], width: int, *, plain: bool) -> Table:
    titles = [title for title, needed in _MIN_WIDTHS.items() if width >= needed]
    table = bare_table()
    table.add_column("STREAM")  # cut first: half a sid is enough, since all of it is printed at the end
    for title in titles:
        table.add_column(title, no_wrap=True, justify="right" if title in _NUMBERS else "left")
    for one in streams:
        sid = Text(_as_plain(one.sid, plain=plain), no_wrap=True, overflow="crop" if plain else "ellipsis")
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
        text.append(f"{_SHORT.get(name) or _as_plain(name, plain=plain)[:_MAX_TRACK]} ", style="dim")
        style = "green" if level is None or level < _LOUD else "yellow" if level < _HOT else "red"
        text.append(bar(level, plain=plain), style=style)
        text.append(" ")
    return text


def _as_plain(text: str, *, plain: bool) -> str:
    return text.encode("ascii", "replace").decode() if plain else text


def bar(level: float | None, *, plain: bool = False) -> str:
    part = 0.0 if level is None else max(0.0, min(1.0, 1 - level / FLOOR))
    if plain:
        return ("#" * round(part * _BAR)).ljust(_BAR, ".")
    whole, eighths = divmod(round(part * _BAR * len(_EIGHTHS)), len(_EIGHTHS))
    return ("█" * whole + (_EIGHTHS[eighths] if eighths else "")).ljust(_BAR, "·")


def _line(text: str) -> Text:
    return Text(text, style="dim", no_wrap=True, overflow="crop")


class Listener:
    """Counts and shows the streams that a server records, and decides when the command ends."""

    def __init__(self, directory: Path, *, allows_anonymous: bool, streams: int | None, as_json: bool) -> None:
        self.is_complete = True  # every stream was fully recorded
        self._directory = str(directory)
        self._allows_anonymous = allows_anonymous
        self._streams_limit = streams
        self._as_json = as_json
        self._server: RecordingServer | RecordingProcesses
        self._ended = self._failed = self._lost = self._files = self._lost_processes = 0
        self._seconds = 0.0
        self._ending = asyncio.Event()
        self._output_error: OSError | None = None
        self._display = Display()

    async def run(
        self, server: RecordingServer | RecordingProcesses, *, ca_file: Path | None, seconds: float | None
    ) -> None:
        self._server = server
        try:
            with on_signals(self._interrupt):
                async with (
                    live_table(self._state, as_json=self._as_json) as self._display,
                    server.serve() as url,
                ):
                    self._announce(url, ca_file)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await self._ending.wait()
                    self._ending.set()
        finally:
            ignore_interrupts()
        if self._output_error is not None:
            raise self._output_error
        if not self._as_json:
            click.echo(self._summary)

    def _interrupt(self, _: Signals) -> None:
        if self._ending.is_set():  # a second Ctrl-C; the recordings are complete by then
            self._server.abort()
        self._ending.set()

    def report(self, report: Report) -> None:
        match report:
            case Warned():
                self._display.warn(report.text)
            case Started(is_supported=False):
                self._display.warn(f"error: {report.line}")
            case Started():
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
            self._display.warn(f"error: {stream.sid} is not fully recorded: {stream.facts['error']}")
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

    def _write(self, output: str | Mapping[str, object]) -> None:
        """Write a line or a JSON object. A full disk, or a broken pipe as in ``| head``, ends the command."""
        try:
            if isinstance(output, str):
                self._display.write(output)
            else:
                write_json(output)
        except OSError as error:
            self._output_error = self._output_error or error
            self._ending.set()

    def _state(self) -> tuple[Sequence[StreamState], str]:
        live = self._server.streams()
        title = "Ending" if self._ending.is_set() else "Listening"
        audio = format_duration(self._seconds + sum(stream.seconds or 0.0 for stream in live))
        return live, f"{title}: {len(live):,} live, {self._ended:,} ended, {audio} of audio"

    def _announce(self, url: str, ca_file: Path | None) -> None:
        pids = self._server.pids
        if self._as_json:
            facts = {"url": url, "directory": self._directory, "authority": ca_file and str(ca_file)}
            self._write({**facts, "pids": pids} if pids else facts)
            return
        self._write(f"Listening on {url}")
        if pids:
            self._write(f"Processes: {len(pids)} (pids {', '.join(map(str, pids))})")
        self._write(f"Recordings: {clean(self._directory)}")
        if url.startswith("ws:"):
            self._write("No TLS, but SignalWire connects to wss:// only: put a proxy or a tunnel in front of it.")
        if ca_file is not None:
            self._write(f"Clients must trust the CA in {clean(ca_file)}, as 'simulate --ca-file' does.")
        if self._allows_anonymous:
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


def _path(_: click.Context, __: click.Parameter, text: str) -> str:
    if not _PATH.fullmatch(text):
        raise click.BadParameter(
            f"{text!r} is not a path: write it as /audio, with letters, digits, '/', '.', '_', '~', '-'"
        )
    return text


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
@address_options
@click.option("--path", default="/", callback=_path, metavar="PATH", help="The URL path that streams connect to.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="The directory for recordings; created if it does not exist.",
)
@click.option("--mono", is_flag=True, help="One file per track, instead of one with inbound left and outbound right.")
@click.option("--passthrough", is_flag=True, help="Keep µ-law and A-law, at half the size of 16-bit linear PCM.")
@click.option(
    "--byte-order",
    type=click.Choice(get_args(ByteOrder)),
    default="little",
    help="Byte order of L16 audio; SignalWire does not document it.",
)
@click.option("--cert", type=click.Path(path_type=Path), metavar="FILE", help="The certificate chain, in PEM.")
@click.option(
    "--key", type=click.Path(path_type=Path), metavar="FILE", help="The certificate's key, if it is in another file."
)
@click.option(
    "--self-signed", is_flag=True, help=f"Create a certificate for this run, and write its CA to DIR/{_CA_FILE}."
)
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
@click.option("--seconds", type=FiniteRange(min=0, min_open=True), metavar="N", help="Stop after this many seconds.")
@click.option("--streams", type=click.IntRange(min=1), metavar="N", help="Stop after this many streams.")
@json_option(
    "Write one JSON object when the server is ready, and one for each stream that ended and each lost process."
)
def listen(
    *,
    directory: Path,
    mono: bool,
    passthrough: bool,
    cert: Path | None,
    key: Path | None,
    self_signed: bool,
    bearer_token_file: str | None,
    token_key_file: str | None,
    allow_anonymous: bool,
    processes: int,
    seconds: float | None,
    streams: int | None,
    as_json: bool,
    **server_options: Any,  # noqa: ANN401  (fields of ServerOptions)
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
    ssl_context = _load_certificate(cert, key, self_signed=self_signed)
    tokens = _read_tokens(bearer_token_file, token_key_file, allow_anonymous=allow_anonymous)
    create_directory(directory, "--directory")
    ca_file = directory / _CA_FILE if self_signed else None
    if ca_file is not None:
        ssl_context = _create_certificate(server_options["host"], ca_file)
    recording = RecordingOptions(
        directory=directory, layout="mono" if mono else "stereo", encoding="passthrough" if passthrough else "pcm"
    )
    options = ServerOptions(ssl_context=ssl_context, tokens=tokens, recording=recording, **server_options)
    listener = Listener(directory, allows_anonymous=tokens is None, streams=streams, as_json=as_json)
    server: RecordingServer | RecordingProcesses
    if processes == 1:
        server = RecordingServer(options, listener.report)
    else:
        server = RecordingProcesses(options, processes, listener.report)
    # If the loop supports no signal handlers (Windows), Ctrl-C raises an exception.
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(listener.run(server, ca_file=ca_file, seconds=seconds))
    if not listener.is_complete:
        raise click.exceptions.Exit(FAILED)
