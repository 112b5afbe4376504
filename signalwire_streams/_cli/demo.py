"""The command ``demo``: thousands of streams on a simulated Space with faults, and the audio of some of them."""

import asyncio
import time
import wave
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from attrs import frozen

from signalwire_streams import (
    Attempt,
    AttemptResult,
    BulkRun,
    Codec,
    Operation,
    RateLimit,
    StartConferenceStream,
    StreamsClient,
    StreamStatus,
)
from signalwire_streams._cli.bulk_runner import format_latencies
from signalwire_streams._cli.options import create_directory, json_option
from signalwire_streams._cli.output import (
    FAILED,
    OUTCOMES,
    RATE_LIMIT,
    clean,
    silenced,
    write_aligned,
    write_json,
    write_note,
)
from signalwire_streams._cli.progress import Meter, Progress, live_page, page_option, show_progress
from signalwire_streams.page import LivePage
from signalwire_streams.receiver import MediaEvent, MediaReceiver, StreamSession, TrackStatistics
from signalwire_streams.receiver.audio import WavRecorder
from signalwire_streams.simulator import Certificates, SimulatedSpace, Tone

SECONDS, _PAGE_SECONDS = 2.0, 60.0  # of audio; long enough to look at it on a page
RECORDED = 20  # conferences
_FRAMES_PER_SECOND, _TRACKS, _RATE = 50, ("inbound", "outbound"), 16_000
_TONE = Tone()
_URL = "wss://audio.example.com/live"
_MAX_FAILURES = 5


@frozen
class Row:
    """A figure: its label and text for a person, its key and value for a program; either may be left empty."""

    label: str
    key: str
    value: object
    text: str = ""


def _count(label: str, key: str, count: int, total: int | None = None) -> Row:
    return Row(label, key, count, f"{count:,}" + ("" if total is None else f" of {total:,}"))


@frozen
class Result:
    """The result of a part of the demo: whether all went well, and its rows by their titles."""

    is_good: bool
    failures: Sequence[str]
    rows: Mapping[str, Sequence[Row]]

    @property
    def facts(self) -> dict[str, object]:
        rows = (row for rows in self.rows.values() for row in rows)
        return {**{row.key: row.value for row in rows if row.key}, "failures": self.failures}


def simulated_space(conferences: int, seed: int) -> SimulatedSpace:
    """Create the Space, with its faults.

    No start and no stop meets more than one reset and one 503, and a call is tried three times; a wait after "too many
    requests" does not count as one. So all of them must succeed, whatever the seed.
    """
    space = SimulatedSpace(conferences=conferences, seed=seed, log_requests=False)
    every_nth = min(12, conferences)  # in a small demo, too, each fault happens at least once
    for operation in ("start", "stop"):
        space.faults.add("reset", on=operation, executed=True, every_nth=every_nth, per_target=1)
        space.faults.add("503-api", on=operation, every_nth=every_nth, per_target=1)
    space.faults.add("throttle", on="start", times=1, retry_after=0.25)
    space.faults.add("latency", seconds=0.01)
    return space


async def _start_and_stop(space: SimulatedSpace, page: LivePage | None, *, as_json: bool) -> Result:
    attempts: list[Attempt] = []
    meter = Meter()

    def record(attempt: Attempt) -> None:
        attempts.append(attempt)
        meter.record(attempt)

    async def streams_of(title: str, run: BulkRun[Any]) -> list[Any]:
        def get_progress() -> Progress:
            facts = f"{meter.rate:,.0f} requests/s", f"{meter.retries:,} attempts retried"
            return Progress(title=title, done=run.snapshot.total, total=len(found), facts=facts)

        if page is not None:
            page.add_run(run, total=len(found), rate_limit=RateLimit().rate)
        async with show_progress(get_progress, as_json=as_json):
            return [outcome.stream async for outcome in run if outcome.stream is not None]

    began = time.perf_counter()
    async with StreamsClient(
        space=space.base_url, project=space.project, token=space.token, on_attempt=record
    ) as client:
        found = [item.sid async for item in client.conferences.list(status="in-progress", page_size=1000)]
        starts = client.start_streams(StartConferenceStream(conference_sid=sid, url=_URL) for sid in found)
        started = await streams_of("Starting", starts)
        stops = client.stop_streams(started)
        stopped = sum(stream.status == StreamStatus.STOPPED for stream in await streams_of("Stopping", stops))
        reports = {"start": await starts.report(), "stop": await stops.report()}
    seconds = time.perf_counter() - began
    failures = [str(outcome.error) for report in reports.values() for outcome in report.failures]
    created = sum(stream.error is None for stream in space.streams)
    running, duplicates = len(space.streams.active()), len(space.streams.duplicates())
    retries = [attempt for attempt in attempts if attempt.decision.is_retry]
    client_rows = [
        _count("live conferences found", "found", len(found)),
        _count("streams started", "started", len(started), len(found)),
        _count("  after a retry", "started_by_repeated_attempt", _count_targets(retries, is_start=True)),
        _count("streams stopped", "stopped", stopped, len(found)),
        _count("  after a retry", "stopped_by_repeated_attempt", _count_targets(retries, is_start=False)),
        _count("attempts", "attempts", len(attempts)),
        _count("  retried", "retries", len(retries)),
        Row("", "retries_by_result", Counter(attempt.result for attempt in retries)),
        *(_count(f"    {cause}", "", count) for cause, count in Counter(map(_cause, retries)).most_common()),
    ]
    for verb, report in reports.items():
        latencies = report.latency_percentiles
        facts = {{100: "max"}.get(percent, f"p{percent}"): round(value, 4) for percent, value in latencies.items()}
        shown = format_latencies({percent: latencies[percent] for percent in (50, 95, 100)})  # fits a line if slow
        client_rows.append(Row(f"time to {verb} a stream", f"{verb}_seconds", facts, shown))
    client_rows.append(Row("total time", "seconds", round(seconds, 3), f"{seconds:.1f} s"))
    space_rows = [
        _count("streams that ever ran", "streams_created", created),
        _count("second starts, rejected", "starts_rejected_as_duplicates", len(space.streams) - created),
        _count("streams still running", "streams_alive", running),
        _count("duplicate streams", "duplicate_streams", duplicates),
    ]
    is_complete = {len(found), len(started), stopped, created} == {space.conferences}
    is_good = is_complete and not (running or duplicates or failures)
    return Result(is_good, failures, {"The client": client_rows, "The Space's own count": space_rows})


