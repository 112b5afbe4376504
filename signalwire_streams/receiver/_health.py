"""The health endpoints of a process: on a port of their own, or in an ASGI application."""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from signalwire_streams._asgi import Scope, Send, respond

_HEADERS = {"Cache-Control": "no-store", "Content-Type": "text/plain; charset=utf-8"}


def _health_of(path: str, method: str, *, is_ready: bool) -> tuple[int, str, Mapping[str, str]] | None:
    """Return status, text and headers of the response to a probe, or None if the request is for something else."""
    if path not in {"/healthz", "/readyz"}:
        return None
    if method not in {"GET", "HEAD"}:
        return 405, "", {"Allow": "GET, HEAD"}
    return (503, "draining\n", _HEADERS) if path == "/readyz" and not is_ready else (200, "ok\n", _HEADERS)


@asynccontextmanager
async def serve_health(
    is_ready: Callable[[], bool], *, host: str, port: int, reuse_port: bool = False
) -> AsyncIterator[str]:
    """Serve ``/healthz``, which is 200 as long as the event loop runs, and ``/readyz``, 503 when nothing new is taken.

    Yields:
        The address, without a path.

    Raises:
        OSError: the host is unknown, or the port is taken; its ``filename`` is the address.
    """

    async def probe(request: web.BaseRequest) -> web.Response:
        status, text, headers = _health_of(request.path, request.method, is_ready=is_ready()) or (404, "", {})
        return web.Response(status=status, body=text.encode(), headers=headers)

    # A body that does not arrive must not delay the end of the process.
    server = web.Server(probe, access_log=None, keepalive_timeout=10, lingering_time=0)
    runner = web.ServerRunner(server)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, reuse_port=reuse_port or None).start()
        except OSError as error:  # which names the address in one case and not in the other
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise OSError(error.errno, reason, f"{host} port {port}") from None
        bound = runner.addresses[0][1]
        yield f"http://{f'[{host}]' if ':' in host else host}:{bound}"
    finally:
        await runner.cleanup()


async def respond_to_probe(scope: Scope, send: Send, *, is_ready: bool) -> None:
    """Respond to an HTTP request of an ASGI application, wherever that is mounted: to any but a probe with 400."""
    path = "/" + scope["path"].rstrip("/").rpartition("/")[2]  # Litestar adds a slash
    status, text, headers = _health_of(path, scope["method"], is_ready=is_ready) or (400, "", {})
    await respond(send, status, headers, body=text.encode())
