"""The demo's result, in words and as JSON."""

import asyncio
import time
import wave
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import click
from attrs import define, field, frozen

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
from signalwire_streams._cli.output import (
    FAILED,
    OUTCOMES,
    RATE_LIMIT,
    Failure,
    bare_table,
    clean,
    on_terminal,
    silenced,
    write_aligned,
    write_json,
    write_rich,
)
from signalwire_streams._cli.progress import REPEATED, Meter, Progress, shown
from signalwire_streams.receiver import MediaEvent, MediaReceiver, StreamSession, TrackStatistics
from signalwire_streams.receiver.audio import WavRecorder
from signalwire_streams.simulator import Certificates, SimulatedSpace, Tone

CONFERENCES = 20
SECONDS = 2.0
_FRAMES_PER_SECOND, _TRACKS, _RATE = 50, ("inbound", "outbound"), 16_000
_TONE = Tone()


@define(eq=False)
class Listening:
    """What was heard.

    Attributes:
        directory: where the recordings go.
        as_json: whether the result will be written as JSON.
        tracks: what the receiver says of each track.
        faithful: the tracks whose recording is what was said, to the sample.
        failures: what went wrong, in sentences.
        alive: the streams that still ran at the end, by the Space's own count.
        doubled: the conferences that ever had two.
        open_sockets: the sockets that were still open at the end.
    """

    directory: Path
    as_json: bool = False
    tracks: list[TrackStatistics] = field(init=False, factory=list)
    faithful: int = field(init=False, default=0)
    failures: list[str] = field(init=False, factory=list)
    alive: int = field(init=False, default=0)
    doubled: int = field(init=False, default=0)
    open_sockets: int = field(init=False, default=0)
    _done: int = field(init=False, default=0)

    async def run(self, seed: int) -> None:
        """Make a Space that speaks and a receiver that it trusts, and record every conference."""
        certificates = Certificates.make()
        receiver = MediaReceiver()
        async with SimulatedSpace(
            conferences=CONFERENCES, seed=seed, audio=_TONE, ssl_context=certificates.trust
        ) as space:
            space.faults.add("reset", on="start", executed=True, every_nth=5, per_target=1)
            client = StreamsClient(space=space.base_url, project=space.project, token=space.token)
            async with client, receiver.serve(ssl_context=certificates.server) as url, self._shown():
                await self.record_all(client, receiver, url, space.conference_sids)
            self.alive, self.doubled = len(space.streams.active()), len(space.streams.duplicates())
            self.open_sockets = len(receiver.sessions)

    async def record_all(
        self, client: StreamsClient, receiver: MediaReceiver, url: str, conference_sids: list[str]
    ) -> None:
        """Start a stream on each conference, record it for a while, and stop them all."""
        requests = [StartConferenceStream(conference_sid=sid, url=url, codec=Codec.L16_16K) for sid in conference_sids]
        async with receiver.open_many(client, requests) as outcomes, asyncio.TaskGroup() as recordings:
            async for outcome in outcomes:
                if outcome.session is None:
                    self.failures.append(str(outcome.error))
                else:
                    recordings.create_task(self.record(outcome.session, outcome.request.target))

    async def record(self, session: StreamSession, conference_sid: str) -> None:
        """Record a stream for a while, both tracks side by side."""
        wanted = len(_TRACKS) * round(SECONDS * _FRAMES_PER_SECOND)
        path = self.directory / f"{conference_sid}.wav"
        with WavRecorder(path, session.audio_format, layout="stereo") as recording:
            async for event in session:
                if isinstance(event, MediaEvent):
                    recording.write_event(event)
                    wanted -= 1
                    if wanted == 0:
                        break
        self.tracks += session.statistics.tracks.values()
        self.faithful += _faithful_tracks(path)
        self._done += 1

    @property
    def is_good(self) -> bool:
        """Whether each conference was heard on both tracks without a loss, and nothing is left."""
        all_tracks = CONFERENCES * len(_TRACKS)
        whole = len(self.tracks) == self.faithful == all_tracks and not (self.missing or self.dropped)
        return whole and not (self.failures or self.alive or self.doubled or self.open_sockets)

    @property
    def frames(self) -> int:
        """Media frames that came."""
        return sum(track.frames for track in self.tracks)

    @property
    def jitter(self) -> float:
        """The unevenest track's jitter, in milliseconds."""
        return max((track.jitter for track in self.tracks), default=0.0)

    @property
    def missing(self) -> int:
        """Media frames that never came."""
        return sum(track.missing for track in self.tracks)

    @property
    def dropped(self) -> int:
        """Media frames that the receiver dropped."""
        return sum(track.dropped for track in self.tracks)

    def facts(self) -> Mapping[str, object]:
        """Give everything for JSON; times are in seconds."""
        return {
            "conferences": CONFERENCES,
            "tracks": len(self.tracks),
            "tracks_recorded_to_the_sample": self.faithful,
            "frames": self.frames,
            "frames_missing": self.missing,
            "frames_dropped": self.dropped,
            "jitter_seconds": round(self.jitter / 1_000, 5),
            "streams_alive": self.alive,
            "streams_doubled": self.doubled,
            "sockets_open": self.open_sockets,
            "failures": self.failures,
        }

    def _shown(self) -> AbstractAsyncContextManager[object]:
        def look() -> Progress:
            return Progress(title="Listening", done=self._done, total=CONFERENCES, facts=())

        return shown(look, as_json=self.as_json)


