"""Progress of a long command: its numbers, its output in a pipe and on a terminal, and its early end."""

import asyncio
import io
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, Group

from signalwire_streams import (
    Attempt,
    AttemptResult,
    BulkOutcome,
    BulkRun,
    BulkStatus,
    ConferenceStream,
    Operation,
    Phase,
    RetryDecision,
    RunCancelledError,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
)
from signalwire_streams._cli import progress
from signalwire_streams._cli.bulk_runner import BulkRunner, RunOptions
from signalwire_streams._cli.options import Account
from signalwire_streams._cli.output import in_words, logging_to
from signalwire_streams._cli.progress import Meter, Progress, draw, format_duration, seconds_left, show_progress
from signalwire_streams.simulator import SimulatedSpace

from .bulk_runs import held_space, until
from .shell import URL, Shell, credentials

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
FAR = Progress(title="Starting", done=1_234, total=10_000, facts=("97 of 1,242 requests/s", "3 repeated"), left=93.7)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that does not override whether streams are terminals."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the signal handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pretend_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make stderr look like a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


# The meter.


class Hands:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> float:
        return self.time


def attempt(**fields: Any) -> Attempt:
    facts: dict[str, Any] = {
        "operation": Operation.CONFERENCE_START,
        "target": "room",
        "name": "audit",
        "number": 1,
        "result": AttemptResult.DONE,
        "phase": Phase.RESPONDED,
        "sent": "yes",
        "status": 200,
        "code": None,
        "queue_time": 0.0,
        "duration": 0.1,
        "decision": RetryDecision.SUCCEED,
        "next_delay": 0.0,
    }
    return Attempt(**facts | fields)


def test_before_the_first_attempt_there_is_no_rate() -> None:
    meter = Meter()
    assert (meter.rate, meter.requests, meter.retries) == (0.0, 0, 0)


def test_the_rate_is_that_of_the_last_three_seconds() -> None:
    clock = Hands()
    meter = Meter(clock)
    rates = []
    for count in (30, 60, 90, 0, 0, 0):
        for _ in range(count):
            meter.record(attempt())
        clock.time += 1
        rates.append(meter.rate)
    assert rates == [30, 45, 60, 50, 30, 0]
    assert meter.requests == 180


def test_a_rate_is_not_guessed_from_a_moment() -> None:
    """Ten attempts in the first hundredth of a second are not a thousand a second."""
    clock = Hands()
    meter = Meter(clock)
    for _ in range(10):
        meter.record(attempt())
    clock.time += 0.01
    assert meter.rate == 10


@pytest.mark.parametrize(
    ("fields", "counted"),
    [
        ({}, 1),
        ({"operation": Operation.STOP}, 1),
        ({"sent": "maybe"}, 1),
        ({"sent": "no"}, 0),
        ({"operation": Operation.READ}, 0),
    ],
)
def test_meter_counts_sent_requests_other_than_reads(fields: dict[str, Any], counted: int) -> None:
    meter = Meter()
    meter.record(attempt(**fields))
    assert (meter.requests, meter.rate) == (counted, counted)


@pytest.mark.parametrize("action", RetryDecision)
def test_meter_counts_retries(action: RetryDecision) -> None:
    meter = Meter()
    meter.record(attempt(decision=action))
    final = {
        RetryDecision.SUCCEED,
        RetryDecision.ALREADY_STARTED,
        RetryDecision.ALREADY_STOPPED,
        RetryDecision.SUCCEED_WITHOUT_SID,
        RetryDecision.FAIL,
        RetryDecision.UNKNOWN,
    }
    assert meter.retries == (action not in final)


