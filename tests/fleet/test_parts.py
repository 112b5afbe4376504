"""The fleet's parts: serialization, the connection to Redis, and grouped script calls."""

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
from signalwire_streams.fleet._fleet import start_batch
from signalwire_streams.fleet._items import Evidence, PlannedItem, read_batch, read_outcome, write_batch, write_outcome
from signalwire_streams.fleet._lua import LuaCall
from signalwire_streams.fleet._redis import Connection, Writer, docket_url
from signalwire_streams.simulator import SimulatedSpace

from .helpers import URL, Pipe, on_conferences

CONFERENCE = StartConferenceStream(
    conference_sid="c", url=URL, name="n", codec="L16", realtime=True, track="both_tracks"
)
STEP = LuaCall("script", ("run",), "marks", (0, "i:worker"))
CALL = StartCallStream(call_sid="a", url=URL, unnamed=True, status_callback="https://example.com/hear")


def test_planned_items_survive_serialization() -> None:
    starts = [
        PlannedItem(PlannedRequest.from_request(CONFERENCE)),
        PlannedItem(PlannedRequest.from_request(CALL), Evidence.IN_DOUBT),
        PlannedItem(PlannedRequest.from_request(CALL), Evidence.REJECTED),
    ]
    assert read_batch(write_batch(starts)) == starts


@pytest.mark.parametrize(
    "error",
    [
        None,
        TransportError("lost", sent="no", attempts=3, phase=Phase.CONNECTING),
        StreamOutcomeUnknownError("may run", sent="maybe", target="c", name="n", phase=Phase.RESPONDED, accepted=True),
        RateLimitedError("busy", status=429, code=20429, errors=("one", "two"), retry_after=1.5),
        ApiError("odd", status=418, request_id="r"),
    ],
)
def test_outcomes_survive_serialization(error: StreamsError | None) -> None:
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

    read = read_outcome(json.loads(write_outcome(outcome)), CONFERENCE)

    assert read.index == 7
    assert (read.status, read.stream, read.attempts, read.duration) == (outcome.status, outcome.stream, 3, 0.25)
    assert type(read.error) is type(error)
    if error is not None:
        assert vars(read.error) == vars(error)
        assert repr(vars(read.error)) == repr(vars(error))  # the phase is a `Phase`, not its text


def test_unknown_error_class_is_read_as_streams_error() -> None:
    text = write_outcome(
        BulkOutcome(index=0, item=CALL, status=BulkStatus.REJECTED, error=StreamsError("new", attempts=2))
    )
    facts = json.loads(text)
    facts["error"] |= {"class": "NewerError", "unheard": "of"}

    error = read_outcome(facts, CALL).error

    assert type(error) is StreamsError
    assert (error.message, error.attempts) == ("new", 2)


@define(eq=False)
class Broken:
    """A Redis that raises these failures one after the other, and then replies."""

    failures: list[Exception]
    asked: int = field(init=False, default=0)

    def pipeline(self) -> Pipe:
        return Pipe(self)

    async def get(self, _: str) -> bytes:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        return b"there"

    async def eval(self, *_: object) -> list[bytes]:
        return [await self.get("key")]


@define(eq=False)
class Loads:
    """A Redis that records how many calls each command has."""

    loads: list[int] = field(init=False, factory=list)

    def pipeline(self) -> Pipe:
        return Pipe(self)

    async def eval(self, _: str, keys: int, *__: object) -> list[bytes]:
        self.loads.append(keys - 1)
        return [b"ok"] * (keys - 1)


async def test_connection_logs_outage_once(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken([NotThere("gone"), ResponseError("LOADING"), OSError()])
    connection = Connection(broken, 10.0)
    with caplog.at_level(logging.WARNING, "signalwire_streams"):
        for outages in range(1, 3):
            for _ in range(2):
                assert await connection.run(lambda redis: redis.get("key")) == b"there"
            assert [record.getMessage() for record in caplog.records] == [
                "fleet Redis unavailable, retrying: gone",
                "fleet Redis available again",
            ] * outages
            broken.failures.append(NotThere("gone"))


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (NotThere("gone"), "unavailable: gone"),
        (OSError(), "unavailable: OSError"),
        (WrongPassword("no"), "rejects this user or password"),
        (NotThere("invalid username-password pair"), "rejects this user or password"),
    ],
)
async def test_connection_raises_on_timeout_or_denied_access(failure: Exception, words: str) -> None:
    with pytest.raises(FleetError, match=words):
        await Connection(Broken([failure]), 0.0).run(lambda redis: redis.get("key"))


