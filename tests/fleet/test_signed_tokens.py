"""Runs whose starts have signed tokens: Redis keeps neither tokens nor keys, and the workers mint."""

from secrets import token_urlsafe
from typing import Any

import pytest
from attrs import evolve

from signalwire_streams import (
    BulkStatus,
    Clock,
    InvalidRequestError,
    PlannedRequest,
    SignedTokens,
    StartCallStream,
    StartConferenceStream,
)
from signalwire_streams.fleet import Fleet
from signalwire_streams.simulator import SimulatedSpace
from tests.redis_server import RedisServer

from .conftest import Workers
from .helpers import all_results, on_calls, on_conferences

KEY = f"hush-{token_urlsafe(32)}"


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return redis_server.url


async def test_workers_mint_the_tokens_of_a_run(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, redis_server: RedisServer
) -> None:
    """However long it waited, with their own key and claims."""
    clock = Clock.fake()
    theirs = SignedTokens(KEY, ttl=30, claims=lambda request: {"tenant": f"acme {request.target}"}, clock=clock)
    ours = SignedTokens(f"hush-{token_urlsafe(32)}", claims={"tenant": "hush"})
    sids = space.conference_sids
    requests: list[StartConferenceStream | StartCallStream] = [
        *on_conferences(sids, authorization_bearer_token=ours),
        *on_calls(space.call_sids, authorization_bearer_token=ours),
    ]
    run = await fleet.submit(requests, redact_secrets=True)
    assert sids[0].encode() in redis_server.kept
    await clock.sleep(86_400)

    def add_tokens(planned: PlannedRequest) -> StartConferenceStream | StartCallStream:
        assert planned.signed_tokens
        return evolve(planned.request, authorization_bearer_token=theirs)

    workers(secrets=add_tokens)
    outcomes = await all_results(fleet, run)
    assert [outcome.status for outcome in outcomes] == [BulkStatus.STARTED] * 6
    contents = [theirs._decode(stream.authorization_bearer_token or "") for stream in space.streams]
    assert {content["sub"] for content in contents} == {*sids, *space.call_sids}
    assert {content["tenant"] for content in contents} == {f"acme {content['sub']}" for content in contents}
    kept = redis_server.kept
    assert b"hush" not in kept
    assert b"acme" not in kept
    for stream in space.streams:
        assert (stream.authorization_bearer_token or "").encode() not in kept


async def test_submit_asks_for_workers_that_have_the_tokens(fleet: Fleet) -> None:
    requests = on_conferences(["room"], authorization_bearer_token=SignedTokens(KEY))
    with pytest.raises(InvalidRequestError, match=r"has secrets \(signed_tokens\).*redact_secrets=True") as caught:
        await fleet.submit(requests)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("secrets", [None, lambda planned: planned.request])
async def test_item_without_its_tokens_is_rejected(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, secrets: Any
) -> None:
    """It would start a stream that no receiver admits."""
    workers(secrets=secrets)
    requests = on_conferences(space.conference_sids[:1], authorization_bearer_token=SignedTokens(KEY))
    run = await fleet.submit(requests, redact_secrets=True)
    [outcome] = await all_results(fleet, run)
    assert outcome.status is BulkStatus.REJECTED
    assert "secrets=" in str(outcome.error)
    assert not space.streams
