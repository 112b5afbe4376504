"""Code and settings of a borrowed session that fail: typed errors, and no start is lost or doubled."""

import asyncio
import contextlib
import gzip
import traceback
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from attrs import evolve

from signalwire_streams import (
    BulkStatus,
    Phase,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamsError,
    TransportError,
)
from signalwire_streams.simulator import SimulatedSpace
from tests.raw_space import RawConnection, RawSpace, Request, as_documented, http, raw_space

pytestmark = pytest.mark.usefixtures("idle_clock")
URL = "wss://rx.example.com/audio"
KINDS = ("read", "stop", "named", "unnamed")
BEFORE = ("on_request_start", "on_connection_create_start", "on_connection_create_end", "on_request_headers_sent")
ERRORS: tuple[Exception, ...] = (
    LookupError("mine"),
    ValueError("mine"),
    OSError("mine"),
    ExceptionGroup("mine", [KeyError("mine")]),
)
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


async def perform(client: StreamsClient, kind: str) -> object:
    if kind == "read":
        return await client.conferences.get("room")
    if kind == "stop":
        return await client.conferences.stop_stream("room", "stream")
    return await client.conferences.start_stream("room", url=URL, unnamed=kind == "unnamed")


async def error_of(client: StreamsClient, kind: str) -> StreamsError:
    with pytest.raises(StreamsError) as caught:
        await perform(client, kind)
    return caught.value


class Resolver(AbstractResolver):
    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        if self.error is not None:
            raise self.error
        return []

    async def close(self) -> None: ...


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [None, *ERRORS], ids=lambda error: type(error).__name__)
async def test_request_with_failing_resolver_raises_transport_error_unsent(
    error: Exception | None, kind: str, space: SimulatedSpace, client_for: Any
) -> None:
    """No address, or any error: certainly nothing was sent."""
    connector = aiohttp.TCPConnector(resolver=Resolver(error))
    async with aiohttp.ClientSession(connector=connector) as session:
        raised = await error_of(client_for(space, base_url="https://space.example", session=session), kind)

    assert isinstance(raised, TransportError)
    assert (raised.sent, raised.phase) == ("no", Phase.CONNECTING)


def raising(error: Exception, *, times: int = 1_000) -> Callable[..., Any]:
    left = [error] * times

    async def hook(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        if left:
            raise left.pop()

    return hook


def traced(name: str, hook: Any) -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    getattr(trace, name).append(hook)
    return aiohttp.ClientSession(trace_configs=[trace])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BEFORE)
@each_error
async def test_trace_hook_that_raises_before_the_request_is_written(
    name: str, kind: str, error: Exception, space: SimulatedSpace, client_for: Any
) -> None:
    """Nothing was sent, and the error is that. aiohttp calls all these hooks before it writes, whatever their names."""
    async with raw_space() as raw, traced(name, raising(error)) as session:
        raised = await error_of(client_for(space, base_url=raw.url, session=session), kind)

        assert isinstance(raised, TransportError)
        assert raised.sent == "no"
        assert raw.requests == []


@pytest.mark.parametrize("kind", KINDS)
@each_error
async def test_trace_hook_that_raises_after_the_response(
    kind: str, error: Exception, space: SimulatedSpace, client_for: Any
) -> None:
    """A start may run, so its outcome is unknown, with the hook's error as the cause; nothing is sent again."""
    async with raw_space() as raw, traced("on_request_end", raising(error)) as session:
        raised = await error_of(client_for(space, base_url=raw.url, session=session), kind)

        assert isinstance(raised, StreamOutcomeUnknownError if "named" in kind else TransportError)
        assert raised.__cause__ is error
        assert (raised.sent, raised.attempts, len(raw.requests)) == ("yes", 1, 1)
        assert "mine" not in str(raised)


