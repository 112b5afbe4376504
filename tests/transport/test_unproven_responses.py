"""Responses that do not say what became of the stream, on real sockets: none is taken for more than it proves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    BulkOutcome,
    BulkStatus,
    Clock,
    ConferenceStream,
    MalformedResponseError,
    NotFoundError,
    RetryPolicy,
    StartCallStream,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamStatus,
    UnprocessableError,
)
from tests.raw_space import VICTIM, RawConnection, RawSpace, Request, as_documented, http, raw_space

URL = "wss://rx.example.com/audio"
ROOM, CALL = "22222222-2222-4222-8222-222222222222", "44444444-4444-4444-8444-444444444444"
NAME = "sws-audit"
PAGE = http(200, body=b"<html>log in</html>")
BUSY = http(503, body=b"busy", head="Retry-After: 0\r\n")
DUPLICATE = b'{"errors": ["Duplicated stream name"]}'
ALREADY_STOPPED = http(400, {"code": 21220, "message": "Stream is already stopped", "more_info": "", "status": 400})
NOT_FOUND = http(404, {"code": 20404, "message": "No such stream", "more_info": "", "status": 404})


def cut(status: int, body: bytes) -> bytes:
    """Announce more than is sent; the server then closes the connection."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body) + 10}\r\n\r\n"
    return head.encode() + body


FOREIGN: dict[str, bytes] = {
    "a captive portal": PAGE,
    "a captive portal, cut": cut(200, b"<html>log"),
    "broken JSON": http(200, body=b'{"sid": "'),
    "a list": http(200, [{"sid": VICTIM}]),
    "a text": http(201, "started"),
    "an error of a gateway": http(200, {"code": 404, "message": "no route"}),
    "an error of a gateway, cut": cut(200, b'{"code": 404, "mess'),
    "an error without a code": http(202, {"message": "Forbidden"}),
    "a problem of RFC 9457": http(200, {"type": "about:blank", "title": "Bad Gateway", "status": 502}),
    "a fault of a gateway": http(200, {"fault": {"faultstring": "no route"}}),
    "a fault of a gateway, cut": cut(200, b'{"fault": {"fau'),
    "a state of a gateway": http(200, {"status": "ok"}),
}
ACCEPTED: dict[str, bytes] = {
    "202": http(202),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "an object without sid": http(200, {"status": "queued"}),
    "sid is null": http(202, {"sid": None, "errors": None}),
    "lost body": cut(200, b""),
    "broken body": cut(200, b'{"sid": "b38'),
}
UNREADABLE: dict[str, bytes] = {
    "broken off": cut(422, DUPLICATE[:-4]),
    "lost": cut(422, b""),
    "larger than the limit": http(422, body=DUPLICATE[:-1] + b" " * 70_000 + b"}"),
    "a page": http(404, body=b"<html>not found</html>"),
    "nothing": http(409),
    "of a gateway": http(404, {"code": 404, "message": "no route"}),
}
each_foreign = pytest.mark.parametrize("answer", FOREIGN.values(), ids=FOREIGN)
each_unreadable = pytest.mark.parametrize("refusal", UNREADABLE.values(), ids=UNREADABLE)


class Script:
    """Responds in turn with these bytes, carrying out the first so many requests, and then as the API does."""

    def __init__(self, *answers: bytes, executed: int = 0) -> None:
        self.answers: Sequence[bytes] = answers
        self.executed = executed

    async def __call__(self, space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        number = len(space.requests)
        if number > len(self.answers):
            return await as_documented(space, connection, request)
        if number <= self.executed and request.path.endswith("/Streams"):
            space.start(request)
        answer = self.answers[number - 1]
        if b"Content-Length: 0\r\n" not in answer and b"Content-Length" in answer:
            head, _, body = answer.partition(b"\r\n\r\n")
            if int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]) > len(body):
                connection.writer.write(answer)
                raise ConnectionError
        return answer


def client_of(space: RawSpace, **options: Any) -> StreamsClient:
    return StreamsClient(base_url=space.url, project="p", token="t", **{"clock": Clock.fake()} | options)


