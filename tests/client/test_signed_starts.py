"""Starts with signed tokens: each attempt has one that was minted then, and nothing keeps or shows it."""

import json
import logging
from base64 import urlsafe_b64decode
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import aiohttp
import pytest
from attrs import evolve

from signalwire_streams import (
    BulkJournal,
    BulkStatus,
    Clock,
    InvalidRequestError,
    RateLimit,
    RetryPolicy,
    SignedTokens,
    StartCallStream,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamsError,
)
from signalwire_streams.middleware import Handler, Request, Result
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.simulator import SimulatedSpace, Tone
from tests.client.test_masked_locals import FAULTS, client_of, failing, shown
from tests.raw_space import RawConnection, RawSpace, Request as RawRequest, http, raw_space
from tests.waiting import until

KEY = f"hush-{token_urlsafe(32)}"
URL = "wss://rx.example.com/audio"


def payload_of(token: str | None) -> dict[str, Any]:
    assert token is not None
    text = token.split(".")[1]
    content: dict[str, Any] = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return content


def sent(space: SimulatedSpace) -> list[dict[str, Any]]:
    """Return the content of the token of each start that the Space received."""
    starts = [request for request in space.requests if request.operation.startswith("start")]
    return [payload_of(request.fields["AuthorizationBearerToken"]) for request in starts]


@pytest.fixture
def clock() -> Clock:
    return Clock.fake()


@pytest.fixture
def tokens(clock: Clock) -> SignedTokens:
    return SignedTokens(KEY, ttl=30, claims={"tenant": "acme"}, clock=clock)


@pytest.mark.parametrize("noun", ["conferences", "calls"])
async def test_start_sends_a_token_of_its_own(
    space: SimulatedSpace, client_for: Any, clock: Clock, tokens: SignedTokens, noun: str
) -> None:
    client = client_for(space, clock=clock)
    streams = getattr(client, noun)
    sids = space.conference_sids if noun == "conferences" else space.call_sids
    names = [(await streams.start_stream(sid, url=URL, authorization_bearer_token=tokens)).name for sid in sids]
    contents = sent(space)
    assert [content["sub"] for content in contents] == sids
    assert [content["name"] for content in contents] == names
    assert {content["kind"] for content in contents} == {noun[:-1]}
    assert {content["tenant"] for content in contents} == {"acme"}
    assert len({content["jti"] for content in contents}) == 3
    await streams.start_stream(sids[0], url=URL, authorization_bearer_token=tokens, unnamed=True)
    assert "name" not in sent(space)[-1]


async def test_token_is_minted_after_the_wait_for_the_rate_limiter(space: SimulatedSpace, client_for: Any) -> None:
    """And after everything else that a start waits for."""
    clock = Clock.fake()
    tokens = SignedTokens(KEY, ttl=30, clock=clock)
    began = clock.wall_time()
    client = client_for(space, clock=clock, rate_limit=RateLimit(requests=1, window=1000, utilization=1.0))
    for sid in space.conference_sids[:2]:
        await client.conferences.start_stream(sid, url=URL, authorization_bearer_token=tokens, deadline=5000)
    first, second = [content["exp"] for content in sent(space)]
    assert first == pytest.approx(began + 30, abs=10)
    assert second - first >= 1000


@pytest.mark.parametrize(
    ("kind", "executed"), [("throttle", False), ("503-api", False), ("reset", True), ("500", True)]
)
async def test_retry_has_a_fresh_token_with_the_same_nonce(
    client_for: Any, clock: Clock, tokens: SignedTokens, kind: str, executed: bool
) -> None:
    """The first token may have expired while the retry waited. Whichever attempt was carried out, one stream fits."""
    wait: dict[str, Any] = {} if executed else {"retry_after": 50}
    async with SimulatedSpace(conferences=1, duplicate_names="http-error") as space:
        space.faults.add(kind, on="start", times=2, executed=executed, **wait)
        client = client_for(space, clock=clock)
        sid = space.conference_sids[0]
        stream = await client.conferences.start_stream(sid, url=URL, authorization_bearer_token=tokens, deadline=500)
        contents = sent(space)
        assert len(space.streams.active()) == 1
        assert payload_of(space.streams.active()[0].authorization_bearer_token)["jti"] == contents[0]["jti"]
    assert stream.already_started is executed
    assert len(contents) == 3
    assert len({content["jti"] for content in contents}) == 1
    expiries = [content["exp"] for content in contents]
    if not executed:
        assert all(later - earlier >= 50 for earlier, later in pairwise(expiries))


