"""The local variables of our frames show no secret, as pytest, rich and error trackers print them with a traceback."""

import asyncio
import inspect
import pprint
import traceback
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from reprlib import Repr
from typing import Any

import aiohttp
import pytest

import signalwire_streams
from signalwire_streams import (
    InvalidRequestError,
    RetryPolicy,
    StartCallStream,
    StartConferenceStream,
    StreamsClient,
    StreamsError,
    Timeouts,
)
from signalwire_streams.fleet import Fleet, FleetWorker, run_worker
from signalwire_streams.models._validation import Secret
from signalwire_streams.receiver import MediaReceiver
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"
BEARER, VALUE, QUERY = "bearer-hush-0123456789", "value-hush/\u00e4" + 100 * "x", "key=query-hush"
SECRETS: dict[str, Any] = {
    "parameters": {"tenant": VALUE},
    "authorization_bearer_token": BEARER,
    "status_callback": f"https://ada:pass-hush@app.example.com/told?{QUERY}",
}
PACKAGE = str(Path(signalwire_streams.__file__).parent)


def frames_of(error: BaseException) -> Iterator[Any]:
    """Go through the frames of an error and of all that hangs on it that are this package's."""
    todo, seen = [error], set[int]()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
        todo += list(one.exceptions) if isinstance(one, BaseExceptionGroup) else []
        for frame, _ in traceback.walk_tb(one.__traceback__):
            name = frame.f_code.co_filename
            if name.startswith(PACKAGE) or "signalwire_streams" in name.partition("<attrs")[2]:
                yield frame


def in_words(value: object, way: Callable[[object], str]) -> str:
    try:
        return way(value)
    except AttributeError as error:  # of an object whose __init__ raised
        return str(error)


def shown(error: BaseException, *more: str) -> int:
    """Check what is shown of the local variables in each way; return the number of frames."""
    count = 0
    for frame in frames_of(error):
        count += 1
        for name, value in frame.f_locals.items():
            for text in map(partial(in_words, value), (repr, Repr().repr, pprint.pformat)):
                for secret in ("hush", *more):
                    assert secret not in text, f"{frame.f_code.co_qualname}: {name}"
    return count


async def failing(work: Callable[[], Awaitable[object]]) -> BaseException:
    try:
        await work()
    except BaseException as error:  # noqa: BLE001  (a cancellation too)
        return error
    raise AssertionError("it did not fail")


def client_of(client_for: Any, space: SimulatedSpace) -> StreamsClient:
    client: StreamsClient = client_for(
        space, retry=RetryPolicy(max_attempts=1, max_resends=0, max_connect_retries=0), timeouts=Timeouts(read=0.05)
    )
    return client


FAULTS: dict[str, dict[str, Any]] = {
    "refused": {"kind": "status", "status": 422, "body": "api"},
    "denied": {"kind": "status", "status": 401, "body": "api"},
    "timeout": {"kind": "hang"},
    "reset": {"kind": "reset", "executed": True},
    "garbage": {"kind": "garbage"},
}


@pytest.mark.usefixtures("idle_clock")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("noun", ["conference", "call"])
async def test_failed_start_shows_no_secret(
    space: SimulatedSpace, client_for: Any, noun: str, fault: dict[str, Any]
) -> None:
    """Whatever the Space does, and when the start is made again."""
    client = client_of(client_for, space)
    streams: Any = client.conferences if noun == "conference" else client.calls
    sid = (space.conference_sids if noun == "conference" else space.call_sids)[0]
    space.faults.add(on="start", **fault)
    error = await failing(lambda: streams.start_stream(sid, url=URL, **SECRETS))
    assert shown(error, space.token, "Basic ")
    again = getattr(error, "start_again", None)
    if again is not None:
        assert shown(await failing(again), space.token, "Basic ")


