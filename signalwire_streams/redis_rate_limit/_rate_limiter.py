"""`RedisRateLimiter`: one rate limit for any number of clients of a Space, shared through Redis."""

import asyncio
import re
from collections import deque
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

from signalwire_streams._http.session import LoopGuard
from signalwire_streams.clock import Clock
from signalwire_streams.errors import ClientStateError, InvalidRequestError
from signalwire_streams.middleware._policies import RateLimit
from signalwire_streams.middleware._rate_limit import PriorityQueue, logged_pause
from signalwire_streams.models import Priority
from signalwire_streams.models._validation import check_count, kind_of, masks_secrets
from signalwire_streams.redis_rate_limit._state import LEASE, NO_UPDATE, Fallback, LocalState, StateUpdate
from signalwire_streams.redis_rate_limit._store import LeaseReply, RateLimiterError, RedisUnavailableError, Store

_FRESH = 1.0
"""Seconds for which a read trusts the last known state; starts need no check, since every lease returns the state."""
_HOST = re.compile(r"[A-Za-z0-9.:\[\]_-]+")
_LATEST, _SOONEST = 10, 50
"""Fractions of a token's age to wait between two leases when tokens are short: other clients ask too."""
_MAX_DELAY = 0.5
_PROBE_EVERY = 0.25
_SLOW_LEASES = 5


