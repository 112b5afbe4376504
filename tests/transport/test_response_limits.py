"""Large heads, large bodies and bodies that unpack to large ones, on real sockets."""

import asyncio
import gzip
import json
import logging
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest

from signalwire_streams import (
    BulkStatus,
    MalformedResponseError,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamsError,
    UnprocessableError,
)
from signalwire_streams.simulator import SimulatedSpace
from tests.raw_space import RawConnection, RawSpace, Request, http, raw_space

pytestmark = pytest.mark.usefixtures("idle_clock")
URL = "wss://rx.example.com/audio"
SID = "b3877c40-da60-4998-90ad-b792e98472cf"
SECRET = "hush-hush-0123456789"
MIB = 1024 * 1024
Answer: TypeAlias = Callable[[RawSpace, RawConnection, Request], Awaitable[bytes]]


def always(data: bytes) -> Answer:
    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        return data

    return answer


def everything_told(error: BaseException) -> str:
    told, todo = [], [error]
    while todo:
        one = todo.pop()
        told += [str(one), repr(one), repr(one.args), repr(vars(one))]
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(told)


LARGE_HEADS = {
    "one long header": http(200, {"sid": SID}, head=f"Content-Security-Policy: {'x' * 60_000}\r\n"),
    "many headers": http(200, {"sid": SID}, head="".join(f"X-Header-{n}: {n}\r\n" for n in range(500))),
    "a long reason": http(200, {"sid": SID}).replace(b" X\r\n", b" " + b"x" * 60_000 + b"\r\n", 1),
}


@pytest.mark.parametrize("answer", LARGE_HEADS.values(), ids=LARGE_HEADS)
@pytest.mark.parametrize("borrowed", [False, True], ids=["owned", "borrowed"])
async def test_large_head_loses_no_stream(
    answer: bytes, borrowed: bool, space: SimulatedSpace, client_for: Any
) -> None:
    """Gateways add long headers, and many: the sid is read, and one POST was sent."""
    async with raw_space(always(answer)) as raw, aiohttp.ClientSession() as session:
        client = client_for(space, base_url=raw.url, session=session if borrowed else None)
        stream = await client.conferences.start_stream("room", url=URL)

        assert stream.sid == SID
        assert len(raw.requests) == 1


@pytest.mark.parametrize("lines", [3, 4])
async def test_head_may_have_256_kib(lines: int, space: SimulatedSpace, client_for: Any) -> None:
    head = "".join(f"X-{number}: {'x' * 60_000}\r\n" for number in range(lines))
    async with raw_space(always(http(200, {"sid": SID}, head=head))) as raw:
        stream = await client_for(space, base_url=raw.url).conferences.start_stream("room", url=URL)

        assert stream.sid == SID
        assert len(raw.requests) == 1


