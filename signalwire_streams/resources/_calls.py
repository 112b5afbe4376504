"""``client.calls``."""

from collections.abc import Mapping
from datetime import datetime
from typing import overload

from signalwire_streams._http.requests import moment
from signalwire_streams.models import Call, CallbackMethod, CallStatus, CallStream, Track
from signalwire_streams.models._validation import masks_secrets
from signalwire_streams.resources._pagination import Paginator
from signalwire_streams.resources._streams import Streams


class Calls:
    """The calls of the account, and the streams on them."""

    def __init__(self, streams: Streams[CallStream]) -> None:
        """Called by `StreamsClient`."""
        self._streams = streams

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
        authorization_bearer_token: str | None = None,
        may_be_running: bool = False,
        deadline: float | None = None,
    ) -> CallStream:
        """Start a stream that sends the call's audio to a WebSocket server.

        The arguments are the fields of `StartCallStream`. If ``name`` is omitted, one is generated. Rejection of
        duplicate names is documented for conferences only, so a start on a call whose response was lost is not sent
        again (`RetryPolicy.resend_call_starts` changes that).

        Args:
            call_sid: the call.
            url: the wss address that the Space connects to; no query string.
            name: unique within the call.
            unnamed: True to send no name; such a start is not sent again once it may have been executed.
            track: which side of the audio; the API's default is both.
            codec: for conferences only; None.
            realtime: for conferences only; None.
            status_callback: http(s) URL that receives status callbacks.
            status_callback_method: GET or POST; the API's default is POST.
            parameters: at most 99 values for the WebSocket server.
            authorization_bearer_token: sent with the WebSocket upgrade.
            may_be_running: True to start a stream again that may already be running under this ``name``, after a
                `StreamOutcomeUnknownError`. The result is ``ambiguous``: a successful response does not prove that
                this start created the stream, so the stream is stopped by its name.
                A call may accept a second stream of that name.
            deadline: seconds for the whole call, retries included.

        Returns:
            The stream. Keep it, or its name: the API has no way to look up streams.

        Raises:
            InvalidRequestError: an argument is invalid; nothing was sent.
            StreamOutcomeUnknownError: the stream may or may not be running.
            ApiError: the Space rejected the request.
            TransportError: the Space could not be reached; the stream was not started.

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

        A stream that has ended before, by itself or with its call, counts as stopped; the returned stream then has
        ``already_ended=True``.

        Args:
            call_sid: the call, or a returned stream and nothing else.
            stream: the returned stream, its sid or its name. That a name works here is not documented for this API; a
                returned stream is stopped by its sid wherever that is certain.
            deadline: seconds for the whole call, retries included.

        Raises:
            InvalidRequestError: an argument is invalid; nothing was sent.
            NotFoundError: the call has no stream of that sid or name. A stream object whose sid the Space returned from
                a start counts as stopped instead.
            ApiError: the Space rejected the request.
            TransportError: the Space could not be reached; stopping again is safe.
        """
        return await self._streams.stop(call_sid, stream, deadline=deadline)

    async def get(self, call_sid: str) -> Call:
        """Fetch one call."""
        return await self._streams.get(call_sid, Call)

    async def end(self, call_sid: str, *, deadline: float | None = None) -> Call:
        """End a call, in progress or not answered yet. The streams on it end with it.

        It is safe to repeat: a call that has ended before counts as ended.

        Args:
            call_sid: the call.
            deadline: seconds for the whole call, retries included.

        Returns:
            The call as the Space returned it; its ``status`` may not have changed yet. If it had ended before, or
            the response was lost, only its ``sid`` and its ``status`` (completed) are set.

        Raises:
            InvalidRequestError: an argument is invalid; nothing was sent.
            NotFoundError: the Space knows no call of that sid. After an attempt whose response was lost, the
                call counts as ended instead.
            ApiError: the Space rejected the request.
            TransportError: the Space could not be reached; ending again is safe.

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

        Args:
            status: only those with this status.
            from_: only those from this address.
            to: only those to this address.
            parent_call_sid: only those that this call created.
            start_time: only those that started then; a datetime with a time zone, or text in the API's format.
            start_time_before: only those that started before.
            start_time_after: only those that started after.
            end_time: only those that ended then.
            end_time_before: only those that ended before.
            end_time_after: only those that ended after.
            page_size: items per page, 1 to 1000; the API's default is 50.

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