async def test_start_again_has_a_nonce_of_its_own(space: SimulatedSpace, client_for: Any, tokens: SignedTokens) -> None:
    client = client_for(space, retry=RetryPolicy(max_attempts=1, max_resends=0))
    space.faults.add("reset", on="start", executed=True, times=1)
    with pytest.raises(StreamOutcomeUnknownError) as caught:
        await client.conferences.start_stream(space.conference_sids[0], url=URL, authorization_bearer_token=tokens)
    await caught.value.start_again()
    first, second = sent(space)
    assert (first["name"], first["jti"] != second["jti"]) == (second["name"], True)


async def test_middlewares_see_no_token(space: SimulatedSpace, client_for: Any, tokens: SignedTokens) -> None:
    seen: list[Request] = []

    async def watch(request: Request, send: Handler) -> Result:
        seen.append(request)
        return await send(evolve(request, headers={"Traceparent": "1"}))

    client = client_for(space, middlewares=[watch])
    await client.conferences.start_stream(space.conference_sids[0], url=URL, authorization_bearer_token=tokens)
    assert seen[0].body is not None
    assert b"Token" not in seen[0].body
    assert sent(space)


async def test_borrowed_session_sends_a_token_too(space: SimulatedSpace, client_for: Any, tokens: SignedTokens) -> None:
    async with aiohttp.ClientSession() as session:
        client = client_for(space, session=session)
        await client.calls.start_stream(space.call_sids[0], url=URL, authorization_bearer_token=tokens)
    assert sent(space)[0]["sub"] == space.call_sids[0]


