"""The command ``dial``: a simulated caller for any WebSocket endpoint, and a report of how it behaves."""

import asyncio
import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from attrs import asdict, fields, filters
from rich.console import Group
from rich.text import Text

from signalwire_streams import SignedTokens, StartCallStream, StartConferenceStream
from signalwire_streams._cli.options import BEARER, FiniteRange, field_option, json_option
from signalwire_streams._cli.output import FAILED, Failure, clean, write_aligned, write_json
from signalwire_streams._cli.progress import live_display, repeating
from signalwire_streams._cli.simulate import ca_file_option, describe_kinds, parse_fault, parse_sound, space_option
from signalwire_streams.receiver import MediaEvent
from signalwire_streams.receiver.audio import AudioFormat, RecordingError, WavRecorder
from signalwire_streams.simulator import DialReport, FaultKind, Silence, Sound, Tone, dial_media
from signalwire_streams.simulator._requests import is_ws_on_loopback
from signalwire_streams.simulator._sources import CODECS, codec_of

_DRAWN_EVERY = 0.25
_MAX_GAP = 24 * 3600.0
_SHORT: Mapping[Sound, Sound] = {Tone(): Tone(seconds=1.0), Silence(): Silence(seconds=0.02)}
_ARGUMENT = re.compile(r"\b(one_way|barge_in|require_mark|max_\w+_ms)(=True)?")
_POSITIVE = FiniteRange(min=0, min_open=True)


def _speech(context: click.Context, option: click.Parameter, text: str) -> Sound | None:
    sound = parse_sound(context, option, text)
    return _SHORT.get(sound, sound) if isinstance(sound, Tone | Silence) else sound


def _faults(_: click.Context, __: click.Parameter, specs: Sequence[str]) -> dict[str, dict[str, Any]]:
    faults = {}
    for spec in specs:
        try:
            kind, settings = parse_fault(spec)
        except ValueError as error:
            raise click.BadParameter(f"{spec}: {error}") from None
        if kind in faults:
            raise click.BadParameter(f"{kind} is given twice")
        faults[kind] = settings
    return faults


def _new_file(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and (path.exists() or not path.parent.is_dir()):
        reason = "exists already" if path.exists() else "is in no directory that exists"
        raise click.BadParameter(f"{str(path)!r} {reason}: name a new file")
    return path


@click.command(
    short_help="Test a WebSocket endpoint without a phone.",
    epilog=f"""\b
Environment:
  {BEARER}  the bearer token that the endpoint expects; there
                            is no option for it, since others on this machine
                            can read a command line

\b
Faults, and their settings, written KIND[:key=value[,key=value...]]:
{describe_kinds(kind for kind in FaultKind if kind.affects_dialling)}

\b
Examples:
  signalwire-streams dial wss://rx.example.com/audio --audio hello.wav
  signalwire-streams dial ws://127.0.0.1:8000/audio --audio silence \\
      --max-first-audio-ms 500
  signalwire-streams dial wss://rx.example.com/audio --audio hello.wav \\
      --barge-in --require-mark --record call.wav --json
""",
)
@click.argument("url", metavar="wss://...")
@click.option(
    "--audio",
    default="tone",
    callback=_speech,
    metavar="FILE|tone|silence",
    help="What the caller says: a 16-bit WAV file, mono or with one channel per track; a tone lasts a second.",
)
@click.option("--both-tracks", is_flag=True, help="Send the outbound track as well.")
@field_option(
    "codec",
    default="PCMU",
    help=f"{', '.join(CODECS)}, optionally with sample rate and packet time: L16@24000h@40i.",
)
@space_option("dialect", "The vendor whose frames are sent.")
@field_option("parameters")
@field_option(
    "authorization_bearer_token",
    help=f"File with the token that the endpoint expects, instead of {BEARER}; - reads standard input.",
)
@ca_file_option
@click.option("--fault", "faults", multiple=True, callback=_faults, metavar="SPEC", help="A fault, as described below.")
@click.option("--one-way", is_flag=True, help="The stream only sends, like those started over REST: expect no audio.")
@click.option("--seconds", type=_POSITIVE, default=10, metavar="N", help="Maximum time the caller listens.")
@click.option(
    "--max-first-audio-ms",
    type=_POSITIVE,
    metavar="N",
    help="Limit for the first audio, measured from the end of the caller's audio, or from the start event if it comes "
    "earlier.",
)
@click.option("--barge-in", is_flag=True, help="Interrupt the endpoint after 300 ms, and expect a clear message.")
@click.option("--max-clear-ms", type=_POSITIVE, metavar="N", help="Limit for that message; 1000 by default.")
@click.option("--require-mark", is_flag=True, help="Expect a mark after the endpoint's audio.")
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    callback=_new_file,
    metavar="FILE",
    help="Write a WAV file with the caller on the left, and what was played to the caller on the right.",
)
@json_option("Write the report as one JSON object.")
def dial(
    *,
    url: str,
    audio: Sound,
    codec: str,
    parameters: Mapping[str, str],
    authorization_bearer_token: str | SignedTokens | None,
    record: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401  (arguments of dial_media)
) -> None:
    """Dial a WebSocket endpoint as SignalWire does, and report whether it follows the protocol.

    The caller speaks, listens until the endpoint's audio has ended for a second, and hangs up. The endpoint's audio is
    played in real time, and its marks return when they are reached. ws:// is accepted on this machine.

    The exit code is 1 if the endpoint broke a rule or missed a limit; each is named on stderr. Speech agents
    ignore a tone: pass a recording with --audio.
    """
    token = authorization_bearer_token or next(iter(os.environ.get(BEARER, "").split()), None)
    StartConferenceStream(  # validates them as for a start
        conference_sid="dial",
        url=_as_wss(url),
        codec=codec,
        parameters=parameters,
        authorization_bearer_token=token,
    )
    given = {"audio": audio, "codec": codec, "parameters": parameters, **options}
    given["authorization_bearer_token"] = partial(_mint, token, url) if isinstance(token, SignedTokens) else token
    try:
        report = asyncio.run(_dial(url, given, as_json=as_json))
    except OSError as error:
        if error.filename is None:
            raise
        raise Failure(f"--audio can't be read any more: {error.strerror}") from None
    except ValueError as error:
        raise click.UsageError(_ARGUMENT.sub(lambda name: "--" + name[1].replace("_", "-"), str(error))) from None
    problems = [broken.message for broken in report.broken_rules]
    if record is not None and report.recording:
        try:
            _write_recording(record, report, codec)
        except RecordingError as error:  # the report is still worth having
            problems.append(str(error))
    if as_json:
        shown = asdict(report, filter=filters.exclude(fields(DialReport).recording))
        write_json({"ok": not report.broken_rules, **shown})
    else:
        _write(report)
    for problem in problems:
        click.echo(f"error: {clean(problem)}", err=True)
    if problems:
        raise click.exceptions.Exit(FAILED)


