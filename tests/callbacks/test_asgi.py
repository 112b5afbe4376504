"""`CallbackReceiver` as an ASGI application, mounted in FastAPI behind uvicorn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI

from signalwire_streams.callbacks import SIGNATURE_HEADER, CallbackEvent, CallbackReceiver, StreamStarted
from tests.guides.documents import run_code
from tests.uvicorn_server import running
from tests.waiting import until

from .signing import FORM, JSON_BODY, KEY, STARTED, form, form_signature, raw_signature

pytestmark = pytest.mark.usefixtures("idle_clock")


class Endpoint:
    def __init__(self, receiver: CallbackReceiver, session: aiohttp.ClientSession, url: str) -> None:
        self.receiver = receiver
        self.session = session
        self.url = url

    async def post(self, body: Any = None, *, query: str = "", **headers: str) -> int:
        signature = form_signature(self.url + query, STARTED)
        told = {SIGNATURE_HEADER: signature, "Content-Type": FORM, **headers}
        async with self.session.post(self.url + query, data=body or form(STARTED), headers=told) as response:
            return response.status


@asynccontextmanager
async def mounted(handler: Any, **settings: Any) -> AsyncIterator[Endpoint]:
    receiver, application = CallbackReceiver(handler, keys=[KEY], **settings), FastAPI()
    application.mount("/callbacks", receiver.asgi)
    async with running(application, "wsproto") as server, aiohttp.ClientSession() as session:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Endpoint(receiver, session, f"http://127.0.0.1:{port}/callbacks/")
        await receiver.aclose()


@pytest.mark.parametrize("query", ["", "?tenant=a%20b&x=1"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_signed_callback_is_delivered(query: str, chunked: bool) -> None:
    events: list[CallbackEvent] = []

    async def store(event: CallbackEvent) -> None:
        events.append(event)

    async def pieces() -> AsyncIterator[bytes]:
        for number in form(STARTED):
            yield bytes([number])

    async with mounted(store, allowed_hosts=["127.0.0.1"]) as endpoint:
        assert await endpoint.post(pieces() if chunked else None, query=query) == 204
        await until(lambda: events)
    assert isinstance(events[0], StreamStarted)


async def test_callback_that_cannot_be_verified_is_rejected() -> None:
    async def fail(_: CallbackEvent) -> None:
        raise AssertionError

    async with mounted(fail, allowed_hosts=["127.0.0.1"], body_limit=1000) as endpoint:
        assert await endpoint.post(**{SIGNATURE_HEADER: "wrong"}) == 403
        assert await endpoint.post(Host="elsewhere.example.com") == 403
        assert await endpoint.post(b"x" * 1001) == 403
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await endpoint.session.ws_connect(endpoint.url)
        assert caught.value.status == 403
        assert endpoint.receiver.statistics.rejected == 3


async def test_callback_is_rejected_while_too_many_wait() -> None:
    ready = asyncio.Event()

    async def wait(_: CallbackEvent) -> None:
        await ready.wait()

    async with mounted(wait, allowed_hosts=["127.0.0.1"], max_pending=1) as endpoint:
        assert await endpoint.post() == 204
        endpoint.receiver._dispatcher._seen = type(endpoint.receiver._dispatcher._seen)(10)
        assert await endpoint.post() == 503
        ready.set()


async def test_client_that_leaves_amid_its_body_is_rejected() -> None:
    async def fail(_: CallbackEvent) -> None:
        raise AssertionError

    arriving: asyncio.Queue[Any] = asyncio.Queue()
    arriving.put_nowait({"type": "http.request", "body": form(STARTED), "more_body": True})
    arriving.put_nowait({"type": "http.disconnect"})
    receiver = CallbackReceiver(fail, keys=[KEY], public_url="https://example.com/callbacks")
    signature = form_signature("https://example.com/callbacks", STARTED)
    headers = [(SIGNATURE_HEADER.lower().encode(), signature.encode()), (b"content-type", FORM.encode())]
    scope = {"type": "http", "method": "POST", "path": "/callbacks", "headers": headers}
    assert await response_of(receiver, scope, arriving) == response(403)


def response(status: int, *headers: tuple[bytes, bytes]) -> list[dict[str, Any]]:
    return [
        {"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", b"0")]},
        {"type": "http.response.body", "body": b""},
    ]


async def response_of(receiver: CallbackReceiver, scope: Any, arriving: "asyncio.Queue[Any]") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await receiver.asgi(scope, arriving.get, send)
    return sent


@pytest.mark.parametrize(
    ("scope", "url"),
    [
        ({"path": "/ä b"}, "http://x/%C3%A4%20b"),
        ({"path": "/ä", "raw_path": b"/%c3%a4", "query_string": b"a=%20", "scheme": "https"}, "https://x/%c3%a4?a=%20"),
        ({"path": "/", "raw_path": None, "query_string": b""}, "http://x/"),
    ],
)
async def test_server_may_omit_what_asgi_makes_optional(scope: dict[str, Any], url: str) -> None:
    """The signature is checked for the URL as it was requested."""
    events: list[CallbackEvent] = []

    async def store(event: CallbackEvent) -> None:
        events.append(event)

    arriving: asyncio.Queue[Any] = asyncio.Queue()
    body = form(STARTED)
    for message in ({"body": body[:9], "more_body": True}, {"more_body": True}, {"body": body[9:]}):
        arriving.put_nowait({"type": "http.request", **message})
    headers = {"Host": "x", SIGNATURE_HEADER: form_signature(url, STARTED), "Content-Type": FORM}
    lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    async with CallbackReceiver(store, keys=[KEY], allowed_hosts=["x"]) as receiver:
        signed = {"type": "http", "method": "POST", "headers": lines, **scope}
        assert await response_of(receiver, signed, arriving) == response(204)
        await until(lambda: events)


async def test_rejection_of_a_closed_receiver_says_when_to_try_again() -> None:
    async def fail(_: CallbackEvent) -> None:
        raise AssertionError

    arriving: asyncio.Queue[Any] = asyncio.Queue()
    arriving.put_nowait({"type": "http.request", "body": form(STARTED)})
    receiver = CallbackReceiver(fail, keys=[KEY], public_url="https://example.com/callbacks")
    await receiver.aclose()
    signature = form_signature("https://example.com/callbacks", STARTED)
    headers = [(SIGNATURE_HEADER.lower().encode(), signature.encode()), (b"content-type", FORM.encode())]
    scope = {"type": "http", "method": "POST", "path": "/callbacks", "headers": headers}
    assert await response_of(receiver, scope, arriving) == response(503, (b"retry-after", b"1"))


@pytest.mark.parametrize(
    ("body", "signature", "status"),
    [
        (form(STARTED), form_signature("https://example.com/callbacks", STARTED), 204),
        (JSON_BODY, raw_signature("https://example.com/callbacks", JSON_BODY), 204),
        (form(STARTED), form_signature("https://example.com/other", STARTED), 403),
        (form(STARTED)[:-1], form_signature("https://example.com/callbacks", STARTED), 403),
        (form(STARTED), form_signature("https://example.com/callbacks", STARTED, key="PSK_other"), 403),
        (form(STARTED), "", 403),
    ],
)
async def test_fastapi_dependency_of_the_guide_verifies_callbacks(
    body: bytes, signature: str, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBACK_URL", "https://example.com/callbacks")
    monkeypatch.setenv("SIGNALWIRE_SIGNING_KEY", KEY)
    scope = run_code("callbacks/fastapi_callbacks.py")
    headers = {SIGNATURE_HEADER: signature, "Content-Type": FORM if body.startswith(b"Acc") else "application/json"}
    async with running(scope["app"], "wsproto") as server, aiohttp.ClientSession() as session:
        port = server.servers[0].sockets[0].getsockname()[1]
        async with session.post(f"http://127.0.0.1:{port}/callbacks", data=body, headers=headers) as response:
            assert response.status == status
    name = "StreamStarted" if body.startswith(b"Acc") else "UnknownCallback"
    assert capsys.readouterr().out.partition(" ")[0] == (name if status == 204 else "")
