"""What a bulk run does with each of its items, over the same way as a single call."""

from secrets import token_hex

from attrs import define, evolve, field, frozen

from signalwire_streams.bulk._serialization import Once, Start
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import GENERATED_NAME, CallStream, ConferenceStream, StartConferenceStream
from signalwire_streams.resources._streams import Streams
from signalwire_streams._http.messages import Errand


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
        deadline: seconds for one item, its waiting for the pacer included.
        run: what the run is called; the same run and target give the same name.
    """

    streams: Both
    deadline: float
    run: str = field(factory=lambda: token_hex(4))
    _once: Once = field(init=False, factory=Once)

    async def __call__(self, request: Start, errand: Errand) -> ConferenceStream | CallStream:
        """Start one stream."""
        return await self.send(self.prepare(request, errand), errand)

    def prepare(self, request: Start, errand: Errand) -> Start:
        """Check a request and give it its name.

        Raises:
            InvalidRequestError: it is no request, or its target came before under the same name.
        """
        if not errand.progress.attempts:
            self._once.check(request)
        if request.name is None and not request.unnamed:
            request = evolve(request, name=f"{GENERATED_NAME}{self.run}-{request.target}")
        return request

    async def send(self, request: Start, errand: Errand) -> ConferenceStream | CallStream:
        """Start the stream of a request that was prepared."""
        if isinstance(request, StartConferenceStream):
            return await self.streams.conferences.start(request, deadline=self.deadline, errand=errand)
        return await self.streams.calls.start(request, deadline=self.deadline, errand=errand)


@frozen
class Stopping:
    """Stops the streams of one run.

    Attributes:
        streams: where to stop them.
        deadline: seconds for one item, its waiting for the pacer included.
    """

    streams: Both
    deadline: float

    async def __call__(self, stream: ConferenceStream | CallStream, errand: Errand) -> ConferenceStream | CallStream:
        """Stop one stream."""
        deadline = self.deadline
        if isinstance(stream, ConferenceStream):
            return await self.streams.conferences.stop(stream.conference_sid, stream, deadline=deadline, errand=errand)
        if isinstance(stream, CallStream):
            return await self.streams.calls.stop(stream.call_sid, stream, deadline=deadline, errand=errand)
        raise InvalidRequestError(f"an item is a {type(stream).__name__}: pass ConferenceStream or CallStream")
