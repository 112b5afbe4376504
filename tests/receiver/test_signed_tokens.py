"""Receivers with signed tokens: what they admit, what they reject and how, and what the session says."""

import json
import logging
import ssl
from datetime import UTC, datetime
from secrets import token_urlsafe
from typing import Any

import aiohttp
import jwt
import pytest
from attrs import define

from signalwire_streams import (
    Clock,
    InvalidRequestError,
    RetryPolicy,
    SignedTokens,
    StartCallStream,
    StartConferenceStream,
)
from signalwire_streams.models._signed_tokens import RejectedTokenError
from signalwire_streams.receiver import EndReason, MediaReceiver, TokenClaims
from signalwire_streams.receiver._auth import SpentNonces
from signalwire_streams.simulator import SimulatedSpace, Tone
from tests.uvicorn_server import for_each_server as pytest_generate_tests  # noqa: F401  (a hook of pytest)

from .conftest import Heard, until
from .test_receiver import begin, media

pytestmark = [
    pytest.mark.usefixtures("idle_clock"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets.legacy"),
]
KEY, OTHER = token_urlsafe(32), token_urlsafe(32)
URL = "wss://rx.example.com/audio"
CALL = "6f3f1cb6-4b5c-4b1f-b0ad-3a2b4b0c2f11"


@define
class Wall:
    """A wall clock that tests set."""

    time: float = 1_000_000.0

    @property
    def clock(self) -> Clock:
        return Clock(wall_time=lambda: self.time)


def for_call(tokens: SignedTokens, sid: str = CALL) -> str:
    return tokens.mint(StartCallStream(call_sid=sid, url=URL, name="audit"))


def for_conference(tokens: SignedTokens, sid: str = "room") -> str:
    return tokens.mint(StartConferenceStream(conference_sid=sid, url=URL, name="audit"))


async def refused(dial: Any, url: str, token: str) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await dial(url, token)
    assert caught.value.status == 401


async def stop(peer: aiohttp.ClientWebSocketResponse) -> int:
    await peer.send_json({"event": "stop", "sequenceNumber": "9"})
    return await close_code(peer)


async def close_code(peer: aiohttp.ClientWebSocketResponse) -> int:
    message = await peer.receive()
    assert message.type is aiohttp.WSMsgType.CLOSE
    return int(message.data)


async def test_session_has_the_claims(heard: Heard, serve: Any, dial: Any) -> None:
    wall = Wall()
    tokens = SignedTokens(KEY, ttl=60, claims={"tenant": "acme", "seats": [1, 2]}, clock=wall.clock)
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=tokens)), for_call(tokens))
    await begin(peer, callSid=CALL.upper())
    assert await stop(peer) == 1000
    session = await heard.end()
    assert session.claims == TokenClaims(
        kind="call",  # type: ignore[arg-type]  # as text, which it equals
        target=CALL,
        name="audit",
        expires_at=datetime.fromtimestamp(1_000_060, UTC),
        custom={"tenant": "acme", "seats": [1, 2]},
    )


async def test_sessions_of_other_tokens_have_no_claims(heard: Heard, serve: Any, dial: Any) -> None:
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens="fixed")), "fixed")
    await begin(peer, callSid=CALL)
    await stop(peer)
    assert (await heard.end()).claims is None