def _count_targets(retries: Sequence[Attempt], *, is_start: bool) -> int:
    """Count the conferences on which a start, or a stop, needed more than one attempt."""
    operations = ((attempt.target, attempt.operation) for attempt in retries)
    return len({target for target, one in operations if one is not Operation.READ and one.is_start is is_start})


def _cause(attempt: Attempt) -> str:
    result = attempt.result.description
    if attempt.result is AttemptResult.NO_RESPONSE:
        return "no response, connection reset"
    return f"HTTP {attempt.status}: {result}" if attempt.status is not None else result


async def _record_some(receiver: MediaReceiver, directory: Path, seed: int, seconds: float, *, as_json: bool) -> Result:
    failures: list[str] = []
    tracks: list[TrackStatistics] = []
    exact = done = 0

    async def record(session: StreamSession, path: Path) -> None:
        nonlocal exact, done
        await _record_stream(session, path, seconds)
        tracks.extend(session.statistics.tracks.values())
        exact += _count_exact_tracks(path)
        done += 1

    def get_progress() -> Progress:
        return Progress(title="Recording", done=done, total=RECORDED, facts=())

    certificates = Certificates.make()
    async with SimulatedSpace(conferences=RECORDED, seed=seed, audio=_TONE, ssl_context=certificates.trust) as space:
        space.faults.add("reset", on="start", executed=True, every_nth=5, per_target=1)
        async with (
            StreamsClient(space=space.base_url, project=space.project, token=space.token) as client,
            receiver.serve(ssl_context=certificates.server) as url,
            show_progress(get_progress, as_json=as_json),
        ):
            sids = space.conference_sids
            requests = [StartConferenceStream(conference_sid=sid, url=url, codec=Codec.L16_16K) for sid in sids]
            async with receiver.open_many(client, requests) as outcomes, asyncio.TaskGroup() as recordings:
                async for outcome in outcomes:
                    if outcome.session is None:
                        failures.append(str(outcome.error))
                    else:
                        path = directory / f"{outcome.request.target}.wav"
                        recordings.create_task(record(outcome.session, path))
        running, duplicates = len(space.streams.active()), len(space.streams.duplicates())
    missing, dropped = (sum(getattr(track, name) for track in tracks) for name in ("missing", "dropped"))
    jitter = max((track.jitter for track in tracks), default=0.0)
    total = RECORDED * len(_TRACKS)
    rows = [
        Row("", "conferences", RECORDED),
        Row("", "tracks", len(tracks)),
        _count("tracks recorded exactly", "tracks_recorded_to_the_sample", exact, total),
        _count("frames of 20 ms", "frames", sum(track.frames for track in tracks)),
        _count("  lost", "", missing + dropped),
        Row("", "frames_missing", missing),
        Row("", "frames_dropped", dropped),
        Row("maximum jitter", "jitter_seconds", round(jitter / 1_000, 5), f"{jitter:.1f} ms"),
        _count("streams still running", "streams_alive", running),
        Row("", "duplicate_streams", duplicates),
        Row("", "sockets_open", len(receiver.sessions)),
    ]
    is_whole = len(tracks) == exact == total
    is_good = is_whole and not (missing or dropped or failures or running or duplicates or receiver.sessions)
    return Result(is_good, failures, {f"The audio of {RECORDED} conferences": rows})