def _mint(tokens: SignedTokens, url: str, call_sid: str) -> str:
    """Return the token of a start on a call."""
    request = StartCallStream(call_sid=call_sid, url=_as_wss(url))
    return tokens.mint(request)


def _as_wss(url: str) -> str:
    """Return a URL that a start accepts."""
    return f"wss{url[2:]}" if is_ws_on_loopback(url) else url


def _write_recording(path: Path, report: DialReport, codec: str) -> None:
    sent = codec_of(codec)
    with WavRecorder(path, AudioFormat.from_start_event(sent.encoding, sent.rate), max_gap=_MAX_GAP) as recorder:
        for segment in report.recording:
            chunk = segment.timestamp + 1  # a gap in the numbers, so that the timestamp counts at once
            recorder.write(MediaEvent(segment.track, segment.payload, chunk=chunk, timestamp=segment.timestamp))


async def _dial(url: str, options: Mapping[str, Any], *, as_json: bool) -> DialReport:
    stage, began = "", time.monotonic()

    def show() -> None:
        # An empty line, since the terminal writes ^C at the cursor.
        display.update(Group(Text(f"{stage.capitalize()}: {time.monotonic() - began:.0f} s"), Text()))

    def on_stage(new: str) -> None:
        nonlocal stage
        stage = new
        show()

    with live_display(as_json=as_json) as (display, _):
        async with repeating(show, _DRAWN_EVERY):
            return await dial_media(url, on_stage=on_stage, **options)


def _write(report: DialReport) -> None:
    click.echo(f"Dialled {clean(report.url)}")
    if report.connect_ms is None:
        return
    since = "the caller had spoken" if report.first_audio_since == "speech" else "the start event"
    sizes = (f"{count:,} of {size:,} bytes" for size, count in report.payload_sizes.items())
    clear = "" if report.clear_ms is None else f", {report.clear_ms:,} ms after the barge-in"
    rows = {
        "accepted after": f"{report.connect_ms:,} ms",
        "first audio": "none" if report.first_audio_ms is None else f"{report.first_audio_ms:,} ms after {since}",
        "payloads": ", ".join(sizes),
        "audio": f"{report.received_ms:,} ms, heard: {report.heard_ms:,} ms" if report.payload_sizes else "",
        "marks": f"{report.marks:,}, returned: {report.marks_returned:,}" if report.marks else "",
        "clears": f"{report.clears:,}{clear}" if report.clears else "",
        "closed": _closed(report),
    }
    write_aligned([row for row in rows.items() if row[1]], indent="  ")
    if not report.broken_rules:
        click.echo("The endpoint follows the protocol.")


def _closed(report: DialReport) -> str:
    if report.close_code is None:
        return "not by the endpoint"
    when = "before the stop event" if report.close_ms is None else f"{report.close_ms:,} ms after the stop event"
    return f"code {report.close_code}, {when}"
