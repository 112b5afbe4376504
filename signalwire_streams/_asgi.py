"""ASGI messages, which need no further package.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import quote

from multidict import CIMultiDict

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Serve: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_DENIAL = "websocket.http.response"


def headers_of(scope: Scope) -> CIMultiDict[str]:
    return CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])


def target_of(scope: Scope) -> str:
    """Return the path and the query as requested."""
    path = (scope.get("raw_path") or quote(scope["path"]).encode("ascii")).decode("latin-1")
    query = (scope.get("query_string") or b"").decode("latin-1")
    return f"{path}?{query}" if query else path


async def body_of(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the pieces of a request's body.

    Raises:
        ConnectionError: the client has disconnected.
    """
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError("the connection broke")
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def reject_upgrade(scope: Scope, send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Reject a WebSocket upgrade with an HTTP status, or with 403 if the server supports no other."""
    if _DENIAL in (scope.get("extensions") or {}):
        await respond(send, status, headers, prefix=_DENIAL)
    else:
        await send({"type": "websocket.close"})


async def respond(
    send: Send,
    status: int,
    headers: Mapping[str, str] | None = None,
    *,
    body: bytes = b"",
    prefix: str = "http.response",
) -> None:
    """Send a response; the server leaves the body out for HEAD."""
    lines = [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in (headers or {}).items()]
    length = (b"content-length", b"%d" % len(body))
    await send({"type": f"{prefix}.start", "status": status, "headers": [*lines, length]})
    await send({"type": f"{prefix}.body", "body": body})


class Application:
    """An ASGI application. It is an object because uvicorn does not accept a bound method.

    When it runs without a framework, the server's shutdown closes it.
    """

    def __init__(self, *, websocket: Serve, http: Serve, aclose: Callable[[], Awaitable[None]]) -> None:
        self._serve = {"websocket": websocket, "http": http}
        self._aclose = aclose

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._serve[scope["type"]](scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._aclose()
        await send({"type": "lifespan.shutdown.complete"})