@pytest.mark.parametrize("more", [0, 1])
async def test_head_beyond_256_kib_is_rejected_before_its_end(
    more: int, space: SimulatedSpace, client_for: Any
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
    head += b"".join(f"X-{number}: {'x' * 60_000}\r\n".encode() for number in range(4))
    head += b"X-5: ".ljust(256 * 1024 + more - len(head), b"x")

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        connection.writer.write(head)
        await connection.writer.drain()
        await asyncio.sleep(1)  # until all of it is read
        return b"\r\n\r\n{}"

    async with raw_space(answer) as raw:
        with pytest.raises(StreamOutcomeUnknownError) as caught:
            await client_for(space, base_url=raw.url).calls.start_stream("call", url=URL, unnamed=True)
    assert ("its head is too long" in str(caught.value)) == bool(more)
    assert caught.value.status == (None if more else 200)


@pytest.mark.parametrize("kind", ["start", "read"])
async def test_endless_response_head_is_malformed_and_not_read_to_its_end(
    kind: str, space: SimulatedSpace, client_for: Any
) -> None:
    """Each line is short enough and they are not too many, but not all of them are read."""
    lines = [f"X-{number}: {'x' * 60_000}\r\n".encode() for number in range(400)]

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        connection.writer.write(b"HTTP/1.1 200 OK\r\n")
        for line in lines:
            connection.writer.write(line)
            await connection.writer.drain()
        return b"\r\n"

    async with raw_space(answer) as raw:
        client = client_for(space, base_url=raw.url)
        tracemalloc.start()
        try:
            with pytest.raises(StreamOutcomeUnknownError if kind == "start" else MalformedResponseError) as caught:
                await (
                    client.conferences.start_stream("room", url=URL, unnamed=True)
                    if kind == "start"
                    else client.conferences.get("room")
                )
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert "its head is too long" in str(caught.value)
        assert len(raw.requests) == (1 if kind == "start" else 3)
    assert peak < 4 * MIB


TRAILERS = b"0\r\n" + b"".join(f"X-{number}: {'x' * 60_000}\r\n".encode() for number in range(400)) + b"\r\n"


@pytest.mark.parametrize("rest", [TRAILERS, b"0;" + b"x" * 20 * MIB + b"\r\n\r\n"], ids=["trailers", "an extension"])
async def test_body_whose_end_is_large(rest: bytes, space: SimulatedSpace, client_for: Any) -> None:
    """Little of what follows the last chunk is kept; the start was accepted, and is known by its name."""

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        body = json.dumps({"sid": SID}).encode()
        head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n"
        connection.writer.write(head.encode() + body + b"\r\n")
        for start in range(0, len(rest), 65_536):
            connection.writer.write(rest[start : start + 65_536])
            await connection.writer.drain()
        return b""

    async with raw_space(answer) as raw:
        client = client_for(space, base_url=raw.url)
        tracemalloc.start()
        try:
            stream = await client.conferences.start_stream("room", url=URL)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert stream.sid is None
    assert peak < 4 * MIB


UNREADABLE = {
    "one header too long": http(200, head=f"Set-Cookie: {SECRET * 4_000}\r\n"),
    "too many headers": http(200, head=f"Set-Cookie: {SECRET}\r\n" * 600),
    "a reason too long": f"HTTP/1.1 200 {SECRET * 4_000}\r\n\r\n".encode(),
    "a bad header": f"HTTP/1.1 200 OK\r\nAuthorization Bearer {SECRET}\x00\r\n\r\n".encode(),
    "no status line": f"{SECRET}\r\n\r\n".encode(),
    "a bad length": f"HTTP/1.1 200 OK\r\nContent-Length: {SECRET}\r\n\r\n".encode(),
    "two lengths": f"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\nX: {SECRET}\r\n\r\n".encode(),
    "a head that ends early": f"HTTP/1.1 200 OK\r\nSet-Cookie: {SECRET}\r\n".encode(),
    "a bad chunk": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n".encode(),
    "a bad encoding": f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n{SECRET}".encode(),
    "a bad trailer": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{SECRET}\x00\r\n\r\n".encode(),
    "a body that is no JSON": http(200, body=SECRET.encode()),
    "a body cut off": http(200, {"message": SECRET})[:-2],
}


@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE)
async def test_no_byte_of_an_unreadable_response_is_repeated(
    answer: bytes, space: SimulatedSpace, client_for: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Neither in the error and what it carries, nor in a log, nor in a run's journal."""

    async def send_and_end(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        connection.writer.write(answer)
        await connection.writer.drain()
        raise ConnectionError

    caplog.set_level(logging.DEBUG)
    journal = tmp_path / "run.db"
    async with raw_space(send_and_end) as raw:
        client = client_for(space, base_url=raw.url)
        told = []
        for call in (
            client.conferences.start_stream("room", url=URL, unnamed=True),
            client.conferences.start_stream("room", url=URL),
            client.conferences.get("room"),
            client.conferences.stop_stream("room", "stream"),
        ):
            try:
                told.append(repr(await call))
            except StreamsError as error:
                told.append(everything_told(error))
        items = [StartConferenceStream(conference_sid="room", url=URL, unnamed=True)]
        outcomes = [outcome async for outcome in client.start_streams(items, journal=journal)]
        told += [repr(outcome) for outcome in outcomes]

    assert [outcome.status for outcome in outcomes] == [BulkStatus.UNKNOWN]
    told += [record.getMessage() for record in caplog.records]
    told.append(journal.read_bytes().decode("latin-1"))
    assert "hush" not in "\n".join(told)


def packed(size: int) -> bytes:
    return gzip.compress(b" " * size)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("read_bufsize", [1, 2**18])
async def test_body_that_unpacks_to_a_large_one(
    encoding: str, read_bufsize: int, space: SimulatedSpace, client_for: Any
) -> None:
    """No more of it is unpacked than a response to a start may have; the start was accepted, and known by its name."""
    body = packed(15 * MIB) if encoding == "gzip" else zlib.compress(b" " * 15 * MIB)
    async with (
        raw_space(always(http(200, body=body, head=f"Content-Encoding: {encoding}\r\n"))) as raw,
        aiohttp.ClientSession(read_bufsize=read_bufsize) as session,
    ):
        client = client_for(space, base_url=raw.url, session=session)
        tracemalloc.start()
        try:
            stream = await client.conferences.start_stream("room", url=URL)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert stream.sid is None
    assert peak < MIB


@pytest.mark.parametrize(("size", "sid"), [(64 * 1024, SID), (64 * 1024 + 1, None)])
async def test_response_to_a_start_may_have_64_kib(
    size: int, sid: str | None, space: SimulatedSpace, client_for: Any
) -> None:
    body = gzip.compress(json.dumps({"sid": SID}).encode().ljust(size))
    async with raw_space(always(http(200, body=body, head="Content-Encoding: gzip\r\n"))) as raw:
        stream = await client_for(space, base_url=raw.url).conferences.start_stream("room", url=URL)

    assert stream.sid == sid


@pytest.mark.parametrize("more", [0, 1])
async def test_read_may_have_4_mib_exactly(more: int, space: SimulatedSpace, client_for: Any) -> None:
    body = json.dumps({"sid": "room"}).encode().ljust(4 * MIB + more)
    async with raw_space(always(http(200, body=body))) as raw:
        client = client_for(space, base_url=raw.url)
        if more:
            with pytest.raises(MalformedResponseError):
                await client.conferences.get("room")
        else:
            assert (await client.conferences.get("room")).sid == "room"


@pytest.mark.parametrize(("lines", "is_read"), [(512, True), (513, False)])
async def test_response_may_have_512_headers(lines: int, is_read: bool, space: SimulatedSpace, client_for: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n" + b"X-Header: 1\r\n" * (lines - 1)
    async with raw_space(always(head + b'\r\n{"sid":"room"}')) as raw:
        client = client_for(space, base_url=raw.url)
        if is_read:
            assert (await client.conferences.get("room")).sid == "room"
        else:
            with pytest.raises(MalformedResponseError):
                await client.conferences.get("room")


@pytest.mark.parametrize(
    ("items", "padding", "readable"),
    [(1_000, 60_000, True), (1_000, 3 * MIB, True), (1_000, 4 * MIB, False), (19_998, 0, True), (19_999, 0, False)],
)
async def test_page_may_have_4_mib(
    items: int, padding: int, readable: bool, space: SimulatedSpace, client_for: Any
) -> None:
    """A page that is longer, or has more parts than any, ends in a typed error after the attempts that a read has."""
    conferences = [{"sid": f"room-{number}"} for number in range(items)]
    async with raw_space(always(http(200, {"conferences": conferences, "padding": "x" * padding}))) as raw:
        client = client_for(space, base_url=raw.url)
        if readable:
            assert len([conference async for conference in client.conferences.list()]) == items
            return
        with pytest.raises(MalformedResponseError) as caught:
            await anext(aiter(client.conferences.list()))
        assert caught.value.attempts == 3


async def test_large_responses_of_a_client_have_a_common_bound(space: SimulatedSpace, client_for: Any) -> None:
    """Of many large pages that arrive at once only a few are in memory; the others wait, and none is lost."""
    pages, size = 20, 3 * MIB
    body = json.dumps({"conferences": [{"sid": "room"}], "padding": "x" * size}).encode()
    whole = http(200, body=body)

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        for start in range(0, len(whole) - 1, 65_536):
            connection.writer.write(whole[start : min(start + 65_536, len(whole) - 1)])
            await connection.writer.drain()
        await asyncio.sleep(1)  # of the idle clock: until nothing moves any more
        return whole[-1:]

    async def read(client: StreamsClient) -> int:
        return len([page async for page in client.conferences.list().pages()])

    async with raw_space(answer) as raw:
        client = client_for(space, base_url=raw.url)
        tracemalloc.start()
        try:
            read_pages = await asyncio.gather(*(read(client) for _ in range(pages)))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert read_pages == [1] * pages
    assert peak < 45 * MIB


HOSTILE = {
    "many lists": b"[" + b"[[[[[[]]]]]]," * 300_000 + b"[]]",
    "many objects": b'{"conferences": [' + b"{}," * 1_000_000 + b"{}]}",
    "many items": b'{"conferences": [' + b'{"sid":"a"},' * 300_000 + b'{"sid":"a"}]}',
    "deep lists": b"[" * 4_000_000,
    "a long number": b'{"conferences": ' + b"9" * 4_000_000 + b"}",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
async def test_expensive_json_is_not_decoded(body: bytes, space: SimulatedSpace, client_for: Any) -> None:
    """A page of 4 MiB whose parts would take seconds and gigabytes is not decoded."""
    async with raw_space(always(http(200, body=body))) as raw:
        client = client_for(space, base_url=raw.url)
        with pytest.raises(MalformedResponseError):
            await anext(aiter(client.conferences.list()))
        with pytest.raises(MalformedResponseError):
            await client.conferences.get("room")


async def test_rejection_with_many_errors_keeps_first_ones_and_redacts_them(
    space: SimulatedSpace, client_for: Any
) -> None:
    """Only the first of them are kept, and the parameters' values are looked for in those."""
    errors = [f"no {number}: value-7" for number in range(2_000)]
    parameters = {f"parameter-{number}": f"value-{number}" for number in range(99)}
    async with raw_space(always(http(422, {"errors": errors}))) as raw:
        client = client_for(space, base_url=raw.url)
        with pytest.raises(UnprocessableError) as caught:
            await client.conferences.start_stream("room", url=URL, parameters=parameters)

    assert caught.value.errors == tuple(f"no {number}: ***" for number in range(20))


async def test_unknown_start_names_the_reason(space: SimulatedSpace, client_for: Any) -> None:
    """The words are ours, and say what was wrong with the response."""
    async with raw_space(always(UNREADABLE["one header too long"])) as raw:
        with pytest.raises(StreamOutcomeUnknownError, match="not valid HTTP, or its head is too long") as caught:
            await client_for(space, base_url=raw.url).conferences.start_stream("room", url=URL, unnamed=True)
        assert caught.value.attempts == len(raw.requests) == 1
