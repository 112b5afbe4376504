"""`CallbackReceiver`: status callbacks as a request handler of aiohttp, or an ASGI application."""

import asyncio
import hashlib
import json
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeAlias, cast

from aiohttp import web
from attrs import define, evolve, field, frozen

from signalwire_streams._asgi import (
    Application,
    Receive,
    Scope,
    Send,
    body_of,
    headers_of,
    reject_upgrade,
    respond,
    target_of,
)
from signalwire_streams.callbacks._events import (
    FIELD_NAMES,
    CallbackEvent,
    CallStreamChanged,
    CallStreamState,
    StreamFailed,
    StreamStarted,
    UnknownCallback,
    parse_callback,
    parse_document,
)
from signalwire_streams.callbacks._signature import (
    MAX_BODY,
    SignedRequest,
    UnverifiableError,
    usable_keys,
)
from signalwire_streams.callbacks._urls import (
    Forwarded,
    Headers,
    HostPattern,
    is_public_url,
    parse_each,
    public_urls,
    request_url,
)
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import (
    Secret,
    check_awaitable,
    check_count,
    check_flag,
    check_seconds,
    mask_each,
    masks_secrets,
    redact_url,
)

CallbackHandler: TypeAlias = Callable[[CallbackEvent], Awaitable[object]]
"""The user's function: ``async def handler(event)``."""

_LOG = logging.getLogger("signalwire_streams.callbacks")
_CANCEL_TIMEOUT = 1.0  # seconds that a cancelled handler may take to end
_FORBIDDEN = 403
_RETRY_AFTER = "1"
_MAX_HASHED_HERE = 64 * 1024  # a larger body is hashed in a thread: it takes milliseconds for each key and URL
_MAX_PENDING_BYTES = 8 * 1024 * 1024  # of bodies; a parsed document may take twenty times the memory of its body


@define(eq=False)
class CallbackStatistics:
    """Counts of requests.

    Attributes:
        received: verified callbacks.
        rejected: requests that got a 403.
        overflowed: callbacks that got a 503, because too many were pending or the receiver was closing.
        duplicates: callbacks that had been received before, so the handler was not called.
        late: starts of streams that had ended, so the handler was not called.
        handled: callbacks for which the handler returned.
        failed: callbacks for which the handler raised.
        dropped: accepted callbacks that were cancelled when the receiver closed.
    """

    received: int = 0
    rejected: int = 0
    overflowed: int = 0
    duplicates: int = 0
    late: int = 0
    handled: int = 0
    failed: int = 0
    dropped: int = 0


