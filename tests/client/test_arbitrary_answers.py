"""For any bytes in the response, a caller gets a value or a typed error."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from signalwire_streams import Clock, RetryPolicy, StreamsClient, StreamsError, Timeouts

URL = "wss://rx.example.com/audio"
EXAMPLES = settings(
    max_examples=min(settings().max_examples, 50),  # each one costs several requests
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

json_documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    [
        "sid",
        "name",
        "status",
        "date_updated",
        "uri",
        "code",
        "message",
        "errors",
        "more_info",
        "conferences",
        "calls",
        "next_page_uri",
        "page",
        "page_size",
        "call_sid",
        "duration",
        "price",
        "extra",
        "ambiguous",
        "from",
    ]
)
api_like = st.dictionaries(keys, json_documents, max_size=8)
statuses = st.integers(min_value=100, max_value=999)
headers = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "Retry-After",
                "retry-after-ms",
                "Date",
                "X-RateLimit-Limit",
                "X-Request-Id",
                "Content-Type",
                "Content-Encoding",
                "Transfer-Encoding",
                "Content-Length",
                "Location",
                "Connection",
            ]
        ),
        st.text(st.characters(min_codepoint=1, max_codepoint=255, exclude_characters="\r\n"), max_size=20)
        | st.sampled_from(["gzip", "deflate", "chunked", "0", "-1", "3", "1e400", "nan", "close", "Tue, 25 Sept 2018"]),
    ),
    max_size=4,
)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(debug=False) as running:
        yield running


@asynccontextmanager
async def answering(raw: bytes) -> AsyncIterator[StreamsClient]:
    """Serve these bytes to every request, and close."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(raw)
            await writer.drain()
            writer.write_eof()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        StreamsClient(
            base_url=f"http://127.0.0.1:{port}",
            project="project",
            token="token",
            clock=Clock.fake(),
            timeouts=Timeouts(read=0.2),
            retry=RetryPolicy(max_attempts=2, max_throttle_retries=1),
        ) as client,
    ):
        yield client


async def use_everything(raw: bytes) -> None:
    async with answering(raw) as client:
        calls = (
            client.conferences.start_stream("room", url=URL),
            client.calls.start_stream("call", url=URL, unnamed=True),
            client.conferences.stop_stream("room", "stream"),
            client.conferences.get("room"),
            anext(aiter(client.conferences.list())),
        )
        for call in calls:
            with contextlib.suppress(StreamsError, StopAsyncIteration):
                await call


@EXAMPLES
@given(raw=st.binary(max_size=400) | st.binary(max_size=200).map(b"HTTP/1.1 200 OK\r\n".__add__))
def test_response_of_arbitrary_bytes_ends_in_value_or_typed_error(raw: bytes, runner: asyncio.Runner) -> None:
    """Bytes that are no HTTP, or break off as HTTP, end in a typed error."""
    runner.run(use_everything(raw))


@EXAMPLES
@given(status=statuses, fields=headers, body=st.binary(max_size=300), framed=st.booleans())
def test_response_with_any_status_and_body_ends_in_value_or_typed_error(
    status: int, fields: list[tuple[str, str]], body: bytes, framed: bool, runner: asyncio.Runner
) -> None:
    """Any status with any headers and any body ends in a value or a typed error."""
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    length = f"Content-Length: {len(body)}\r\n" if framed else ""
    runner.run(use_everything(f"HTTP/1.1 {status} X\r\n{head}{length}\r\n".encode("latin-1") + body))


@EXAMPLES
@given(status=st.sampled_from([200, 201, 400, 404, 422, 429, 500, 503]), document=api_like | json_documents)
def test_response_with_any_json_ends_in_value_or_typed_error(
    status: int, document: object, runner: asyncio.Runner
) -> None:
    """Any JSON under the API's own keys ends in a value or a typed error."""
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    runner.run(use_everything(head.encode() + body))


@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b'{"sid":' + b"9" * 10_000 + b"}", b'{"sid":"\\ud800"}', b"x" * (17 * 1024 * 1024)],
    ids=["nested without end", "a number without end", "a lone surrogate", "larger than any answer"],
)
@pytest.mark.parametrize("status", [200, 422])
def test_response_with_hostile_body_ends_in_value_or_typed_error(
    status: int, body: bytes, runner: asyncio.Runner
) -> None:
    """Bodies made to hurt end in a value or a typed error."""
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    runner.run(use_everything(head + body))
