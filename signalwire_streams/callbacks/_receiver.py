"""The receiving end of status callbacks as a request handler of aiohttp."""

import asyncio
import json
import logging
import re
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeAlias

from aiohttp import web
from attrs import define, field

from signalwire_streams.callbacks._events import (
    CallbackEvent,
    CallStreamChanged,
    CallStreamState,
    StreamFailed,
    StreamStarted,
    StreamStopped,
    parse_callback,
    read_document,
)
from signalwire_streams.callbacks._request_parsing import (
    Address,
    HostPattern,
    configured_addresses,
    path_and_query,
    read_form,
    read_forwarded,
    read_query,
    seen_address,
)
from signalwire_streams.callbacks._signature import (
    MAX_BODY,
    SignedRequest,
    UnverifiableError,
    check_request,
    usable_keys,
)
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import check_count, check_flag, check_seconds, redact_url as shown_url

CallbackHandler: TypeAlias = Callable[[CallbackEvent], Awaitable[object]]
"""What a user writes: ``async def handler(event)``."""

_CANCEL_TIMEOUT = 1.0  # seconds for a handler to end after it was cancelled

_log = logging.getLogger("signalwire_streams.callbacks")


@define(eq=False)
class CallbackStatistics:
    """What became of the requests so far.

    Attributes:
        received: callbacks that were verified, whatever became of them then.
        refused: requests that were answered 403.
        overflowed: callbacks that were answered 503, since too many waited or the receiver was closing.
        duplicates: callbacks that had come before, and were not handed on.
        late: the start of a stream that had ended, not handed on.
        handled: callbacks for which the handler came to its end.
        failed: callbacks for which the handler raised.
        dropped: callbacks that were accepted, and cut when the receiver closed.
    """

    received: int = 0
    refused: int = 0
    overflowed: int = 0
    duplicates: int = 0
    late: int = 0
    handled: int = 0
    failed: int = 0
    dropped: int = 0


@define(eq=False)
class _Memory:
    """The latest so many things, which is how long a repeated callback is known for one."""

    _size: int
    _things: OrderedDict[Hashable, None] = field(init=False, factory=OrderedDict)

    def __contains__(self, thing: Hashable) -> bool:
        return thing in self._things

    def add(self, thing: Hashable) -> None:
        self._things[thing] = None
        if len(self._things) > self._size:
            self._things.popitem(last=False)


@define(eq=False)
class Dispatcher:
    """Hands events over to a handler.

    Each stream has a lane of its own, so that its events stay in order and no other stream's slow handler holds
    them up. Callbacks that name no stream have no order.

    Attributes:
        handler: what hears of the events.
        pending: how many events may wait or be in the handler at once.
        memory: how many events, and how many ended streams, are remembered.
        drain: seconds that what is under way gets when this closes.
        counts: what became of the events.
    """

    handler: CallbackHandler
    pending: int
    memory: int
    drain: float
    counts: CallbackStatistics = field(factory=CallbackStatistics)
    _lanes: dict[Hashable, deque[CallbackEvent]] = field(init=False, factory=dict)
    _tasks: dict[asyncio.Task[None], None] = field(init=False, factory=dict)
    _waiting: int = field(init=False, default=0)
    _closed: bool = field(init=False, default=False)
    _seen: _Memory = field(init=False)
    _ended: _Memory = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._seen = _Memory(self.memory)
        self._ended = _Memory(self.memory)

    def offer(self, event: CallbackEvent) -> bool:
        """Take an event in, or say that it should come again later."""
        self.counts.received += 1
        identity = _identity(event)
        if identity in self._seen:
            self.counts.duplicates += 1
            return True
        if _starts(event) and event.stream_key in self._ended:
            self.counts.late += 1
            return True
        if self._closed or self._waiting >= self.pending:
            # Not remembered: the next try of the same callback is to be taken.
            self.counts.overflowed += 1
            return False
        self._seen.add(identity)
        if _ends(event):
            self._ended.add(event.stream_key)
        self._put(event)
        return True

    async def aclose(self) -> None:
        """Take nothing more in, give the handler `drain` seconds for what waits, then cancel the rest."""
        self._closed = True
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, timeout=self.drain)
        finally:  # also when somebody does not want to wait for the drain
            for task in tasks:
                task.cancel()
        _, left = await asyncio.wait(tasks, timeout=min(self.drain, _CANCEL_TIMEOUT))
        if left:
            _log.error(
                "%d callback handlers are still running although they were cancelled, and are left behind", len(left)
            )

    def _put(self, event: CallbackEvent) -> None:
        key = object() if event.stream_key is None else event.stream_key
        self._waiting += 1
        if key in self._lanes:
            self._lanes[key].append(event)
            return
        self._lanes[key] = deque([event])
        task = asyncio.create_task(self._serve(key))
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def _serve(self, key: Hashable) -> None:
        lane = self._lanes[key]
        try:
            while lane:
                await self._deliver(lane[0])
                lane.popleft()
                self._waiting -= 1
        finally:
            del self._lanes[key]
            self._waiting -= len(lane)
            self.counts.dropped += len(lane)

    async def _deliver(self, event: CallbackEvent) -> None:
        task = asyncio.current_task()
        try:
            await self.handler(event)
        except asyncio.CancelledError as error:
            if task is None or task.cancelling():
                raise
            self._failed(event, error)  # something that the handler waited for was cancelled, and not this
        except Exception as error:  # noqa: BLE001  (a handler may raise anything; the next event is to be served)
            self._failed(event, error)
        else:
            self.counts.handled += 1

    def _failed(self, event: CallbackEvent, error: BaseException) -> None:
        self.counts.failed += 1
        kind = type(event).__name__
        _log.error("the callback handler failed for %s of stream %r", kind, event.stream_key, exc_info=error)