@each_foreign
@pytest.mark.parametrize("executed", [0, 1])
async def test_conference_start_whose_2xx_is_not_of_the_api_is_sent_again(answer: bytes, executed: int) -> None:
    """Under its name, so that there is one stream, whether the first attempt started it or not."""
    async with raw_space(Script(answer, executed=executed)) as space, client_of(space) as client:
        stream = await client.conferences.start_stream(ROOM, url=URL)
        assert len(space.requests) == 2
        assert len(space.sids_of(ROOM)) == 1
        assert (stream.ambiguous, stream.already_started) == (True, bool(executed))
        assert stream.sid == (None if executed else space.sids_of(ROOM)[0])


@each_foreign
async def test_start_whose_2xx_are_never_of_the_api_is_unknown(answer: bytes) -> None:
    """It is not accepted, is sent three times at most, and without a name or on a call once."""
    async with raw_space(Script(*[answer] * 9)) as space, client_of(space) as client:
        for start, attempts in (
            (client.conferences.start_stream(ROOM, url=URL), 3),
            (client.conferences.start_stream(ROOM, url=URL, name="mine"), 3),
            (client.conferences.start_stream(ROOM, url=URL, unnamed=True), 1),
            (client.calls.start_stream(CALL, url=URL), 1),
        ):
            before = len(space.requests)
            with pytest.raises(StreamOutcomeUnknownError) as caught:
                await start
            assert (caught.value.attempts, len(space.requests) - before) == (attempts, attempts)
            assert not caught.value.accepted
        assert space.running == {}


@each_foreign
async def test_call_start_is_sent_again_after_a_foreign_2xx_if_the_policy_allows_it(answer: bytes) -> None:
    retry = RetryPolicy(resend_call_starts=True)
    async with raw_space(Script(answer, executed=1)) as space, client_of(space, retry=retry) as client:
        stream = await client.calls.start_stream(CALL, url=URL)
        assert (stream.already_started, len(space.requests), len(space.sids_of(CALL))) == (True, 2, 1)


@pytest.mark.parametrize(("begin", "is_stream"), [(b"upstream timed out", False), (b'{"sid": "b38', True)])
async def test_2xx_that_stalls_counts_as_what_arrived_of_it(begin: bytes, is_stream: bool, idle_clock: Clock) -> None:
    """As if the connection had been closed there: what begins like a proxy's page is no stream that runs."""

    async def stall(_: RawSpace, connection: RawConnection, __: Request) -> bytes:
        connection.writer.write(cut(200, begin))
        await connection.reader.read()  # until the client closes it
        raise ConnectionError

    async with raw_space(stall) as space, client_of(space, clock=idle_clock) as client:
        start = client.conferences.start_stream(ROOM, url=URL)
        if is_stream:
            assert (await start).sid is None
        else:
            with pytest.raises(StreamOutcomeUnknownError, match=f"{len(begin)} bytes long") as caught:
                await start
            assert (caught.value.accepted, caught.value.attempts) == (False, len(space.requests))


@pytest.mark.parametrize("answer", ACCEPTED.values(), ids=ACCEPTED)
async def test_start_whose_2xx_lost_its_sid_runs_under_its_name(answer: bytes) -> None:
    """It is not sent again; without a name it is unknown, but accepted."""
    async with raw_space(Script(answer, answer, answer, executed=3)) as space, client_of(space) as client:
        for stream in (
            await client.conferences.start_stream(ROOM, url=URL),
            await client.calls.start_stream(CALL, url=URL),
        ):
            assert (stream.sid, stream.ambiguous) == (None, False)
            assert stream.name is not None
        with pytest.raises(StreamOutcomeUnknownError) as caught:
            await client.conferences.start_stream(ROOM, url=URL, unnamed=True)
        assert (caught.value.accepted, len(space.requests)) == (True, 3)


