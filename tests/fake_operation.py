"""An operation of a bulk run without a client."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from signalwire_streams import BulkOutcome, CallStream, ConferenceStream
from signalwire_streams._http.messages import CallState


class FakeOperation:
    """Starts streams by a function that is passed the item and the state of its call."""

    is_start = True

    def __init__(self, send: Callable[[str, CallState], Awaitable[ConferenceStream]]) -> None:
        self._send = send

    async def begin(self) -> None: ...

    async def end(self) -> None: ...

    def prepare(self, item: str, state: CallState) -> Callable[[], Awaitable[ConferenceStream | CallStream]]:
        return partial(self._send, item, state)

    def recorded(self, item: str) -> None: ...

    def record_outcome(self, state: CallState, outcome: BulkOutcome[Any]) -> None: ...
