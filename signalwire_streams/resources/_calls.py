"""``client.calls``."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import overload

from signalwire_streams._http.requests import moment
from signalwire_streams.models import Call, CallbackMethod, CallStatus, CallStream, SignedTokens, Track
from signalwire_streams.models._validation import masks_secrets
from signalwire_streams.resources._streams import Paginator, Streams


class Calls:
    """The calls of the account, and the streams on them. Errors are those of `Conferences`."""

    def __init__(self, streams: Streams[CallStream], restarts: Callable[..., object] | None = None) -> None:
        """Called by `StreamsClient`."""
        self._streams = streams
        self._restarts = restarts  # for `MediaReceiver.open`

    @masks_secrets
    async def start_stream(
        self,
        call_sid: str,
        *,
        url: str,
        name: str | None = None,
        unnamed: bool = False,
        track: Track | str | None = None,
        codec: None = None,
        realtime: None = None,
        status_callback: str | None = None,
        status_callback_method: CallbackMethod | str | None = None,
        parameters: Mapping[str, str] | None = None,
        authorization_bearer_token: str | SignedTokens | None = None,
        may_be_running: bool = False,
        deadline: float | None = None,
    ) -> CallStream:
        """Start a stream that sends the call's audio to a WebSocket server.

        Arguments, result and errors are those of `Conferences.start_stream`; ``codec`` and ``realtime`` must be None.
        Rejection of duplicate names is documented for conferences only. So a start on a call whose response was lost
        is not sent again (`RetryPolicy.resend_call_starts` changes that), and with ``may_be_running=True`` the call
        may accept a second stream of that name.

        Source: https://signalwire.com/docs/compatibility-api/rest/streams
        """
        return await self._streams.start_stream(
            call_sid=call_sid,
            url=url,
            name=name,
            unnamed=unnamed,
            track=track,
            codec=codec,
            realtime=realtime,
            status_callback=status_callback,
            status_callback_method=status_callback_method,
            parameters=parameters,
            authorization_bearer_token=authorization_bearer_token,
            may_be_running=may_be_running,
            deadline=deadline,
        )

    @overload
    async def stop_stream(self, stream: CallStream, /, *, deadline: float | None = None) -> CallStream: ...

    @overload
    async def stop_stream(
        self, call_sid: str, stream: CallStream | str, *, deadline: float | None = None
    ) -> CallStream: ...

    async def stop_stream(
        self, call_sid: str | CallStream, stream: CallStream | str | None = None, *, deadline: float | None = None
    ) -> CallStream:
        """Stop a stream: ``stop_stream(stream)``, or ``stop_stream(call_sid, "audit-1")``.

        Arguments, result and errors are those of `Conferences.stop_stream`.
        """
        return await self._streams.stop(call_sid, stream, deadline=deadline)

    async def get(self, call_sid: str) -> Call:
        """Fetch one call."""
        return await self._streams.get(call_sid, Call)

    async def end(self, call_sid: str, *, deadline: float | None = None) -> Call:
        """End a call, in progress or not answered yet. The streams on it end with it.

        Arguments, result and errors are those of `Conferences.end`.

        Source: https://signalwire.com/docs/compatibility-api/rest/calls
        """
        return await self._streams.end(call_sid, Call, deadline)

    def list(
        self,
        *,
        status: CallStatus | str | None = None,
        from_: str | None = None,
        to: str | None = None,
        parent_call_sid: str | None = None,
        start_time: datetime | str | None = None,
        start_time_before: datetime | str | None = None,
        start_time_after: datetime | str | None = None,
        end_time: datetime | str | None = None,
        end_time_before: datetime | str | None = None,
        end_time_after: datetime | str | None = None,
        page_size: int | None = None,
    ) -> Paginator[Call]:
        """List the calls: ``async for call in client.calls.list(status="in-progress")``.

        All arguments but ``page_size`` are filters. A time is a datetime with a time zone, or text in the API's format;
        the call ``parent_call_sid`` created the others. A page has 1 to 1000 items, 50 by the API's default.

        Source: https://signalwire.com/docs/compatibility-api/rest/calls
        """
        filters: Mapping[str, object] = {
            "Status": status,
            "From": from_,
            "To": to,
            "ParentCallSid": parent_call_sid,
            "StartTime": moment(start_time, "start_time"),
            "StartTime<": moment(start_time_before, "start_time_before"),
            "StartTime>": moment(start_time_after, "start_time_after"),
            "EndTime": moment(end_time, "end_time"),
            "EndTime<": moment(end_time_before, "end_time_before"),
            "EndTime>": moment(end_time_after, "end_time_after"),
        }
        return self._streams.paginate(Call, filters, page_size)