def _identity(event: CallbackEvent) -> Hashable:
    """Give what is the same in each try of one callback, and differs between two callbacks.

    A stream starts once and stops once, so that its id says enough: a time may be another one in each try.
    """
    if event.stream_sid and isinstance(event, StreamStarted | StreamStopped):
        return type(event), event.stream_sid
    if event.stream_sid and isinstance(event, StreamFailed):
        return type(event), event.stream_sid, event.error
    if event.stream_key is not None and isinstance(event, CallStreamChanged):
        return type(event), event.stream_key, event.state
    return event


def _starts(event: CallbackEvent) -> bool:
    if isinstance(event, CallStreamChanged):
        return event.state == CallStreamState.STREAMING
    return isinstance(event, StreamStarted)


def _ends(event: CallbackEvent) -> bool:
    """Tell whether an event means that the stream of this id is over.

    A refused duplicate may carry the id of the stream that goes on.
    """
    return event.end_reason is not None and not event.is_duplicate and event.stream_key is not None


_FORM = "application/x-www-form-urlencoded"
_RETRY_AFTER = "1"


def _keys(keys: Sequence[str]) -> Sequence[str]:
    if not usable_keys(keys):
        raise InvalidRequestError("keys holds no key: write the project's Signing Key, as keys=['PSK_...']")
    return tuple(keys)


def _public_url(url: str | None) -> str | None:
    if url is None:
        return None
    address = _split(url)
    if address is None or not address.host or not address.standard_port or re.search(r"[\s\x00-\x1f]", url):
        raise InvalidRequestError("public_url is no http(s) address: write the callback's, as 'https://host/path'")
    if address.query:
        raise InvalidRequestError(
            f"public_url {shown_url(url)!r} has a query: leave it out, since each request brings its own"
        )
    return url


def _allowed_hosts(hosts: Iterable[str] | None) -> tuple[HostPattern, ...] | None:
    given: object = hosts  # a caller without a type checker may pass anything
    if given is None:
        return None
    listed = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else ()
    patterns = [HostPattern.of(host) for host in listed if isinstance(host, str)]
    allowed = tuple(pattern for pattern in patterns if pattern is not None)
    if not allowed or len(allowed) < len(listed):
        raise InvalidRequestError(
            "allowed_hosts is not a list of hosts: write ['example.com'], ['example.com:8443'] or ['*.example.com']"
        )
    return allowed


