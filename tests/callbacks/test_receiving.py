"""`CallbackReceiver` over a real socket, from the request to the user's function."""

import asyncio
import hmac
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import aiohttp
import attrs
import pytest
import yarl
from aiohttp import web
from aiohttp.typedefs import Middleware

from signalwire_streams import InvalidRequestError
from signalwire_streams.callbacks import (
    SHA256_SIGNATURE_HEADER,
    SIGNATURE_HEADER,
    CallbackEvent,
    CallbackReceiver,
    StreamFailed,
    StreamStarted,
    StreamStopped,
    UnknownCallback,
)
from signalwire_streams.callbacks._urls import HostPattern
from tests.waiting import until

from .signing import FORM, JSON_BODY, KEY, STARTED, fields, form, form_signature, raw_signature

pytestmark = pytest.mark.usefixtures("idle_clock")
PUBLIC = "https://example.com/callbacks"
UNUSABLE_HOSTS = (
    *(".", "..", "a..b", "a\\b", 'a"b', "a,b", "a^b", "%61", "a\x7f", "[zz]", "[...]", "[::1", "::1"),
    *("example.com:0", "example.com:65536", "example.com:99999", "example.com:٤٤٣", "example.com:x"),
)
UNUSABLE_PATTERNS = ("*.", "*..", ".example.com", "*:80", "*.*", "*example.com", "")


async def ignore(_: CallbackEvent) -> None:
    pass


@attrs.define(eq=False)
class Server:
    """A server with a receiver, and a client in place of the platform."""

    receiver: CallbackReceiver
    session: aiohttp.ClientSession
    port: int
    heard: asyncio.Queue[CallbackEvent]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/callbacks"

    async def post(
        self, pairs: Sequence[tuple[str, str]] = STARTED, *, signed: str | None = None, query: str = "", **headers: Any
    ) -> int:
        """Send a callback that is signed for a URL; return the status of the response."""
        signature = form_signature((signed or self.url) + query, pairs)
        told = {SIGNATURE_HEADER: signature, "Content-Type": FORM}
        return await self.send(
            form(pairs), query, told | {name.replace("_", "-"): value for name, value in headers.items()}
        )

    async def send(self, body: bytes | None, query: str, headers: dict[str, str], method: str = "POST") -> int:
        url = yarl.URL(self.url + query, encoded=True)
        async with self.session.request(method, url, data=body, headers=headers) as answer:
            assert await answer.read() == b""
            return answer.status

    async def post_json(self, body: bytes, **headers: str) -> int:
        """Send a signed JSON callback."""
        told = {SIGNATURE_HEADER: raw_signature(self.url, body), "Content-Type": "application/json"}
        return await self.send(body, "", told | {name.replace("_", "-"): value for name, value in headers.items()})

    async def get(self, query: str, signed: str | None = None) -> int:
        signature = form_signature(f"{signed or self.url}?{query}", ())
        return await self.send(None, f"?{query}", {SIGNATURE_HEADER: signature}, "GET")


