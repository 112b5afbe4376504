"""The command ``demo``: thousands of streams on a simulated Space with faults, and the audio of some of them."""

import asyncio
import contextlib
import time
import wave
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from attrs import frozen

from signalwire_streams import (
    Attempt,
    AttemptResult,
    BulkReport,
    BulkRun,
    Codec,
    Operation,
    StartConferenceStream,
    StreamsClient,
    StreamStatus,
)
from signalwire_streams._cli.bulk_runner import format_latencies
from signalwire_streams._cli.options import json_option
from signalwire_streams._cli.output import (
    FAILED,
    OUTCOMES,
    RATE_LIMIT,
    Failure,
    bare_table,
    clean,
    is_terminal,
    silenced,
    write_aligned,
    write_json,
    write_rich,
)
from signalwire_streams._cli.progress import RETRIES, Meter, Progress, shown
from signalwire_streams.receiver import MediaEvent, MediaReceiver, StreamSession, TrackStatistics
from signalwire_streams.receiver.audio import WavRecorder
from signalwire_streams.simulator import Certificates, SimulatedSpace, Tone

SECONDS = 2.0
_CONFERENCES = 20  # that are recorded
_FRAMES_PER_SECOND, _TRACKS, _RATE = 50, ("inbound", "outbound"), 16_000
_TONE = Tone()
_URL = "wss://audio.example.com/live"
_MAX_FAILURES = 5


@frozen
class Row:
    """One number of the result: its label and text for a person, its key and value for a program."""

    label: str
    key: str
    value: object
    text: str

    @classmethod
    def of_count(cls, label: str, key: str, count: int, total: int | None = None) -> "Row":
        return cls(label, key, count, f"{count:,}" + ("" if total is None else f" of {total:,}"))


class BulkPart:
    """Starts a stream on each live conference, stops them all, and records the client's and the Space's counts.

    Attributes:
        is_good: whether each conference had exactly one stream, and none is left.
        failures: the errors of starts and stops.
        retries: the attempts that were retried.
    """

    def __init__(self, conferences: int, *, as_json: bool) -> None:
        self.is_good = False
        self.failures: list[str] = []
        self._conferences = conferences
        self._as_json = as_json
        self._found: list[str] = []
        self._streams: list[Any] = []
        self._stopped = 0
        self._reports: list[BulkReport] = []
        self._attempts: list[Attempt] = []
        self._seconds = 0.0
        self._meter = Meter()
        self._created = self._refused = self._running = self._duplicates = 0

    async def run(self, space: SimulatedSpace) -> None:
        began = time.perf_counter()
        async with StreamsClient(
            space=space.base_url, project=space.project, token=space.token, on_attempt=self._record
        ) as client:
            self._found = [item.sid async for item in client.conferences.list(status="in-progress", page_size=1000)]
            starts = client.start_streams(StartConferenceStream(conference_sid=sid, url=_URL) for sid in self._found)
            async for outcome in self._shown("Starting", starts):
                if outcome.stream is not None:
                    self._streams.append(outcome.stream)
            stops = client.stop_streams(self._streams)
            async for outcome in self._shown("Stopping", stops):
                self._stopped += outcome.stream is not None and outcome.stream.status == StreamStatus.STOPPED
            self._reports = [await starts.report(), await stops.report()]
        self._seconds = time.perf_counter() - began
        self.failures = [str(outcome.error) for report in self._reports for outcome in report.failures]
        self._created = sum(stream.error is None for stream in space.streams)
        self._refused = len(space.streams) - self._created
        self._running, self._duplicates = len(space.streams.active()), len(space.streams.duplicates())
        counts = {len(self._found), len(self._streams), self._stopped, self._created}
        self.is_good = counts == {self._conferences} and not (self._running or self._duplicates or self.failures)

    def _record(self, attempt: Attempt) -> None:
        self._attempts.append(attempt)
        self._meter.record(attempt)

    async def _shown(self, title: str, run: BulkRun[Any]) -> Any:  # noqa: ANN401  (its outcomes)
        def look() -> Progress:
            facts = f"{self._meter.rate:,.0f} requests/s", f"{self._meter.retries:,} attempts retried"
            return Progress(title=title, done=run.snapshot.total, total=len(self._found), facts=facts)

        async with shown(look, as_json=self._as_json):
            async for outcome in run:
                yield outcome

    @property
    def retries(self) -> list[Attempt]:
        return [attempt for attempt in self._attempts if attempt.decision in RETRIES]

    def client_rows(self) -> Iterator[Row]:
        found, retries = len(self._found), self.retries
        yield Row.of_count("live conferences found", "found", found)
        yield Row.of_count("streams started", "started", len(self._streams), found)
        yield Row.of_count("  after a retry", "started_by_repeated_attempt", self._retried(is_start=True))
        yield Row.of_count("streams stopped", "stopped", self._stopped, found)
        yield Row.of_count("  after a retry", "stopped_by_repeated_attempt", self._retried(is_start=False))
        yield Row.of_count("attempts", "attempts", len(self._attempts))
        yield Row.of_count("  retried", "retries", len(retries))
        for cause, count in Counter(map(_cause, retries)).most_common():
            yield Row.of_count(f"    {cause}", "", count)
        for verb, report in zip(("start", "stop"), self._reports, strict=True):
            latencies = report.latency_percentiles
            facts = {{100: "max"}.get(percent, f"p{percent}"): round(value, 4) for percent, value in latencies.items()}
            yield Row(f"time to {verb} a stream", f"{verb}_seconds", facts, format_latencies(latencies))
        yield Row("total time", "seconds", round(self._seconds, 3), f"{self._seconds:.1f} s")

    def space_rows(self) -> Iterator[Row]:
        yield Row.of_count("streams that ever ran", "streams_created", self._created)
        yield Row.of_count("second starts, rejected", "streams_refused_as_duplicates", self._refused)
        yield Row.of_count("streams still running", "streams_alive", self._running)
        yield Row.of_count("duplicate streams", "duplicate_streams", self._duplicates)

    def _retried(self, *, is_start: bool) -> int:
        """Count the conferences on which a start, or a stop, needed more than one attempt."""
        operations = ((attempt.target, attempt.operation) for attempt in self.retries)
        return len({target for target, one in operations if one is not Operation.READ and one.is_start is is_start})