class _Recent:
    """A bounded set that forgets its oldest member."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._members = OrderedDict[bytes, None]()  # whose oldest one is found in constant time, unlike a dict's

    def __contains__(self, member: bytes) -> bool:
        return member in self._members

    def add(self, member: bytes) -> None:
        self._members[member] = None
        if len(self._members) > self._size:
            self._members.popitem(last=False)


class Dispatcher:
    """Calls the handler: in order for the events of one stream, concurrently for different streams.

    Events that name no stream have no order. Only digests of events are remembered, since an event may be as large as
    a request.
    """

    def __init__(self, handler: CallbackHandler, *, max_pending: int, dedup_size: int, shutdown_timeout: float) -> None:
        self.statistics = CallbackStatistics()
        self.on_count: Callable[[str, CallbackEvent | None], object] | None = None  # set by telemetry
        self._handler = handler
        self._max_pending = max_pending
        self._shutdown_timeout = shutdown_timeout
        self._queues = dict[Hashable, deque[tuple[CallbackEvent, int]]]()
        self._tasks = dict[asyncio.Task[None], asyncio.Task[Any] | None]()  # of each queue, and of the handler's call
        self._pending = self._pending_bytes = 0
        self._closed = False
        self._seen, self._ended = _Recent(dedup_size), _Recent(dedup_size)

    def offer(self, event: CallbackEvent, raw: bytes) -> bool:
        """Accept an event, or return False if it should be sent again later; it was parsed from these raw bytes."""
        self.statistics.received += 1
        identity, stream = _identity(event, raw), _digest(event.stream_key)
        if identity in self._seen:
            self.count("duplicates", event)
            return True
        if _is_start(event) and stream in self._ended:
            self.count("late", event)
            return True
        is_full = self._pending >= self._max_pending or self._pending_bytes + len(raw) > _MAX_PENDING_BYTES
        if self._closed or is_full:
            self.count("overflowed", event)  # and not remembered, so that the next attempt is accepted
            return False
        self._seen.add(identity)
        # A rejected duplicate may have the sid of a stream that is running.
        if event.end_reason is not None and not event.is_duplicate and event.stream_key is not None:
            self._ended.add(stream)
        self._enqueue(event, len(raw))
        return True

    def count(self, outcome: str, event: CallbackEvent | None = None) -> None:
        """Count the outcome of a request, by the name of its count."""
        setattr(self.statistics, outcome, getattr(self.statistics, outcome) + 1)
        if self.on_count is not None:
            self.on_count(outcome, event)

    async def aclose(self) -> None:
        """Accept nothing more, wait up to `shutdown_timeout` for pending events, then cancel the rest."""
        self._closed = True
        current = asyncio.current_task()
        tasks = [task for task, handling in self._tasks.items() if current not in {task, handling}]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, timeout=self._shutdown_timeout)
        finally:  # even if closing is cancelled
            for task in tasks:
                task.cancel()
        _, left = await asyncio.wait(tasks, timeout=min(self._shutdown_timeout, _CANCEL_TIMEOUT))
        if left:
            _LOG.error("%d callback handlers are still running after being cancelled, and are abandoned", len(left))

    def _enqueue(self, event: CallbackEvent, size: int) -> None:
        key = object() if event.stream_key is None else event.stream_key
        self._pending += 1
        self._pending_bytes += size
        if key in self._queues:
            self._queues[key].append((event, size))
            return
        self._queues[key] = deque([(event, size)])
        task = asyncio.create_task(self._drain(key))
        self._tasks.setdefault(task, None)
        task.add_done_callback(self._tasks.pop)

    async def _drain(self, key: Hashable) -> None:
        queue, draining = self._queues[key], cast("asyncio.Task[None]", asyncio.current_task())
        try:
            while queue and not draining.cancelling():  # a handler may ignore that it was cancelled
                event, size = queue[0]
                await self._handle(event, draining)
                queue.popleft()
                self._pending -= 1
                self._pending_bytes -= size
        finally:
            del self._queues[key]
            self._pending -= len(queue)
            self._pending_bytes -= sum(size for _, size in queue)
            for event, _ in queue:
                self.count("dropped", event)

    async def _handle(self, event: CallbackEvent, draining: "asyncio.Task[None]") -> None:
        # In a task of its own, so that a handler that cancels its task ends nothing but itself.
        handling = asyncio.create_task(self._call(event))
        self._tasks[draining] = handling
        try:
            error = await handling
        except (KeyboardInterrupt, SystemExit):  # which have ended the event loop already
            raise asyncio.CancelledError from None
        except asyncio.CancelledError as cancelled:
            if draining.cancelling():
                raise
            error = cancelled
        if error is None:
            self.count("handled", event)
            return
        self.count("failed", event)
        kind = type(event).__name__
        _LOG.error(
            "the callback handler failed for %s of stream %r",
            kind,
            event.stream_key,
            exc_info=error,
            extra={"stream": event.stream_key},
        )

    async def _call(self, event: CallbackEvent) -> BaseException | None:
        try:
            await check_awaitable(self._handler(event), "async def handler(event)")
        except (KeyboardInterrupt, SystemExit, asyncio.CancelledError):
            raise
        except BaseException as error:  # noqa: BLE001  (whatever it is, the stream's next event is delivered)
            return error
        return None


def _identity(event: CallbackEvent, raw: bytes) -> bytes:
    """Return a key that all delivery attempts of one callback share, and that no other callback has.

    A stream starts once and stops once, so its sid is enough: the time may differ between attempts.
    """
    if event.stream_key is None or isinstance(event, UnknownCallback):
        return hashlib.sha256(raw).digest()
    if isinstance(event, StreamFailed):
        return _digest(StreamFailed, event.stream_key, event.error)
    return _digest(type(event), event.stream_key, event.state if isinstance(event, CallStreamChanged) else None)


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def _is_start(event: CallbackEvent) -> bool:
    if isinstance(event, CallStreamChanged):
        return event.state == CallStreamState.STREAMING
    return isinstance(event, StreamStarted)


class CallbackReceiver:
    """Receives status callbacks, verifies them, and passes them to an async function.

    ::

        async def on_callback(event: CallbackEvent) -> None:
            if isinstance(event, StreamFailed):
                print(event.stream_name, event.error)


        receiver = CallbackReceiver(on_callback, keys=["PSK_..."], public_url="https://example.com/callbacks")
        app.router.add_route("POST", "/callbacks", receiver.handle)  # "*", if callbacks come by GET as well

    The response is 204, and does not wait for the function: the platform waits 5 seconds and then sends the callback
    again, up to three times in all. The function gets the events of one stream one after the other, and those of
    different streams concurrently; its exceptions are logged. It gets each callback once, however often that is sent,
    and no ``stream-started`` after the stream's end.

    The response to a request that cannot be verified is a bare 403. The reason is in the log only: a body that is too
    large or too slow, not a form, no signature or a wrong one. While too many events are pending, and while the
    receiver closes, the response is 503, so that the platform tries again.

    Delivery is best effort: callbacks may arrive late, twice, out of order or not at all.

    The receiver limits size and time of a request's body. The head is left to the application's server, where
    aiohttp's default time limit is an hour: ``web.AppRunner(app, keepalive_timeout=10)`` closes a connection whose
    head takes longer.

    Use it with ``async with``, or close it with the application:
    ``app.on_cleanup.append(lambda app: receiver.aclose())``.

    Args:
        handler: async function of one event.
        keys: the project's Signing Keys; several during a rotation.
        public_url: the URL that the platform was given, without its query; or the part of it before the request's
            path, if a proxy removes a prefix. With it, a request's own host headers are ignored.
        allowed_hosts: instead of `public_url`, the hosts that requests may name: ``example.com`` (with any port),
            ``example.com:8443``, ``*.example.com``, or ``*`` for any. Without either of the two, the sender's
            ``Host`` header decides which URL its signature is checked for, so a callback that was signed for another
            server is accepted as well. A warning is logged then.
        trust_forwarded: whether to believe ``X-Forwarded-Proto``, ``-Host``, ``-Port`` and ``Forwarded``. Only behind
            a proxy that sets them itself and lets none through.
        body_limit: maximum size of a body in bytes.
        body_timeout: seconds that a body may take to arrive.
        max_pending: how many events may wait for the function or be in it; their bodies may take 8 MiB.
        dedup_size: how many callbacks, and how many ended streams, are remembered.
        shutdown_timeout: seconds that pending events get when the receiver closes.

    Raises:
        InvalidRequestError: an argument is invalid; the message says what to write instead.
    """

    @masks_secrets
    def __init__(
        self,
        handler: CallbackHandler,
        *,
        keys: Sequence[str],
        public_url: str | None = None,
        allowed_hosts: Iterable[str] | None = None,
        trust_forwarded: bool = False,
        body_limit: int = 64 * 1024,
        body_timeout: float = 5.0,
        max_pending: int = 1_000,
        dedup_size: int = 10_000,
        shutdown_timeout: float = 5.0,
    ) -> None:
        if not callable(handler):
            raise InvalidRequestError("handler must be an async function of one event: write async def handler(event)")
        self.keys = keys
        self.public_url: str | None = _check_public_url(public_url)
        self.allowed_hosts: tuple[HostPattern, ...] | None = None
        if allowed_hosts is not None:
            self.allowed_hosts = parse_each(allowed_hosts, HostPattern.parse)
            if not self.allowed_hosts:
                raise InvalidRequestError(
                    "allowed_hosts is not a list of hosts: write ['example.com'], ['example.com:8443'] or "
                    "['*.example.com']"
                )
            if self.public_url is not None:
                raise InvalidRequestError("public_url already names the host: omit allowed_hosts or public_url")
        self.trust_forwarded: bool = check_flag(trust_forwarded, "trust_forwarded")
        self.body_limit: int = check_count(body_limit, "body_limit")
        if body_limit > MAX_BODY:
            raise InvalidRequestError(f"body_limit {body_limit} is too large: write at most {MAX_BODY} bytes")
        self.body_timeout: float = check_seconds(body_timeout, "body_timeout")
        self._dispatcher = Dispatcher(
            handler,
            max_pending=check_count(max_pending, "max_pending"),
            dedup_size=check_count(dedup_size, "dedup_size"),
            shutdown_timeout=check_seconds(shutdown_timeout, "shutdown_timeout"),
        )
        if self.public_url is None and self.allowed_hosts is None:
            _LOG.warning(
                "this CallbackReceiver has no public_url, so the Host header of a request decides which URL its "
                "signature is checked for, and a callback signed for another server is accepted: pass "
                "public_url='https://host/path', or allowed_hosts=['host']"
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def keys(self) -> Sequence[str]:
        """The Signing Keys; assign others to rotate them."""
        return self._keys

    @keys.setter
    def keys(self, keys: Sequence[str]) -> None:
        keys = cast("Sequence[str]", mask_each(keys))  # also for a frame that raises
        usable = usable_keys(keys)
        if not usable:
            raise InvalidRequestError("keys is empty: write the project's Signing Key, as keys=['PSK_...']")
        self._keys = usable

    @property
    def statistics(self) -> CallbackStatistics:
        """Counts of requests so far."""
        return self._dispatcher.statistics

    async def aclose(self) -> None:
        """Reject requests with 503, wait `shutdown_timeout` for pending events, then cancel the rest. Repeatable."""
        await self._dispatcher.aclose()

    async def handle(self, request: web.Request) -> web.Response:
        """Handle a request: respond with 204, 403, or 503 to have it sent again."""
        incoming = _Incoming(request.method, request.scheme, request.host, request.raw_path, Headers(request.headers))
        status, headers = await self._respond(incoming, _pieces(request))
        return web.Response(status=status, headers=headers)

    @property
    def asgi(self) -> Application:
        """The receiver as an ASGI application: ``app.mount("/callbacks", receiver.asgi)``.

        Under a mount of FastAPI or Starlette, the callbacks' URL ends with a slash: ``https://…/callbacks/``. They
        redirect others, and it is not documented that the platform follows.

        Source: https://asgi.readthedocs.io/en/latest/specs/www.html
        """
        return Application(
            websocket=lambda scope, _, send: reject_upgrade(scope, send, _FORBIDDEN, {}),
            http=self._handle_asgi,
            aclose=self.aclose,
        )

    async def _handle_asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(headers_of(scope))
        incoming = _Incoming(
            scope["method"], scope.get("scheme", "http"), headers.get("Host", ""), target_of(scope), headers
        )
        await respond(send, *await self._respond(incoming, body_of(receive)))

    async def _respond(self, request: "_Incoming", pieces: AsyncIterator[bytes]) -> tuple[int, Mapping[str, str]]:
        """Return the status and the headers of the response."""
        urls = self._urls(request)
        try:
            body = await self._read(request, pieces)
            if not urls:
                raise UnverifiableError("it names no host, or one not in allowed_hosts")  # noqa: TRY301
            signed = SignedRequest(url=urls[0], headers=request.headers, body=body, method=request.method)
            if len(body) > _MAX_HASHED_HERE:
                await asyncio.to_thread(signed.check, self._keys, *urls)
            else:
                signed.check(self._keys, *urls)
            event = _parse(signed)
        except UnverifiableError as reason:
            self._dispatcher.count("rejected")
            shown = " or ".join(repr(redact_url(url)) for url in urls)
            _LOG.info("a callback to %s was rejected: %s", shown or "an unknown host", reason)
            return _FORBIDDEN, {}
        if self._dispatcher.offer(event, body or signed.query):
            return 204, {}
        return 503, {"Retry-After": _RETRY_AFTER}

    async def _read(self, request: "_Incoming", pieces: AsyncIterator[bytes]) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_timeout):
                if request.announced_size() <= self.body_limit:
                    async for piece in pieces:
                        body += piece
                        if len(body) > self.body_limit:
                            break
                    else:
                        return bytes(body)
        except TimeoutError:
            raise UnverifiableError("the body did not arrive in time") from None
        except (OSError, web.RequestPayloadError) as error:
            raise UnverifiableError(f"the body could not be read: {type(error).__name__}") from None
        raise UnverifiableError("the body is too large")

    def _urls(self, request: "_Incoming") -> tuple[str, ...]:
        """Return the URLs that may have been signed: the configured, else the forwarded, else the requested one."""
        if self.public_url is not None:
            return tuple(map(Secret, public_urls(self.public_url, request.target)))
        proxies = Forwarded.from_headers(request.headers) if self.trust_forwarded else None
        url = request_url(scheme=request.scheme, host=request.host, target=request.target, proxies=proxies)
        if url is None or not (self.allowed_hosts is None or any(host.matches(url) for host in self.allowed_hosts)):
            return ()
        return (Secret(url),)


@frozen
class _Incoming:
    """A request as it arrived, without its body."""

    method: str
    scheme: str
    host: str
    target: str = field(repr=False)
    headers: Headers = field(repr=False)

    def announced_size(self) -> int:
        text = self.headers.get("Content-Length", "")
        return int(text[:20]) if text.isascii() and text.isdigit() else 0


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    is_empty = True
    while piece := await request.content.readany():
        is_empty = False
        yield piece
    if is_empty:  # there is none, or a middleware has read it
        yield await request.read()


def _parse(request: SignedRequest) -> CallbackEvent:
    if request.method == "GET":
        return parse_callback(request.query_fields)
    fields = None if request.is_json else request.form
    if fields is not None:
        event = parse_callback(fields)
        # Those of the user's own URL, as by GET, but never in place of a field.
        own = {name: value for name, value in reversed(request.query_fields) if name not in FIELD_NAMES}
        return evolve(event, extra={**own, **event.extra}) if own else event
    try:
        document = json.loads(request.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UnverifiableError("it is signed, and neither a form nor a JSON object")
    return parse_document(document)


def _check_public_url(url: object) -> str | None:
    if url is None:
        return None
    if not isinstance(url, str) or not is_public_url(url):
        raise InvalidRequestError(
            "public_url is not an http(s) URL: pass the callback's URL, such as 'https://host/path'"
        )
    if "?" in url.partition("#")[0]:
        raise InvalidRequestError(
            f"public_url {redact_url(url)!r} has a query: omit it, since each request has its own"
        )
    return url
