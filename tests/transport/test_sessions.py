"""The aiohttp session's life: made late, shared, borrowed, closed."""

import asyncio
import importlib.metadata
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from signalwire_streams import (
    ClientStateError,
    Clock,
    InvalidRequestError,
    Priority,
    RateLimit,
    StreamsClient,
    StreamsError,
    Timeouts,
    TransportError,
)
from signalwire_streams._http.session import SessionManager
from signalwire_streams.middleware import Handler, Request, Result
from signalwire_streams.middleware._rate_limit import LocalRateLimiter, TokenBucket
from signalwire_streams.simulator import SimulatedSpace

pytestmark = pytest.mark.usefixtures("idle_clock")
URL = "wss://rx.example.com/audio"


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


async def test_nothing_is_opened_before_the_first_request() -> None:
    """A client can be made outside of any task, and closing an unused one is nothing."""
    before = open_descriptors()
    client = StreamsClient(space="example", project="p", token="t")

    assert open_descriptors() == before
    await client.aclose()
    await client.aclose()


def test_client_can_be_made_outside_of_a_loop_and_used_inside() -> None:
    """Making a client needs no running loop."""
    client = StreamsClient(space="example", project="p", token="t")

    async def use() -> None:
        async with client:
            pass

    asyncio.run(use())


async def test_closed_client_raises_client_state_error_and_sends_nothing(
    space: SimulatedSpace, client: StreamsClient
) -> None:
    """A closed client says so, before anything is sent."""
    await client.aclose()

    with pytest.raises(ClientStateError, match="closed"):
        await client.conferences.get(space.conference_sids[0])
    with pytest.raises(ClientStateError, match="closed"):
        async with client:
            pass
    assert len(space.requests) == 0


def test_client_used_in_another_loop_raises_client_state_error() -> None:
    """A client belongs to the loop that first used it, and says so in another."""
    client = StreamsClient(space="example", project="p", token="t")

    async def enter() -> None:
        await client.__aenter__()

    asyncio.run(enter())
    with pytest.raises(ClientStateError, match="another event loop"):
        asyncio.run(enter())


def test_client_in_with_without_async_raises_type_error_naming_async_with() -> None:
    """A forgotten ``async`` is explained."""
    with pytest.raises(TypeError, match="async with"), StreamsClient(space="example", project="p", token="t"):
        pass


async def test_borrowed_session_is_used_and_left_open(space: SimulatedSpace, client_for: Any) -> None:
    """The caller's session carries the requests and outlives the client."""
    async with aiohttp.ClientSession() as session:
        client = client_for(space, session=session)
        await client.conferences.get(space.conference_sids[0])
        await client.aclose()

        assert not session.closed
        assert len(space.connections) == 1


async def test_borrowed_session_that_is_closed(space: SimulatedSpace, client_for: Any) -> None:
    """A session that the caller closed is named as the reason."""
    session = aiohttp.ClientSession()
    client = client_for(space, session=session)
    await session.close()

    with pytest.raises(ClientStateError, match="session passed"):
        await client.conferences.get(space.conference_sids[0])


async def test_unfit_sessions_are_rejected() -> None:
    """A session with credentials of its own, or something that is no session, is rejected with a reason."""
    with pytest.warns(DeprecationWarning, match="auth"):
        session = aiohttp.ClientSession(auth=aiohttp.BasicAuth("a", "b"))
    async with session:
        with pytest.raises(InvalidRequestError, match="auth"):
            StreamsClient(space="example", project="p", token="t", session=session)
    with pytest.raises(InvalidRequestError, match=r"aiohttp\.ClientSession"):
        StreamsClient(space="example", project="p", token="t", session="session")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "header", ["Content-Length: 5", "transfer-encoding: chunked", "Content-Encoding: gzip", "Expect: 100-continue"]
)
async def test_sessions_whose_default_headers_describe_a_body_are_rejected(header: str) -> None:
    """A Content-Length of the session would cut every start's form off; the sentence names the header."""
    name, _, value = header.partition(": ")
    async with aiohttp.ClientSession(headers={name: value}) as session:
        with pytest.raises(InvalidRequestError, match=f"(?i)sends {name} with every request.*create it without"):
            StreamsClient(space="example", project="p", token="t", session=session)