def _cause(attempt: Attempt) -> str:
    result = attempt.result.description
    if attempt.result is AttemptResult.NO_RESPONSE:
        return "no response, connection reset"
    return f"HTTP {attempt.status}: {result}" if attempt.status is not None else result


class AudioPart:
    """Records some conferences of a Space that sends audio, and compares the recordings with what was sent.

    Attributes:
        failures: the errors of starts.
    """

    def __init__(self, directory: Path, *, as_json: bool) -> None:
        self.failures: list[str] = []
        self._directory = directory
        self._as_json = as_json
        self._tracks: list[TrackStatistics] = []
        self._done = self._exact = self._running = self._duplicates = self._open_sockets = 0

    async def run(self, seed: int) -> None:
        certificates = Certificates.make()
        receiver = MediaReceiver()
        async with SimulatedSpace(
            conferences=_CONFERENCES, seed=seed, audio=_TONE, ssl_context=certificates.trust
        ) as space:
            space.faults.add("reset", on="start", executed=True, every_nth=5, per_target=1)
            async with (
                StreamsClient(space=space.base_url, project=space.project, token=space.token) as client,
                receiver.serve(ssl_context=certificates.server) as url,
                shown(self._progress, as_json=self._as_json),
            ):
                await self._record_all(client, receiver, url, space.conference_sids)
            self._running, self._duplicates = len(space.streams.active()), len(space.streams.duplicates())
            self._open_sockets = len(receiver.sessions)

    def _progress(self) -> Progress:
        return Progress(title="Recording", done=self._done, total=_CONFERENCES, facts=())

    async def _record_all(self, client: StreamsClient, receiver: MediaReceiver, url: str, sids: Sequence[str]) -> None:
        requests = [StartConferenceStream(conference_sid=sid, url=url, codec=Codec.L16_16K) for sid in sids]
        async with receiver.open_many(client, requests) as outcomes, asyncio.TaskGroup() as recordings:
            async for outcome in outcomes:
                if outcome.session is None:
                    self.failures.append(str(outcome.error))
                else:
                    recordings.create_task(self._record(outcome.session, outcome.request.target))

    async def _record(self, session: StreamSession, conference_sid: str) -> None:
        frames = len(_TRACKS) * round(SECONDS * _FRAMES_PER_SECOND)
        path = self._directory / f"{conference_sid}.wav"
        with WavRecorder(path, session.audio_format, layout="stereo") as recording:
            async for event in session:
                if isinstance(event, MediaEvent):
                    recording.write_event(event)
                    frames -= 1
                    if frames == 0:
                        break
        self._tracks += session.statistics.tracks.values()
        self._exact += _count_exact_tracks(path)
        self._done += 1

    @property
    def is_good(self) -> bool:
        """Whether each conference was recorded on both tracks without a loss, and nothing is left."""
        total = _CONFERENCES * len(_TRACKS)
        is_whole = len(self._tracks) == self._exact == total and not self._lost
        return is_whole and not (self.failures or self._running or self._duplicates or self._open_sockets)

    @property
    def _lost(self) -> int:
        return self._sum("missing") + self._sum("dropped")

    def _sum(self, name: str) -> int:
        return sum(getattr(track, name) for track in self._tracks)

    def rows(self) -> Iterator[Row]:
        jitter = max((track.jitter for track in self._tracks), default=0.0)
        total = _CONFERENCES * len(_TRACKS)
        yield Row.of_count("tracks recorded exactly", "tracks_recorded_to_the_sample", self._exact, total)
        yield Row.of_count("frames of 20 ms", "frames", self._sum("frames"))
        yield Row.of_count("  lost", "", self._lost)
        yield Row("maximum jitter", "jitter_seconds", round(jitter / 1_000, 5), f"{jitter:.1f} ms")
        yield Row.of_count("streams still running", "streams_alive", self._running)

    def facts(self) -> Mapping[str, object]:
        return {
            "conferences": _CONFERENCES,
            "tracks": len(self._tracks),
            **_facts(self.rows()),
            "frames_missing": self._sum("missing"),
            "frames_dropped": self._sum("dropped"),
            "duplicate_streams": self._duplicates,
            "sockets_open": self._open_sockets,
            "failures": self.failures,
        }