WRONG: dict[str, dict[str, Any]] = {
    "track": {"track": "all"},
    "codec": {"codec": "MP3"},
    "deadline": {"deadline": -1},
    "query": {"url": f"{URL}?{QUERY}"},
    "user name and password": {"url": "wss://ada:pass-hush@rx.example.com/audio"},
    "scheme": {"url": f"https://ada:pass-hush@rx.example.com/audio?{QUERY}"},
    "parameters of another type": {"parameters": [("tenant", VALUE)]},
    "a parameter of another type": {"parameters": {"tenant": VALUE.encode()}},
    "a parameter's name": {"parameters": {"": VALUE}},
    "too many parameters": {"parameters": {str(number): VALUE for number in range(100)}},
    "a lone surrogate": {"parameters": {"tenant": VALUE + "\ud800"}},
    "a token with blanks": {"authorization_bearer_token": f"Bearer {BEARER}"},
    "a token of another type": {"authorization_bearer_token": BEARER.encode()},
    "a callback without scheme": {"status_callback": f"app.example.com/told?{QUERY}"},
    "a callback of another type": {"status_callback": f"https://app.example.com/?{QUERY}".encode()},
    "an address of another type": {"url": b"wss://ada:pass-hush@rx.example.com/audio"},
    "name and unnamed": {"name": "a", "unnamed": True},
    "may be running": {"may_be_running": True},
    "a misspelt argument": {"paramters": {}},
    "a misspelt secret": {"bearer_token": BEARER},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_rejected_argument_shows_no_secret(space: SimulatedSpace, client_for: Any, wrong: dict[str, Any]) -> None:
    """Invalid arguments are rejected in this package's frames, which hold all the other arguments as well."""
    client, receiver, sid = client_of(client_for, space), MediaReceiver(), space.conference_sids[0]
    fields: dict[str, Any] = {"url": URL, **SECRETS, **wrong}
    untyped: Any = client.conferences.start_stream
    shown(await failing(lambda: untyped(sid, **fields)))
    opened = {name: value for name, value in fields.items() if name != "authorization_bearer_token"}
    opened = {"trak": "all"} | opened if "authorization_bearer_token" in wrong else opened
    open_: Any = receiver.open
    shown(await failing(lambda: open_(client.conferences, sid, **opened).__aenter__()))
    restarted = {"when_lost": "restart"} | opened
    shown(await failing(lambda: open_(client.conferences, sid, **restarted).__aenter__()))
    if wrong.keys() & {"deadline", "may_be_running"}:
        return
    make: Any = StartConferenceStream
    with pytest.raises((InvalidRequestError, TypeError)) as caught:
        make(conference_sid=sid, **fields)
    shown(caught.value)


@pytest.mark.parametrize("secret", ["hush", b"hush", ["hush"]])
async def test_argument_that_is_not_taken_shows_no_secret(client: StreamsClient, secret: object) -> None:
    """It has the wrong name, or is passed by position where only a keyword is taken."""
    untyped: Any = client.conferences.start_stream
    assert shown(await failing(lambda: untyped("room", URL, secret)))
    assert shown(await failing(lambda: untyped("room", url=URL, token=secret)))
    environment = {"SIGNALWIRE_SPACE": "a", "SIGNALWIRE_PROJECT_ID": "p", "SIGNALWIRE_API_TOKEN": "hush"}
    for make in (
        StreamsClient,
        StartCallStream,
        partial(StreamsClient.from_env, environment),
        partial(StreamsClient, space="example"),
    ):
        for arguments, named in ((("example", "p", secret), {}), ((), {"api_token": secret})):
            with pytest.raises(TypeError) as caught:
                make(*arguments, **named)  # type: ignore[arg-type]  # which is the mistake
            assert shown(caught.value)


@pytest.mark.parametrize("hook", ["on_request_headers_sent", "on_request_chunk_sent", "on_request_end"])
async def test_start_whose_trace_hook_raises_shows_no_secret(space: SimulatedSpace, hook: str) -> None:
    """One is called while the body is written, from the frame that has it."""
    tracing = aiohttp.TraceConfig()

    async def fail(*_: object) -> None:
        raise RuntimeError

    getattr(tracing, hook).append(fail)
    async with aiohttp.ClientSession(trace_configs=[tracing]) as session:
        options: Any = {"session": session, "retry": RetryPolicy(max_connect_retries=0)}
        async with StreamsClient(
            base_url=space.base_url, project=space.project, token=space.token, **options
        ) as client:
            start: Any = client.conferences.start_stream
            error = await failing(lambda: start(space.conference_sids[0], url=URL, **SECRETS))
    assert shown(error, space.token, "Basic ")
    assert isinstance(error.__cause__, RuntimeError)


@pytest.mark.parametrize("turns", [0, 1, 3, 50])
async def test_cancelled_start_shows_no_secret(space: SimulatedSpace, client_for: Any, turns: int) -> None:
    """Also where its task had no turn yet."""
    client = client_of(client_for, space)
    space.faults.add("hang")
    start: Any = client.conferences.start_stream
    task = asyncio.ensure_future(start(space.conference_sids[0], url=URL, **SECRETS))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    error = await failing(lambda: task)
    assert isinstance(error, asyncio.CancelledError)
    assert shown(error, space.token, "Basic ")


@pytest.mark.usefixtures("idle_clock")
async def test_bulk_and_joined_starts_show_no_secret(space: SimulatedSpace, client_for: Any) -> None:
    """The errors of a run's outcomes, of its report, and of streams that are opened."""
    client = client_of(client_for, space)
    space.faults.add("status", on="start", status=422, body="api")
    requests: list[StartConferenceStream | StartCallStream] = [
        StartConferenceStream(conference_sid=space.conference_sids[0], url=URL, **SECRETS),
        StartCallStream(call_sid=space.call_sids[0], url=URL, **SECRETS),
        StartCallStream(call_sid=space.call_sids[0], url=URL, **SECRETS),
    ]
    report = await client.start_streams(requests).report()
    assert len(report.failures) == 3
    assert shown(await failing(lambda: asyncio.to_thread(report.raise_if_failed)))
    receiver = MediaReceiver()
    joined: list[StartConferenceStream | StartCallStream] = [
        StartConferenceStream(conference_sid=space.conference_sids[0], url=URL, parameters={"tenant": VALUE}),
        requests[1],
    ]
    async with receiver.open_many(client, joined, socket_timeout=0.01) as outcomes:
        errors = [outcome.error async for outcome in outcomes]
    assert all(error is not None and shown(error) for error in errors)
    untyped: Any = receiver.open
    fields = {"url": URL, "parameters": {"tenant": VALUE}}
    opening = untyped(client.conferences, space.conference_sids[0], socket_timeout=0.01, **fields)
    error = await failing(opening.__aenter__)
    tokens = [stream.authorization_bearer_token for stream in space.streams]
    assert shown(error, *filter(None, tokens))


CREDENTIALS: dict[str, dict[str, Any]] = {
    "a token with blanks": {"space": "example", "project": "p", "token": "token hush"},
    "a token of another type": {"space": "example", "project": "p", "token": b"hush"},
    "the token behind the project": {"space": "example", "project": "p:hush", "token": "t"},
    "a project of another type": {"space": "example", "project": ("hush",), "token": "t"},
    "a Space of another type": {"space": b"https://ada:hush@example.org", "project": "p", "token": "t"},
    "an address of another type": {"base_url": [b"https://ada:hush@example.org"], "project": "p", "token": "t"},
    "no project": {"space": "example", "project": "", "token": "hush"},
    "a user in the address": {"base_url": "https://ada:hush@example.org", "project": "p", "token": "hush"},
    "a user in the Space": {"space": "ada:hush@example.org", "project": "p", "token": "hush"},
    "a user in the Space's address": {"space": "https://ada:hush@example.org", "project": "p", "token": "t"},
    "a token in the Space's name": {"space": "hush@", "project": "p", "token": "t"},
    "a token before the Space's address": {"space": "hush/x@y", "project": "p", "token": "t"},
    "a query": {"base_url": "https://example.org/?token=hush", "project": "p", "token": "hush"},
    "another option": {"space": "example", "project": "p", "token": "hush", "connections": 0},
    "both": {"space": "example", "base_url": "https://example.org", "project": "p", "token": "hush"},
}


@pytest.mark.parametrize("settings", CREDENTIALS.values(), ids=CREDENTIALS)
def test_client_that_cannot_be_made_shows_no_secret(settings: dict[str, Any]) -> None:
    """Nor does one whose credentials come from the environment."""
    with pytest.raises(InvalidRequestError) as caught:
        StreamsClient(**settings)
    assert shown(caught.value)
    from_env: Any = StreamsClient.from_env
    for space, project in (("a b", "p"), ("https://ada:hush@example.org", "p"), ("a b", "p:hush"), ("", "p:hush")):
        environment = {"SIGNALWIRE_SPACE": space, "SIGNALWIRE_PROJECT_ID": project, "SIGNALWIRE_API_TOKEN": "hush"}
        for options in ({}, {"token": "hush"}, {"connections": 0}, {"api_token": "hush"}):
            with pytest.raises((InvalidRequestError, TypeError)) as from_environment:
                from_env(environment, **options)
            assert shown(from_environment.value)


REDIS: dict[str, Callable[[Any], object]] = {
    "rate limiter": RedisRateLimiter,
    "rate limiter by keyword": lambda url: RedisRateLimiter(url=url),
    "fleet": partial(Fleet, space="example", project="p"),
    "fleet with a password in the Space's address": lambda url: Fleet(
        "redis://localhost", space=url.replace("redis", "https"), project="p"
    ),
    "worker": lambda url: FleetWorker(url, None),  # type: ignore[arg-type]  # which is not looked at
    "worker of the process": lambda url: asyncio.run(run_worker(url)),
}


@pytest.mark.parametrize("make", REDIS.values(), ids=REDIS)
def test_rejected_redis_url_shows_no_password(make: Callable[[Any], object]) -> None:
    """Whether it is passed by keyword or not, and whatever is wrong with it."""
    for url in ("redis://ada:hush@host:x", "redis://ada:hush@host/?unknown_option=1 2"):
        with pytest.raises(InvalidRequestError) as caught:
            make(url)
        assert shown(caught.value)


def test_redis_url_of_another_type_is_rejected_by_its_type() -> None:
    untyped: Any = RedisRateLimiter
    with pytest.raises(InvalidRequestError, match="url must be a str, not bytes") as caught:
        untyped(b"redis://ada:hush@host")
    assert shown(caught.value)


async def test_masked_functions_stay_what_they_were(space: SimulatedSpace, client: StreamsClient) -> None:
    """They are coroutine functions with their signatures, and the values are equal to what was passed."""
    assert asyncio.iscoroutinefunction(client.conferences.start_stream)
    assert "parameters" in inspect.signature(client.calls.start_stream).parameters
    assert "url" in inspect.signature(StartCallStream).parameters
    request = StartConferenceStream(conference_sid="a", url=URL, **SECRETS)
    assert (request.parameters, request.authorization_bearer_token) == ({"tenant": VALUE}, BEARER)
    assert request.status_callback == SECRETS["status_callback"]
    await client.conferences.start_stream(space.conference_sids[0], url=URL, **SECRETS)
    held = space.streams[0]
    assert (held.parameters, held.authorization_bearer_token) == ({"tenant": VALUE}, BEARER)
    assert held.status_callback == SECRETS["status_callback"]


def test_secret_is_a_text_without_repr() -> None:
    """Its parts hide themselves too, since what shortens a value shows the first of them."""
    secret = Secret("hush-hush")
    assert (repr(secret), repr(secret[:4]), str(secret), f"{secret}") == ("***", "***", "hush-hush", "hush-hush")
    assert secret == "hush-hush"
    assert hash(secret) == hash("hush-hush")
    assert "hush" not in repr({"token": secret, "list": [secret]})


async def test_what_is_not_sent_is_a_streams_error(space: SimulatedSpace, client: StreamsClient) -> None:
    """A masked value of a wrong type is named by the type that the caller passed."""
    untyped: Any = client.conferences.start_stream
    for field, value, word in (
        ("parameters", [("a", "b")], "not list"),
        ("parameters", "hush", "not str"),
        ("parameters", {"a": 7}, "of type int"),
        ("authorization_bearer_token", b"hush", "not bytes"),
    ):
        with pytest.raises(StreamsError, match=word):
            await untyped(space.conference_sids[0], **{"url": URL, field: value})
    untyped_client: Any = StreamsClient
    with pytest.raises(InvalidRequestError, match="token must be a str, not bytes"):
        untyped_client(space="example", project="p", token=b"hush")
