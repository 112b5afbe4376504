"""What a bulk run does with each of its items, over the same way as a single call."""

from secrets import token_hex

from attrs import define, evolve, field, frozen

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import CallStream, ConferenceStream, StartCallStream, StartConferenceStream
from signalwire_streams.resources.streaming import Streams
from signalwire_streams.wire.exchange import Errand
from signalwire_streams.wire.exchanges import Start

_DEADLINE = 300.0
"""Seconds for one item: longer than for a single call, since items may wait for the pacer by the thousand."""


@frozen
class Both:
    """The streams of conferences and of calls."""

    conferences: Streams[ConferenceStream]
    calls: Streams[CallStream]


@define(eq=False)
class Starting:
    """Starts the streams of one run, under names that follow from the run and the target.

    Attributes:
        streams: where to start them.
        run: what the run is called; the same run and target give the same name.
    """

    streams: Both
    run: str = field(factory=lambda: token_hex(4))
    # Hashes instead of names, which would be most of the memory of a long run.
    _seen: set[int] = field(init=False, factory=set)

    async def __call__(self, request: Start, errand: Errand) -> ConferenceStream | CallStream:
        """Start one stream."""
        return await self.send(self.prepare(request, errand), errand)

    def prepare(self, request: Start, errand: Errand) -> Start:
        """Check a request and give it its name.

        Raises:
            InvalidRequestError: it is no request, or its target came before under the same name.
        """
        if not isinstance(request, StartConferenceStream | StartCallStream):
            raise InvalidRequestError(
                f"an item is a {type(request).__name__}: pass StartConferenceStream or StartCallStream"
            )
        if request.name is None and not request.unnamed:
            request = evolve(request, name=f"sws-{self.run}-{request.target}")
        if not errand.progress.attempts:
            self._check_once(request)
        return request

    async def send(self, request: Start, errand: Errand) -> ConferenceStream | CallStream:
        """Start the stream of a request that was prepared."""
        if isinstance(request, StartConferenceStream):
            return await self.streams.conferences.start(request, deadline=_DEADLINE, errand=errand)
        return await self.streams.calls.start(request, deadline=_DEADLINE, errand=errand)

    def _check_once(self, request: Start) -> None:
        key = hash((request.target, request.name))
        if request.name is not None and key in self._seen:
            raise InvalidRequestError(
                f"{request.target} comes twice in this run: give each of its streams a name of its own"
            )
        self._seen.add(key)


@frozen
class Stopping:
    """Stops the streams of one run.

    Attributes:
        streams: where to stop them.
    """

    streams: Both

    async def __call__(self, stream: ConferenceStream | CallStream, errand: Errand) -> ConferenceStream | CallStream:
        """Stop one stream."""
        if isinstance(stream, ConferenceStream):
            return await self.streams.conferences.stop(stream.conference_sid, stream, deadline=_DEADLINE, errand=errand)
        if isinstance(stream, CallStream):
            return await self.streams.calls.stop(stream.call_sid, stream, deadline=_DEADLINE, errand=errand)
        raise InvalidRequestError(f"an item is a {type(stream).__name__}: pass ConferenceStream or CallStream")