async def test_token_that_is_not_valid_is_rejected_before_the_upgrade(
    heard: Heard, serve: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    wall = Wall()
    tokens = SignedTokens([KEY, OTHER], ttl=60, clock=wall.clock)
    receiver = MediaReceiver(heard, bearer_tokens=tokens)
    url = await serve(receiver)
    expired = for_call(tokens)
    wall.time += 70
    good = for_call(tokens)
    head, body, signature = good.split(".")
    last = "A" if signature[-5] != "A" else "B"
    wrong = {
        "has expired": expired,
        "was altered": f"{head}.{body}.{signature[:-5]}{last}{signature[-4:]}",
        "signed with another key": for_call(SignedTokens(token_urlsafe(32), clock=wall.clock)),
        "is not one of SignedTokens": "a-fixed-token",
    }
    with caplog.at_level(logging.INFO, "signalwire_streams.receiver"):
        for reason, token in wrong.items():
            caplog.clear()
            await refused(dial, url, token)
            assert reason in caplog.text
            assert not any(part in caplog.text for part in token.split("."))
        await refused(dial, url, "")
    assert receiver.rejected_upgrades == 5
    for valid in (good, for_call(SignedTokens(OTHER, clock=wall.clock))):
        peer = await dial(url, valid)
        await begin(peer, callSid=CALL)
        assert await stop(peer) == 1000
        await heard.end()


@pytest.mark.parametrize("changed", [{"kind": "room"}, {"kind": ["call"]}, {"name": 7}, {"sub": 7}, {"jti": ["n"]}])
async def test_content_that_no_signed_token_has_is_rejected(
    heard: Heard, serve: Any, dial: Any, changed: dict[str, Any]
) -> None:
    """Somebody else has signed it with the same key."""
    url = await serve(MediaReceiver(heard, bearer_tokens=SignedTokens(KEY)))
    content = {"aud": "signalwire-streams", "kind": "call", "sub": CALL, "jti": token_urlsafe(12), "exp": 9_000_000_000}
    assert (await dial(url, jwt.encode(content, KEY, "HS256"))) is not None
    await refused(dial, url, jwt.PyJWS().encode(json.dumps(content | changed).encode(), KEY, "HS256"))


@pytest.mark.parametrize(
    ("token", "start", "admitted"),
    [
        (for_call, {"callSid": CALL}, True),
        (for_call, {"callSid": "another"}, False),
        (for_call, {}, False),
        (for_call, {"conferenceSid": CALL}, False),
        (for_conference, {}, True),
        (for_conference, {"callSid": "any"}, True),
        (for_conference, {"conferenceSid": "room"}, True),
        (for_conference, {"conferenceSid": "another"}, False),
    ],
)
async def test_stream_that_is_not_the_tokens_is_closed_with_1008(
    heard: Heard, serve: Any, dial: Any, caplog: pytest.LogCaptureFixture, token: Any, start: Any, admitted: bool
) -> None:
    tokens = SignedTokens(KEY)
    url, presented = await serve(MediaReceiver(heard, bearer_tokens=tokens)), token(tokens)
    peer = await dial(url, presented)
    await begin(peer, **start)
    if admitted:
        assert await stop(peer) == 1000
        await heard.end()
        return
    await peer.send_json(media(1))
    assert await close_code(peer) == 1008
    kind = "call" if token is for_call else "conference"
    assert f"no stream started on it: its token is for another {kind}" in caplog.text
    assert heard.sessions == []
    # The token is not spent by that: its own stream may still come.
    peer = await dial(url, presented)
    await begin(peer, callSid=CALL)
    await until(lambda: heard.sessions)
    await stop(peer)


async def test_token_is_spent_when_its_stream_starts(heard: Heard, serve: Any, dial: Any, caplog: Any) -> None:
    """Once in a process, whichever receiver of it and whichever `SignedTokens`."""
    tokens = SignedTokens(KEY)
    url = await serve(MediaReceiver(heard, bearer_tokens=tokens))
    other = await serve(MediaReceiver(heard, bearer_tokens=SignedTokens([OTHER, KEY])))
    token = for_call(tokens)
    await (await dial(url, token)).close()  # it came without a stream
    first, second = await dial(url, token), await dial(url, token)
    await begin(first, callSid=CALL)
    await until(lambda: heard.sessions)
    await begin(second, callSid=CALL)
    assert await close_code(second) == 1008
    assert "its token was used before" in caplog.text
    await refused(dial, url, token)
    await refused(dial, other, token)
    assert await stop(first) == 1000
    await refused(dial, url, token)
    assert len(heard.sessions) == 1


async def test_token_that_expires_between_upgrade_and_start_is_rejected(heard: Heard, serve: Any, dial: Any) -> None:
    """Else two sockets that were upgraded in time could both use it."""
    wall = Wall()
    tokens = SignedTokens(KEY, ttl=60, clock=wall.clock)
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=tokens)), for_call(tokens))
    wall.time += 70
    await begin(peer, callSid=CALL)
    assert await close_code(peer) == 1008