async def test_script_calls_of_one_run_are_one_command() -> None:
    """Each call gets its own reply, whatever the order."""
    sent: list[tuple[object, ...]] = []

    class Redis:
        def pipeline(self) -> Pipe:
            return Pipe(self)

        async def eval(self, *args: object) -> list[str]:
            sent.append(args)
            return [f"{args[0]} {args[3 + number]}" for number in range(int(str(args[1])) - 1)]

    calls = [
        LuaCall("one", ("run",), "marks:0", (0, "a")),
        LuaCall("two", ("run",), "marks:0", (1,)),
        LuaCall("one", ("run",), "marks:1", (25, "b")),
        LuaCall("one", ("other",), "marks:1", (26, "c")),
    ]
    answers = await Connection(Redis(), 0.0).call_all(calls)

    assert sent == [
        ("one", 3, "run", "marks:0", "marks:1", "1", "0", "a", "25", "b"),
        ("two", 2, "run", "marks:0", "1", "1"),
        ("one", 2, "other", "marks:1", "1", "26", "c"),
    ]
    assert answers == ["one marks:0", "two marks:0", "one marks:1", "one marks:1"]


async def test_writer_gathers_calls() -> None:
    """Calls that come while others are in flight, or a moment later, are sent together."""
    redis = Loads()
    writer = Writer(Connection(redis, 0.0))
    answers = [writer.call(STEP)]
    for _ in range(3):  # one after the other, all within the moment that the first load's end gives
        await answers[0]
        answers.append(writer.call(STEP))
    assert [await answer for answer in answers] == ["ok"] * 4
    assert redis.loads == [1, 3]


async def test_writer_failure_reaches_all_callers() -> None:
    """The next call is tried again."""
    writer = Writer(Connection(Broken([WrongPassword("no")]), 0.0))
    with pytest.raises(FleetError):
        await writer.call(STEP)
    await asyncio.sleep(0)
    assert await writer.call(STEP) == "there"
    await writer.idle()
    await writer.idle()


async def test_writer_skips_cancelled_calls() -> None:
    """Closing cancels the rest."""
    redis = Broken([])
    writer = Writer(Connection(redis, 0.0))
    writer.call(STEP).cancel()
    await writer.idle()
    assert redis.asked == 0

    waiting = Writer(Connection(Broken([NotThere("gone")] * 100), 60.0))
    first = waiting.call(STEP)
    await asyncio.sleep(0)
    second = waiting.call(STEP)
    second.cancel()
    await waiting.close()
    assert first.cancelled()
    await waiting.close()


async def test_writer_closed_at_once_cancels_calls() -> None:
    writer = Writer(Connection(Broken([]), 0.0))
    answer = writer.call(STEP)
    await writer.close()
    assert answer.cancelled()
    assert await writer.call(STEP) == "there"


async def test_writer_ignores_callers_cancelled_in_flight() -> None:
    @define(eq=False)
    class Slow:
        go_on: asyncio.Event = field(factory=asyncio.Event)
        failure: Exception | None = None

        def pipeline(self) -> Pipe:
            return Pipe(self)

        async def eval(self, *_: object) -> list[str]:
            await self.go_on.wait()
            if self.failure is not None:
                raise self.failure
            return ["text"]

    for failure in (None, WrongPassword("no")):
        slow = Slow(failure=failure)
        writer = Writer(Connection(slow, 0.0))
        answer = writer.call(STEP)
        await asyncio.sleep(0)
        answer.cancel()
        slow.go_on.set()
        await writer.idle()


def test_docket_url_raises_connection_limit() -> None:
    assert docket_url("redis://host:6379/0") == "redis://host:6379/0?max_connections=1000"
    assert docket_url("redis://host?db=1") == "redis://host?db=1&max_connections=1000"
    assert docket_url("redis://host?max_connections=5") == "redis://host?max_connections=5"
    assert docket_url("memory://") == "memory://"


async def test_batch_delivered_to_submitter_raises_client_state_error() -> None:
    with pytest.raises(ClientStateError, match="not a worker"):
        await start_batch("run", 0)


async def test_partly_queued_submit_can_be_repeated(
    space: SimulatedSpace, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failed:
        schedule_exception = ResponseError("OOM")

    async def refuse(calls: Sequence[Any]) -> list[Failed]:
        return [Failed() for _ in calls]

    async def vanish(calls: Sequence[Any]) -> list[Failed]:
        raise NotThere("gone")

    requests = on_conferences(space.conference_sids)
    for broken, words in ((refuse, "only a part of the run: OOM"), (vanish, "unavailable: gone")):
        monkeypatch.setattr(fleet._docket, "add_many", broken)
        with pytest.raises(FleetError, match=words):
            await fleet.submit(requests, run_id="nightly")
        assert not (await fleet.status("nightly")).fully_submitted
    monkeypatch.undo()
    await fleet.submit(requests, run_id="nightly")
    assert (await fleet.status("nightly")).fully_submitted


def test_import_without_extra_says_what_to_install() -> None:
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


def test_import_error_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docket", None)
    path = Path(fleet_room.__file__)

    with pytest.raises(ModuleNotFoundError, match="signalwire-streams\\[fleet\\]") as caught:
        exec(compile(path.read_text(), str(path), "exec"), {"__name__": "signalwire_streams.fleet"})  # noqa: S102
    assert caught.value.name == "docket"
