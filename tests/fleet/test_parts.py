"""The parts of the fleet: what is written in Redis, and the patience with it."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from redis.exceptions import AuthenticationError as WrongPassword, ConnectionError as NotThere, ResponseError

from signalwire_streams import (
    ApiError,
    BulkOutcome,
    BulkStatus,
    CallStream,
    ClientStateError,
    ConferenceStream,
    FleetError,
    Phase,
    PlannedRequest,
    RateLimitedError,
    StartCallStream,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsError,
    TransportError,
    fleet as fleet_room,
)
from signalwire_streams.fleet import Fleet
from signalwire_streams.fleet._ledger import (
    Mark,
    Planned,
    read_batch,
    read_index,
    read_outcome,
    settled,
    write_batch,
    write_outcome,
)
from signalwire_streams.fleet._redis import Connection, Step, Writer, command, engine_url, joined
from signalwire_streams.fleet._submission import start_batch
from signalwire_streams.simulator import SimulatedSpace

from .helpers import URL, on_conferences

CONFERENCE = StartConferenceStream(
    conference_sid="c", url=URL, name="n", codec="L16", realtime=True, track="both_tracks"
)
STEP = Step("script", ("run",), "marks", (0, "i:worker"))
CALL = StartCallStream(call_sid="a", url=URL, unnamed=True, status_callback="https://example.com/hear")


def test_requests_are_kept_as_they_are() -> None:
    """What is not secret of a request comes back from Redis as it was."""
    starts = [
        Planned(PlannedRequest.from_request(CONFERENCE)),
        Planned(PlannedRequest.from_request(CALL), may_run=True),
    ]
    assert read_batch(write_batch(starts)) == starts


@pytest.mark.parametrize(
    "error",
    [
        None,
        TransportError("lost", sent="no", attempts=3, phase=Phase.CONNECTING),
        StreamOutcomeUnknownError("may run", sent="maybe", target="c", name="n", phase=Phase.ANSWERED, accepted=True),
        RateLimitedError("busy", status=429, code=20429, errors=("one", "two"), retry_after=1.5),
        ApiError("odd", status=418, request_id="r"),
    ],
)
def test_outcomes_are_kept_as_they_are(error: StreamsError | None) -> None:
    """An outcome comes back from Redis as it was, its error with its class and all that it knows."""
    stream = ConferenceStream(conference_sid="c", sid="s", name="n", status="queued", ambiguous=True)
    outcome = BulkOutcome(
        index=7,
        item=CONFERENCE,
        status=BulkStatus.UNKNOWN if error else BulkStatus.STARTED,
        stream=None if error else stream,
        error=error,
        attempts=3,
        duration=0.25,
    )

    index, facts = read_index(write_outcome(outcome))
    read = read_outcome(facts, CONFERENCE)

    assert index == 7
    assert (read.status, read.stream, read.attempts, read.duration) == (outcome.status, outcome.stream, 3, 0.25)
    assert type(read.error) is type(error)
    if error is not None:
        assert vars(read.error) == vars(error)


def test_an_error_of_a_newer_worker() -> None:
    """An error that this version does not know is told by its message."""
    text = write_outcome(
        BulkOutcome(index=0, item=CALL, status=BulkStatus.REJECTED, error=StreamsError("new", attempts=2))
    )
    facts = json.loads(text)
    facts["error"] |= {"class": "NewerError", "unheard": "of"}

    error = read_outcome(facts, CALL).error

    assert type(error) is StreamsError
    assert (error.message, error.attempts) == ("new", 2)


def test_marks_tell_what_may_run() -> None:
    """A mark tells the stream that its start made, or may have made."""
    started = BulkOutcome(
        index=0,
        item=CONFERENCE,
        status=BulkStatus.STARTED,
        stream=ConferenceStream(conference_sid="c", sid="s:1", name="n", ambiguous=True),
    )
    unknown = BulkOutcome(index=0, item=CALL, status=BulkStatus.UNKNOWN)
    rejected = BulkOutcome(index=0, item=CALL, status=BulkStatus.REJECTED)

    assert Mark(settled(started)).stream_of(CONFERENCE) == started.stream
    assert Mark(settled(unknown)).stream_of(CALL) == CallStream(call_sid="a")
    assert Mark(settled(rejected)).stream_of(CALL) is None
    assert Mark("i:worker").stream_of(CONFERENCE) == ConferenceStream(conference_sid="c", name="n")
    assert Mark().stream_of(CALL) is None


@define(eq=False)
class Broken:
    """A Redis that fails so, one failure after the other, and then answers."""

    failures: list[Exception]
    asked: int = field(init=False, default=0)

    async def get(self, _: str) -> bytes:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        return b"there"

    async def eval(self, *_: object) -> list[bytes]:
        return [await self.get("key")]


@define(eq=False)
class Loads:
    """A Redis that does whatever it is told, and counts how much of it comes at once."""

    loads: list[int] = field(init=False, factory=list)

    async def eval(self, _: str, keys: int, *__: object) -> list[bytes]:
        self.loads.append(keys - 1)
        return [b"ok"] * (keys - 1)


async def test_a_redis_that_is_away_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """It is said once that Redis is away, however often it is asked until it is back."""
    connection = Connection(Broken([NotThere("gone"), ResponseError("LOADING"), OSError()]), 10.0)
    with caplog.at_level(logging.WARNING, "signalwire_streams"):
        assert await connection.one(command("get", "key")) == b"there"
    assert [record.getMessage() for record in caplog.records] == [
        "the fleet's Redis can't be used, and is asked again: gone",
        "the fleet's Redis is back",
    ]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (NotThere("gone"), "can't be used: gone"),
        (OSError(), "can't be used: OSError"),
        (WrongPassword("no"), "refuses this user or password"),
        (NotThere("invalid username-password pair"), "refuses this user or password"),
    ],
)
async def test_a_redis_that_stays_away(failure: Exception, words: str) -> None:
    """At the end of the patience, or where waiting would not help, it is told."""
    with pytest.raises(FleetError, match=words):
        await Connection(Broken([failure]), 0.0).one(command("get", "key"))


def test_steps_of_a_kind_are_one_command() -> None:
    """Steps of one script on one run go together; the places say which answer is whose."""
    steps = [
        Step("one", ("run",), "marks:0", (0, "a")),
        Step("two", ("run",), "marks:0", (1,)),
        Step("one", ("run",), "marks:1", (25, "b")),
        Step("one", ("other",), "marks:1", (26, "c")),
    ]
    assert joined(steps) == [
        (command("eval", "one", 3, "run", "marks:0", "marks:1", "0", "a", "25", "b"), [0, 2]),
        (command("eval", "two", 2, "run", "marks:0", "1"), [1]),
        (command("eval", "one", 2, "other", "marks:1", "26", "c"), [3]),
    ]


async def test_a_busy_writer_asks_no_more_often() -> None:
    """What comes while a load is on its way, and a moment longer, goes out as one."""
    redis = Loads()
    writer = Writer(Connection(redis, 0.0))
    answers = [writer.later(STEP)]
    for _ in range(3):  # one after the other, all within the moment that the first load's end gives
        await answers[0]
        answers.append(writer.later(STEP))
    assert [await answer for answer in answers] == ["ok"] * 4
    assert redis.loads == [1, 3]


async def test_whoever_waits_hears_of_a_failure() -> None:
    """What can't be written is told to all that wait for it; the next one tries anew."""
    writer = Writer(Connection(Broken([WrongPassword("no")]), 0.0))
    with pytest.raises(FleetError):
        await writer.later(STEP)
    await asyncio.sleep(0)
    assert await writer.later(STEP) == "there"
    await writer.idle()
    await writer.idle()