def _split(url: object) -> Address | None:
    return Address.split(url) if isinstance(url, str) else None


def _body_limit(limit: int) -> int:
    if check_count(limit, "body_limit") > MAX_BODY:
        raise InvalidRequestError(f"body_limit {limit} is too much: write {MAX_BODY} bytes at most")
    return limit


@define(eq=False)
class CallbackReceiver:
    """Takes status callbacks in, verifies them, and hands them to an async function.

    ::

        async def on_callback(event: CallbackEvent) -> None:
            if isinstance(event, StreamFailed):
                print(event.stream_name, event.error)


        receiver = CallbackReceiver(on_callback, keys=["PSK_..."], public_url="https://example.com/callbacks")
        app.router.add_route("POST", "/callbacks", receiver.handle)  # "*", where callbacks come by GET as well

    The answer is 204, and does not wait for the function: the platform waits 5 seconds and then sends the callback
    again, three times in all. The function gets the events of one stream one after the other, and those
    of different streams at the same time; what it raises is logged. Each callback is handed over once, however
    often it comes, and a ``stream-started`` that comes after the stream's end is not.

    What can't be verified is answered with a bare 403 whatever the reason, which is in the log only: too large or
    too slow a body, no form, no signature or a wrong one. When too many events wait, and while this closes, the
    answer is 503, so that the platform tries again.

    Delivery is best effort: callbacks come late, twice, in another order or not at all.

    It limits the body of a request, and leaves its head to the application's server, where aiohttp's own limit is an
    hour: ``web.AppRunner(app, keepalive_timeout=10)`` closes a connection when the head takes longer.

    Use it with ``async with``, or call `aclose` when the application ends::

        async def close(app: web.Application) -> None:
            await receiver.aclose()


        app.on_cleanup.append(close)

    Attributes:
        handler: the async function of one event.
        keys: the project's Signing Keys; several while one replaces another.
        public_url: the address that the platform was given, without its query; or as much of it as stands before
            the request's path, where a proxy takes a part off. Where it is set, nothing that a request says about
            its host counts.
        allowed_hosts: instead of `public_url`, the hosts that a request may name as its own, as ``example.com`` (with
            any port), ``example.com:8443`` or ``*.example.com``; ``*`` allows each. Without either of the two, the
            sender's ``Host`` header decides which address its signature is checked for, so a callback that was signed
            for another server is accepted as well. That is logged as a warning.
        trust_forwarded: whether to believe ``X-Forwarded-Proto``, ``-Host``, ``-Port`` and ``Forwarded``. Only behind
            a proxy that sets them itself and lets none through.
        body_limit: the longest body in bytes.
        body_timeout: seconds that a body may take to come.
        max_pending: how many events may wait for the function, those in it included.
        dedup_size: how many callbacks, and how many ended streams, are remembered.
        shutdown_timeout: seconds that waiting events get when this closes.

    Raises:
        InvalidRequestError: something can't be right; the message says what to write instead.
    """

    handler: CallbackHandler
    keys: Sequence[str] = field(kw_only=True, converter=_keys, repr=False)
    public_url: str | None = field(
        kw_only=True, default=None, converter=_public_url, repr=lambda url: repr(url and shown_url(url))
    )
    allowed_hosts: tuple[HostPattern, ...] | None = field(kw_only=True, default=None, converter=_allowed_hosts)
    trust_forwarded: bool = field(kw_only=True, default=False)
    body_limit: int = field(kw_only=True, default=64 * 1024, converter=_body_limit)
    body_timeout: float = field(kw_only=True, default=5.0)
    max_pending: int = field(kw_only=True, default=1_000)
    dedup_size: int = field(kw_only=True, default=10_000)
    shutdown_timeout: float = field(kw_only=True, default=5.0)
    _dispatcher: Dispatcher = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if not callable(self.handler):
            raise InvalidRequestError("handler must be an async function of one event: write async def handler(event)")
        check_flag(self.trust_forwarded, "trust_forwarded")
        self._dispatcher = Dispatcher(
            handler=self.handler,
            pending=check_count(self.max_pending, "max_pending"),
            memory=check_count(self.dedup_size, "dedup_size"),
            drain=check_seconds(self.shutdown_timeout, "shutdown_timeout"),
        )
        check_seconds(self.body_timeout, "body_timeout")
        if self.public_url is not None and self.allowed_hosts is not None:
            raise InvalidRequestError("public_url names the host already: leave out allowed_hosts, or public_url")
        if self.public_url is None and self.allowed_hosts is None:
            _log.warning(
                "this CallbackReceiver has no public_url, so the Host header of a request decides which URL its "
                "signature is checked for, and a callback signed for another server is accepted: pass "
                "public_url='https://host/path', or allowed_hosts=['host']"
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def statistics(self) -> CallbackStatistics:
        """What became of the requests so far."""
        return self._dispatcher.counts

    async def aclose(self) -> None:
        """Answer 503 from now on, give waiting events `shutdown_timeout` seconds, then cancel the rest. Safe to repeat."""
        await self._dispatcher.aclose()

    async def handle(self, request: web.Request) -> web.Response:
        """Answer a request: 204, 403, or 503 to have it sent again."""
        addresses = self._addresses(request)
        try:
            event = _verified(request, await self._body(request), addresses, self.keys)
        except UnverifiableError as refusal:
            self.statistics.refused += 1
            _log.info("a callback to %s was refused: %s", " or ".join(map(_shown, addresses)) or "nobody", refusal)
            return web.Response(status=403)
        if self._dispatcher.offer(event):
            return web.Response(status=204)
        return web.Response(status=503, headers={"Retry-After": _RETRY_AFTER})

    async def _body(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self.body_timeout):
                return await self._read(request)
        except TimeoutError:
            raise UnverifiableError("the body did not come in time") from None
        except (OSError, web.RequestPayloadError) as error:
            raise UnverifiableError(f"the body could not be read: {type(error).__name__}") from None

    async def _read(self, request: web.Request) -> bytes:
        self._check_length(request.content_length or 0)
        body = bytearray()
        while piece := await request.content.readany():
            body += piece
            self._check_length(len(body))
        if not body:  # there is none, or a middleware has read it and it is kept
            body += await request.read()
            self._check_length(len(body))
        return bytes(body)

    def _check_length(self, length: int) -> None:
        if length > self.body_limit:
            raise UnverifiableError("the body is too large")

    def _addresses(self, request: web.Request) -> tuple[str, ...]:
        """Give the addresses that the platform may have signed: what is configured, else forwarded, else seen."""
        if self.public_url is not None:
            return configured_addresses(self.public_url, request.raw_path)
        proxies = read_forwarded(request.headers) if self.trust_forwarded else None
        seen = seen_address(scheme=request.scheme, host=request.host, target=request.raw_path, proxies=proxies)
        if seen is None or not (self.allowed_hosts is None or any(host.matches(seen) for host in self.allowed_hosts)):
            return ()
        return (seen,)


def _verified(request: web.Request, body: bytes, addresses: Sequence[str], keys: Sequence[str]) -> CallbackEvent:
    """Return the event of a request that was signed for one of these addresses."""
    if not addresses:
        raise UnverifiableError("it names no host, or one that is not in allowed_hosts")
    secrets = usable_keys(keys)
    refusals: list[UnverifiableError] = []
    for address in addresses:  # all, so that the time taken does not tell which of them fits
        signed = SignedRequest(url=address, headers=request.headers, body=body, method=request.method)
        try:
            check_request(signed, secrets)
        except UnverifiableError as refusal:
            refusals.append(refusal)
    if len(refusals) == len(addresses):
        raise refusals[0]
    if request.method == "GET":
        return parse_callback(read_query(path_and_query(request.raw_path).partition("?")[2]))
    fields = read_form(body)
    if request.content_type == _FORM and fields is not None:
        return parse_callback(fields)
    document = _read_json(body)
    if not isinstance(document, dict):
        raise UnverifiableError("it is signed, and neither a form nor a JSON object")
    return read_document(document)


def _read_json(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _shown(address: str) -> str:
    return repr(shown_url(address))
