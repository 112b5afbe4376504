"""`RedisRateLimiter`: the pacer of any number of clients on one Space, which share its limit through Redis."""

import asyncio
import re
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from signalwire_streams.clock import Clock, LoopGuard
from signalwire_streams.errors import ClientStateError, InvalidRequestError
from signalwire_streams.middleware._policies import RateLimit
from signalwire_streams.middleware._queueing import was_granted
from signalwire_streams.middleware._rate_limit import log_pause
from signalwire_streams.models import Priority
from signalwire_streams.models._validation import check_count
from signalwire_streams.redis_rate_limit._lease_loop import Pump
from signalwire_streams.redis_rate_limit._state import Outage, View
from signalwire_streams.redis_rate_limit._store import RateLimiterError, RedisAwayError, Store

_FRESH = 1.0
"""Seconds for which what Redis told of the gate is believed; only reads ask again, since leases tell it anyway."""
_HOST = re.compile(r"[A-Za-z0-9.:\[\]_-]+")


class RedisRateLimiter:
    """Shares a Space's limit with all other clients that use the same Redis: ``StreamsClient(rate_limiter=RedisRateLimiter(url))``.

    No 10 seconds hold more requests of all clients together than their share of the limit, however many clients there
    are, and a 429 that one of them gets slows all of them down. Only Redis' clock is used.

    Close it with `aclose`, or use it as ``async with``, which also tells at once where Redis can't be used; a client
    that it is passed to does not close it. One pacer serves one Space, from one event loop.
    """

    def __init__(
        self,
        url: str,
        *,
        space: str | None = None,
        rate_limit: RateLimit | None = None,
        fallback_clients: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Prepare a pacer; Redis is not asked before the first request.

        Args:
            url: where Redis is, as in ``redis://host:6379/0``, ``rediss://user:password@host`` (TLS) or
                ``unix:///path``; redis-py's options may follow, as in ``?socket_timeout=2``.
            space: whose limit it is: the Space's host. Left out, it is the host of the clients that use the pacer; to
                be said where they reach one Space under several names.
            rate_limit: the Space's limit and the part of it that all these clients take together. All should be given
                the same.
            fallback_clients: what happens while Redis is away. None: requests wait for it, as long as their deadlines
                allow. A number: each client goes on by itself with the limit divided by that number, so it should
                be at least the number of clients.
            clock: where time, waiting and chance come from; for tests.

        Raises:
            InvalidRequestError: something can't be right; the message says what to write, and no password.
        """
        if fallback_clients is not None:
            check_count(fallback_clients, "fallback_clients", least=1)
        if space is not None and not _HOST.fullmatch(space):
            raise InvalidRequestError("space must be the Space's host, such as 'example.signalwire.com'")
        self._store = Store(url)
        self._space = space
        self._said = space is not None
        self._clock = clock or Clock()
        self._view = View(rate_limit or RateLimit())
        self._outage = Outage(self._store.address, fallback_clients)
        self._home = LoopGuard("pacer", "RedisRateLimiter")
        self._pump = Pump(self._store, self._view, self._outage, self._clock)
        self._looking: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"RedisRateLimiter({self._store.address!r}, space={self._space!r})"

    async def __aenter__(self) -> Self:
        """Make sure that Redis is there and can be used.

        Raises:
            RateLimiterError: it is not, or can't.
        """
        self._home.enter()
        try:
            await self._store.look(self._space or "")
        except RedisAwayError as error:
            await self.aclose()
            wrong = RateLimiterError(f"can't reach the Redis at {self._store.address}: {error}")
        except RateLimiterError:
            await self.aclose()
            raise
        else:
            return self
        raise wrong

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection to Redis. Requests that still wait end in `ClientStateError`; it can be repeated."""
        if not self._home.leave():
            return
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        await self._pump.aclose()
        await self._store.aclose()

    @property
    def rate(self) -> float:
        """Requests per second that all clients together may make now, as far as this one knows."""
        return self._view.rate(self._clock.now())

    def bind(self, origin: str) -> None:
        """Hear which Space a client is made for; `StreamsClient` calls it.

        Raises:
            InvalidRequestError: the pacer belongs to another Space.
        """
        if self._said:
            return
        host = urlsplit(origin).netloc or origin
        if self._space not in {None, host}:
            raise InvalidRequestError(
                f"this pacer is that of {self._space}: make one RedisRateLimiter for each Space, or say space= where "
                f"{host} is the same Space"
            )
        self._space = host

    async def acquire(self, priority: Priority, timeout: float) -> float:
        """Wait until one POST may go out; see `RateLimiter.acquire`.

        Raises:
            RateLimiterError: Redis refuses to be used.
            ClientStateError: the pacer is closed, or belongs to another event loop or process.
        """
        space = self._check()
        if self._pump.take_spare():
            return 0.0
        now = self._clock.now()
        least = max(self._view.gate_wait(now), self._pump.queue.ahead(priority) / self._view.rate(now))
        if least >= timeout:
            # Without patience for even one round trip there is a wait, though nobody knows how long.
            return least or 1 / self._view.rate(now)
        turn = self._pump.wait(space, priority)
        try:
            async with asyncio.timeout(timeout):
                await turn
        except TimeoutError:
            if not was_granted(turn):
                return timeout
        except asyncio.CancelledError:
            if was_granted(turn) and turn.exception() is None:
                self._pump.give_back(turn.result())
            raise
        finally:
            self._pump.queue.remove(turn)
        woken = self._clock.now()
        if woken <= turn.result():
            return 0.0
        # The process stood still since the grant: what it held would go out in one bunch, in a window of others.
        return await self.acquire(priority, timeout - (woken - now))

    async def wait_until_allowed(self, timeout: float) -> float:
        """Wait while the Space takes no requests at all; see `RateLimiter.wait_until_allowed`.

        Raises:
            RateLimiterError: Redis refuses to be used.
            ClientStateError: the pacer is closed, or belongs to another event loop or process.
        """
        space = self._check()
        if self._clock.now() - self._view.heard_at > _FRESH and not self._outage.lasts:
            await self._look(space, timeout)
        wait = self._view.gate_wait(self._clock.now())
        if not wait:
            return 0.0
        if wait >= timeout:
            return wait
        await self._clock.sleep(wait)
        return await self.wait_until_allowed(timeout - wait)

    def on_throttled(self, sent_at: float, retry_after: float | None) -> None:
        """Hear that the Space refused a request, and tell all others; see `RateLimiter.throttled`."""
        now = self._clock.now()
        was_open = not self._view.gate_wait(now)
        self._view.throttled(now, sent_at, retry_after)
        self._outage.throttled(now, sent_at, retry_after)
        pause = self._view.gate_wait(now)
        if was_open and pause:
            log_pause(pause)
        self._tell()

    def on_success(self) -> None:
        """Hear that the Space took a request; see `RateLimiter.on_success`."""
        self._view.served(None)
        if self._view.has_news:
            self._tell()

    def _tell(self) -> None:
        # What became of a request must reach its caller, so nothing is raised here.
        with suppress(ClientStateError, InvalidRequestError):
            self._pump.start(self._check())

    async def _look(self, space: str, patience: float) -> None:
        """Ask for the state, once for all who want to know it; nobody waits longer than they would."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._pump.look(space))
        await asyncio.wait({self._looking}, timeout=max(0.0, patience))
        if self._looking.done() and not self._looking.cancelled():
            self._looking.result()

    def _check(self) -> str:
        self._home.enter()
        if self._space is None:
            raise InvalidRequestError(
                "this pacer was not told whose limit it is: pass it to a StreamsClient, or say space="
            )
        return self._space
