"""Tokens and parameter values show up nowhere: not in errors, reprs, logs or tracebacks."""

import base64
import logging
import traceback
from typing import Any

import pytest
from aiohttp import web

from signalwire_streams import Attempt, InvalidRequestError, StreamsClient, StreamsError, Timeouts
from signalwire_streams.simulator import SimulatedSpace

pytestmark = pytest.mark.usefixtures("idle_clock")
URL = "wss://rx.example.com/audio"
BEARER, VALUE = "bearer-secret-0123456789", "parameter secret/ä"


def everything_told(error: BaseException) -> str:
    """Collect what a log, a debugger or an error tracker would show of an error and all that hangs on it."""
    told, todo, seen = [], [error], set()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        told += [str(one), repr(one), repr(one.args), "".join(traceback.format_exception(one))]
        told += [repr(value) for value in vars(one).values()]
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(told)


FAULTS = [
    ("hang", {}),
    ("reset", {"executed": True}),
    ("garbage", {}),
    ("truncated-headers", {}),
    ("truncated-body", {}),
    ("html", {}),
    ("500", {}),
    ("401", {"status": 401, "body": "api"}),
    ("422", {"status": 422, "body": "api"}),
    ("redirect", {}),
    ("throttle", {"retry_after": 100}),
]


@pytest.mark.parametrize(("kind", "options"), FAULTS, ids=[name for name, _ in FAULTS])
@pytest.mark.parametrize("unnamed", [True, False])
async def test_failures_show_no_secret(
    space: SimulatedSpace,
    client_for: Any,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    options: dict[str, Any],
    unnamed: bool,
) -> None:
    """For any failure, neither the error, its causes, the log nor the telemetry contains a secret."""
    caplog.set_level(logging.DEBUG, logger="signalwire_streams")
    attempts: list[Attempt] = []
    client = client_for(space, on_attempt=attempts.append, timeouts=Timeouts(read=0.05))
    space.faults.add(kind if kind not in {"401", "422"} else "status", **options)
    told = [repr(client)]
    try:
        stream = await client.conferences.start_stream(
            space.conference_sids[0],
            url=URL,
            unnamed=unnamed,
            parameters={"tenant": VALUE},
            authorization_bearer_token=BEARER,
        )
        told.append(repr(stream))
    except StreamsError as error:
        told.append(everything_told(error))
    told += [repr(attempt) for attempt in attempts] + [record.getMessage() for record in caplog.records]

    basic = base64.b64encode(f"{space.project}:{space.token}".encode()).decode()
    for secret in (space.token, basic, BEARER, VALUE):
        assert secret not in "\n".join(told)


async def test_space_that_repeats_secrets_in_its_responses(space: SimulatedSpace, client_for: Any) -> None:
    """The Space's message is passed on, without the secrets in it."""

    async def parrot(request: web.BaseRequest) -> web.Response:
        body = (await request.read()).decode()
        said = f"refused: {request.headers['Authorization']} {space.token} {BEARER} {VALUE} {body}\nsecond line"
        return web.json_response({"errors": [said, {"message": said}], "message": said, "code": 1}, status=422)

    runner = web.ServerRunner(web.Server(parrot))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        client = client_for(space, base_url=site.name)
        with pytest.raises(StreamsError, match="refused") as caught:
            await client.conferences.start_stream(
                space.conference_sids[0], url=URL, parameters={"tenant": VALUE}, authorization_bearer_token=BEARER
            )
    finally:
        await runner.cleanup()

    told = everything_told(caught.value)
    assert "\n" not in str(caught.value)
    for secret in (space.token, BEARER, VALUE, "parameter+secret%2F%C3%A4", "parameter%20secret%2F%C3%A4"):
        assert secret not in told


def test_invalid_settings_do_not_show_token() -> None:
    """A client that can't be made does not show what it was given."""
    for token in ("a token with blanks", "tökén-secret"):
        with pytest.raises(InvalidRequestError) as caught:
            StreamsClient(space="example", project="p", token=token)
        assert token not in everything_told(caught.value)
    with pytest.raises(InvalidRequestError) as plain:
        StreamsClient(base_url="http://user:pass-word@space.example", project="p", token="t")
    assert "pass-word" not in str(plain.value)
