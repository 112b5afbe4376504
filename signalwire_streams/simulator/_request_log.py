"""What the Space received, in the order of arrival, and waiting for it."""

import asyncio
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, overload

from attrs import define, field, frozen

HIDDEN: Final = "***"

_ADDRESSES: Final = frozenset({"Url", "StatusCallback", "AnnounceUrl"})
_PLAIN: Final = frozenset(
    {"Name", "Track", "StatusCallbackMethod", "StreamCodec", "StreamRealTime", "Status", "AnnounceMethod"}
)
_PARAMETER_NAME: Final = re.compile(r"Parameter[0-9]+\.Name")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def shown_address(url: str) -> str:
    """Give an address without user, password, query and fragment.

    All up to the last ``@`` is taken for user and password, since one that was not encoded can hold anything.
    """
    before, _, rest = url.rpartition("@")
    scheme = _SCHEME.match(before)
    return (scheme[0] if scheme else "") + re.split(r"[?#]", rest, maxsplit=1)[0]


def shown_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """Give a body's fields: the values of those that hold no secret, addresses as `shown_address`, no others.

    A name that is not known may be a misspelled one of the others, so its value is not shown.
    """
    return {name: _shown(name, value) for name, value in fields.items()}


def shown_names(parameters: Mapping[str, str]) -> dict[str, str]:
    """Give custom parameters' names."""
    return dict.fromkeys(parameters, HIDDEN)


def _shown(name: str, value: str) -> str:
    if name in _ADDRESSES:
        return shown_address(value)
    return value if name in _PLAIN or _PARAMETER_NAME.fullmatch(name) else HIDDEN


@frozen(kw_only=True)
class ReceivedRequest:
    """One request that reached the API. Its ``repr`` shows no bearer token, and of parameters only the names.

    Attributes:
        method: the HTTP method.
        path: the path as it was sent, still percent-encoded, without the query.
        operation: the operation it asked for, or "unknown".
        target_sid: the conference or call in its path.
        stream_sid: what its path names as the stream, a sid or a name.
        fields: the body's fields by their wire names; empty when the body was not read.
        query: the query's fields.
        headers: User-Agent and Content-Type as far as they were sent, and never any other.
        received_at: when it arrived, in seconds of the Space's monotonic clock.
        created: the sid of the stream that came to life by it.
        answered: the HTTP status; None when it got no well-formed answer.
        fault: the kind of the fault that it ran into.
        connection: the number of its TCP connection, from 1 in the order they were opened.
    """

    method: str
    path: str
    operation: str
    target_sid: str | None
    stream_sid: str | None
    fields: Mapping[str, str] = field(repr=lambda fields: repr(shown_fields(fields)))
    query: Mapping[str, str]
    headers: Mapping[str, str]
    received_at: float
    created: str | None
    answered: int | None
    fault: str | None
    connection: int


@define(eq=False)
class _Waiter:
    count: int
    operation: str | None
    target: str | None
    reached: asyncio.Future[None]


@define(eq=False)
class RequestLog(Sequence[ReceivedRequest]):
    """The received requests; with ``keep`` False only counters and the times of POSTs stay in memory."""

    keep: bool = True
    _requests: list[ReceivedRequest] = field(factory=list, init=False)
    _counts: Counter[tuple[str, str | None]] = field(factory=Counter, init=False)
    _posts: "array[float]" = field(factory=lambda: array("d"), init=False)
    _waiters: list[_Waiter] = field(factory=list, init=False)

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[ReceivedRequest]:
        return iter(self._requests)

    @overload
    def __getitem__(self, index: int) -> ReceivedRequest: ...
    @overload
    def __getitem__(self, index: slice) -> list[ReceivedRequest]: ...
    def __getitem__(self, index: int | slice) -> ReceivedRequest | list[ReceivedRequest]:
        return self._requests[index]

    def count(self, operation: str | None = None, target: str | None = None) -> int:
        """Count the requests of an operation, for a conference or call; None stands for any."""
        return sum(
            count
            for (counted_operation, counted_target), count in self._counts.items()
            if operation in {None, counted_operation} and target in {None, counted_target}
        )

    def counts(self) -> dict[str, int]:
        """Give how many requests each operation had."""
        totals: Counter[str] = Counter()
        for (operation, _), count in self._counts.items():
            totals[operation] += count
        return dict(totals)

    async def wait_for(
        self,
        count: int = 1,
        operation: str | None = None,
        target: str | None = None,
        timeout: float = 5.0,
    ) -> None:
        """Wait until so many requests match.

        Raises:
            TimeoutError: after ``timeout`` seconds, saying what was received instead.
        """
        if self.count(operation, target) >= count:
            return
        waiter = _Waiter(count, operation, target, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter.reached
        except TimeoutError:
            wanted = f"{count} of {operation or 'any operation'}{f' for {target}' if target else ''}"
            received = ", ".join(f"{n} {name}" for name, n in sorted(self.counts().items())) or "nothing"
            raise TimeoutError(f"waited {timeout:g} s for {wanted}; received {received}") from None
        finally:
            self._waiters.remove(waiter)

    def max_in_window(self, seconds: float = 10.0) -> int:
        """Count the POSTs of the fullest window of that many seconds, by the Space's monotonic clock.

        Every POST counts, refused and spoiled ones too. A window holds its start but not its end.
        """
        busiest = first = 0
        for last, moment in enumerate(self._posts):
            while moment - self._posts[first] >= seconds:
                first += 1
            busiest = max(busiest, last - first + 1)
        return busiest

    def _post_arrived(self, moment: float) -> None:
        """Note when a POST arrived."""
        self._posts.append(moment)

    def add(self, request: ReceivedRequest) -> None:
        """Enter a request."""
        self._requests.append(request)
        self._tally(request.operation, request.target_sid)

    def _tally(self, operation: str, target_sid: str | None) -> None:
        """Count a request and wake whoever waited for it."""
        self._counts[operation, target_sid] += 1
        for waiter in self._waiters:
            if not waiter.reached.done() and self.count(waiter.operation, waiter.target) >= waiter.count:
                waiter.reached.set_result(None)