def _faithful_tracks(path: Path) -> int:
    """Count the tracks of a recording that are what was said, to the sample."""
    with wave.open(str(path)) as file:
        length = file.getnframes()
        samples = array("h", file.readframes(length))
    return sum(
        bool(length) and samples[channel :: len(_TRACKS)] == _said(track, length)
        for channel, track in enumerate(_TRACKS)
    )


def _said(track: str, length: int) -> "array[int]":
    clip = _TONE.clip(track, _RATE).samples(0, _RATE)
    return (clip * (length // len(clip) + 1))[:length]


AUDIO_URL = "wss://audio.example.com/live"


@define(eq=False)
class Job:
    """What the client did, as it saw it.

    Attributes:
        as_json: whether the result will be written as JSON.
        found: the sids of the live conferences.
        streams: the streams, each as its start returned it.
        stopped: how many stops returned a stopped stream.
        reports: what the client says of the starts, and of the stops.
        attempts: every attempt, as ``on_attempt`` hears of it.
        seconds: how long the whole job took.
    """

    as_json: bool = False
    found: list[str] = field(factory=list)
    streams: list[Any] = field(factory=list)
    stopped: int = 0
    reports: list[BulkReport] = field(factory=list)
    attempts: list[Attempt] = field(factory=list)
    seconds: float = 0.0
    _meter: Meter = field(init=False, factory=Meter)

    async def run(self, client: StreamsClient) -> None:
        """Find the live conferences, start a stream on each, then stop them all."""
        began = time.perf_counter()
        self.found = [item.sid async for item in client.conferences.list(status="in-progress", page_size=1000)]

        starts = client.start_streams(StartConferenceStream(conference_sid=sid, url=AUDIO_URL) for sid in self.found)
        async with self._shown("Starting", starts):
            async for outcome in starts:
                if outcome.stream is not None:
                    self.streams.append(outcome.stream)
        self.reports.append(await starts.report())

        stops = client.stop_streams(self.streams)
        async with self._shown("Stopping", stops):
            async for end in stops:
                self.stopped += end.stream is not None and end.stream.status == StreamStatus.STOPPED
        self.reports.append(await stops.report())

        self.seconds = time.perf_counter() - began

    def note(self, attempt: Attempt) -> None:
        """Hear of an attempt."""
        self.attempts.append(attempt)
        self._meter.note(attempt)

    @property
    def repeats(self) -> list[Attempt]:
        """The attempts that were followed by another one of the same call."""
        return [attempt for attempt in self.attempts if attempt.decision in REPEATED]

    @property
    def failures(self) -> list[str]:
        """What went wrong in the end, in sentences."""
        return [str(outcome.error) for report in self.reports for outcome in report.failures]

    def _shown(self, title: str, run: BulkRun[Any]) -> AbstractAsyncContextManager[object]:
        def look() -> Progress:
            facts = f"{self._meter.rate:,.0f} requests/s", f"{self._meter.repeats:,} attempts repeated"
            return Progress(title=title, done=run.snapshot.total, total=len(self.found), facts=facts)

        return shown(look, as_json=self.as_json)


def simulated_space(conferences: int, seed: int) -> SimulatedSpace:
    """Make the Space, with its faults.

    No start and no stop runs into more than one reset and one 503, and a call is tried three times; waiting
    because of "too many requests" does not count as one. So every one of them must succeed, whatever the seed.
    """
    space = SimulatedSpace(conferences=conferences, seed=seed, log_requests=False)
    one_in = min(12, conferences)  # in a small demo too, each fault happens at least once
    for operation in ("start", "stop"):
        space.faults.add("reset", on=operation, executed=True, every_nth=one_in, per_target=1)
        space.faults.add("503-api", on=operation, every_nth=one_in, per_target=1)
    space.faults.add("throttle", on="start", times=1, retry_after=0.25)
    space.faults.add("latency", seconds=0.01)
    return space


_SECONDS = ("start_seconds", "stop_seconds")

Section = tuple[str, Sequence[tuple[str, str]]]


@frozen(kw_only=True)
class Report:
    """What came of a job: by the client's account, and by the Space's own count.

    Attributes:
        job: the client's account.
        listening: what was heard.
        conferences: how many conferences there were to find.
        seed: the seed of the Space.
        created: the streams that ever ran.
        refused: the repeated starts whose stream ran already, so that the Space let no second one live.
        alive: the streams that still run.
        doubled: the conferences that ever had two streams of one name at a time.
    """

    job: Job
    listening: Listening
    conferences: int
    seed: int
    created: int
    refused: int
    alive: int
    doubled: int

    @classmethod
    def of(cls, job: Job, listening: Listening, space: SimulatedSpace, conferences: int, seed: int) -> Self:
        """Ask the Space."""
        created = sum(stream.error is None for stream in space.streams)
        return cls(
            job=job,
            listening=listening,
            conferences=conferences,
            seed=seed,
            created=created,
            refused=len(space.streams) - created,
            alive=len(space.streams.active()),
            doubled=len(space.streams.duplicates()),
        )

    @property
    def is_good(self) -> bool:
        """Whether each stream was started once and stopped, none is left, and nothing was misheard."""
        return self._is_done and self.listening.is_good

    @property
    def _is_done(self) -> bool:
        job = self.job
        counts = {len(job.found), len(job.streams), job.stopped, self.created}
        return counts == {self.conferences} and not (self.alive or self.doubled or job.failures)

    def facts(self) -> Mapping[str, object]:
        """Give everything for JSON; times are in seconds."""
        job = self.job
        return {
            "ok": self.is_good,
            "seed": self.seed,
            "conferences": self.conferences,
            "found": len(job.found),
            "started": len(job.streams),
            "started_by_repeated_attempt": self._repeated(is_start=True),
            "stopped": job.stopped,
            "stopped_by_repeated_attempt": self._repeated(is_start=False),
            "attempts": len(job.attempts),
            "retries": len(job.repeats),
            "retries_by_event": dict(Counter(attempt.result for attempt in job.repeats)),
            **{name: _percentiles(report) for name, report in zip(_SECONDS, job.reports, strict=True)},
            "seconds": round(job.seconds, 3),
            "streams_created": self.created,
            "streams_refused_as_duplicates": self.refused,
            "streams_alive": self.alive,
            "streams_doubled": self.doubled,
            "failures": job.failures,
            "audio": self.listening.facts(),
        }

    def write(self) -> None:
        """Write it for a person."""
        sections = self._sections()
        click.echo()
        if on_terminal():
            _write_drawn(sections)
        else:
            write_aligned([row for title, facts in sections for row in ((title, ""), *_indented(facts))])
        click.echo()
        click.echo(self._sentence())

    def _sections(self) -> Sequence[Section]:
        job, wanted = self.job, len(self.job.found)
        client: Sequence[tuple[str, str]] = [
            ("live conferences found", f"{wanted:,}"),
            ("streams started", f"{len(job.streams):,} of {wanted:,}"),
            ("  of them by a repeated attempt", f"{self._repeated(is_start=True):,}"),
            ("streams stopped", f"{job.stopped:,} of {wanted:,}"),
            ("  of them by a repeated attempt", f"{self._repeated(is_start=False):,}"),
            ("attempts", f"{len(job.attempts):,}"),
            ("  followed by another one", f"{len(job.repeats):,}"),
            *((f"    {cause}", f"{count:,}") for cause, count in Counter(map(_in_words, job.repeats)).most_common()),
            ("time to start a stream", _in_milliseconds(job.reports[0])),
            ("time to stop a stream", _in_milliseconds(job.reports[1])),
            ("time for everything", f"{job.seconds:.1f} s"),
        ]
        space: Sequence[tuple[str, str]] = [
            ("streams that ever ran", f"{self.created:,}"),
            ("second starts, refused", f"{self.refused:,}"),
            ("streams still running", f"{self.alive:,}"),
            ("streams doubled", f"{self.doubled:,}"),
        ]
        heard, tracks = self.listening, CONFERENCES * 2
        audio: Sequence[tuple[str, str]] = [
            ("tracks recorded, to the sample", f"{heard.faithful:,} of {tracks:,}"),
            ("frames of 20 ms", f"{heard.frames:,}"),
            ("  lost", f"{heard.missing + heard.dropped:,}"),
            ("jitter, at most", f"{heard.jitter:.1f} ms"),
            ("streams still running", f"{heard.alive:,}"),
        ]
        return (
            ("What the client did", client),
            ("What the Space counted", space),
            (f"What was heard on {CONFERENCES} conferences", audio),
        )

    def _sentence(self) -> str:
        if not self._is_done:
            return "Something went wrong: this is not one stream per conference, each of them stopped."
        if not self.listening.is_good:
            return "Something went wrong: what was heard is not all that was said."
        return (
            f"Every conference got its stream exactly once, although {len(self.job.repeats):,} attempts failed,\n"
            "what was heard is what was said, and none was left running."
        )

    def _repeated(self, *, is_start: bool) -> int:
        """Count the conferences on which a start, or a stop, needed more than one attempt."""
        return len(
            {
                attempt.target
                for attempt in self.job.repeats
                if attempt.operation is not Operation.READ and attempt.operation.is_start is is_start
            }
        )


def _in_words(attempt: Attempt) -> str:
    if attempt.result is AttemptResult.NO_RESPONSE:
        return "no answer, connection reset"
    return f"HTTP {attempt.status}: {attempt.result}" if attempt.status is not None else str(attempt.result)


def _percentiles(report: BulkReport) -> Mapping[str, float]:
    names = {100: "max"}
    return {names.get(percent, f"p{percent}"): round(value, 4) for percent, value in report.latency_percentiles.items()}


def _in_milliseconds(report: BulkReport) -> str:
    return ", ".join(f"{name} {value * 1000:.0f}" for name, value in _percentiles(report).items()) + " ms"


def _indented(facts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"  {label}", value) for label, value in facts]


def _write_drawn(sections: Sequence[Section]) -> None:
    table = bare_table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for title, facts in sections:
        table.add_row(f"[bold]{title}[/bold]")
        for row in _indented(facts):
            table.add_row(*row)
    write_rich(table)


_SHOWN_FAILURES = 5


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
    "--conferences",
    type=click.IntRange(min=1),
    default=1_000,
    show_default=True,
    metavar="N",
    help="Live conferences to find.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Decides every id and what is spoiled."
)
@click.option(
    "--recordings",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the WAV files of what was heard there.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as one JSON object.")
def demo(*, conferences: int, seed: int, recordings: Path | None, as_json: bool) -> None:
    """Start and stop a stream on 1,000 conferences of a simulated Space that misbehaves, and listen to 20.

    No account is needed. The exit code is 0 only if every stream was started and stopped, what was heard is
    what was said, and by the Space's own count none was doubled and none is left.
    """
    # Faults are the demo's purpose, and its report counts what they led to.
    with _directory(recordings) as directory, silenced(OUTCOMES, RATE_LIMIT):
        report = asyncio.run(_report(Job(as_json), Listening(directory, as_json), conferences, seed))
    if as_json:
        write_json(report.facts())
    else:
        report.write()
    for failure in [*report.job.failures, *report.listening.failures][:_SHOWN_FAILURES]:
        click.echo(f"error: {clean(failure)}", err=True)
    if not report.is_good:
        raise click.exceptions.Exit(FAILED)


def _directory(wanted: Path | None) -> AbstractContextManager[Path]:
    """Give the directory that recordings are kept in, or one that is gone afterwards."""
    if wanted is None:
        return _passing_directory()
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"can't make {wanted}: {error.strerror}") from None
    return nullcontext(wanted)


@contextmanager
def _passing_directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="signalwire-streams-") as name:
        yield Path(name)


async def _report(job: Job, listening: Listening, conferences: int, seed: int) -> Report:
    # From here on the loop hears of Ctrl-C; before that, its making would be cut in two.
    if not job.as_json:
        click.echo(
            f"Simulating a Space with {conferences:,} live conferences; nothing leaves this machine.\n"
            "Its faults: resets that lose the answer after a stream was started or stopped,\n"
            "503s, one 'too many requests', and every other answer is 10 ms late.\n"
            f"Then {CONFERENCES} conferences are recorded for {SECONDS:g} s, over wss, in real time."
        )
    async with simulated_space(conferences, seed) as space:
        client = StreamsClient(space=space.base_url, project=space.project, token=space.token, on_attempt=job.note)
        async with client:
            await job.run(client)
        report = Report.of(job, listening, space, conferences, seed)
    await listening.run(seed)
    return report
