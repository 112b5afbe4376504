"""Ending calls and conferences: by one request, safe to repeat, and never believed on thin evidence."""

from typing import Any

import pytest

from signalwire_streams import (
    BadRequestError,
    Call,
    CallStatus,
    Conference,
    ConferenceStatus,
    InvalidRequestError,
    MalformedResponseError,
    NotFoundError,
    StreamsClient,
)
from signalwire_streams.simulator import SimulatedSpace
from tests.raw_space import RawConnection, RawSpace, Request, http, raw_space

NOUNS = ["call", "conference"]
UNKNOWN_SID = "b3877c40-da60-4998-90ad-b792e98472af"
NOT_FOUND = {"code": 20404, "message": "The requested resource was not found", "more_info": "", "status": 404}
NO_LONGER = {"code": 21220, "message": "Call is not in-progress", "more_info": "", "status": 400}


def resource(client: StreamsClient, noun: str) -> Any:
    return client.calls if noun == "call" else client.conferences


def sids(space: SimulatedSpace, noun: str) -> list[str]:
    return space.call_sids if noun == "call" else space.conference_sids


@pytest.mark.parametrize("noun", NOUNS)
async def test_end_is_one_documented_request(space: SimulatedSpace, client: StreamsClient, noun: str) -> None:
    """The streams on it end with it, and what the Space says of it is returned."""
    sid, other = sids(space, noun)[:2]
    for each in (sid, other):
        await resource(client, noun).start_stream(each, url="wss://rx.example.com/audio")
    ended = await resource(client, noun).end(sid)
    [request] = [one for one in space.requests if one.operation == f"end-{noun}"]
    assert (request.method, request.fields, request.answered) == ("POST", {"Status": "completed"}, 200)
    assert isinstance(ended, Call if noun == "call" else Conference)
    assert (ended.sid, ended.status, ended.account_sid) == (sid, "completed", space.project)
    assert [stream.target_sid for stream in space.streams.active()] == [other]
    assert (await resource(client, noun).get(sid)).status == "completed"


@pytest.mark.parametrize("noun", NOUNS)
async def test_end_of_ended_call_or_conference_succeeds(
    space: SimulatedSpace, client: StreamsClient, noun: str
) -> None:
    sid = sids(space, noun)[0]
    await resource(client, noun).end(sid)
    again = await resource(client, noun).end(sid)
    assert (again.sid, again.status) == (sid, "completed")
    assert isinstance(again.status, CallStatus if noun == "call" else ConferenceStatus)
    assert space.requests.count(f"end-{noun}") == 2


@pytest.mark.parametrize("noun", NOUNS)
@pytest.mark.parametrize("fault", ["reset", "disconnect", "500", "502", "503", "504", "garbage", "html", "empty"])
async def test_lost_response_is_followed_by_a_second_request(
    space: SimulatedSpace, client: StreamsClient, noun: str, fault: str
) -> None:
    """The Space then says that it has ended, or ends it now if the first request did not."""
    for executed in (True, False):
        before = space.requests.count(f"end-{noun}")
        sid = sids(space, noun)[executed]
        space.faults.add(fault, on="end", executed=executed, times=1)
        ended = await resource(client, noun).end(sid)
        assert (ended.sid, ended.status) == (sid, "completed")
        assert (await resource(client, noun).get(sid)).status == "completed"
        assert space.requests.count(f"end-{noun}") == before + 2


@pytest.mark.parametrize("noun", NOUNS)
async def test_404_is_an_error_unless_an_attempt_may_have_ended_it(
    space: SimulatedSpace, client: StreamsClient, noun: str
) -> None:
    with pytest.raises(NotFoundError, match=rf"^end {noun} {UNKNOWN_SID}: HTTP 404 \[code 20404\]"):
        await resource(client, noun).end(UNKNOWN_SID)
    assert space.requests.count(f"end-{noun}") == 1
    sid = sids(space, noun)[0]
    space.faults.add("reset", on="end", executed=True, times=1)
    space.faults.add("status", on="end", status=404, body="api", code=20404, times=1)
    ended = await resource(client, noun).end(sid)
    assert (ended.sid, ended.status) == (sid, "completed")
    assert space.requests.count(f"end-{noun}") == 3


async def test_404_of_a_proxy_proves_nothing(space: SimulatedSpace, client: StreamsClient) -> None:
    space.faults.add("reset", on="end", executed=False, times=1)
    space.faults.add("status", on="end", status=404, body="html")
    with pytest.raises(NotFoundError, match="HTTP 404"):
        await client.calls.end(space.call_sids[0])
    assert (await client.calls.get(space.call_sids[0])).status == "in-progress"


@pytest.mark.parametrize("noun", NOUNS)
@pytest.mark.parametrize("sid", ["", "a/b", "a b", "..", "a?b", None, 5, Call(sid="x")])
async def test_end_of_invalid_sid_sends_nothing(
    space: SimulatedSpace, client: StreamsClient, noun: str, sid: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{noun}_sid "):
        await resource(client, noun).end(sid)
    with pytest.raises(InvalidRequestError, match=r"^deadline "):
        await resource(client, noun).end("sid", deadline=0)
    assert len(space.requests) == 0


async def answered_with(client_for: Any, *answers: bytes) -> tuple[Any, int]:
    """End the call ``leg``; return the result or the error, and the number of requests."""

    async def answer(raw: RawSpace, _: RawConnection, request: Request) -> bytes:
        return answers[min(len(raw.requests), len(answers)) - 1]

    async with SimulatedSpace() as space, raw_space(answer) as raw:
        client: StreamsClient = client_for(space, base_url=raw.url)
        try:
            return await client.calls.end("leg"), len(raw.requests)
        except Exception as error:  # noqa: BLE001  (which the test looks at)
            return error, len(raw.requests)


@pytest.mark.parametrize("status", ["in-progress", "ringing", "completed", "canceled", "leaving", None])
async def test_status_of_the_response_is_returned_as_it_is(client_for: Any, status: str | None) -> None:
    """The Space may answer before the call has ended."""
    ended, requests = await answered_with(client_for, http(200, {"sid": "leg", "status": status}))
    assert (ended.sid, ended.status, requests) == ("leg", status, 1)


async def test_response_about_another_call_is_not_believed(client_for: Any) -> None:
    wrong = http(200, {"sid": "other", "status": "completed"})
    error, requests = await answered_with(client_for, wrong)
    assert isinstance(error, MalformedResponseError)
    assert requests == 3
    ended, requests = await answered_with(client_for, wrong, http(400, NO_LONGER))
    assert (ended.sid, ended.status, requests) == ("leg", "completed", 2)


async def test_empty_responses_count_as_success_unless_the_space_denies_it(client_for: Any) -> None:
    """As those of a stop: if the Space leaves the sid out each time, it has accepted the request."""
    ended, requests = await answered_with(client_for, http(200, {}))
    assert (ended, requests) == (Call(sid="leg", status=CallStatus.COMPLETED), 3)
    error, requests = await answered_with(client_for, http(200, {}), http(422, {"errors": ["Status is invalid"]}))
    assert (getattr(error, "status", None), requests) == (422, 2)


async def test_call_that_can_not_be_ended_yet_is_an_error(client_for: Any) -> None:
    refusal = {**NO_LONGER, "message": "Call is queued, try again later"}
    error, requests = await answered_with(client_for, http(400, refusal))
    assert isinstance(error, BadRequestError)
    assert requests == 1
    error, requests = await answered_with(client_for, http(404, NOT_FOUND))
    assert (type(error), requests) == (NotFoundError, 1)
