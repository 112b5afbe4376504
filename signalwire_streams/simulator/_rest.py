"""The Compatibility API's operations: a request in, a response out (pure but for the state it changes).

https://signalwire.com/docs/compatibility-api/. The order of the checks is our reading: authentication, account,
conference or call, fields, state, name.
"""

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeVar

from attrs import field, frozen

from signalwire_streams.simulator._pagination import Item, list_document
from signalwire_streams.simulator._routes import Route, TargetKind
from signalwire_streams.simulator._serializers import (
    Json,
    Refused,
    Response,
    Serializer,
    api_error,
    error_list,
    json_response,
)
from signalwire_streams.simulator._state import IN_PROGRESS, Call, Conference, SpaceState, Stream
from signalwire_streams.simulator._validation import (
    Fields,
    Problem,
    check_end_conference,
    check_start,
    check_stop,
    is_ws_on_loopback,
    parameters_of,
)

_Resource = TypeVar("_Resource")
DuplicateNames = Literal["stream-error", "http-error", "allow"]

_INVALID_ARGUMENT = 10000
_AUTHENTICATION = 20003
_NO_SUCH_RESOURCE = 20404
_NOT_IN_PROGRESS = 21220
_DUPLICATED_NAME = "Duplicated stream name"  # documented as a status callback's StreamError, never as an HTTP error


@frozen
class ApiRequest:
    """A routed and parsed request. ``duplicate`` treats a start's name as taken, whatever it is."""

    route: Route
    authorization: str | None = field(repr=False)
    query: Mapping[str, str]
    fields: Fields
    duplicate: DuplicateNames | None = None