async def _record_stream(session: StreamSession, path: Path, seconds: float) -> None:
    frames = len(_TRACKS) * round(seconds * _FRAMES_PER_SECOND)
    with WavRecorder(path, session.audio_format, layout="stereo") as recording:
        async for event in session:
            if isinstance(event, MediaEvent):
                recording.write(event)
                frames -= 1
                if frames == 0:
                    break


def _count_exact_tracks(path: Path) -> int:
    with wave.open(str(path)) as file:
        length = file.getnframes()
        samples = array("h", file.readframes(length))
    return sum(
        bool(length) and samples[channel :: len(_TRACKS)] == _sent(track, length)
        for channel, track in enumerate(_TRACKS)
    )


def _sent(track: str, length: int) -> "array[int]":
    clip = _TONE.clip(track, _RATE).samples(0, _RATE)
    return (clip * (length // len(clip) + 1))[:length]


@click.command(
    short_help="Start and stop 1,000 streams on a simulated Space.",
    epilog="""\b
Examples:
  signalwire-streams demo
  signalwire-streams demo --conferences 5000 --seed 7 --json
  signalwire-streams demo --recordings recordings

SIGNALWIRE_SPACE, SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN are not needed: nothing leaves this machine.
""",
)
@click.option("--conferences", type=click.IntRange(min=1), default=1_000, metavar="N", help="Live conferences.")
@click.option("--seed", type=int, default=0, metavar="N", help="Seed of all sids and faults.")
@click.option(
    "--recordings",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The directory in which to keep the recordings, as WAV files.",
)
@page_option
@json_option("Write the result as one JSON object.")
def demo(*, conferences: int, seed: int, recordings: Path | None, page: int | None, as_json: bool) -> None:
    """Start and stop a stream on 1,000 conferences of a simulated Space with faults, and record 20.

    No account is needed. The exit code is 0 only if every stream was started and stopped, the recordings match what
    was sent, and by the Space's own count no stream was started twice and none is left running.
    """
    if recordings is not None:
        create_directory(recordings, "--recordings")
    # The faults are the demo's purpose, and its result counts their effects.
    with TemporaryDirectory(prefix="signalwire-streams-") as temporary, silenced(OUTCOMES, RATE_LIMIT):
        streams, audio = asyncio.run(_run(recordings or Path(temporary), conferences, seed, page, as_json=as_json))
    is_good = streams.is_good and audio.is_good
    if as_json:
        write_json({"ok": is_good, "seed": seed, "conferences": conferences, **streams.facts, "audio": audio.facts})
    else:
        _write(streams, audio)
    for failure in [*streams.failures, *audio.failures][:_MAX_FAILURES]:
        click.echo(f"error: {clean(failure)}", err=True)
    if not is_good:
        raise click.exceptions.Exit(FAILED)


async def _run(
    directory: Path, conferences: int, seed: int, port: int | None, *, as_json: bool
) -> tuple[Result, Result]:
    # From here on the loop handles Ctrl-C, which would interrupt its creation otherwise.
    seconds = SECONDS if port is None else _PAGE_SECONDS
    if not as_json:
        click.echo(
            f"Simulating a Space with {conferences:,} live conferences; nothing leaves this machine.\n"
            "Its faults: resets that lose the response to a start or stop that was executed,\n"
            "503s, one 'too many requests', and 10 ms of latency in all other responses.\n"
            f"Then {RECORDED} conferences are recorded for {seconds:g} s, over wss, in real time."
        )
    receiver = MediaReceiver()
    async with live_page(port, write_note, receivers=[receiver]) as page:
        if page is not None:
            write_note("The demo begins when the page is open.")
            await page.opened.wait()
        async with simulated_space(conferences, seed) as space:
            streams = await _start_and_stop(space, page, as_json=as_json)
        return streams, await _record_some(receiver, directory, seed, seconds, as_json=as_json)


def _write(streams: Result, audio: Result) -> None:
    sections = {**streams.rows, **audio.rows}
    width = max(len(row.label) for rows in sections.values() for row in rows)
    click.echo()
    for title, rows in sections.items():
        click.secho(title, bold=True)
        write_aligned([(row.label.ljust(width), row.text) for row in rows if row.label], indent="  ")
    click.echo()
    if not streams.is_good:
        click.echo("Something went wrong: not every conference had exactly one stream that was stopped.")
    elif not audio.is_good:
        click.echo("Something went wrong: the recordings differ from what was sent.")
    else:
        click.echo(
            f"Every conference got its stream exactly once, although {streams.facts['retries']:,} attempts failed,\n"
            "the recordings match what was sent, and no stream is left running."
        )
