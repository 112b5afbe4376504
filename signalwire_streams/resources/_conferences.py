"""``client.conferences``."""

from collections.abc import Callable, Mapping
from datetime import date
from typing import overload

from signalwire_streams._http.requests import day
from signalwire_streams.models import (
    CallbackMethod,
    Codec,
    Conference,
    ConferenceStatus,
    ConferenceStream,
    Participant,
    SignedTokens,
    Track,
)
from signalwire_streams.models._validation import check_path_segment, masks_secrets
from signalwire_streams.resources._streams import Paginator, Streams


class Conferences:
    """The conferences of the account, and the streams on them.

    Every call raises `InvalidRequestError` for an invalid argument, before anything is sent, `ApiError` if the Space
    rejects the request, and `TransportError` or `MalformedResponseError` if no valid response arrives. A ``deadline``
    is in seconds, for the whole call, retries included.
    """

    def __init__(self, streams: Streams[ConferenceStream], restarts: Callable[..., object] | None = None) -> None:
        """Called by `StreamsClient`."""
        self._streams = streams
        self._restarts = restarts  # for `MediaReceiver.open`

    @masks_secrets
    async def start_stream(
        self,
        conference_sid: str,
        *,
        url: str,
        name: str | None = None,
        unnamed: bool = False,
        track: Track | str | None = None,
        codec: Codec | str | None = None,
        realtime: bool | None = None,
        status_callback: str | None = None,
        status_callback_method: CallbackMethod | str | None = None,
        parameters: Mapping[str, str] | None = None,
        authorization_bearer_token: str | SignedTokens | None = None,
        may_be_running: bool = False,
        deadline: float | None = None,
    ) -> ConferenceStream:
        """Start a stream that sends the conference's audio to a WebSocket server.

        The arguments are the fields of `StartConferenceStream`. If ``name`` is omitted, one is generated, because
        the name makes the start safe to send again.

        Args:
            conference_sid: the conference.
            url: the wss address that the Space connects to; no query string.
            name: unique within the conference.
            unnamed: True to send no name; such a start is not sent again once it may have been executed.
            track: which side of the audio; the API's default is both.
            codec: how the audio is encoded; a `Codec`, or a text with modifiers such as ``"L16@24000h@40i"``.
            realtime: the API's ``StreamRealTime``.
            status_callback: http(s) URL that receives status callbacks.
            status_callback_method: GET or POST; the API's default is POST.
            parameters: at most 99 values for the WebSocket server.
            authorization_bearer_token: sent with the WebSocket upgrade; or `SignedTokens`, which make one when the
                start is sent.
            may_be_running: True to start a stream again that may already be running under this ``name``, after a
                `StreamOutcomeUnknownError`. The result is ``ambiguous``: a successful response does not prove that
                this start created the stream, so the stream is stopped by its name.
            deadline: seconds for the whole call, retries included.

        Returns:
            The stream. Keep it, or its name: the API has no way to look up streams.

        Raises:
            StreamOutcomeUnknownError: the stream may or may not be running; after a `TransportError` it is not.

        Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams
        """
        return await self._streams.start_stream(
            conference_sid=conference_sid,
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
    async def stop_stream(self, stream: ConferenceStream, /, *, deadline: float | None = None) -> ConferenceStream: ...

    @overload
    async def stop_stream(
        self, conference_sid: str, stream: ConferenceStream | str, *, deadline: float | None = None
    ) -> ConferenceStream: ...

    async def stop_stream(
        self,
        conference_sid: str | ConferenceStream,
        stream: ConferenceStream | str | None = None,
        *,
        deadline: float | None = None,
    ) -> ConferenceStream:
        """Stop a stream: ``stop_stream(stream)``, or ``stop_stream(conference_sid, "audit-1")``.

        It is safe to repeat: a stream that has ended before, by itself or with its conference, counts as stopped, and
        is returned with ``already_ended=True``.

        Args:
            conference_sid: the conference, or a returned stream and nothing else.
            stream: the returned stream, its sid or its name. That a name works here is not documented for this API; a
                returned stream is stopped by its sid wherever that is certain.
            deadline: seconds for the whole call, retries included.

        Raises:
            NotFoundError: the conference has no stream of that sid or name. A stream object whose sid the Space
                returned from a start counts as stopped instead.
        """
        return await self._streams.stop(conference_sid, stream, deadline=deadline)

    async def get(self, conference_sid: str) -> Conference:
        """Fetch one conference."""
        return await self._streams.get(conference_sid, Conference)

    async def end(self, conference_sid: str, *, deadline: float | None = None) -> Conference:
        """End a conference. Its participants and the streams on it end with it.

        It is safe to repeat: a conference that has ended before counts as ended.

        Returns:
            The conference as the Space returned it; its ``status`` may not have changed yet. If it had ended before, or
            the response was lost, only its ``sid`` and its ``status`` (completed) are set.

        Raises:
            NotFoundError: the Space knows no conference of that sid. After an attempt whose response was lost, the
                conference counts as ended instead.

        Source: https://signalwire.com/docs/compatibility-api/rest/conferences
        """
        return await self._streams.end(conference_sid, Conference, deadline)

    def list(
        self,
        *,
        status: ConferenceStatus | str | None = None,
        friendly_name: str | None = None,
        date_created: date | str | None = None,
        date_created_before: date | str | None = None,
        date_created_after: date | str | None = None,
        date_updated: date | str | None = None,
        date_updated_before: date | str | None = None,
        date_updated_after: date | str | None = None,
        page_size: int | None = None,
    ) -> Paginator[Conference]:
        """List the conferences: ``async for conference in client.conferences.list(status="in-progress")``.

        All arguments but ``page_size`` are filters. Dates are days in UTC; before and after exclude the day itself. A
        page has 1 to 1000 items, 50 by the API's default.

        Source: https://signalwire.com/docs/compatibility-api/rest/conferences
        """
        filters: Mapping[str, object] = {
            "Status": status,
            "FriendlyName": friendly_name,
            "DateCreated": day(date_created, "date_created"),
            "DateCreated<": day(date_created_before, "date_created_before"),
            "DateCreated>": day(date_created_after, "date_created_after"),
            "DateUpdated": day(date_updated, "date_updated"),
            "DateUpdated<": day(date_updated_before, "date_updated_before"),
            "DateUpdated>": day(date_updated_after, "date_updated_after"),
        }
        return self._streams.paginate(Conference, filters, page_size)

    def participants(
        self,
        conference_sid: str,
        *,
        muted: bool | None = None,
        hold: bool | None = None,
        page_size: int | None = None,
    ) -> Paginator[Participant]:
        """List the participants of a conference, only those who are muted (or are not), or on hold (or are not).

        A page has 1 to 1000 items, 50 by the API's default.

        Source: https://signalwire.com/docs/compatibility-api/rest/participants
        """
        sid = check_path_segment(conference_sid, "conference_sid")
        return self._streams.paginate(Participant, {"Muted": muted, "Hold": hold}, page_size, sid, "Participants")