@asynccontextmanager
async def serving(*, middlewares: Sequence[Middleware] = (), **options: Any) -> AsyncIterator[Server]:
    heard: asyncio.Queue[CallbackEvent] = asyncio.Queue()
    if options.get("public_url") is None:
        options.setdefault("allowed_hosts", ["*"])
    async with CallbackReceiver(options.pop("handler", heard.put), **({"keys": [KEY]} | options)) as receiver:
        app = web.Application(middlewares=middlewares)
        app.router.add_route("*", "/callbacks", receiver.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with aiohttp.ClientSession() as session:
                yield Server(receiver, session, runner.addresses[0][1], heard)
        finally:
            await runner.cleanup()


async def test_signed_callback_gets_204_and_is_delivered() -> None:
    async with serving() as server:
        assert await server.post() == 204
        event = await server.heard.get()

    assert isinstance(event, StreamStarted)
    assert event.stream_name == "audit 1 é+&="
    assert server.receiver.statistics.received == server.receiver.statistics.handled == 1


async def test_callback_by_get_is_parsed_from_its_query() -> None:
    """Beside the query of the callback URL itself."""
    async with serving() as server:
        assert await server.get("tenant=a%20b&" + urlencode(fields("stream-stopped"))) == 204
        event = await server.heard.get()

    assert isinstance(event, StreamStopped)
    assert event.stream_name == "audit 1 é+&="
    assert event.extra == {"tenant": "a b"}


async def test_query_of_a_post_is_in_extra_but_never_a_field() -> None:
    async with serving() as server:
        assert await server.post(query="?tenant=%41+b&StreamSid=other&StreamError=no&x=") == 204
        event = await server.heard.get()

    assert event.stream_sid == "stream-1"
    assert event.extra == {"tenant": "A b", "x": ""}


async def test_form_with_sha256_signature_is_accepted() -> None:
    async with serving() as server:
        strong = raw_signature(server.url, form(STARTED), algorithm="sha256")
        headers = {SHA256_SIGNATURE_HEADER: strong, "Content-Type": FORM}
        assert await server.send(form(STARTED), "", headers) == 204
        assert isinstance(await server.heard.get(), StreamStarted)


JSON_IS_NONE = "it is signed, and neither a form nor a JSON object"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/octet-stream", f"{FORM}; charset=utf-8"])
async def test_signed_form_is_delivered_whatever_its_content_type(kind: str | None) -> None:
    """As `verify_signature` accepts it: what was signed are the fields."""
    async with serving() as server:
        headers = {SIGNATURE_HEADER: form_signature(server.url, STARTED)} | ({"Content-Type": kind} if kind else {})
        url, body = yarl.URL(server.url), form(STARTED)
        skipped = ["Content-Type"]
        async with server.session.post(url, data=body, headers=headers, skip_auto_headers=skipped) as answer:
            assert answer.status == 204
        assert isinstance(await server.heard.get(), StreamStarted)


REFUSALS: dict[str, tuple[Callable[[Server], Any], str]] = {
    "no signature": (lambda server: server.send(form(STARTED), "", {"Content-Type": FORM}), "there is no signature"),
    "a wrong signature": (lambda server: server.post(X_SignalWire_Signature="x"), "the signature does not match"),
    "another address": (lambda server: server.post(signed="https://evil.example/"), "the signature does not match"),
    "another key": (
        lambda server: server.post(X_SignalWire_Signature=form_signature(server.url, STARTED, "PSK_other")),
        "the signature does not match",
    ),
    "another body": (
        lambda server: server.post(fields(X="1"), X_SignalWire_Signature=form_signature(server.url, STARTED)),
        "the signature does not match",
    ),
    "a JSON array, though signed": (lambda server: server.post_json(b"[1]"), JSON_IS_NONE),
    "half a JSON object, though signed": (lambda server: server.post_json(b'{"event_type":'), JSON_IS_NONE),
    "deep JSON, though signed": (lambda server: server.post_json(b'{"a":' + b"[" * 60_000), JSON_IS_NONE),
    "JSON with bytes that are no UTF-8, though signed": (
        lambda server: server.post_json(b'{"a":"\xff"}'),
        JSON_IS_NONE,
    ),
    "JSON with a wrong signature": (
        lambda server: server.post_json(JSON_BODY, X_SignalWire_Signature="x"),
        "the signature does not match",
    ),
    "JSON whose SHA-256 signature is wrong": (
        lambda server: server.post_json(JSON_BODY, X_SignalWire_SHA256_Signature="x"),
        "the signature does not match",
    ),
    "another method": (
        lambda server: server.send(
            form(STARTED), "", {"Content-Type": FORM, SIGNATURE_HEADER: form_signature(server.url, STARTED)}, "PUT"
        ),
        "the method is neither GET nor POST",
    ),
    "a GET with a body": (
        lambda server: server.send(b"a=1", "", {SIGNATURE_HEADER: form_signature(server.url, ())}, "GET"),
        "a GET has a body",
    ),
    "a form of too many fields": (
        lambda server: server.post([(f"F{number}", "") for number in range(1_001)]),
        "the body is neither JSON nor a form of up to 1,000 fields",
    ),
    "a large body": (lambda server: server.post(fields(X="x" * 70_000)), "the body is too large"),
}


@pytest.mark.parametrize(("send", "reason"), REFUSALS.values(), ids=REFUSALS)
async def test_rejection_is_a_bare_403_and_its_reason_is_logged(
    send: Callable[[Server], Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "signalwire_streams.callbacks")
    async with serving() as server:
        assert await send(server) == 403
        assert await server.post(query="?secret=1") == 204
        await server.heard.get()

    counts = server.receiver.statistics
    assert (counts.received, counts.rejected, server.heard.qsize()) == (1, 1, 0)
    (record,) = [record for record in caplog.records if record.name == "signalwire_streams.callbacks"]
    assert record.getMessage() == f"a callback to '{server.url}' was rejected: {reason}"
    assert KEY not in caplog.text


async def test_rejections_have_the_same_headers() -> None:
    """Except for their date."""
    async with serving() as server:
        answers = []
        for signature in ("", "x", form_signature(server.url, STARTED)):
            async with server.session.post(server.url, data=b"a=1", headers={SIGNATURE_HEADER: signature}) as answer:
                answers.append({**answer.headers, "Date": ""})

    assert answers[0] == answers[1] == answers[2]


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_chunked_body_beyond_the_limit_is_rejected() -> None:
    """It is read no further than the limit."""
    async with serving(body_limit=100) as server:
        body = form(STARTED)
        headers = {"Content-Type": FORM, SIGNATURE_HEADER: form_signature(server.url, STARTED)}
        async with server.session.post(server.url, data=chunks(body[:90], body[90:]), headers=headers) as answer:
            assert answer.status == 403
    async with serving(body_limit=len(body)) as server:
        headers[SIGNATURE_HEADER] = form_signature(server.url, STARTED)
        async with server.session.post(server.url, data=chunks(body[:90], body[90:]), headers=headers) as answer:
            assert answer.status == 204


async def raw_exchange(server: Server, *pieces: bytes, hang_up: bool = False) -> bytes:
    """Write raw bytes to the server, and return the first line of its response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = b"POST /callbacks HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: %s\r\n" % (server.port, FORM.encode())
    for piece in (head, *pieces):
        writer.write(piece)
        await writer.drain()
    if hang_up:
        writer.close()
        await writer.wait_closed()
        return b""
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line


async def test_announced_large_body_is_rejected_unread() -> None:
    async with serving(body_timeout=600.0) as server, asyncio.timeout(5):
        assert await raw_exchange(server, b"Content-Length: 1000000\r\n\r\n") == b"HTTP/1.1 403 Forbidden\r\n"


async def test_slow_body_is_rejected(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "signalwire_streams.callbacks")
    async with serving(body_timeout=0.001) as server:
        line = await raw_exchange(server, b"Content-Length: 10\r\n\r\na=1")

    assert line == b"HTTP/1.1 403 Forbidden\r\n"
    assert "the body did not arrive in time" in caplog.text


async def test_sender_that_hangs_up_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """In the middle of a body."""
    caplog.set_level(logging.INFO, "signalwire_streams.callbacks")
    async with serving() as server:
        await raw_exchange(server, b"Content-Length: 10\r\n\r\na=1", hang_up=True)
        await until(lambda: server.receiver.statistics.rejected == 1)

    assert "the body could not be read" in caplog.text


async def test_malformed_body_is_rejected(caplog: pytest.LogCaptureFixture) -> None:
    """It gets a 403, not a server error."""
    caplog.set_level(logging.INFO, "signalwire_streams.callbacks")
    async with serving() as server:
        line = await raw_exchange(server, b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\na=1")

    assert line == b"HTTP/1.1 403 Forbidden\r\n"
    assert "the body could not be read" in caplog.text


async def test_body_read_by_a_middleware_is_verified() -> None:
    """Within the same limit."""

    @web.middleware
    async def reading(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        await request.read()
        answer: web.StreamResponse = await handler(request)
        return answer

    async with serving(middlewares=[reading]) as server:
        assert await server.post() == 204
        assert await server.post(fields(X="x" * 70_000)) == 403
        large = form(fields(X="x" * 70_000))
        headers = {"Content-Type": FORM, SIGNATURE_HEADER: form_signature(server.url, fields(X="x" * 70_000))}
        async with server.session.post(server.url, data=chunks(large), headers=headers) as answer:
            assert answer.status == 403


class TestPublicUrl:
    """The platform signs the URL that it knows."""

    @pytest.mark.parametrize(
        ("public_url", "signed"),
        [
            (PUBLIC, PUBLIC),
            ("https://example.com", PUBLIC),
            ("https://example.com/", PUBLIC),
            ("https://example.com/api", "https://example.com/api/callbacks"),
            ("https://example.com/api/v1/stream-events", "https://example.com/api/v1/stream-events"),
            ("https://u:p@example.com:443/callbacks", "https://example.com/callbacks"),
            ("https://example.com/callbacks", "https://example.com:443/callbacks"),
            ("https://example.com/callbacks/", "https://example.com/callbacks/"),
            ("HTTPS://Example.com:/callbacks", "HTTPS://Example.com/callbacks"),
            ("https://münchen.example/callbacks", "https://münchen.example/callbacks"),
            ("https://u:p@w@[2001:db8::1]:8443", "https://[2001:db8::1]:8443/callbacks"),
        ],
    )
    async def test_public_url_is_the_whole_url_or_its_start(self, public_url: str, signed: str) -> None:
        """The query is the request's."""
        async with serving(public_url=public_url) as server:
            assert await server.post(signed=signed) == 204
            assert await server.post(fields("stream-stopped"), signed=signed, query="?a=%2f&b=+&") == 204
            assert await server.get(urlencode(fields("stream-error")), signed=signed) == 204

    async def test_fragment_of_public_url_comes_after_the_query(self) -> None:
        async with serving(public_url=f"{PUBLIC}#x") as server:
            headers = {"Content-Type": FORM, SIGNATURE_HEADER: form_signature(f"{PUBLIC}?a=1#x", STARTED)}
            assert await server.send(form(STARTED), "?a=1", headers) == 204
            assert await server.post(fields("stream-stopped"), signed=PUBLIC, query="?a=1") == 204

    async def test_public_url_overrides_host_headers_of_the_request(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "signalwire_streams.callbacks")
        async with serving(public_url="https://u:secret@example.com/callbacks", trust_forwarded=True) as server:
            assert await server.post() == 403
            forwarded: dict[str, Any] = {"X_Forwarded_Host": "evil.example", "Host": "evil.example"}
            assert await server.post(signed="https://evil.example/callbacks", **forwarded) == 403
            assert await server.post(signed=PUBLIC, **forwarded) == 204

        assert "'https://example.com/callbacks' or 'https://example.com/callbacks/callbacks'" in caplog.text
        assert "secret" not in caplog.text + repr(server.receiver)

    FORWARDED = pytest.mark.parametrize(
        ("signed", "headers"),
        [
            (PUBLIC, {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "example.com"}),
            (PUBLIC, {"X_Forwarded_Proto": "HTTPS", "X_Forwarded_Host": "example.com, inner.example"}),
            (PUBLIC, {"X_Forwarded_Proto": "https, http", "X_Forwarded_Host": "example.com:443"}),
            (PUBLIC, {"X_Forwarded_Proto": "https", "Host": "example.com"}),
            (
                "https://example.com:8443/callbacks",
                {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "example.com", "X_Forwarded_Port": "8443"},
            ),
            (
                "https://example.com:8443/callbacks",
                {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "example.com:8443", "X_Forwarded_Port": "80"},
            ),
            (
                "https://example.com:8443/callbacks",
                {"X_Forwarded_Proto": "https", "Host": "example.com", "X_Forwarded_Port": "8443"},
            ),
            ("https://[2001:db8::1]/callbacks", {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "[2001:db8::1]"}),
            (PUBLIC, {"Forwarded": "for=192.0.2.1;proto=https;host=example.com, for=10.0.0.1;proto=http;host=inner"}),
            (PUBLIC, {"Forwarded": 'for="[::1]:5;proto=http" ; Proto="https"; HOST="example\\.com"'}),
            (PUBLIC, {"Forwarded": "proto=http;host=example.com", "X_Forwarded_Proto": "https"}),
        ],
    )

    @FORWARDED
    async def test_trusted_forwarded_headers_decide_the_url(self, signed: str, headers: dict[str, Any]) -> None:
        async with serving(trust_forwarded=True) as server:
            assert await server.post(signed=signed, query="?a=%2F", **headers) == 204
            assert await server.post(fields("stream-stopped"), **headers) == 403

    @FORWARDED
    async def test_untrusted_forwarded_headers_are_ignored(self, signed: str, headers: dict[str, Any]) -> None:
        async with serving() as server:
            assert await server.post(signed=signed, **headers) == 403
            if "Host" not in headers:
                assert await server.post(**headers) == 204

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"X_Forwarded_Proto": "gopher", "X_Forwarded_Host": "evil.example/?", "X_Forwarded_Port": "x"},
            {"X_Forwarded_Proto": "", "X_Forwarded_Host": "u@evil.example", "X_Forwarded_Port": "123456"},
            {"Forwarded": '"'},
            {"Forwarded": ";;=,"},
            {"Forwarded": 'for="proto=https;host=evil.example"'},
        ],
    )
    async def test_invalid_forwarded_headers_are_ignored(self, headers: dict[str, Any]) -> None:
        async with serving(trust_forwarded=True) as server:
            assert await server.post(**headers) == 204

    @pytest.mark.parametrize("host", ["a:b:c", "u@example.com", "", "exa mple.com"])
    async def test_invalid_host_is_rejected_unless_forwarded(self, host: str) -> None:
        async with serving(trust_forwarded=True) as server:
            assert await server.post(signed=f"http://{host}/callbacks", Host=host) == 403
            assert await server.post(Host=host) == 403
            assert (
                await server.post(signed="http://example.com/callbacks", Host=host, X_Forwarded_Host="example.com")
                == 204
            )

    @pytest.mark.parametrize("trust_forwarded", [False, True])
    async def test_host_with_a_whole_url_is_rejected(self, trust_forwarded: bool) -> None:
        """A replayed signature cannot cover another request whose `Host` holds the signed URL."""
        async with serving(trust_forwarded=trust_forwarded) as server:
            overheard = f"{server.url}?" + urlencode(fields("stream-started"))
            forged = "?" + urlencode(fields("stream-stopped", "victim"))
            for name in ("Host", "X-Forwarded-Host"):
                headers = {
                    SIGNATURE_HEADER: form_signature(overheard, ()),
                    name: overheard.removeprefix("http://") + "#",
                }
                assert await server.send(None, forged, headers, "GET") == 403

        assert server.heard.empty()

    @pytest.mark.parametrize("target", ["http://{host}/callbacks?a=1", "/callbacks?a=1#&StreamSid=x"])
    async def test_absolute_target_and_fragment_are_accepted(self, target: str) -> None:
        """HTTP allows no fragment there, so it adds no fields."""
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            signature = form_signature(f"{server.url}?a=1", ())
            host = f"127.0.0.1:{server.port}"
            lines = (f"GET {target.format(host=host)} HTTP/1.1", f"Host: {host}", f"{SIGNATURE_HEADER}: {signature}")
            writer.write("\r\n".join((*lines, "", "")).encode())
            line = await reader.readline()
            writer.close()
            await writer.wait_closed()
            assert line == b"HTTP/1.1 204 No Content\r\n"
            event = await server.heard.get()

        assert (event.stream_sid, event.extra) == (None, {"a": "1"})

    @pytest.mark.parametrize("signed", ["", "#ot=2000&rt=5000&tt=9000"])
    async def test_timeouts_in_the_fragment_may_be_signed_or_not(self, signed: str) -> None:
        async with serving(public_url=f"{PUBLIC}#ot=2000&rt=5000&tt=9000") as server:
            assert await server.post(X_SignalWire_Signature=form_signature(PUBLIC + signed, STARTED)) == 204


