"""`RedisRateLimiter`: one rate limit for any number of clients of a Space, shared through Redis."""

import re
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from signalwire_streams._http.session import LoopGuard
from signalwire_streams.clock import Clock
from signalwire_streams.errors import ClientStateError, InvalidRequestError
from signalwire_streams.middleware._policies import RateLimit
from signalwire_streams.middleware._rate_limit import logged_pause
from signalwire_streams.models import Priority
from signalwire_streams.models._validation import check_count, masks_secrets
from signalwire_streams.redis_rate_limit._lease_loop import LeaseLoop
from signalwire_streams.redis_rate_limit._state import Fallback, LocalState
from signalwire_streams.redis_rate_limit._store import RateLimiterError, RedisUnavailableError, Store

_FRESH = 1.0
"""Seconds for which a read trusts the last known state; starts need no check, since every lease returns the state."""
_HOST = re.compile(r"[A-Za-z0-9.:\[\]_-]+")


class RedisRateLimiter:
    """Shares a Space's rate limit with all clients on the same Redis: ``StreamsClient(rate_limiter=...)``.

    No 10-second window holds more requests of all clients together than their share of the limit, and a 429 that one
    of them receives slows all of them down. Only Redis' clock is used.

    Close it with `aclose`, or use it as ``async with``, which also fails at once if Redis can't be used. Clients do not
    close it. Use one rate limiter per Space, process and event loop: its methods raise `ClientStateError` in others,
    and `RateLimiterError` if Redis refuses access.
    """

    @masks_secrets
    def __init__(
        self,
        url: str,
        *,
        space: str | None = None,
        rate_limit: RateLimit | None = None,
        fallback_clients: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Create a rate limiter; it connects to Redis on the first request.

        Args:
            url: URL of the Redis, such as ``redis://host:6379/0``, ``rediss://user:password@host`` (TLS) or
                ``unix:///path``, with redis-py's options, such as ``?socket_timeout=2``.
            space: host of the Space. By default, the host that the clients use; needed only if they reach one Space
                under several names.
            rate_limit: the Space's limit, and the share of it that all these clients use together. Use the same value
                everywhere.
            fallback_clients: what happens while Redis is unavailable. None: requests wait for it, as long as their
                deadlines allow. A number: each client continues with the limit divided by it, so it should be at least
                the number of clients.
            clock: source of time, sleep and randomness; for tests.

        Raises:
            InvalidRequestError: invalid argument; the message says how to fix it and contains no password.
        """
        if fallback_clients is not None:
            check_count(fallback_clients, "fallback_clients", least=1)
        if space is not None and not _HOST.fullmatch(space):
            raise InvalidRequestError("space must be the Space's host, such as 'example.signalwire.com'")
        self._store = Store(url)
        self._has_fixed_space = space is not None
        self._clock = clock or Clock()
        self._state = LocalState(rate_limit or RateLimit())
        self._fallback = Fallback(self._store.address, fallback_clients)
        self._guard = LoopGuard("rate limiter", "RedisRateLimiter")
        self._leases = LeaseLoop(store=self._store, state=self._state, fallback=self._fallback, clock=self._clock)
        self._leases.space = space or ""

    def __repr__(self) -> str:
        return f"RedisRateLimiter({self._store.address!r}, space={self._leases.space or None!r})"

    async def __aenter__(self) -> Self:
        """Check that Redis is available.

        Raises:
            RateLimiterError: Redis can't be reached, or denies access.
        """
        self._guard.enter()
        try:
            await self._store.ping()
        except BaseException as error:  # also a cancellation: there will be no `__aexit__`
            await self.aclose()
            if isinstance(error, RedisUnavailableError):
                raise RateLimiterError(f"can't reach the Redis at {self._store.address}: {error}") from None
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection to Redis. Requests that still wait raise `ClientStateError`. Safe to repeat."""
        if self._guard.leave():
            await self._leases.aclose()
            await self._store.aclose()

    @property
    def rate(self) -> float:
        """Requests per second that all clients together may send now, as far as this one knows."""
        return self._state.rate(self._clock.now())

    def bind(self, origin: str) -> None:
        """Set the Space; called by `StreamsClient`.

        Raises:
            InvalidRequestError: the rate limiter belongs to another Space.
        """
        if self._has_fixed_space:
            return
        host = urlsplit(origin).netloc or origin
        if self._leases.space not in {"", host}:
            raise InvalidRequestError(
                f"this rate limiter belongs to {self._leases.space}: create one RedisRateLimiter for each Space, or "
                f"pass space= if {host} is the same Space"
            )
        self._leases.space = host

    async def acquire(self, priority: Priority, timeout: float) -> float:  # noqa: ASYNC109  (RateLimiter's)
        """Wait until one POST may be sent; see `RateLimiter.acquire`.

        Raises:
            RateLimiterError: Redis denies access.
            ClientStateError: the rate limiter is closed, or belongs to another event loop or process.
        """
        self._check()
        if self._leases.take_spare():
            return 0.0
        now = self._clock.now()
        least = max(self._state.time_until_open(now), self._leases.queue.ahead(priority) / self._state.rate(now))
        if least >= timeout:
            # No time even for one round trip: there is a wait, but its length is unknown.
            return least or 1 / self._state.rate(now)
        usable_until = await self._leases.wait(priority, timeout)
        woken = self._clock.now()
        if usable_until is None or woken <= usable_until:
            return timeout if usable_until is None else 0.0
        # The process was suspended since the grant: everything granted before would now be sent at once.
        return await self.acquire(priority, timeout - (woken - now))

    async def wait_until_allowed(self, timeout: float) -> float:  # noqa: ASYNC109  (RateLimiter's)
        """Wait while the Space accepts no requests at all; see `RateLimiter.wait_until_allowed`.

        Raises:
            RateLimiterError: Redis denies access.
            ClientStateError: the rate limiter is closed, or belongs to another event loop or process.
        """
        while True:
            self._check()
            if self._clock.now() - self._state.received_at > _FRESH and not self._fallback.is_active:
                await self._leases.refresh(timeout)
            wait = self._state.time_until_open(self._clock.now())
            if not 0.0 < wait < timeout:
                return wait
            await self._clock.sleep(wait)
            timeout -= wait

    def on_throttled(self, sent_at: float, retry_after: float | None) -> None:
        """Record a 429 and report it to the other clients; see `RateLimiter.on_throttled`."""
        now = self._clock.now()
        with logged_pause(self._state.time_until_open, now):
            self._state.on_throttled(now, sent_at, retry_after)
            self._fallback.on_throttled(now, sent_at, retry_after)
        if self._state.has_update:
            # The request's own result must reach its caller, so nothing is raised here.
            with suppress(ClientStateError, InvalidRequestError):
                self._check()
                self._leases.start()

    def on_success(self) -> None:
        """Record that the Space served a request; see `RateLimiter.on_success`."""
        self._state.on_success()

    def _check(self) -> None:
        self._guard.enter()
        if not self._leases.space:
            raise InvalidRequestError(
                "this rate limiter does not know its Space: pass it to a StreamsClient, or pass space="
            )