async def test_borrowed_session_cannot_spoil_a_start(space: SimulatedSpace, client_for: Any) -> None:
    """Middlewares that repeat, raise_for_status and default headers of the session change nothing."""

    async def repeat(
        request: aiohttp.ClientRequest, handler: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]
    ) -> aiohttp.ClientResponse:
        (await handler(request)).close()
        return await handler(request)

    async with aiohttp.ClientSession(
        middlewares=(repeat,), raise_for_status=True, headers={"Authorization": "Basic bm9ib2R5Og=="}
    ) as session:
        client = client_for(space, session=session)
        space.faults.add("503-api", times=1)
        await client.conferences.start_stream(space.conference_sids[0], url=URL)

    assert space.requests.count("start-conference-stream") == 2
    assert len(space.streams) == 1


async def test_small_pool_is_not_overrun(space: SimulatedSpace, client_for: Any) -> None:
    """More calls than connections wait their turn instead of timing out in the pool."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=2)) as session:
        client = client_for(space, session=session)
        sids = space.conference_sids * 20
        await asyncio.gather(*(client.conferences.get(sid) for sid in sids))

    assert len(space.requests) == len(sids)
    assert space.connections.opened == 2


@pytest.mark.parametrize("body", ["api", "html"])
async def test_rejected_attempt_gives_its_connection_back(space: SimulatedSpace, client_for: Any, body: str) -> None:
    """With a pool of one, a response that is not wanted does not block the retry."""
    client = client_for(space, connections=1)
    space.faults.add("status", status=503, body=body, retry_after=0, times=2, headers={"X-Padding": "x" * 4000})
    await client.conferences.start_stream(space.conference_sids[0], url=URL)

    assert space.requests.count("start-conference-stream") == 3


async def test_close_waits_for_calls_in_flight(space: SimulatedSpace, client_for: Any) -> None:
    """`aclose` lets a call that is under way end."""
    hold = asyncio.Event()
    slow = SimulatedSpace(conferences=1, sleep=lambda _: hold.wait())  # type: ignore[arg-type,return-value]
    async with slow:
        slow.faults.add("latency", seconds=1)
        client = client_for(slow)
        start = asyncio.create_task(client.conferences.start_stream(slow.conference_sids[0], url=URL))
        await slow.requests.wait_for(1)
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        hold.set()
        await closing

        assert (await start).sid is not None


async def test_close_cancels_calls_after_shutdown_timeout(
    space: SimulatedSpace, client_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that outlasts the drain is cut, and a start among them is honestly unknown."""
    monkeypatch.setattr("signalwire_streams._http.session._SHUTDOWN_TIMEOUT", 0.01)
    space.faults.add("hang", executed=True)
    client = client_for(space)
    start = asyncio.create_task(client.conferences.start_stream(space.conference_sids[0], url=URL))
    await space.requests.wait_for(1)
    await client.aclose()

    with pytest.raises(StreamsError) as caught:
        await start
    assert type(caught.value).__name__ == "StreamOutcomeUnknownError"
    assert space.requests.count() == 1


