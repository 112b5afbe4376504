"""The health endpoints of a process, on a port of their own."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

_NO_CACHE = {"Cache-Control": "no-store"}


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

    async def respond(request: web.BaseRequest) -> web.Response:
        if request.path not in {"/healthz", "/readyz"}:
            return web.Response(status=404)
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        if request.path == "/readyz" and not is_ready():
            return web.Response(status=503, text="draining\n", headers=_NO_CACHE)
        return web.Response(text="ok\n", headers=_NO_CACHE)

    runner = web.ServerRunner(web.Server(respond, access_log=None, keepalive_timeout=10))
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