async def test_what_nobody_waits_for_is_not_written() -> None:
    """A step that was cancelled before its turn is not done; closing gives up the rest."""
    redis = Broken([])
    writer = Writer(Connection(redis, 0.0))
    writer.later(STEP).cancel()
    await writer.idle()
    assert redis.asked == 0

    waiting = Writer(Connection(Broken([NotThere("gone")] * 100), 60.0))
    first = waiting.later(STEP)
    await asyncio.sleep(0)
    second = waiting.later(STEP)
    second.cancel()
    await waiting.close()
    assert first.cancelled()
    await waiting.close()


async def test_a_writer_that_is_closed_at_once() -> None:
    """Whoever waits hears of it, also where the writer did not come to begin."""
    writer = Writer(Connection(Broken([]), 0.0))
    answer = writer.later(STEP)
    await writer.close()
    assert answer.cancelled()
    assert await writer.later(STEP) == "there"


async def test_a_failure_that_nobody_heard() -> None:
    """Who was cancelled meanwhile is not told of a failure, nor of an answer."""

    @define(eq=False)
    class Slow:
        go_on: asyncio.Event = field(factory=asyncio.Event)
        failure: Exception | None = None

        async def eval(self, *_: object) -> list[str]:
            await self.go_on.wait()
            if self.failure is not None:
                raise self.failure
            return ["text"]

    for failure in (None, WrongPassword("no")):
        slow = Slow(failure=failure)
        writer = Writer(Connection(slow, 0.0))
        answer = writer.later(STEP)
        await asyncio.sleep(0)
        answer.cancel()
        slow.go_on.set()
        await writer.idle()