@pytest.mark.parametrize(
    "error", [aiohttp.ConnectionTimeoutError("mine"), TimeoutError("mine"), aiohttp.InvalidURL("mine")]
)
async def test_trace_hook_whose_error_says_that_nothing_was_sent(
    error: Exception, space: SimulatedSpace, client_for: Any
) -> None:
    """For any error class, the phase shows that the stream may be running."""
    async with raw_space() as raw, traced("on_request_end", raising(error)) as session:
        raised = await error_of(client_for(space, base_url=raw.url, session=session), "unnamed")

        assert isinstance(raised, StreamOutcomeUnknownError)
        assert len(raw.requests) == 1


@pytest.mark.parametrize("kind", ["named", "unnamed"])
async def test_trace_hook_that_raises_just_before_the_body_is_written(
    kind: str, space: SimulatedSpace, client_for: Any
) -> None:
    """Nothing was sent, so the next attempt starts the stream, and the result is not ambiguous."""
    async with raw_space() as raw, traced("on_request_chunk_sent", raising(LookupError("mine"), times=1)) as session:
        stream = await client_for(space, base_url=raw.url, session=session).conferences.start_stream(
            "room", url=URL, unnamed=kind == "unnamed"
        )

        assert [stream.sid] == raw.sids_of("room")
        assert not stream.ambiguous
        assert len(raw.requests) == 1


def repeating(kind: str) -> type[aiohttp.ClientSession]:
    """Make a class of sessions that send a request again, or twice at once."""
    with pytest.warns(DeprecationWarning, match="Inheritance"):

        class Session(aiohttp.ClientSession):
            async def _request(self, *arguments: Any, **options: Any) -> aiohttp.ClientResponse:
                if kind == "at once":
                    send = super()._request
                    return (await asyncio.gather(*(send(*arguments, **options) for _ in range(2))))[0]
                for _ in range(3):
                    with contextlib.suppress(aiohttp.ClientError):
                        response = await super()._request(*arguments, **options)
                        if response.status < 500:
                            return response
                return await super()._request(*arguments, **options)

    return Session


