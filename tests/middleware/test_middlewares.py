"""Middlewares around a request: the telemetry hook, the caller's own, the circuit breaker."""

import asyncio
import logging
from typing import Any

import pytest
from attrs import evolve

from signalwire_streams import (
    Attempt,
    AttemptResult,
    CircuitBreakerPolicy,
    CircuitOpenError,
    Clock,
    Operation,
    Phase,
    RetryDecision,
    RetryPolicy,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamsError,
)
from signalwire_streams.middleware import Handler, Request, Result
from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"


async def test_on_attempt_is_called_with_every_attempt(space: SimulatedSpace, client_for: Any) -> None:
    attempts: list[Attempt] = []
    client = client_for(space, on_attempt=attempts.append)
    space.faults.add("503-api", times=1)
    space.faults.add("reset", executed=True, times=1)
    sid = space.conference_sids[0]
    await client.conferences.start_stream(sid, url=URL, name="told")

    assert [attempt.number for attempt in attempts] == [1, 2, 3]
    assert [attempt.result for attempt in attempts] == [
        AttemptResult.UNAVAILABLE,
        AttemptResult.NO_RESPONSE,
        AttemptResult.DONE,
    ]
    assert [attempt.decision for attempt in attempts] == [
        RetryDecision.RETRY,
        RetryDecision.RESEND,
        RetryDecision.SUCCEED,
    ]
    assert [attempt.phase for attempt in attempts] == [Phase.RESPONDED, Phase.WAITING, Phase.RESPONDED]
    assert [attempt.sent for attempt in attempts] == ["yes", "maybe", "yes"]
    assert [attempt.status for attempt in attempts] == [503, None, 200]
    assert attempts[0].code is not None
    assert {(attempt.operation, attempt.target, attempt.name) for attempt in attempts} == {
        (Operation.CONFERENCE_START, sid, "told")
    }
    assert attempts[0].next_delay > 0
    assert all(attempt.duration > 0 and attempt.queue_time >= 0 for attempt in attempts)