@pytest.mark.parametrize("status", [422, 503])
async def test_errors_and_logs_show_no_token(
    client_for: Any, tokens: SignedTokens, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Not even if the Space repeats it."""
    received: list[str] = []

    async def repeat(_: RawSpace, __: RawConnection, request: RawRequest) -> bytes:
        received.append(request.fields["AuthorizationBearerToken"])
        words = f"bad token {received[-1]} of {received[0]}"
        return http(status, {"errors": [{"detail": words, "code": "21201"}], "more_info": f"https://e/{received[-1]}"})

    caplog.set_level(logging.DEBUG)
    async with (
        raw_space(repeat) as space,
        StreamsClient(base_url=space.url, project="p", token="t", clock=Clock.fake()) as client,
    ):
        with pytest.raises(StreamsError, match="bad token") as caught:
            await client.conferences.start_stream("room", url=URL, authorization_bearer_token=tokens)
    error: Any = caught.value
    shown = f"{error} {error!r} {getattr(error, 'errors', ())} {getattr(error, 'more_info', None)} {caplog.text}"
    assert received
    for token in received:
        for part in token.split("."):
            assert part not in shown
    assert "hush" not in shown
    assert "acme" not in shown


@pytest.mark.usefixtures("idle_clock")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_tracebacks_of_failed_starts_show_no_token(
    space: SimulatedSpace, client_for: Any, fault: dict[str, Any]
) -> None:
    """Not in the local variables of this package either."""
    tokens = SignedTokens(KEY, claims={"tenant": "acme hush"})
    client = client_of(client_for, space)
    space.faults.add(on="start", **fault)
    start = client.calls.start_stream
    error = await failing(lambda: start(space.call_sids[0], url=URL, authorization_bearer_token=tokens))
    received = [request.fields.get("AuthorizationBearerToken", "") for request in space.requests]
    assert all(received)
    assert shown(error, *received, space.token)


FAILING: list[Callable[[Any], Any]] = [lambda _: {"sub": "x"}, lambda request: request.nothing, lambda _: 7]


@pytest.mark.parametrize("claims", FAILING)
async def test_claims_that_fail_end_one_start_before_anything_is_sent(
    space: SimulatedSpace, client: StreamsClient, claims: Callable[[Any], Any]
) -> None:
    first, second, third = space.conference_sids

    def only_for_first(request: Any) -> Any:
        return claims(request) if request.target == first else {}

    tokens = SignedTokens(KEY, claims=only_for_first)
    with pytest.raises(InvalidRequestError, match="claims"):
        await client.conferences.start_stream(first, url=URL, authorization_bearer_token=tokens)
    requests = [
        StartConferenceStream(conference_sid=sid, url=URL, authorization_bearer_token=tokens)
        for sid in (first, second, third)
    ]
    outcomes = {outcome.item.target: outcome async for outcome in client.start_streams(requests)}
    assert outcomes[first].status is BulkStatus.REJECTED
    assert isinstance(outcomes[first].error, InvalidRequestError)
    assert [outcomes[sid].status for sid in (second, third)] == [BulkStatus.STARTED] * 2
    assert space.requests.count("start-conference-stream") == 2


async def test_journal_keeps_no_token_and_asks_for_them(
    space: SimulatedSpace, client_for: Any, clock: Clock, tokens: SignedTokens, tmp_path: Path
) -> None:
    """A plan waits for longer than the ttl, and is resumed with the tokens passed again."""
    client = client_for(space, clock=clock)
    requests: list[StartConferenceStream | StartCallStream] = [
        *(
            StartConferenceStream(conference_sid=sid, url=URL, authorization_bearer_token=tokens)
            for sid in space.conference_sids
        ),
        StartCallStream(call_sid=space.call_sids[0], url=URL, authorization_bearer_token="fixed"),
    ]
    client.create_journal(requests, journal=tmp_path / "run.db")
    await clock.sleep(86_400)

    planned = list(BulkJournal(tmp_path / "run.db").requests())
    assert [(one.bearer_token, one.signed_tokens) for one in planned] == [(False, True)] * 3 + [(True, False)]
    assert [dict(one.redacted) for one in planned] == [{"signed_tokens": True}] * 3 + [{"bearer_token": True}]
    again = [
        evolve(one.request, authorization_bearer_token=tokens if one.signed_tokens else "fixed") for one in planned
    ]
    report = await client.start_streams(again, journal=tmp_path / "run.db", resume=True).report()

    assert report.counts == {BulkStatus.STARTED: 4}
    contents = [
        payload_of(stream.authorization_bearer_token) for stream in space.streams if stream.target_kind == "conference"
    ]
    assert all(content["exp"] > clock.wall_time() for content in contents)
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())  # noqa: ASYNC240
    for stream in space.streams:
        assert (stream.authorization_bearer_token or "").encode() not in written
    assert KEY.encode() not in written
    assert b"acme" not in written


async def test_run_that_waits_past_the_ttl_is_admitted_whole(
    client_for: Any, tmp_path: Path, idle_clock: Clock
) -> None:
    """It waits as a plan, and once more in the middle, while the Space rejects all requests for longer than the ttl."""
    fake = Clock.fake()

    async def sleep(seconds: float) -> None:
        await until(lambda: len(admitted) == len(space.streams))  # the sockets of streams come at once
        await fake.sleep(seconds)

    clock = evolve(fake, sleep=sleep)
    tokens = SignedTokens(KEY, ttl=30, clock=clock)
    admitted = set[str]()

    async def handle(session: StreamSession) -> None:
        assert session.claims is not None
        admitted.add(session.claims.target)
        async for _ in session:
            pass

    async def without_tls(request: Request, send: Handler) -> Result:  # which would be most of what the test costs
        assert request.body is not None
        return await send(evolve(request, body=request.body.replace(b"Url=wss", b"Url=ws")))

    receiver = MediaReceiver(handle, bearer_tokens=tokens)
    sound = Tone(seconds=0.02)
    async with (
        receiver.serve() as url,
        SimulatedSpace(conferences=1_000, audio=sound, real_time=False, allow_ws=True) as space,
    ):
        client = client_for(space, clock=clock, middlewares=[without_tls])
        requests = [
            StartConferenceStream(conference_sid=sid, url=f"wss{url[2:]}", authorization_bearer_token=tokens)
            for sid in space.conference_sids
        ]
        client.create_journal(requests, journal=tmp_path / "run.db")
        await clock.sleep(3600)
        run = client.start_streams(requests, journal=tmp_path / "run.db", resume=True, concurrency=50)
        outcomes = 0
        async for outcome in run:
            assert outcome.status is BulkStatus.STARTED, outcome.error
            outcomes += 1
            await until(lambda: len(admitted) > outcomes - 100)  # noqa: B023  (a slow machine keeps up)
            if outcomes == 500:
                space.faults.add("throttle", on="start", times=2, retry_after=45)
        await until(lambda: not space.streams.active())
        assert [stream.error for stream in space.streams if stream.error] == []
    assert admitted == set(space.conference_sids)
    assert receiver.rejected_upgrades == 0
    assert space.requests.count("start-conference-stream") > 1_000