@each_foreign
@pytest.mark.parametrize("handle", [VICTIM, NAME])
async def test_stop_whose_2xx_are_never_of_the_api_is_no_success(answer: bytes, handle: str) -> None:
    async with raw_space(Script(*[answer] * 9)) as space, client_of(space) as client:
        with pytest.raises(MalformedResponseError):
            await client.conferences.stop_stream(ROOM, handle)
        assert len(space.requests) == 3


@each_unreadable
async def test_unreadable_rejection_of_a_start_that_was_carried_out_is_already_started(refusal: bytes) -> None:
    """A 503 carried the start out, and a rejection that can't be read may be that of a duplicate."""
    async with raw_space(Script(BUSY, refusal, executed=1)) as space, client_of(space) as client:
        stream = await client.conferences.start_stream(ROOM, url=URL)
        assert (stream.already_started, stream.ambiguous) == (True, True)
        assert (len(space.requests), len(space.sids_of(ROOM))) == (3, 1)


@each_unreadable
async def test_unreadable_rejections_of_a_start_that_was_carried_out_are_unknown(refusal: bytes) -> None:
    """On a conference after all attempts, and on a call at once."""
    async with raw_space(Script(BUSY, *[refusal] * 9, executed=1)) as space, client_of(space) as client:
        with pytest.raises(StreamOutcomeUnknownError) as caught:
            await client.conferences.start_stream(ROOM, url=URL)
        assert (caught.value.attempts, len(space.sids_of(ROOM))) == (3, 1)
    async with raw_space(Script(BUSY, *[refusal] * 9, executed=1)) as space, client_of(space) as client:
        with pytest.raises(StreamOutcomeUnknownError) as caught:
            await client.calls.start_stream(CALL, url=URL)
        assert (caught.value.attempts, len(space.sids_of(CALL))) == (2, 1)


@each_unreadable
async def test_unreadable_rejection_after_a_reset_is_sent_again(refusal: bytes) -> None:
    """With a name of the caller's as well, since the reset attempt may have used it."""
    for carried_out in (0, 1):
        async with (
            raw_space(Script(cut(500, b""), refusal, executed=carried_out)) as space,
            client_of(space) as client,
        ):
            stream = await client.conferences.start_stream(ROOM, url=URL, name="mine")
            assert (stream.already_started, stream.ambiguous) == (bool(carried_out), True)
            assert (len(space.requests), len(space.sids_of(ROOM))) == (3, 1)


@each_unreadable
@pytest.mark.parametrize("before", [0, 1])
async def test_unreadable_rejection_of_a_start_that_was_not_carried_out_is_final(refusal: bytes, before: int) -> None:
    """At the first attempt, and under a name of the caller's after a rejection for now."""
    async with raw_space(Script(*[BUSY] * before, *[refusal] * 9)) as space, client_of(space) as client:
        with pytest.raises((UnprocessableError, NotFoundError, Exception), match=r"HTTP 4\d\d") as caught:
            await client.conferences.start_stream(ROOM, url=URL, name="mine")
        assert not isinstance(caught.value, StreamOutcomeUnknownError)
        assert len(space.requests) == before + 1


@each_unreadable
@pytest.mark.parametrize("kind", ["conference", "call"])
async def test_unreadable_rejection_of_a_resumed_start_is_unknown(refusal: bytes, kind: str, tmp_path: Path) -> None:
    """An earlier part of the run was rejected for now, and the stream may have been started then."""
    journal = tmp_path / "run.db"
    item: Any = StartConferenceStream(conference_sid=ROOM, url=URL)
    if kind == "call":
        item = StartCallStream(call_sid=CALL, url=URL)

    async def run(*, resume: bool) -> BulkOutcome[Any]:
        [outcome] = [outcome async for outcome in client.start_streams([item], journal=journal, resume=resume)]
        return outcome

    async with raw_space(Script(*[BUSY] * 1000, executed=1)) as space, client_of(space) as client:
        assert (await run(resume=False)).status is BulkStatus.NOT_ATTEMPTED
        space.respond = Script(*[refusal] * 1000)
        assert (await run(resume=True)).status is BulkStatus.UNKNOWN
        space.respond = as_documented
        last = BulkStatus.ALREADY_STARTED if kind == "conference" else BulkStatus.UNKNOWN
        assert (await run(resume=True)).status is last
        assert len(space.sids_of(item.target)) == 1