async def test_on_attempt_that_raises_does_not_lose_the_stream(
    space: SimulatedSpace, client_for: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The exception is logged."""

    def broken(attempt: Attempt) -> None:
        raise LookupError("no such metric")

    client = client_for(space, on_attempt=broken)
    stream = await client.conferences.start_stream(space.conference_sids[0], url=URL)

    assert stream.sid == space.streams[0].sid
    assert "no such metric" in caplog.text
    caplog.clear()


async def test_on_attempt_is_called_with_a_cancelled_attempt(space: SimulatedSpace, client_for: Any) -> None:
    """A call that is cancelled after it was written reports its phase and re-raises."""
    attempts: list[Attempt] = []
    requests: list[Request] = []

    async def keep(request: Request, send: Handler) -> Result:
        requests.append(request)
        return await send(request)

    client = client_for(space, on_attempt=attempts.append, middlewares=[keep])
    space.faults.add("hang", executed=True)
    start = asyncio.create_task(client.conferences.start_stream(space.conference_sids[0], url=URL))
    await space.requests.wait_for(1)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start

    assert [(attempt.result, attempt.phase, attempt.sent) for attempt in attempts] == [
        (AttemptResult.CANCELLED, Phase.WAITING, "maybe")
    ]
    assert requests[0].state.sent == "maybe"


async def test_middlewares_of_the_caller_wrap_the_retries(space: SimulatedSpace, client_for: Any) -> None:
    """They see each call once, the first one outermost, and may change request and result."""
    seen: list[str] = []

    async def outer(request: Request, send: Handler) -> Result:
        seen.append("outer")
        outcome = await send(evolve(request, headers={"Traceparent": "00-1-2-01"}))
        seen.append(f"outer got {outcome.decision} after {outcome.attempts}")
        return outcome

    async def inner(request: Request, send: Handler) -> Result:
        seen.append(f"inner {request.headers['Traceparent']}")
        return await send(request)

    client = client_for(space, middlewares=[outer, inner])
    space.faults.add("503-api", times=1)
    await client.conferences.start_stream(space.conference_sids[0], url=URL)

    assert seen == ["outer", "inner 00-1-2-01", "outer got succeed after 2"]


async def test_middleware_may_return_a_result_of_its_own(space: SimulatedSpace, client_for: Any) -> None:
    """An outcome that a middleware makes up is treated as what it says."""

    async def refuse(request: Request, send: Handler) -> Result:
        return Result(attempt_result=AttemptResult.UNRETRYABLE, phase=Phase.QUEUED, detail="closed on Sundays")

    client = client_for(space, middlewares=[refuse])
    with pytest.raises(StreamsError, match="closed on Sundays"):
        await client.conferences.start_stream(space.conference_sids[0], url=URL)
    assert len(space.requests) == 0


async def test_breaker_opens_and_closes_around_real_requests(space: SimulatedSpace, client_for: Any) -> None:
    clock = Clock.fake()
    client = client_for(
        space,
        clock=clock,
        retry=RetryPolicy(max_attempts=1),
        circuit_breaker=CircuitBreakerPolicy(min_requests=4, open_duration=5),
    )
    sid = space.conference_sids[0]
    rule = space.faults.add("500")
    for _ in range(4):
        with pytest.raises(StreamsError):
            await client.conferences.get(sid)
    with pytest.raises(CircuitOpenError) as caught:
        await client.conferences.start_stream(sid, url=URL)
    assert caught.value.sent == "no"
    assert caught.value.retry_after == pytest.approx(5, abs=1)
    assert len(space.requests) == 4

    await clock.sleep(5)
    with pytest.raises(StreamsError, match="500"):
        await client.conferences.get(sid)
    with pytest.raises(CircuitOpenError):
        await client.conferences.get(sid)

    await clock.sleep(5)
    rule.remove()
    space.faults.add("hang", times=1)
    probe = asyncio.create_task(client.conferences.get(sid))
    await space.requests.wait_for(6)
    with pytest.raises(CircuitOpenError):
        await client.conferences.get(sid)
    probe.cancel()
    await asyncio.wait([probe])

    assert (await client.conferences.get(sid)).sid == sid
    assert (await client.conferences.start_stream(sid, url=URL)).sid is not None


async def test_unknown_start_stays_unknown_when_the_breaker_opens(space: SimulatedSpace, client_for: Any) -> None:
    client = client_for(space, circuit_breaker=CircuitBreakerPolicy(min_requests=1))
    space.faults.add("reset", executed=True)

    with pytest.raises(StreamOutcomeUnknownError) as caught:
        await client.conferences.start_stream(space.conference_sids[0], url=URL, name="perhaps")

    assert caught.value.sent == "maybe"
    assert len(space.streams.active()) == 1


async def test_start_whose_retry_can_not_connect_is_unknown(space: SimulatedSpace, client_for: Any) -> None:
    """A rejection of the second attempt does not prove that the first did nothing."""
    client: StreamsClient = client_for(space)
    space.faults.add("reset", executed=True, times=1)
    space.faults.add("status", status=404, body="api", code=20404, times=1)

    with pytest.raises(StreamOutcomeUnknownError, match="404") as caught:
        await client.conferences.start_stream(space.conference_sids[0], url=URL, name="perhaps")

    assert (caught.value.status, caught.value.attempts, caught.value.sent) == (404, 2, "yes")
    assert len(space.streams.active()) == 1


def test_logging_is_silent_by_default() -> None:
    """The package logs under its own name and adds no handlers."""
    assert logging.getLogger("signalwire_streams").handlers == []


@pytest.mark.parametrize("fault", [None, "reset"])
async def test_exception_of_a_middleware_names_the_stream_that_may_be_running(
    fault: str | None, space: SimulatedSpace, client_for: Any
) -> None:
    """The name was generated, and nothing else would tell it."""

    async def fail(request: Request, send: Handler) -> Result:
        await send(request)
        raise OSError("no metrics today")

    if fault is not None:
        space.faults.add(fault, executed=True)
    client = client_for(space, middlewares=[fail])
    with pytest.raises(OSError, match="no metrics today") as caught:
        await client.conferences.start_stream(space.conference_sids[0], url=URL)

    [stream] = space.streams.active()
    assert caught.value.__notes__ == [
        f"a stream may be running on conference {space.conference_sids[0]}, under the name {stream.name!r}"
    ]


async def test_exception_of_a_middleware_after_a_rejected_start_is_unchanged(
    space: SimulatedSpace, client_for: Any
) -> None:
    async def fail(request: Request, send: Handler) -> Result:
        await send(request)
        raise OSError("no metrics today")

    space.faults.add("status", status=422, body="api")
    with pytest.raises(OSError, match="no metrics today") as caught:
        await client_for(space, middlewares=[fail]).conferences.start_stream(space.conference_sids[0], url=URL)
    assert not hasattr(caught.value, "__notes__")


async def forgets_to_return(request: Request, send: Handler) -> None:
    await send(request)


def forgets_async(request: Request, send: Handler) -> None:
    """Send nothing."""


@pytest.mark.parametrize(("middleware", "sent"), [(forgets_to_return, 1), (forgets_async, 0)])
async def test_middleware_that_returns_no_result_is_named(
    middleware: Any, sent: int, space: SimulatedSpace, client_for: Any
) -> None:
    """The stream that it started is named as well."""
    client = client_for(space, middlewares=[middleware])
    words = f"the middleware {middleware.__name__} returned a NoneType, not a Result: write 'return await send"
    with pytest.raises(TypeError, match=words) as caught:
        await client.conferences.start_stream(space.conference_sids[0], url=URL)
    names = [f"under the name {stream.name!r}" for stream in space.streams.active()]
    assert len(names) == len(getattr(caught.value, "__notes__", [])) == sent
    assert all(name in note for name, note in zip(names, getattr(caught.value, "__notes__", []), strict=True))


async def test_start_cancelled_in_a_middleware_after_it_succeeded_is_logged(
    space: SimulatedSpace, client_for: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With its name, as one that is cancelled while it is sent; a failed start is not."""
    was_sent = asyncio.Event()

    async def linger(request: Request, send: Handler) -> Result:
        await send(request)
        was_sent.set()
        return await asyncio.Event().wait()  # type: ignore[return-value]

    client = client_for(space, middlewares=[linger])
    for fault, count in ((None, 1), ("status", 1)):
        if fault is not None:
            space.faults.add(fault, status=422, body="api")
        start = asyncio.create_task(client.conferences.start_stream(space.conference_sids[0], url=URL))
        await was_sent.wait()
        was_sent.clear()
        start.cancel()
        await asyncio.wait([start])
        found = [each for each in caplog.records if each.name == "signalwire_streams.outcome"]
        assert len(found) == count

    [stream] = space.streams.active()
    assert found[0].levelno == logging.WARNING
    assert f"(name {stream.name!r})" in found[0].getMessage()
    assert "may or may not be running (cancelled: a middleware raised CancelledError)" in found[0].getMessage()