class LeaseLoop:
    """Leases tokens for this client's waiting requests.

    Tokens are leased for requests that are already waiting, so they are used as they arrive. A token whose request was
    cancelled in the meantime goes to the next request, until it expires.
    """

    def __init__(self, *, store: Store, state: LocalState, fallback: Fallback, clock: Clock, space: str) -> None:
        self.queue = PriorityQueue(self.refund)
        self.space = space  # its host, or empty until it is known
        self._store = store
        self._state = state
        self._fallback = fallback
        self._clock = clock
        self._spare: deque[float] = deque()
        self._task: asyncio.Task[None] | None = None
        self._probe_task: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._recovered = asyncio.Event()
        self._slow_leases = 0
        self._closed = False

    async def wait(self, priority: Priority, timeout: float) -> float | None:  # noqa: ASYNC109  (acquire's)
        """Wait for a token. Return the time until which it may be used, or None on timeout."""
        turn = self.queue.add(priority)
        self.start()
        return await self.queue.wait(turn, timeout)

    def start(self) -> None:
        # The task itself must not reset this: an eager one may end before it is assigned.
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    def take_spare(self) -> bool:
        """Take a spare token, unless it has expired or other requests wait for it."""
        if self.queue or self._state.time_until_open(self._clock.now()):
            return False
        return self._spare_until() is not None and bool(self._spare.popleft())

    def refund(self, usable_until: float) -> None:
        self._spare.append(usable_until)

    async def refresh(self, timeout: float) -> None:  # noqa: ASYNC109  (others may wait for the same)
        """Read the shared state, once for all requests that need it."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._read())
        await asyncio.wait({self._refreshing}, timeout=max(0.0, timeout))
        if self._refreshing.done() and not self._refreshing.cancelled():
            self._refreshing.result()

    async def aclose(self) -> None:
        # Cancelling is not enough: redis-py may take a cancellation for a broken connection.
        self._closed = True
        for task in (self._task, self._probe_task, self._refreshing):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        self.queue.reject(ClientStateError("this rate limiter is closed: create a new RedisRateLimiter"))

    async def _run(self) -> None:
        try:
            while not self._closed and (self.queue or (self._state.has_update and not self._fallback.is_active)):
                delay = await self._step()
                if delay:
                    await self._clock.sleep(delay)
        except Exception as error:  # noqa: BLE001  (the waiting requests must fail with it, whatever it is)
            self.queue.reject(error)

    async def _step(self) -> float:
        """Serve the requests that can be served now. Return the seconds until the next step."""
        if self._fallback.blocks:
            await self._recovered.wait()
            return 0.0
        if self._fallback.is_active:
            return self._serve_alone()
        try:
            return await self._lease()
        except RedisUnavailableError as error:
            self._lose(str(error))
            return 0.0

    async def _lease(self) -> float:
        self._grant_spare()
        now = self._clock.now()
        age = self._state.quota.age
        priority, waiting = self.queue.head()
        closed = self._state.time_until_open(now)
        wanted, wait = (0, closed) if closed else self._fallback.allowance(min(waiting, LEASE), now)
        if not (wanted or self._state.has_update):
            return self._pause(wait) if waiting else 0.0
        rate = self._state.rate(now)
        reply = await self._exchange(priority, wanted, self._state.update)
        if not wanted:
            return 0.0
        if self._clock.now() > now + age:
            self._slow_leases += 1
            if self._slow_leases >= _SLOW_LEASES:
                self._lose("its responses arrive too late")
            return 0.0
        self._slow_leases = 0
        self._fallback.refund(wanted - reply.tokens)
        self._spare.extend([now + age] * reply.tokens)
        self._grant_spare()
        if reply.tokens == wanted:
            return 0.0
        wait_for_all, wait_for_one = ((count - reply.left) / rate for count in (wanted - reply.tokens, 1))
        delay = max(min(wait_for_all, age / _LATEST), 0.0 if reply.tokens else wait_for_one, age / _SOONEST)
        # Without jitter, the first of several clients that ask in step would get everything.
        return min(delay * (0.75 + self._clock.random() / 2), _MAX_DELAY)

    async def _read(self) -> None:
        try:
            await self._exchange()
        except RedisUnavailableError as error:
            self._lose(str(error))

    async def _exchange(
        self, priority: Priority = Priority.BULK, tokens: int = 0, update: StateUpdate = NO_UPDATE
    ) -> LeaseReply:
        now, quota = self._clock.now(), self._state.quota
        reply = await self._store.exchange(
            self.space,
            self._state.shared,
            rate=self._state.rate(now),
            burst=quota.burst,
            reserve=quota.reserve if priority is Priority.BULK else 0,
            tokens=tokens,
            update=update,
            now=now,
        )
        self._state.reported(update)
        self._state.receive(reply.state, reply.redis_now, self._clock.now())
        return reply

    def _grant_spare(self) -> None:
        if self._state.time_until_open(self._clock.now()):
            return
        while self.queue and (until := self._spare_until()) is not None and self.queue.grant(until):
            self._spare.popleft()

    def _spare_until(self) -> float | None:
        now = self._clock.now()
        while self._spare and self._spare[0] < now:
            self._spare.popleft()
        return self._spare[0] if self._spare else None

    def _serve_alone(self) -> float:
        now = self._clock.now()
        age = self._state.quota.age
        wait = self._state.time_until_open(now)
        while not wait and self.queue:
            wait = self._fallback.try_acquire(now)
            if not wait:
                self.queue.grant(now + age)
        return self._pause(wait)

    def _pause(self, seconds: float) -> float:
        """Bound a wait: the shortest ones would only burn a core, and during long ones the state may change."""
        return min(max(seconds, self._state.quota.age / _SOONEST), _MAX_DELAY)

    def _lose(self, why: str) -> None:
        """Begin the fallback, and probe until Redis is back."""
        self._slow_leases = 0
        self._fallback.begin(why, self._state, self._clock.now())
        self._recovered.clear()
        if not (self._closed or (self._probe_task is not None and not self._probe_task.done())):
            self._probe_task = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        # With an eager task factory, another outage may begin within `start`.
        while self._fallback.is_active and not self._closed:
            if await self._is_back() and not self._closed:
                self._fallback.end(self._clock.now())
                self._recovered.set()
                self.start()
            else:
                await self._clock.sleep(_PROBE_EVERY)

    async def _is_back(self) -> bool:
        asked_at = self._clock.now()
        try:
            await self._exchange()
        except RedisUnavailableError:
            return False
        except RateLimiterError:
            return True  # the next lease reports the error
        return self._clock.now() - asked_at <= self._state.quota.age


class RedisRateLimiter:
    """Shares a Space's rate limit with all clients on the same Redis: ``StreamsClient(rate_limiter=...)``.

    No 10-second window holds more requests of all clients together than their share of the limit, and a 429 that one
    of them receives slows all of them down. Only Redis' clock is used.

    Close it with `aclose`, or use it as ``async with``, which raises `RateLimiterError` at once if Redis can't be
    reached. Clients do not close it. Use one rate limiter per Space, process and event loop.

    Its methods raise `RateLimiterError` if Redis denies access, and `ClientStateError` if the rate limiter is closed,
    or belongs to another event loop or process.
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
        if space is not None:
            _check_host(space)
        if rate_limit is not None and not isinstance(rate_limit, RateLimit):
            raise InvalidRequestError(f"rate_limit must be a RateLimit, not {kind_of(rate_limit)}: RateLimit(13_800)")
        self._store = Store(url)
        self._has_fixed_space = space is not None
        self._clock = clock or Clock()
        self._state = LocalState(rate_limit or RateLimit())
        self._fallback = Fallback(self._store.address, fallback_clients)
        self._guard = LoopGuard("rate limiter", "RedisRateLimiter")
        self._leases = LeaseLoop(
            store=self._store, state=self._state, fallback=self._fallback, clock=self._clock, space=space or ""
        )

    def __repr__(self) -> str:
        return f"RedisRateLimiter({self._store.address!r}, space={self._leases.space or None!r})"

    async def __aenter__(self) -> Self:
        self._guard.enter()
        try:
            await self._store.ping()
        except BaseException as error:  # also a cancellation: there will be no `__aexit__`
            await self.aclose()
            if isinstance(error, RedisUnavailableError):
                raise RateLimiterError(f"can't reach the Redis at {self._store.address}: {error}") from None
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
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
        """Wait until one POST may be sent; see `RateLimiter.acquire`."""
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
        """Wait while the Space accepts no requests at all; see `RateLimiter.wait_until_allowed`."""
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


def _check_host(space: object) -> None:
    if not (isinstance(space, str) and _HOST.fullmatch(space)):
        raise InvalidRequestError("space must be the Space's host, such as 'example.signalwire.com'")