# Text and drawing.


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (0.6, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (61, "1 min 1 s"),
        (3_599.4, "59 min 59 s"),
        (3_599.6, "1 h 0 min"),
        (3_661, "1 h 1 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_format_duration_in_words(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_progress_line_shows_counts_facts_and_time_left() -> None:
    assert FAR.line == "Starting: 1,234 of 10,000, 97 of 1,242 requests/s, 3 repeated, 1 min 34 s left"
    assert Progress(title="Ending", done=0, total=0, facts=()).line == "Ending: 0 of 0"


@pytest.mark.parametrize(
    "look",
    [
        FAR,
        Progress(title="Stopping", done=0, total=0, facts=()),
        Progress(title="Starting", done=1_000_000, total=1_000_000, facts=("1,242 of 1,242 requests/s",), left=0.0),
        Progress(title="Starting", done=5, total=10, facts=("and that is so" * 20,), left=86_399.0),
    ],
)
@pytest.mark.parametrize("columns", [80, 60])
def test_a_terminal_gets_two_lines_that_fit_and_one_for_the_cursor(look: Progress, columns: int) -> None:
    written = io.StringIO()
    Console(file=written, width=columns, color_system=None).print(draw(look))
    bar, facts, *rest = written.getvalue().split("\n")
    assert rest == ["", ""]
    assert max(cell_len(bar), cell_len(facts)) <= columns
    assert bar.startswith(f"{look.title}  ")
    assert f"  {look.done:,} of {look.total:,}" in bar
    assert ("left" in bar) is (look.left is not None)
    everything = ", ".join(look.facts)
    assert facts.rstrip() == everything or (facts.endswith("…") and everything.startswith(facts[:-1]))


@pytest.mark.parametrize(("done", "total", "part"), [(0, 0, 0.0), (0, 1, 0.0), (1, 1, 1.0), (5, 10, 0.5)])
def test_bar_is_filled_by_the_part_that_is_done(done: int, total: int, part: float) -> None:
    written = io.StringIO()
    look = Progress(title="Starting", done=done, total=total, facts=())
    Console(file=written, width=80, color_system=None).print(draw(look))
    bar = written.getvalue().split("\n")[0].removeprefix("Starting  ").removesuffix(f"  {done} of {total}  ")
    assert bar.count("━") / len(bar) == pytest.approx(part, abs=0.01)


# Where it is shown.


def looking(times: int) -> tuple[Callable[[], Progress], asyncio.Event]:
    """Return a function for the progress, and an event that is set after a number of calls."""
    enough = asyncio.Event()
    done = 0

    def look() -> Progress:
        nonlocal done
        done += 1
        if done >= times:
            enough.set()
        return Progress(title="Starting", done=done, total=100, facts=("all well",))

    return look, enough


async def test_progress_writes_lines_into_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_WRITTEN_EVERY", 0.0)
    look, enough = looking(3)
    async with show_progress(look, as_json=False):
        await enough.wait()
    captured = capsys.readouterr()
    assert captured.err.splitlines()[:3] == [f"Starting: {done} of 100, all well" for done in (1, 2, 3)]
    assert captured.out == ""


@pytest.mark.usefixtures("idle_clock")
@pytest.mark.parametrize(("terminal", "seconds", "times"), [(False, 14.9, 2), (False, 15.1, 3), (True, 1.1, 5)])
async def test_progress_is_shown_every_five_seconds_or_five_times_a_second(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool, seconds: float, times: int
) -> None:
    if terminal:
        pretend_terminal(monkeypatch)
    look, _ = looking(100)
    async with show_progress(look, as_json=False):
        await asyncio.sleep(seconds)
    assert look().done == times + 1


def test_remaining_time_is_estimated_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Hands()
    monkeypatch.setattr("time.monotonic", clock)
    assert [seconds_left(done, 50, clock() - since) for done, since in ((10, 2.0), (10, 1.0), (0, 2.0))] == [
        10,
        None,
        None,
    ]
    assert seconds_left(10, 50, clock() - 1.25) == pytest.approx(6.25)


async def test_after_the_command_nothing_more_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_WRITTEN_EVERY", 0.0)
    look, enough = looking(1)
    before = asyncio.all_tasks()
    async with show_progress(look, as_json=False):
        await enough.wait()
        assert len(asyncio.all_tasks() - before) == 1
    assert asyncio.all_tasks() == before


async def test_progress_does_not_hide_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    look, _ = looking(1)
    with pytest.raises(RuntimeError, match="boom"):
        async with show_progress(look, as_json=False):
            raise RuntimeError("boom")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("terminal", [False, True])
async def test_progress_beside_json_writes_only_news(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, terminal: bool
) -> None:
    """Into a pipe, and where stdout is a terminal as well, on which a display would disturb it."""
    monkeypatch.setattr(progress, "_WRITTEN_EVERY", 0.0)
    if terminal:
        pretend_terminal(monkeypatch)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    look, _ = looking(1)
    async with show_progress(look, as_json=True) as display:
        for _ in range(5):
            await asyncio.sleep(0)
        assert capsys.readouterr().err == ""
        display.show()
    assert capsys.readouterr().err == "Starting: 1 of 100, all well\n"


def test_broken_display_does_not_break_logging(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: str) -> None:
        raise BrokenPipeError

    with logging_to(fail):
        logging.getLogger("signalwire_streams").warning("Redis is away")
    assert "BrokenPipeError" in capsys.readouterr().err


async def test_a_terminal_gets_a_display_that_is_gone_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_terminal(monkeypatch)
    monkeypatch.setattr(progress, "_DRAWN_EVERY", 0.0)
    look, enough = looking(3)
    async with show_progress(look, as_json=False) as display:
        await enough.wait()
        logging.getLogger("signalwire_streams").warning("the \x1b[31mRedis is away")
        display.show()
    captured = capsys.readouterr()
    assert "3 of 100" in captured.err
    assert "all well" in captured.err
    assert (
        "\x1b[2Kwarning: the [31mRedis is away\n" in captured.err
    )  # above what is drawn, and without its control character
    assert captured.err.endswith("\x1b[1A\x1b[2K" * 2)
    assert captured.out == ""


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_display_on_stderr_leaves_stdout_alone(
    bare_shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, as_json: bool
) -> None:
    """As in ``signalwire-streams bulk start ... --json > outcomes.jsonl``."""
    pretend_terminal(monkeypatch)
    drawn: list[Progress] = []

    def note(look: Progress) -> Group:
        drawn.append(look)
        return draw(look)

    monkeypatch.setattr(progress, "draw", note)
    monkeypatch.setattr(progress, "_DRAWN_EVERY", 0.01)
    async with held_space(conferences=3) as (space, held):
        bare_shell.set(credentials(space))
        command = ["bulk", "start", "--all-in-progress", "--url", URL, "--journal", str(tmp_path / "run.db")]
        going = asyncio.create_task(bare_shell(*command, *(["--json"] if as_json else [])))
        await space.requests.wait_for(3, "start-conference-stream")
        await until(lambda: len(drawn) > 1)
        held.let_go()
        ran = await going
    assert ran.code == 0
    assert "0 of 3" in ran.err
    assert "requests/s" in ran.err
    assert "\x1b" not in ran.out
    if as_json:
        assert [line.get("status") for line in ran.lines] == ["started"] * 3 + [None]
    else:
        assert ran.out.startswith("Started 3 of 3 streams in ")


# The runner.


def runner_of(run: BulkRun[Any], total: int, *, as_json: bool = False) -> BulkRunner:
    return BulkRunner(run, Account(None, None, as_json), RunOptions(), total=total)


def starts_on(space: SimulatedSpace) -> list[StartConferenceStream]:
    return [StartConferenceStream(conference_sid=sid, url=URL, name="audit") for sid in space.conference_sids]


def outcome(state: BulkStatus, **fields: Any) -> BulkOutcome[Any]:
    item = StartConferenceStream(conference_sid="room", url=URL)
    return BulkOutcome(index=0, item=item, status=state, **{"attempts": 1} | fields)


async def test_runner_shows_rate_retries_and_outcomes(client: StreamsClient) -> None:
    """The most frequent outcome comes first; the rest is not estimated in the first second."""
    runner = runner_of(client.start_streams([]), 1_000)
    runner._options.meter.record(attempt(decision=RetryDecision.RETRY))
    for state in (BulkStatus.NOT_ATTEMPTED, BulkStatus.STARTED, BulkStatus.STARTED):
        runner._record(outcome(state))
    assert runner._progress().line == (
        "Starting: 3 of 1,000, 1 of 1,242 requests/s, 1 retried, 2 started, 1 not attempted"
    )
    assert (await runner.run.report()).total == 0


async def test_runner_estimates_the_rest_without_earlier_items(client: StreamsClient) -> None:
    """Items that an earlier part of the run completed took no time."""
    runner = runner_of(client.start_streams([]), 1_000)
    runner._started_at -= 20
    assert runner._progress().left is None
    for attempts in (0, 0, 1, 1, 1, 1):
        runner._record(outcome(BulkStatus.STARTED, attempts=attempts))
    assert runner.already_done == 2
    assert runner._progress().left == pytest.approx(994 * 20 / 4, rel=0.1)
    assert (await runner.run.report()).total == 0


async def test_runner_counts_the_outcomes_of_its_run(client: StreamsClient, space: SimulatedSpace) -> None:
    runner = runner_of(client.start_streams([*starts_on(space), *starts_on(space)[:1]]), 4)
    await runner.execute()
    assert runner.run.snapshot.counts == {BulkStatus.STARTED: 3, BulkStatus.REJECTED: 1}
    assert (runner.stopped_by, runner.error, runner.exit_code) == (None, None, 1)
    assert runner._progress().done == 4


@posix_only
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_runner_reports_a_signal_at_once(
    capsys: pytest.CaptureFixture[str], handlers: None, number: signal.Signals, code: int
) -> None:
    """It prints what happens now; requests in flight finish, and nothing more is sent."""
    async with held_space(conferences=4) as (space, held), client_of(space) as client:
        runner = runner_of(client.start_streams(starts_on(space), concurrency=1), 4)
        performing = asyncio.create_task(runner.execute())
        await space.requests.wait_for(1)
        signal.raise_signal(number)
        await until(lambda: runner.stopped_by is number)
        assert capsys.readouterr().err == (
            "Ending: 0 of 4, interrupted: 5 s for requests in flight, interrupt again to abort them\n"
        )
        held.let_go()
        await performing
    assert runner.run.snapshot.counts[BulkStatus.STARTED] == len(space.streams.active()) == 1
    assert runner.exit_code == code
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@posix_only
async def test_runner_second_signal_aborts_but_first_sets_the_code(
    capsys: pytest.CaptureFixture[str], handlers: None
) -> None:
    async with held_space(conferences=4) as (space, _), client_of(space) as client:
        runner = runner_of(client.start_streams(starts_on(space), concurrency=2), 4, as_json=True)
        performing = asyncio.create_task(runner.execute())
        await space.requests.wait_for(2)
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: runner.stopped_by is not None)
        signal.raise_signal(signal.SIGINT)
        await performing
        assert len(space.streams.active()) == 2
    assert runner.run.snapshot.counts[BulkStatus.UNKNOWN] == 2
    assert runner.exit_code == 143
    captured = capsys.readouterr()
    assert [line.partition(",")[2] for line in captured.err.splitlines()] == [
        " interrupted: 5 s for requests in flight, interrupt again to abort them",
        " interrupted again: requests in flight are aborted, 1 not attempted",
    ]
    lost = [line for line in map(json.loads, captured.out.splitlines()) if line["status"] == "unknown"]
    assert [(line["name"], line["error"]) for line in lost] == [("audit", "StreamOutcomeUnknownError")] * 2


async def test_an_outcome_in_json_has_the_name_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    """The stream's own, or the one that was sent; messages have no control characters."""
    async with SimulatedSpace() as space, client_of(space) as client:
        runner = runner_of(client.start_streams([]), 3, as_json=True)
        stream = ConferenceStream(conference_sid="room", sid="s", name="its own", ambiguous=True)
        runner._record(outcome(BulkStatus.STARTED, stream=stream, duration=0.123456))
        runner._record(outcome(BulkStatus.UNKNOWN, error=StreamOutcomeUnknownError("so\x1b[31m\nit is", name="sent")))
        runner._record(outcome(BulkStatus.NOT_ATTEMPTED, error=RunCancelledError("not yet"), attempts=0))
    started, unknown, waiting = map(json.loads, capsys.readouterr().out.splitlines())
    assert (started["name"], started["sid"], started["ambiguous"], started["duration"]) == (
        "its own",
        "s",
        True,
        0.1235,
    )
    assert (unknown["name"], unknown["error"]) == ("sent", "StreamOutcomeUnknownError")
    assert unknown["message"] == "so [31m it is"
    assert (waiting["name"], waiting["attempts"], waiting["target"]) == (None, 0, "room")
    assert (await runner.run.report()).total == 0


@pytest.mark.parametrize("state", BulkStatus)
def test_status_in_words_has_no_underscore(state: BulkStatus) -> None:
    assert in_words(state).replace(" ", "_") == state.value
    assert "_" not in in_words(state)


def client_of(space: SimulatedSpace) -> StreamsClient:
    return StreamsClient(base_url=space.base_url, project=space.project, token=space.token)