@each_unreadable
@pytest.mark.parametrize("handle", [VICTIM, NAME])
async def test_unreadable_rejection_of_a_repeated_stop_is_asked_again(refusal: bytes, handle: str) -> None:
    """The lost attempt stopped the stream; only a readable response says so, and at the first attempt it is final."""
    async with (
        raw_space(Script(cut(500, b""), refusal, ALREADY_STOPPED)) as space,
        client_of(space) as client,
    ):
        stopped = await client.conferences.stop_stream(ROOM, handle)
        assert (stopped.status, stopped.already_ended, len(space.requests)) == (StreamStatus.STOPPED, False, 3)
    async with raw_space(Script(refusal)) as space, client_of(space) as client:
        with pytest.raises(Exception, match=r"HTTP 4\d\d"):
            await client.conferences.stop_stream(ROOM, handle)
        assert len(space.requests) == 1


@pytest.mark.parametrize("document", [{"sid": VICTIM}, {"sid": VICTIM, "status": "stopped", "name": None}])
@pytest.mark.parametrize("then", [None, ALREADY_STOPPED], ids=["documented", "already stopped"])
async def test_stop_by_name_whose_response_names_nothing_is_sent_again(
    document: dict[str, Any], then: bytes | None
) -> None:
    """It may be another request's response, and its sid another stream's."""
    answers = [http(200, document), *([then] if then else [])]
    async with raw_space(Script(*answers)) as space, client_of(space) as client:
        stopped = await client.conferences.stop_stream(ROOM, NAME)
        assert len(space.requests) == 2
        assert (stopped.status, stopped.already_ended) == (StreamStatus.STOPPED, False)
        assert NAME in {stopped.sid, stopped.name}
        assert stopped.sid != VICTIM


@pytest.mark.parametrize("accepted", [http(200, {"sid": VICTIM}), http(200, {}), http(204)])
@pytest.mark.parametrize("denial", [NOT_FOUND, http(422, {"errors": ["Status is invalid"]})], ids=["404", "422"])
@pytest.mark.parametrize("handle", [NAME, ConferenceStream(conference_sid=ROOM, name=NAME)], ids=["text", "object"])
async def test_stop_that_the_space_rejects_after_a_response_that_names_nothing_fails(
    accepted: bytes, denial: bytes, handle: Any
) -> None:
    """The name may be misspelled, and the first response another request's; a bulk run does not know."""
    async with raw_space(Script(accepted, denial, accepted, denial)) as space, client_of(space) as client:
        with pytest.raises((NotFoundError, UnprocessableError)):
            await client.conferences.stop_stream(ROOM, handle)
        assert len(space.requests) == 2
        if not isinstance(handle, str):
            report = await client.stop_streams([handle]).report()
            assert (report.counts, len(space.requests)) == ({BulkStatus.UNKNOWN: 1}, 4)


async def test_stop_by_name_whose_responses_all_name_nothing_is_success() -> None:
    """As if they had no body: the Space leaves these keys out, and has received the stop three times."""
    async with raw_space(Script(*[http(200, {"sid": VICTIM})] * 9)) as space, client_of(space) as client:
        stopped = await client.conferences.stop_stream(ROOM, NAME)
        assert len(space.requests) == 3
        assert (stopped.status, stopped.sid, stopped.name) == (StreamStatus.STOPPED, None, NAME)


@pytest.mark.parametrize(
    "document", [{"sid": VICTIM, "conference_sid": ROOM}, {"sid": VICTIM, "name": NAME.upper()}, {"sid": NAME}]
)
async def test_stop_by_name_whose_response_names_the_stream_is_not_repeated(document: dict[str, Any]) -> None:
    async with raw_space(Script(http(200, document))) as space, client_of(space) as client:
        stopped = await client.conferences.stop_stream(ROOM, NAME)
        assert (stopped.sid, len(space.requests)) == (document["sid"], 1)