@pytest.mark.parametrize("kind", ["502", "no response", "at once"])
async def test_start_over_session_that_repeats_requests_is_written_once(
    kind: str, space: SimulatedSpace, client_for: Any
) -> None:
    """A start is written once: of what its session sends again nothing reaches the Space."""

    async def fail(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        if kind == "no response":
            raise ConnectionError
        return http(502)

    async with raw_space(fail) as raw, repeating(kind)() as session:
        client = client_for(space, base_url=raw.url, session=session)
        with pytest.raises(StreamOutcomeUnknownError) as caught:
            await client.conferences.start_stream("room", url=URL, unnamed=True)
        for _ in range(6):
            await asyncio.sleep(0)

        assert len(raw.requests) == 1
        assert kind == "at once" or "retries requests" in str(caught.value)


async def test_session_that_repeats_what_was_not_written(space: SimulatedSpace, client_for: Any) -> None:
    """Its repetition is harmless, and works."""

    async def speak(connection: RawConnection) -> None:
        if len(raw.connections) == 1:
            connection.push(http(408))

    async with raw_space(on_connect=speak) as raw, repeating("408")() as session:
        client = client_for(space, base_url=raw.url, session=session)
        stream = await client.conferences.start_stream("room", url=URL, unnamed=True)

        assert [stream.sid] == raw.sids_of("room")
        assert len(raw.requests) == 1


async def test_trace_hook_that_raises_on_an_error(space: SimulatedSpace, client_for: Any) -> None:
    """The hook's error takes the place of the connection's; the start may run."""
    error = LookupError("mine")

    async def reset(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        raise ConnectionError

    async with raw_space(reset) as raw, traced("on_request_exception", raising(error)) as session:
        raised = await error_of(client_for(space, base_url=raw.url, session=session), "named")

        assert isinstance(raised, StreamOutcomeUnknownError)
        assert raised.__cause__ is error
        assert len(raw.requests) == 1


async def raise_plainly(error: BaseException) -> None:
    raise LookupError("mine")


async def raise_from(error: BaseException) -> None:
    raise LookupError("mine") from error


async def raise_without_context(error: BaseException) -> None:
    raise LookupError("mine") from None


async def raise_after_another(error: BaseException) -> None:
    inner = KeyError("inner")
    inner.__cause__ = error
    raise LookupError("mine") from inner


async def raise_in_a_circle(error: BaseException) -> None:
    inner = KeyError("inner")
    inner.__cause__ = outer = LookupError("mine")
    raise outer from inner


async def raise_os_error(error: BaseException) -> None:
    raise ConnectionResetError(104, "mine")


@pytest.mark.parametrize(
    "hook",
    [raise_plainly, raise_from, raise_without_context, raise_after_another, raise_in_a_circle, raise_os_error],
)
async def test_traceback_of_hook_error_shows_no_bytes_of_response(
    hook: Callable[[BaseException], Awaitable[None]], space: SimulatedSpace, client_for: Any
) -> None:
    """The text of aiohttp's error repeats the head that it could not parse, so that error is no part of the chain."""

    async def garbage(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        return b"HTTP/1.1 SECRET\r\nSet-Cookie: SECRET\r\n\r\n"

    async def on_exception(session: aiohttp.ClientSession, context: SimpleNamespace, params: Any) -> None:
        assert "SECRET" in str(params.exception)
        await hook(params.exception)

    async with raw_space(garbage) as raw, traced("on_request_exception", on_exception) as session:
        raised = await error_of(client_for(space, base_url=raw.url, session=session), "named")

        assert isinstance(raised, StreamOutcomeUnknownError)
        shown = "".join(traceback.format_exception(raised))
        assert "SECRET" not in shown
        assert "mine" in shown
        assert ("inner" in shown) is (hook in {raise_after_another, raise_in_a_circle})
        assert raised.__cause__ is not None
        assert raised.__cause__.__suppress_context__ is (hook not in {raise_plainly, raise_os_error})


@pytest.mark.parametrize(
    ("name", "state"), [("on_request_end", BulkStatus.UNKNOWN), ("on_request_start", BulkStatus.STARTED)]
)
async def test_trace_hook_that_raises_once_in_a_run(
    name: str, state: BulkStatus, space: SimulatedSpace, client_for: Any
) -> None:
    """It costs one item its outcome, or one attempt, and no other item anything."""
    async with raw_space() as raw, traced(name, raising(LookupError("mine"), times=1)) as session:
        client = client_for(space, base_url=raw.url, session=session)
        items = [StartConferenceStream(conference_sid=f"room-{number}", url=URL) for number in range(20)]
        outcomes = [outcome async for outcome in client.start_streams(items, concurrency=4)]

        states = sorted(outcome.status for outcome in outcomes)
        assert states == sorted([state] + [BulkStatus.STARTED] * 19)
        assert len(raw.running) == len(raw.requests) == 20
        assert {type(outcome.error and outcome.error.__cause__) for outcome in outcomes} <= {LookupError, type(None)}


class Jar(aiohttp.DummyCookieJar):
    def update_cookies_from_headers(self, headers: Any, response_url: yarl.URL) -> None:
        raise LookupError("mine")


class LostJar(aiohttp.DummyCookieJar):
    def filter_cookies(self, request_url: yarl.URL) -> Any:
        raise LookupError("mine")


class Connector(aiohttp.TCPConnector):
    async def connect(self, *arguments: Any, **options: Any) -> Any:
        raise LookupError("mine")


class Response(aiohttp.ClientResponse):
    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        await super().start(connection)
        raise LookupError("mine")


SPOILED: dict[str, tuple[Callable[[], dict[str, Any]], bool]] = {
    "cookies that can't be stored": (lambda: {"cookie_jar": Jar()}, True),
    "cookies that can't be found": (lambda: {"cookie_jar": LostJar()}, False),
    "a connector": (lambda: {"connector": Connector()}, False),
    "a response": (lambda: {"response_class": Response}, True),
}


@pytest.mark.parametrize(("options", "was_sent"), SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("kind", KINDS)
async def test_parts_of_a_session_that_raise(
    options: Callable[[], dict[str, Any]], was_sent: bool, kind: str, space: SimulatedSpace, client_for: Any
) -> None:
    """Before the request is written nothing was sent; after it, a start's outcome is unknown."""

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        true = await as_documented(space, connection, request)
        return true.replace(b"\r\n", b"\r\nSet-Cookie: a=b\r\n", 1)

    async with raw_space(answer) as raw, aiohttp.ClientSession(**options()) as session:
        raised = await error_of(client_for(space, base_url=raw.url, session=session), kind)

        assert isinstance(raised.__cause__, LookupError)
        assert isinstance(raised, StreamOutcomeUnknownError if was_sent and "named" in kind else TransportError)
        assert len(raw.requests) == int(was_sent)


def refuse_json(_: object) -> str:
    raise LookupError("mine")


async def refuse(_: aiohttp.ClientResponse) -> None:
    raise LookupError("mine")


HARMLESS: dict[str, dict[str, Any]] = {
    "small reads": {"read_bufsize": 1},
    "no unpacking": {"auto_decompress": False},
    "short timeouts": {"timeout": aiohttp.ClientTimeout(total=1e-9, sock_read=1e-9)},
    "short heads": {"max_line_size": 10, "max_field_size": 10, "max_headers": 1},
    "another JSON": {"json_serialize": refuse_json},
    "errors raised": {"raise_for_status": refuse},
    "other credentials": {"headers": {"authorization": "Bearer other", "Accept": "text/html"}},
    "another base": {"base_url": "https://elsewhere.example/"},
    "another version": {"version": aiohttp.HttpVersion10},
    "headers left out": {"skip_auto_headers": ["Content-Type", "User-Agent"]},
}


@pytest.mark.parametrize("options", HARMLESS.values(), ids=HARMLESS)
async def test_session_settings_are_overridden(options: dict[str, Any], space: SimulatedSpace, client_for: Any) -> None:
    """A start, a read and a stop go through once each, with this client's credentials."""
    authorizations: list[str] = []

    async def answer(raw: RawSpace, connection: RawConnection, request: Request) -> bytes:
        authorizations.append(request.headers["authorization"])
        assert list(request.fields) in ([], ["Url", "Name"], ["Status"])
        true = await as_documented(raw, connection, request)
        body = gzip.compress(true.partition(b"\r\n\r\n")[2])
        return http(200, body=body, head="Content-Encoding: gzip\r\nConnection: keep-alive\r\n")

    async with raw_space(answer) as raw, aiohttp.ClientSession(**options) as session:
        client = client_for(space, base_url=raw.url, session=session)
        stream = await client.conferences.start_stream("room", url=URL)
        assert [stream.sid] == raw.sids_of("room")
        assert (await client.conferences.get("room")).sid == "room"
        await client.conferences.stop_stream("room", stream)

        assert len(raw.requests) == 3
        assert len(set(authorizations)) == 1
        assert authorizations[0].startswith("Basic ")


async def test_middlewares_of_this_package_may_add_headers(space: SimulatedSpace, client_for: Any) -> None:
    """Headers that a middleware adds are sent beside the client's own, read from netrc or not."""

    async def add(request: Any, send: Any) -> Any:
        return await send(evolve(request, headers={"X-Trace": "7"}))

    seen: list[Any] = []

    async def answer(raw: RawSpace, connection: RawConnection, request: Request) -> bytes:
        seen.append((request.headers["x-trace"], request.headers["authorization"][:5]))
        return await as_documented(raw, connection, request)

    async with raw_space(answer) as raw, aiohttp.ClientSession(trust_env=True) as session:
        for lent in (None, session):
            await client_for(space, base_url=raw.url, session=lent, middlewares=[add]).conferences.get("room")

    assert seen == [("7", "Basic")] * 2