def test_the_engine_gets_enough_connections() -> None:
    """The engine's own cap on connections is lifted, unless the address says otherwise."""
    assert engine_url("redis://host:6379/0") == "redis://host:6379/0?max_connections=1000"
    assert engine_url("redis://host?db=1") == "redis://host?db=1&max_connections=1000"
    assert engine_url("redis://host?max_connections=5") == "redis://host?max_connections=5"
    assert engine_url("memory://") == "memory://"


async def test_the_submitter_s_task_does_nothing() -> None:
    """A process that only submits carries nothing out."""
    with pytest.raises(ClientStateError, match="no worker"):
        await start_batch("run", 0)


async def test_a_queue_that_takes_only_a_part(
    space: SimulatedSpace, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the engine could not queue all of it, the submit says so, and can be repeated."""

    class Failed:
        schedule_exception = ResponseError("OOM")

    async def refuse(calls: Sequence[Any]) -> list[Failed]:
        return [Failed() for _ in calls]

    async def vanish(calls: Sequence[Any]) -> list[Failed]:
        raise NotThere("gone")

    requests = on_conferences(space.conference_sids)
    for broken, words in ((refuse, "only a part of the run: OOM"), (vanish, "can't be used: gone")):
        monkeypatch.setattr(fleet._docket, "add_many", broken)
        with pytest.raises(FleetError, match=words):
            await fleet.submit(requests, name="nightly")
        assert not (await fleet.status("nightly")).fully_submitted
    monkeypatch.undo()
    await fleet.submit(requests, name="nightly")
    assert (await fleet.status("nightly")).fully_submitted


def test_what_is_missing_is_said_in_one_sentence() -> None:
    """Without the extra the import says what to install, and the package itself needs nothing of it."""
    code = (
        "import sys\n"
        "sys.modules['docket'] = None\n"
        "import signalwire_streams\n"
        "assert 'signalwire_streams.fleet' not in sys.modules and 'redis' not in sys.modules\n"
        "from signalwire_streams import fleet\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603

    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "ModuleNotFoundError: signalwire_streams.fleet needs more packages: pip install 'signalwire-streams[fleet]'"
    )


def test_the_room_itself_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the extra, and the error what was missing."""
    monkeypatch.setitem(sys.modules, "docket", None)
    path = Path(fleet_room.__file__)

    with pytest.raises(ModuleNotFoundError, match="signalwire-streams\\[fleet\\]") as caught:
        exec(compile(path.read_text(), str(path), "exec"), {"__name__": "signalwire_streams.fleet"})  # noqa: S102
    assert caught.value.name == "docket"