class CompatibilityApi:
    """Serves one project of the Space."""

    def __init__(
        self,
        *,
        state: SpaceState,
        serializer: Serializer,
        token: str,
        duplicate_names: DuplicateNames,
        streams_by_name: bool,
        allow_ws: bool,
    ) -> None:
        self._state = state
        self._serializer = serializer
        self._duplicate_names = duplicate_names
        self._streams_by_name = streams_by_name
        self._allow_ws = allow_ws
        self._credentials = b64encode(f"{serializer.project}:{token}".encode()).decode()
        self._operations: dict[str, Callable[[ApiRequest], Response]] = {
            "list-conferences": self._list_conferences,
            "get-conference": self._get_conference,
            "end-conference": self._end_conference,
            "list-participants": self._list_participants,
            "list-calls": self._list_calls,
            "get-call": self._get_call,
            "start-conference-stream": self._start_stream,
            "start-call-stream": self._start_stream,
            "stop-conference-stream": self._stop_stream,
            "stop-call-stream": self._stop_stream,
        }

    def answer(self, request: ApiRequest) -> Response:
        """Execute a request.

        A wrong AccountSid with right credentials is a 404, as any resource that the project cannot see; the
        vendor documents neither 401 nor 404 for it.
        """
        scheme, _, credentials = (request.authorization or "").partition(" ")
        if credentials != self._credentials or scheme.lower() != "basic":
            return api_error(401, _AUTHENTICATION, "Authentication failed")
        operation = self._operations.get(request.route.operation)
        if operation is None or request.route.account_sid != self._serializer.project:
            return _NOT_FOUND
        if request.fields.problem is not None:
            return api_error(400, _INVALID_ARGUMENT, request.fields.problem)
        try:
            return operation(request)
        except Refused as refused:
            return refused.response

    def _list_conferences(self, request: ApiRequest) -> Response:
        return _list(request, "conferences", self._state.conferences.values(), self._serializer.conference)

    def _list_participants(self, request: ApiRequest) -> Response:
        participants = self._conference(request.route).participants
        return _list(request, "participants", participants, self._serializer.participant)

    def _list_calls(self, request: ApiRequest) -> Response:
        # The participants' call legs can be read but are not listed, so that a Space with calls=20 lists 20.
        calls = (call for call in self._state.calls.values() if call.conference_sid is None)
        return _list(request, "calls", calls, self._serializer.call)

    def _get_conference(self, request: ApiRequest) -> Response:
        return json_response(self._serializer.conference(self._conference(request.route)))

    def _get_call(self, request: ApiRequest) -> Response:
        return json_response(self._serializer.call(self._call(request.route)))

    def _end_conference(self, request: ApiRequest) -> Response:
        conference = self._conference(request.route)
        problems = check_end_conference(request.fields.values)
        if problems:
            return api_error(422, problems[0].code, problems[0].message)
        if conference.status == "completed":
            raise _wrong_state("Conference is already completed")
        if "Status" in request.fields.values:
            self._state.end_conference(conference.sid)
        return json_response(self._serializer.conference(conference))

    def _start_stream(self, request: ApiRequest) -> Response:
        kind, values = request.route.target_kind, request.fields.values
        target = self._target(request.route)
        _refuse(kind, check_start(kind, self._as_wss(values)))
        if target.status != IN_PROGRESS:
            raise _wrong_state(f"The {kind} is not in progress")
        is_taken = self._state.streams.has_active_name(target.sid, values.get("Name"))
        duplicate = request.duplicate or (self._duplicate_names if is_taken else "allow")
        if duplicate == "http-error":
            _refuse(kind, [Problem(_DUPLICATED_NAME)])
        stream = self._new_stream(kind, target, values)
        if duplicate == "stream-error":
            # The response is that of a start that worked; only a status callback reports the error.
            stream.error, stream.status = _DUPLICATED_NAME, "stopped"
        self._state.streams.add(stream)
        created = stream.sid if stream.alive else None
        return json_response(self._serializer.stream(stream, status="queued"), created=created)

    def _stop_stream(self, request: ApiRequest) -> Response:
        route, streams = request.route, self._state.streams
        target = self._target(route)
        reference = _found(route.stream)
        stream = streams.find(target.sid, reference)
        if stream is None and self._streams_by_name:
            stream = streams.find_named(target.sid, reference)
        stream = _found(stream)
        _refuse(route.target_kind, check_stop(request.fields.values))
        if not stream.alive:
            # Not documented; status and sentence are our reading.
            raise _wrong_state("Stream is already stopped")
        self._state.stop_stream(stream)
        return json_response(self._serializer.stream(stream, status=stream.status))

    def _as_wss(self, values: Mapping[str, str]) -> Mapping[str, str]:
        """Disguise a ws URL on loopback as the wss one that validation requires, if that is allowed."""
        url = values.get("Url", "")
        return {**values, "Url": f"wss{url[2:]}"} if self._allow_ws and is_ws_on_loopback(url) else values

    def _target(self, route: Route) -> Conference | Call:
        return self._call(route) if route.target_kind == "call" else self._conference(route)

    def _call(self, route: Route) -> Call:
        return _found(self._state.calls.get(route.target_sid or ""))

    def _conference(self, route: Route) -> Conference:
        return _found(self._state.conferences.get(route.target_sid or ""))

    def _new_stream(self, kind: TargetKind, target: Conference | Call, values: Mapping[str, str]) -> Stream:
        realtime = values.get("StreamRealTime")
        return Stream(
            sid=self._state.draw_sid(),
            target_kind=kind,
            target_sid=target.sid,
            created_at=self._state.now(),
            url=values["Url"],
            name=values.get("Name"),
            track=values.get("Track", "both_tracks"),
            codec=values.get("StreamCodec"),
            realtime=None if realtime is None else realtime == "true",
            status_callback=values.get("StatusCallback"),
            status_callback_method=values.get("StatusCallbackMethod", "POST"),
            parameters=parameters_of(values),
            authorization_bearer_token=values.get("AuthorizationBearerToken"),
        )


def _list(request: ApiRequest, name: str, items: Iterable[Item], serialize: Callable[[Item], Json]) -> Response:
    return json_response(list_document(name, items, serialize, path=request.route.path, query=request.query))


_NOT_FOUND = api_error(404, _NO_SUCH_RESOURCE, "The requested resource was not found")


def _found(resource: _Resource | None) -> _Resource:
    if resource is None:
        raise Refused(_NOT_FOUND)
    return resource


def _wrong_state(message: str) -> Refused:
    return Refused(api_error(400, _NOT_IN_PROGRESS, message))


def _refuse(kind: TargetKind, problems: list[Problem]) -> None:
    # A conference stream's 422 lists all problems; a call stream's has the usual error body.
    if problems and kind == "conference":
        raise Refused(error_list(problem.message for problem in problems))
    if problems:
        raise Refused(api_error(422, problems[0].code, problems[0].message))