class TestAllowedHosts:
    """Without `public_url`, the hosts that a request may name can be listed."""

    @pytest.mark.parametrize(
        ("allowed", "host", "status"),
        [
            (["example.com"], "example.com", 204),
            (["EXAMPLE.com"], "Example.COM", 204),
            (["example.com"], "example.com.", 204),
            (["example.com"], "example.com:8443", 204),
            (["example.com:8443"], "example.com:8443", 204),
            (["example.com:8443"], "example.com", 403),
            (["example.com:80"], "example.com", 204),
            (["example.com"], "evil.example", 403),
            (["example.com"], "example.com.evil.example", 403),
            (["example.com"], "evil-example.com", 403),
            (["example.com"], "a.example.com", 403),
            (["*.example.com"], "a.example.com", 204),
            (["*.example.com"], "b.a.example.com", 204),
            (["*.example.com"], "example.com", 403),
            (["*.example.com"], "evilexample.com", 403),
            (["*.example.com", "example.com"], "example.com", 204),
            (["*.example.com:8443"], "a.example.com:8443", 204),
            (["*.example.com:8443"], "a.example.com:9443", 403),
            (["[2001:DB8::1]"], "[2001:db8::1]:8443", 204),
            (("*",), "any.example", 204),
            (("*",), "example.com:٤٤٣", 403),
            (("*",), "example..com", 403),
        ],
    )
    async def test_only_allowed_hosts_are_accepted(self, allowed: Sequence[str], host: str, status: int) -> None:
        """Also with a right signature."""
        async with serving(allowed_hosts=allowed) as server:
            assert await server.post(signed=f"http://{host}/callbacks", Host=host) == status
            assert server.receiver.statistics.rejected == (status == 403)

    async def test_absolute_target_does_not_bypass_allowed_hosts(self) -> None:
        async with serving(allowed_hosts=["example.com"]) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            signature = form_signature("http://evil.example/callbacks?a=1", ())
            lines = ("GET http://evil.example/callbacks?a=1 HTTP/1.1", "Host: example.com")
            writer.write("\r\n".join((*lines, f"{SIGNATURE_HEADER}: {signature}", "", "")).encode())
            line = await reader.readline()
            writer.close()
            await writer.wait_closed()
        assert line == b"HTTP/1.1 403 Forbidden\r\n"

    async def test_relative_url_matches_no_host_pattern(self) -> None:
        pattern = HostPattern.parse("*")
        assert pattern is not None
        assert not pattern.matches("/callbacks")

    async def test_trusted_forwarded_host_must_be_allowed(self) -> None:
        async with serving(allowed_hosts=["example.com"], trust_forwarded=True) as server:
            for host, status in (("example.com", 204), ("evil.example", 403)):
                forwarded: dict[str, Any] = {"X_Forwarded_Host": host, "X_Forwarded_Proto": "https"}
                assert await server.post(signed=f"https://{host}/callbacks", **forwarded) == status

    @pytest.mark.parametrize("trust_forwarded", [False, True])
    async def test_missing_public_url_and_allowed_hosts_log_a_warning(
        self, trust_forwarded: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """When the receiver is created, in one line; with either setting there is none."""
        CallbackReceiver(ignore, keys=[KEY], trust_forwarded=trust_forwarded)
        [record] = caplog.records
        assert record.levelname == "WARNING"
        assert "public_url='https://host/path', or allowed_hosts=['host']" in record.getMessage()
        assert KEY not in caplog.text
        caplog.clear()
        CallbackReceiver(ignore, keys=[KEY], public_url=PUBLIC)
        CallbackReceiver(ignore, keys=[KEY], allowed_hosts=["example.com"])
        assert not caplog.records


async def test_authorization_header_counts_as_userinfo() -> None:
    """A callback URL with a password is signed with it, and the client sends it in a header."""
    async with serving() as server:
        signed = server.url.replace("http://", "http://u:p@")
        assert await server.post(signed=signed, Authorization="Basic dTpw") == 204


async def test_response_does_not_wait_for_the_handler() -> None:
    """In order per stream, and concurrently for different streams."""
    hold, order = asyncio.Event(), []

    async def handler(event: CallbackEvent) -> None:
        if event.stream_sid == "slow":
            await hold.wait()
        order.append((event.stream_sid, type(event)))

    async with serving(handler=handler) as server:
        for kind in ("started", "stopped"):
            for sid in ("slow", "quick"):
                assert await server.post(fields(f"stream-{kind}", sid)) == 204
        assert order == [("quick", StreamStarted), ("quick", StreamStopped)]
        hold.set()

    assert order[2:] == [("slow", StreamStarted), ("slow", StreamStopped)]


async def test_large_body_is_hashed_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another callback gets its response meanwhile; a small body is not worth a thread."""
    started, answered = asyncio.Event(), threading.Event()
    loop, threads = asyncio.get_running_loop(), []
    digest = hmac.digest

    def hashing(key: bytes, text: bytes, algorithm: str) -> bytes:
        if len(text) > 64 * 1024:
            threads.append(threading.current_thread())
            loop.call_soon_threadsafe(started.set)
            assert answered.wait(5)
        return digest(key, text, algorithm)

    monkeypatch.setattr(hmac, "digest", hashing)
    large = [*STARTED, ("padding", "x" * 64 * 1024)]
    async with serving(body_limit=1024 * 1024) as server:
        sending = asyncio.create_task(server.post(large))
        await started.wait()
        assert await server.post(fields("stream-stopped", "stream-2")) == 204
        answered.set()
        assert await sending == 204
    assert threading.main_thread() not in threads


async def test_repeated_and_late_callbacks_get_204() -> None:
    """And the handler does not get them."""
    async with serving() as server:
        for kind in ("error", "error", "started"):
            assert await server.post(fields(f"stream-{kind}", StreamError="")) == 204
        assert isinstance(await server.heard.get(), StreamFailed)

    counts = server.receiver.statistics
    assert (counts.received, counts.duplicates, counts.late, server.heard.qsize()) == (3, 1, 1, 0)


async def test_callback_beyond_max_pending_gets_503() -> None:
    """The next attempt is accepted."""
    hold = asyncio.Event()

    async def handler(_: CallbackEvent) -> None:
        await hold.wait()

    async with serving(handler=handler, max_pending=1) as server:
        assert await server.post() == 204
        assert await server.post(fields("stream-stopped")) == 503
        hold.set()
        await until(lambda: server.receiver.statistics.handled == 1)
        assert await server.post(fields("stream-stopped")) == 204

    assert server.receiver.statistics.overflowed == 1
    assert server.receiver.statistics.handled == 2


async def test_closed_receiver_responds_with_503() -> None:
    """Unless the signature is wrong."""
    async with serving() as server:
        await server.receiver.aclose()
        assert await server.post() == 503
        assert await server.post(X_SignalWire_Signature="x") == 403

    assert server.heard.empty()


async def test_unknown_events_are_delivered() -> None:
    async with serving() as server:
        assert await server.post([("Any", "thing")]) == 204
        assert isinstance(await server.heard.get(), UnknownCallback)


async def test_any_of_several_keys_is_accepted() -> None:
    """None of them is shown."""
    async with serving(keys=["PSK_new", KEY]) as server:
        assert await server.post() == 204

    assert KEY not in repr(server.receiver)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"keys": []}, r"keys=\['PSK_\.\.\.'\]"),
        ({"keys": [""]}, r"keys=\['PSK_\.\.\.'\]"),
        ({"keys": KEY}, r"keys=\[key\]"),
        ({"handler": None}, "async def handler"),
        ({"public_url": "example.com/callbacks"}, "https://host/path"),
        ({"public_url": "ftp://example.com/callbacks"}, "https://host/path"),
        ({"public_url": "https:///callbacks"}, "https://host/path"),
        ({"public_url": 5}, "https://host/path"),
        ({"public_url": f"{PUBLIC} "}, "https://host/path"),
        ({"public_url": f"{PUBLIC}?secret=1"}, "has a query: omit it"),
        ({"allowed_hosts": "example.com"}, r"write \['example.com'\]"),
        ({"allowed_hosts": []}, r"write \['example.com'\]"),
        ({"allowed_hosts": ["https://example.com"]}, r"write \['example.com'\]"),
        ({"allowed_hosts": ["example.com", 5]}, r"write \['example.com'\]"),
        ({"allowed_hosts": 5}, r"write \['example.com'\]"),
        *(({"public_url": f"https://{host}/callbacks"}, "https://host/path") for host in UNUSABLE_HOSTS),
        *(({"allowed_hosts": ["example.com", host]}, r"write \['example.com'\]") for host in UNUSABLE_HOSTS),
        *(
            ({"allowed_hosts": [host]}, r"write \['example.com'\]")
            for host in ("*.", "*..", ".example.com", "*:80", "")
        ),
        ({"allowed_hosts": ["example.com"], "public_url": PUBLIC}, "omit allowed_hosts or public_url"),
        ({"trust_forwarded": "yes"}, "True or False"),
        ({"body_limit": 0}, "body_limit"),
        ({"body_limit": 2_000_000}, "1048576"),
        ({"body_timeout": 0}, "body_timeout"),
        ({"max_pending": 0}, "max_pending"),
        ({"dedup_size": 0}, "dedup_size"),
        ({"shutdown_timeout": 0}, "shutdown_timeout"),
    ],
)
def test_wrong_setting_is_rejected_with_advice(wrong: dict[str, Any], hint: str) -> None:
    settings: dict[str, Any] = {"handler": ignore, "keys": [KEY]} | wrong
    with pytest.raises(InvalidRequestError, match=hint) as caught:
        CallbackReceiver(**settings)

    assert "secret" not in str(caught.value)
    assert KEY not in str(caught.value)
