"""The log of received requests."""

import asyncio
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar, overload

from attrs import field, frozen

from signalwire_streams.simulator._requests import redact_fields

_T = TypeVar("_T")


@frozen(kw_only=True)
class ReceivedRequest:
    """One request that reached the API. Its ``repr`` shows no bearer token, and only the names of parameters.

    Attributes:
        method: the HTTP method.
        path: the path as it was sent, still percent-encoded, without the query.
        operation: the operation it asked for, or "unknown".
        target_sid: the conference or call in its path.
        stream_sid: the stream in its path, a sid or a name.
        fields: the body's fields by their wire names; empty if the body was not read.
        query: the query's fields.
        headers: User-Agent and Content-Type if they were sent, and never any other.
        received_at: when it arrived, in seconds of the Space's monotonic clock.
        created: the sid of the stream that it started.
        status: the HTTP status of the response; None if there was no well-formed one.
        fault: the kind of fault that it triggered.
        connection: the number of its TCP connection, from 1 in the order they were opened.
    """

    method: str
    path: str
    operation: str
    target_sid: str | None
    stream_sid: str | None
    fields: Mapping[str, str] = field(repr=lambda fields: repr(redact_fields(fields)))
    query: Mapping[str, str]
    headers: Mapping[str, str]
    received_at: float
    created: str | None
    status: int | None
    fault: str | None
    connection: int


class ReadOnlyList(Sequence[_T]):
    """A list that its users can only read."""

    def __init__(self) -> None:
        self._items: list[_T] = []

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> list[_T]: ...
    def __getitem__(self, index: int | slice) -> _T | list[_T]:
        return self._items[index]


class RequestLog(ReadOnlyList[ReceivedRequest]):
    """The received requests. With ``keep`` False only counters and the times of POSTs are kept in memory."""

    def __init__(self, keep: bool = True) -> None:  # noqa: FBT001, FBT002  (public)
        super().__init__()
        self.keep: bool = keep
        self._counts: Counter[tuple[str, str | None]] = Counter()
        self._posts: array[float] = array("d")
        self._counted = asyncio.Event()

    def count(self, operation: str | None = None, target: str | None = None) -> int:
        """Count the requests of an operation, for a conference or call; None stands for any."""
        return sum(
            count
            for (counted_operation, counted_target), count in self._counts.items()
            if operation in {None, counted_operation} and target in {None, counted_target}
        )

    def counts(self) -> dict[str, int]:
        """Return the number of requests of each operation."""
        totals: Counter[str] = Counter()
        for (operation, _), count in self._counts.items():
            totals[operation] += count
        return dict(totals)

    async def wait_for(
        self,
        count: int = 1,
        operation: str | None = None,
        target: str | None = None,
        timeout: float = 15.0,  # noqa: ASYNC109  (the message says what was received)
    ) -> None:
        """Wait until this many requests match.

        Raises:
            TimeoutError: after ``timeout`` seconds; the message says what was received instead.
        """
        try:
            async with asyncio.timeout(timeout):
                while self.count(operation, target) < count:
                    self._counted.clear()
                    await self._counted.wait()
        except TimeoutError:
            wanted = f"{count} of {operation or 'any operation'}{f' for {target}' if target else ''}"
            received = ", ".join(f"{n} {name}" for name, n in sorted(self.counts().items())) or "nothing"
            raise TimeoutError(f"waited {timeout:g} s for {wanted}; received {received}") from None

    def max_in_window(self, seconds: float = 10.0) -> int:
        """Return the largest number of POSTs in any window of that many seconds, by the Space's monotonic clock.

        Every POST counts, even if it was rejected or its response replaced. A window includes its start, not its end.
        """
        busiest = first = 0
        for last, moment in enumerate(self._posts):
            while moment - self._posts[first] >= seconds:
                first += 1
            busiest = max(busiest, last - first + 1)
        return busiest

    def add(self, request: ReceivedRequest) -> None:
        """Add a request."""
        self._items.append(request)
        self._count(request.operation, request.target_sid)

    def _count(self, operation: str, target_sid: str | None) -> None:
        self._counts[operation, target_sid] += 1
        self._counted.set()


def count_post(log: RequestLog, moment: float) -> None:
    """Record when a POST arrived; not a method that users see."""
    log._posts.append(moment)  # noqa: SLF001


def count_request(log: RequestLog, operation: str, target_sid: str | None) -> None:
    """Count a request that is not kept; not a method that users see."""
    log._count(operation, target_sid)  # noqa: SLF001