def _count_exact_tracks(path: Path) -> int:
    """Count the tracks of a recording that equal what was sent, to the sample."""
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


def _facts(rows: Iterator[Row]) -> Mapping[str, object]:
    return {row.key: row.value for row in rows if row.key}


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


@click.command(
    short_help="Start and stop 1,000 streams on a simulated Space.",
    epilog="""\b
Examples:
  signalwire-streams demo
  signalwire-streams demo --conferences 5000 --seed 7 --json
  signalwire-streams demo --recordings heard

SIGNALWIRE_SPACE, SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN are not needed: nothing leaves this machine.
""",
)
@click.option(
    "--conferences", type=click.IntRange(min=1), default=1_000, show_default=True, metavar="N", help="Live conferences."
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of all ids and faults.")
@click.option(
    "--recordings",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The directory in which to keep the recordings, as WAV files.",
)
@json_option("Write the result as one JSON object.")
def demo(*, conferences: int, seed: int, recordings: Path | None, as_json: bool) -> None:
    """Start and stop a stream on 1,000 conferences of a simulated Space with faults, and record 20.

    No account is needed. The exit code is 0 only if every stream was started and stopped, the recordings equal what
    was sent, and by the Space's own count no stream was started twice and none is left.
    """
    # The faults are the demo's purpose, and its result counts their effects.
    with _directory(recordings) as directory, silenced(OUTCOMES, RATE_LIMIT):
        streams, audio = BulkPart(conferences, as_json=as_json), AudioPart(directory, as_json=as_json)
        asyncio.run(_run(streams, audio, conferences, seed, as_json=as_json))
    is_good = streams.is_good and audio.is_good
    if as_json:
        facts = {**_facts(streams.client_rows()), **_facts(streams.space_rows())}
        by_result = dict(Counter(attempt.result for attempt in streams.retries))
        more = {"retries_by_result": by_result, "failures": streams.failures, "audio": audio.facts()}
        write_json({"ok": is_good, "seed": seed, "conferences": conferences, **facts, **more})
    else:
        _write(streams, audio)
    for failure in [*streams.failures, *audio.failures][:_MAX_FAILURES]:
        click.echo(f"error: {clean(failure)}", err=True)
    if not is_good:
        raise click.exceptions.Exit(FAILED)


@contextlib.contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    """Create the directory for recordings, by default one that is deleted afterwards."""
    if wanted is None:
        with TemporaryDirectory(prefix="signalwire-streams-") as name:
            yield Path(name)
        return
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"can't create {wanted}: {error.strerror}") from None
    yield wanted


async def _run(streams: BulkPart, audio: AudioPart, conferences: int, seed: int, *, as_json: bool) -> None:
    # From here on the loop handles Ctrl-C, which would interrupt its creation otherwise.
    if not as_json:
        click.echo(
            f"Simulating a Space with {conferences:,} live conferences; nothing leaves this machine.\n"
            "Its faults: resets that lose the response to a start or stop that was executed,\n"
            "503s, one 'too many requests', and every other response is 10 ms late.\n"
            f"Then {_CONFERENCES} conferences are recorded for {SECONDS:g} s, over wss, in real time."
        )
    async with simulated_space(conferences, seed) as space:
        await streams.run(space)
    await audio.run(seed)


def _write(streams: BulkPart, audio: AudioPart) -> None:
    table = bare_table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    lines: list[tuple[str, str]] = []
    for title, rows in (
        ("The client", streams.client_rows()),
        ("The Space's own count", streams.space_rows()),
        (f"The audio of {_CONFERENCES} conferences", audio.rows()),
    ):
        cells = [(f"  {row.label}", row.text) for row in rows]
        lines += [(title, ""), *cells]
        for label, text in [(f"[bold]{title}[/bold]", ""), *cells]:
            table.add_row(label, text)
    click.echo()
    if is_terminal():
        write_rich(table)
    else:
        write_aligned(lines)
    click.echo()
    if not streams.is_good:
        click.echo("Something went wrong: not every conference had exactly one stream that was stopped.")
    elif not audio.is_good:
        click.echo("Something went wrong: the recordings differ from what was sent.")
    else:
        click.echo(
            f"Every conference got its stream exactly once, although {len(streams.retries):,} attempts failed,\n"
            "the recordings equal what was sent, and no stream is left running."
        )