async def test_call_that_is_cancelled_while_the_client_closes_is_cancelled(
    space: SimulatedSpace, client_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the client cuts the call as well does not hide its caller's cancellation."""
    monkeypatch.setattr("signalwire_streams._http.session._SHUTDOWN_TIMEOUT", 0.01)
    close = SessionManager.close

    async def cancel_and_close(sessions: SessionManager) -> None:
        start.cancel()
        await close(sessions)

    monkeypatch.setattr(SessionManager, "close", cancel_and_close)
    space.faults.add("hang", executed=True)
    client = client_for(space)
    start = asyncio.create_task(client.conferences.start_stream(space.conference_sids[0], url=URL))
    await space.requests.wait_for(1)
    await client.aclose()

    with pytest.raises(asyncio.CancelledError):
        await start
    assert (start.cancelling(), space.requests.count()) == (1, 1)


async def test_failures_leave_no_connection(space: SimulatedSpace, nothing_left: None) -> None:
    """After calls that failed in every way, no task, connection or descriptor is left."""
    before = open_descriptors()
    for kind in ("reset", "disconnect", "hang", "garbage", "truncated-headers", "truncated-body", "500", "redirect"):
        space.faults.add(kind, every_nth=3)
    async with StreamsClient(
        base_url=space.base_url,
        project=space.project,
        token=space.token,
        clock=Clock.fake(),
        timeouts=Timeouts(read=0.05),
    ) as client:
        starts = (client.conferences.start_stream(space.conference_sids[n % 3], url=URL) for n in range(60))
        results = await asyncio.gather(*starts, return_exceptions=True)
        assert all(isinstance(result, StreamsError) or not isinstance(result, BaseException) for result in results)
    for _ in range(20):
        await asyncio.sleep(0)

    space.connections.close_idle()
    assert len(space.connections) <= sum(1 for request in space.requests if request.fault == "hang")
    await space.close()
    for _ in range(20):
        await asyncio.sleep(0)
    assert open_descriptors() <= before


async def test_cancelled_call_leaves_no_connection(space: SimulatedSpace, nothing_left: None) -> None:
    """A cancelled call re-raises, closes its connection and leaves no task."""
    space.faults.add("hang")
    async with StreamsClient(base_url=space.base_url, project=space.project, token=space.token) as client:
        start = asyncio.create_task(client.conferences.start_stream(space.conference_sids[0], url=URL))
        await space.requests.wait_for(1)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert space.requests.count() == 1


async def test_close_cancels_waiting_call(
    space: SimulatedSpace, client_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that still waits for its turn when the drain ends is cut, and nothing of it is ever sent."""
    monkeypatch.setattr("signalwire_streams._http.session._SHUTDOWN_TIMEOUT", 0.01)

    class Never(LocalRateLimiter):
        async def acquire(self, lane: Priority, patience: float) -> float:
            await asyncio.Event().wait()
            return 0.0

    clock = Clock()
    client = client_for(space, rate_limiter=Never(TokenBucket(RateLimit()), clock), clock=clock)
    start = asyncio.create_task(client.conferences.start_stream(space.conference_sids[0], url=URL))
    await asyncio.sleep(0)
    await client.aclose()

    with pytest.raises(TransportError, match="closed in the meantime") as caught:
        await start
    assert caught.value.sent == "no"
    assert space.connections.opened == 0


async def test_timeout_error_of_callers_middleware_propagates(space: SimulatedSpace, client_for: Any) -> None:
    """A TimeoutError that a caller's middleware raises is not taken for the client's closing."""

    async def impatient(request: Request, send: Handler) -> Result:
        raise TimeoutError("mine")

    client = client_for(space, middlewares=[impatient])
    with pytest.raises(TimeoutError, match="mine"):
        await client.conferences.get(space.conference_sids[0])


async def test_call_waiting_in_borrowed_pool_raises_package_error_when_pool_closes(
    space: SimulatedSpace, client_for: Any
) -> None:
    """If the owner closes a session, calls that wait in its pool get an error of this package, not a cancellation."""
    space.faults.add("hang", times=1)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1))
    room = f"{space.base_url}/api/laml/2010-04-01/Accounts/{space.project}/Conferences/{space.conference_sids[0]}"
    holding = asyncio.ensure_future(session.get(room))
    await space.requests.wait_for(1)
    client = client_for(space, session=session)
    start = asyncio.create_task(client.conferences.start_stream(space.conference_sids[0], url=URL))
    for _ in range(5):
        await asyncio.sleep(0)
    await session.close()

    with pytest.raises(StreamsError) as caught:
        await start
    assert caught.value.sent == "no"
    await asyncio.gather(holding, return_exceptions=True)


async def test_borrowed_sessions_own_content_type_is_not_used(space: SimulatedSpace, client_for: Any) -> None:
    """A form is called a form, whatever the session says by default."""
    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:
        await client_for(space, session=session).conferences.start_stream(space.conference_sids[0], url=URL)

    assert space.requests[0].headers["Content-Type"] == "application/x-www-form-urlencoded"


async def test_pool_with_a_limit_per_host_is_not_overrun(space: SimulatedSpace, client_for: Any) -> None:
    """The limit for one host counts as well, since all requests go to one."""
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=2)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = client_for(space, session=session)
        await asyncio.gather(*(client.conferences.get(sid) for sid in space.conference_sids * 5))

    assert space.connections.opened == 2


async def test_user_agent_names_the_package_version(space: SimulatedSpace, client: StreamsClient) -> None:
    """The Space sees which version is asking."""
    await client.conferences.get(space.conference_sids[0])

    agent = space.requests[0].headers["User-Agent"]
    assert agent.startswith(f"signalwire-streams/{importlib.metadata.version('signalwire-streams')} aiohttp/")


async def test_client_credentials_win_over_netrc(
    space: SimulatedSpace, client_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A borrowed session with trust_env finds other credentials in netrc; the client's own are sent."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    sid = space.conference_sids[0]
    async with aiohttp.ClientSession(trust_env=True) as session:
        client = client_for(space, session=session)
        stream = await client.conferences.start_stream(sid, url=URL)
        assert (await client.conferences.get(sid)).sid == sid
        await client.conferences.stop_stream(sid, stream)

    assert [request.status for request in space.requests] == [200, 200, 200]
