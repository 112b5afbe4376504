"""Log lines about requests, on real sockets: retries, ambiguous outcomes, the circuit breaker, pauses."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from signalwire_streams import (
    CircuitBreakerPolicy,
    Clock,
    RetryPolicy,
    ServerError,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamsError,
)
from signalwire_streams.errors import Phase
from signalwire_streams.middleware import Request, Result
from signalwire_streams.middleware._retry import OutcomeLog
from signalwire_streams.models import AttemptResult, Operation, Priority, RetryDecision
from signalwire_streams.simulator import SimulatedSpace
from tests.raw_space import VICTIM, RawConnection, RawSpace, Request as RawRequest, http, raw_space

URL = "wss://rx.example.com/audio"
ClientFactory = Callable[..., StreamsClient]
Lines = list[tuple[str, str]]

pytestmark = pytest.mark.usefixtures("idle_clock")


class ClosingRateLimiter:
    """Permits one request, and then none for an hour."""

    def __init__(self) -> None:
        self._waits = iter([0.0])

    async def acquire(self, priority: Priority, timeout: float) -> float:  # noqa: ASYNC109  (the protocol's)
        return next(self._waits, 3600.0)

    async def wait_until_allowed(self, timeout: float) -> float:  # noqa: ASYNC109  (the protocol's)
        return 0.0

    def on_throttled(self, sent_at: float, retry_after: float | None) -> None: ...

    def on_success(self) -> None: ...


def lines(caplog: pytest.LogCaptureFixture, logger: str) -> Lines:
    """Return level and text of each line of one logger."""
    name = f"signalwire_streams.{logger}"
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == name]


async def start(client: StreamsClient, space: SimulatedSpace, **fields: Any) -> None:
    await client.conferences.start_stream(space.conference_sids[0], url=URL, **fields)


async def test_debug_logs_each_attempt_that_is_retried(
    space: SimulatedSpace, client_for: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "signalwire_streams")
    space.faults.add("503-api", on="start", times=1, retry_after=3)
    space.faults.add("reset-on-connect", times=1)
    await start(client_for(space), space, name="audit-1")
    first, second = lines(caplog, "retry")
    sid = space.conference_sids[0]
    prefix = f"start a stream on conference {sid} (name 'audit-1'): attempt"
    assert first[0] == second[0] == "DEBUG"
    assert first[1].startswith(f"{prefix} 1: ")
    assert second[1].startswith(f"{prefix} 2: ")
    texts = first[1] + second[1]
    assert "unavailable: HTTP 503" in texts
    assert "retry, next attempt in " in texts


async def test_records_have_their_values_as_attributes(
    space: SimulatedSpace, client_for: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """For structured logs: of a start on a conference and on a call, of a list, and of the breaker."""
    caplog.set_level(logging.DEBUG, "signalwire_streams")
    client = client_for(space, circuit_breaker=CircuitBreakerPolicy(min_requests=6, failure_rate=0.1))
    [conference, *_], [call, *_] = space.conference_sids, space.call_sids
    for on in ("start", "list"):
        space.faults.add("status", on=on, status=500, body="empty")
    with pytest.raises(StreamsError):
        await client.conferences.start_stream(conference, url=URL, name="one")
    with pytest.raises(StreamsError):
        await client.calls.start_stream(call, url=URL, name="two")
    with pytest.raises(StreamsError):
        [each async for each in client.calls.list()]
    found = [(*map(vars(record).get, ("conference", "call", "stream", "attempt")),) for record in caplog.records]
    assert found[:3] == [(conference, None, "one", 1), (conference, None, "one", 2), (conference, None, "one", 3)]
    assert (None, call, "two", 1) in found
    assert (None, None, None, 1) in found
    assert len(found) == len([each for each in found if each[3] is not None]), "each line of a client"


async def test_debug_logs_the_decision_and_the_delay(
    space: SimulatedSpace, client_for: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "signalwire_streams")
    space.faults.add("status", on="list", status=500, body="api", code=20001, times=1)
    client = client_for(space, retry=RetryPolicy(wait_initial=0, wait_max=0))
    async for _ in client.conferences.list():
        pass
    assert lines(caplog, "retry") == [
        ("DEBUG", "list Conferences: attempt 1: the Space failed: HTTP 500 [code 20001]; retry, next attempt in 0.00 s")
    ]


async def test_call_without_a_retry_logs_nothing(
    space: SimulatedSpace, client: StreamsClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "signalwire_streams")
    await start(client, space)
    assert [record for record in caplog.records if record.name.startswith("signalwire_streams")] == []


async def test_retries_are_not_logged_above_debug(
    space: SimulatedSpace, client: StreamsClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "signalwire_streams")
    space.faults.add("status", on="start", status=408, times=1)
    await start(client, space)
    assert lines(caplog, "retry") == []


async def test_no_log_line_holds_a_secret(
    space: SimulatedSpace, client_for: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for kind in ("500", "garbage", "reset", "html", "throttle"):
        space.faults.add(kind, on="start", times=1)
    client = client_for(space, retry=RetryPolicy(max_attempts=9, max_resends=9))
    secrets = {"authorization_bearer_token": "hush-bearer", "parameters": {"pin": "hush-pin"}}
    for _ in range(3):
        try:
            await start(client, space, name="n", **secrets)
        except StreamsError:
            continue
    written = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("signalwire"))
    assert "attempt 1" in written
    assert "hush" not in written
    assert space.token not in written


async def test_unknown_outcome_logs_a_warning(
    space: SimulatedSpace, client: StreamsClient, caplog: pytest.LogCaptureFixture
) -> None:
    space.faults.add("reset", on="start", executed=True)
    call = space.call_sids[0]
    with pytest.raises(StreamOutcomeUnknownError):
        await client.calls.start_stream(call, url=URL, name="audit-1")
    [(level, text)] = lines(caplog, "outcome")
    assert level == "WARNING"
    assert text.startswith(
        f"start a stream on call {call} (name 'audit-1'): outcome unknown: "
        "the stream may or may not be running (no response"
    )


async def executed_and_cut(space: RawSpace, connection: RawConnection, request: RawRequest) -> bytes:
    """Carry a start out, and close the connection instead of responding."""
    space.start(request)
    connection.writer.close()
    return b""


LATER: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "circuit breaker": (
        lambda: {"circuit_breaker": CircuitBreakerPolicy(min_requests=1)},
        "not sent again, the circuit breaker is open",
    ),
    "rate limiter": (lambda: {"rate_limiter": ClosingRateLimiter()}, "not sent again in time: "),
}


@pytest.mark.parametrize(("options", "words"), LATER.values(), ids=LATER)
async def test_log_line_and_error_of_a_start_that_was_not_sent_again_agree(
    space: SimulatedSpace,
    client_for: ClientFactory,
    caplog: pytest.LogCaptureFixture,
    options: Callable[[], dict[str, Any]],
    words: str,
) -> None:
    """The first attempt was carried out and its response lost, so "not sent" alone would be wrong."""
    async with raw_space(executed_and_cut) as raw:
        client = client_for(space, base_url=raw.url, **options())
        with pytest.raises(StreamOutcomeUnknownError) as caught:
            await client.conferences.start_stream("room", url=URL, name="audit")

    assert (len(raw.requests), len(raw.sids_of("room"))) == (1, 1)
    known, separator, _ = str(caught.value).partition("; stop it by its name")
    assert f"the stream may or may not be running (last attempt: {words}" in known
    [(_, text)] = lines(caplog, "outcome")
    assert (separator, text.partition("outcome unknown: ")[2]) == ("; stop it by its name", known.partition(": ")[2])


async def test_lost_sid_logs_a_warning(
    space: SimulatedSpace, client: StreamsClient, caplog: pytest.LogCaptureFixture
) -> None:
    space.faults.add("missing-sid", on="start")
    with pytest.raises(StreamOutcomeUnknownError):
        await start(client, space, unnamed=True)
    [(level, text)] = lines(caplog, "outcome")
    assert level == "WARNING"
    assert "outcome unknown: the stream is running, but its sid was lost (" in text
    assert "(name" not in text


@pytest.mark.parametrize(("duplicates", "state"), [("callback", "started"), ("http-error", "already running")])
async def test_ambiguous_outcome_logs_a_warning(
    client_for: ClientFactory, caplog: pytest.LogCaptureFixture, duplicates: str, state: str
) -> None:
    settings: dict[str, Any] = {} if duplicates == "callback" else {"duplicate_names": duplicates}
    async with SimulatedSpace(conferences=1, **settings) as space:
        space.faults.add("reset", on="start", executed=True, times=1)
        await start(client_for(space), space, name="audit-1")
        sid = space.conference_sids[0]
    assert lines(caplog, "outcome") == [
        (
            "WARNING",
            (
                f"start a stream on conference {sid} (name 'audit-1'): {state}, ambiguous because an earlier attempt "
                "may have started it: stop it by its name"
            ),
        )
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "audit-1"}, "stop it by its name"),
        ({"unnamed": True}, "its sid may be another stream's"),
        ({"name": "audit-1", "may_be_running": True}, "stop it by its name"),
    ],
)
async def test_anonymous_response_to_a_single_attempt_is_not_blamed_on_an_earlier_one(
    client_for: ClientFactory,
    space: SimulatedSpace,
    caplog: pytest.LogCaptureFixture,
    fields: dict[str, Any],
    words: str,
) -> None:
    async def answer(*_: object) -> bytes:
        return http(200, {"sid": VICTIM})

    async with raw_space(answer) as raw:
        await client_for(space, base_url=raw.url).conferences.start_stream("room", url=URL, **fields)
    [(level, text)] = lines(caplog, "outcome")
    assert level == "WARNING"
    why = "an earlier attempt may have started it"
    if "may_be_running" not in fields:
        why = "the response does not identify its request"
    assert text.endswith(f": started, ambiguous because {why}: {words}")


async def test_certain_failure_logs_no_warning(
    space: SimulatedSpace, client: StreamsClient, caplog: pytest.LogCaptureFixture
) -> None:
    space.faults.add("status", on="start", status=422)
    with pytest.raises(StreamsError):
        await start(client, space)
    assert lines(caplog, "outcome") == []


@pytest.mark.parametrize(("fault", "warnings"), [("hang", 1), ("throttle", 0)])
async def test_cancelled_start_logs_a_warning_only_if_it_may_run(
    space: SimulatedSpace, client_for: ClientFactory, caplog: pytest.LogCaptureFixture, fault: str, warnings: int
) -> None:
    arrived = asyncio.Event()

    async def wait_for_ever(_: float) -> None:
        arrived.set()
        await asyncio.Event().wait()

    space.faults.add(fault, on="start")
    client = client_for(space, clock=Clock(sleep=wait_for_ever))
    task = asyncio.create_task(start(client, space, name="audit-1"))
    if fault == "hang":
        await space.requests.wait_for(1, "start-conference-stream", timeout=20)
    else:
        await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    found = lines(caplog, "outcome")
    assert [level for level, _ in found] == ["WARNING"] * warnings
    assert all(text.endswith("outcome unknown: the stream may or may not be running (cancelled)") for _, text in found)


async def test_start_cancelled_between_attempts_logs_a_warning_if_the_first_may_have_started_it(
    space: SimulatedSpace, client_for: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    arrived = asyncio.Event()

    async def wait_for_ever(_: float) -> None:
        arrived.set()
        await asyncio.Event().wait()

    space.faults.add("reset", on="start", executed=True)
    task = asyncio.create_task(start(client_for(space, clock=Clock(sleep=wait_for_ever)), space, name="audit-1"))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(lines(caplog, "outcome")) == 1


async def test_bulk_run_warns_once_about_thousands_of_unknown_outcomes(
    client_for: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "signalwire_streams")
    count = 1_000
    async with SimulatedSpace(conferences=count, participants=0) as space:
        space.faults.add("reset", on="start", executed=True)
        client = client_for(space, circuit_breaker=CircuitBreakerPolicy(failure_rate=1.0, min_requests=10 * count))
        requests = [StartConferenceStream(conference_sid=sid, url=URL, unnamed=True) for sid in space.conference_sids]
        run = client.start_streams(requests)
        outcomes = [outcome async for outcome in run]
    assert len(outcomes) == count
    assert {outcome.status for outcome in outcomes} == {"unknown"}
    [(level, text)] = lines(caplog, "outcome")
    assert level == "WARNING"
    assert "more since" not in text


def test_next_warning_of_a_bulk_run_counts_the_outcomes_in_between(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "signalwire_streams.outcome")
    log = OutcomeLog()
    request = Request(
        method="POST",
        path="/",
        operation=Operation.CONFERENCE_START,
        description="start",
        target="T",
        name="N",
        priority=Priority.BULK,
    )
    outcome = Result(attempt_result=AttemptResult.NO_RESPONSE, phase=Phase.WAITING, decision=RetryDecision.UNKNOWN)
    for now in (0.0, 1.0, 59.0, 60.0):
        log.record(request, outcome, now)
    caplog.set_level(logging.WARNING, "signalwire_streams.outcome")
    log.record(request, outcome, 61.0)
    log.record(request, evolve(outcome, decision=RetryDecision.SUCCEED, ambiguous=True), 62.0)
    log.record(request, evolve(outcome, decision=RetryDecision.SUCCEED, ambiguous=True), 120.0)
    found = lines(caplog, "outcome")
    assert [level for level, _ in found] == ["WARNING", "DEBUG", "DEBUG", "WARNING", "WARNING"]
    assert found[3][1].endswith("(2 more since the last warning)")
    assert found[4][1].endswith("(2 more since the last warning)")


async def test_circuit_breaker_warns_once_per_opening(
    space: SimulatedSpace, client_for: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "signalwire_streams")
    clock = Clock.fake()
    policy = RetryPolicy(max_attempts=1, max_connect_retries=0)
    client = client_for(
        space, clock=clock, retry=policy, circuit_breaker=CircuitBreakerPolicy(min_requests=4, open_duration=5.0)
    )
    sid = space.conference_sids[0]

    async def fail(times: int) -> None:
        for _ in range(times):
            with pytest.raises(StreamsError):
                await client.conferences.get(sid)

    fault = space.faults.add("500")
    await fail(10)
    for _ in range(3):  # probes that fail as well are the same opening
        await clock.sleep(6.0)
        await fail(2)
    fault.remove()
    await clock.sleep(6.0)
    await client.conferences.get(sid)
    opened, closed = lines(caplog, "circuit_breaker")
    assert opened == (
        "WARNING",
        (
            f"circuit breaker opened: at least 50 % of the last requests failed, most recently get Conferences/{sid}: "
            "the Space failed: HTTP 500; no requests for 5 s, then one probe"
        ),
    )
    assert closed == ("INFO", "circuit breaker closed: the probe succeeded")
    space.faults.add("500")
    await fail(6)
    assert [level for level, _ in lines(caplog, "circuit_breaker")] == ["WARNING", "INFO", "WARNING"]


async def test_pause_after_a_429_logs_one_warning(
    space: SimulatedSpace, client_for: ClientFactory, idle_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_for(space, clock=idle_clock)
    space.faults.add("throttle", on="start", retry_after=7, times=3)
    await asyncio.gather(*(start(client, space, name=f"n{number}") for number in range(8)))
    found = lines(caplog, "rate_limit")
    assert found[0] == ("WARNING", "too many requests (429): all requests pause for 7.0 s")
    assert len(found) == 1


async def test_429_without_a_pause_logs_no_warning(
    space: SimulatedSpace, client: StreamsClient, caplog: pytest.LogCaptureFixture
) -> None:
    space.faults.add("throttle", on="start", retry_after=0, times=1)
    await start(client, space)
    assert lines(caplog, "rate_limit") == []


async def test_server_error_on_a_read_logs_no_ambiguous_outcome(
    space: SimulatedSpace, client: StreamsClient, caplog: pytest.LogCaptureFixture
) -> None:
    space.faults.add("500", on="list")
    with pytest.raises(ServerError):
        await anext(aiter(client.conferences.list()))
    assert lines(caplog, "outcome") == []