async def test_spent_nonces_are_forgotten_when_they_expire_or_are_too_many() -> None:
    spent = SpentNonces(3)
    for second in range(3):
        spent.add(f"n{second}", 100.0 + second, 50.0)
    with pytest.raises(RejectedTokenError):
        spent.add("n0", 100.0, 50.0)
    spent.add("n3", 103.0, 50.0)  # the first that expires makes room
    spent.check("n0")
    assert spent._nonces == {"n1", "n2", "n3"}
    spent.add("n4", 200.0, 112.5)
    assert spent._nonces == {"n3", "n4"}
    spent.add("n5", 500.0, 400.0)
    assert spent._nonces == {"n5"}
    assert len(spent._expiries) == 1


@pytest.mark.parametrize("tokens", [[SignedTokens(KEY)], ("fixed", SignedTokens(KEY))])
async def test_signed_tokens_are_passed_by_themselves(heard: Heard, tokens: Any) -> None:
    with pytest.raises(InvalidRequestError, match="write bearer_tokens=tokens"):
        MediaReceiver(heard, bearer_tokens=tokens)


async def test_signed_tokens_need_a_handler(client: Any) -> None:
    tokens = SignedTokens(KEY)
    with pytest.raises(InvalidRequestError, match="without a handler"):
        MediaReceiver(bearer_tokens=tokens)
    receiver = MediaReceiver()
    request = StartCallStream(call_sid=CALL, url=URL, authorization_bearer_token=tokens)
    with pytest.raises(InvalidRequestError, match="a token is generated for each start"):
        async with receiver.open(client.calls, CALL, url=URL, authorization_bearer_token=tokens):  # type: ignore[call-arg]
            pass
    async with receiver.open_many(client, [request]) as outcomes:
        assert ["omit authorization_bearer_token" in str(outcome.error) async for outcome in outcomes] == [True]


@pytest.mark.parametrize("kind", ["conference", "call"])
async def test_stream_of_the_space_is_admitted(
    heard: Heard, serve: Any, trust: ssl.SSLContext, certificate: ssl.SSLContext, client_for: Any, kind: str
) -> None:
    """And streams that `open` starts have their own tokens beside it."""
    tokens = SignedTokens(KEY, claims=lambda request: {"tenant": request.parameters["tenant"]})
    receiver = MediaReceiver(heard, bearer_tokens=tokens)
    url = await serve(receiver, ssl_context=certificate)
    sound = Tone(seconds=0.1)
    async with SimulatedSpace(conferences=1, calls=1, audio=sound, real_time=False, ssl_context=trust) as space:
        client = client_for(space)
        streams, sid = (
            (client.calls, space.call_sids[0]) if kind == "call" else (client.conferences, space.conference_sids[0])
        )
        stream = await streams.start_stream(
            sid, url=url, parameters={"tenant": "acme"}, authorization_bearer_token=tokens
        )
        session = await heard.end()
        assert session.claims is not None
        assert (session.claims.kind, session.claims.target, session.claims.name) == (kind, sid, stream.name)
        assert (session.claims.custom, session.end_reason) == ({"tenant": "acme"}, EndReason.STOPPED)
        async with receiver.open(streams, sid, url=url) as opened:
            assert opened.claims is None


async def test_one_stream_of_a_start_that_was_carried_out_twice_is_admitted(
    heard: Heard, serve: Any, trust: ssl.SSLContext, certificate: ssl.SSLContext, client_for: Any
) -> None:
    """A call may take a second stream of the same name, when the response to the first attempt was lost."""
    tokens = SignedTokens(KEY)
    receiver = MediaReceiver(heard, bearer_tokens=tokens)
    url = await serve(receiver, ssl_context=certificate)
    async with SimulatedSpace(calls=1, audio=Tone(), duplicate_names="allow", ssl_context=trust) as space:
        space.faults.add("reset", on="start", executed=True, times=1)
        client = client_for(space, retry=RetryPolicy(resend_call_starts=True))
        stream = await client.calls.start_stream(space.call_sids[0], url=url, authorization_bearer_token=tokens)
        await until(lambda: heard.sessions and len(space.streams.active()) == 1)  # the other one gets 401, or 1008
        assert (len(space.streams), len(heard.sessions), stream.ambiguous) == (2, 1, True)
        assert [session.stream_sid for session in receiver.sessions] == [space.streams.active()[0].sid]
