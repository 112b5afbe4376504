"""The Compatibility API's operations: a request in, a response out (pure, except for the state that it changes).

https://signalwire.com/docs/compatibility-api/. The order of the checks is our interpretation: authentication, account,
conference or call, fields, state, name.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import TypeVar

from attrs import asdict, field, frozen

from signalwire_streams.simulator._pagination import list_document
from signalwire_streams.simulator._request_log import RequestLog
from signalwire_streams.simulator._requests import (
    BASE_PATH,
    INVALID_ARGUMENT,
    Fields,
    Problem,
    Route,
    TargetKind,
    attributes_of,
    check_fields,
    is_ws_on_loopback,
    redact_fields,
    redact_url,
    redact_values,
)
from signalwire_streams.simulator._responses import Json, Rejected, Response, api_error, http_date, json_response
from signalwire_streams.simulator._state import (
    ENDED,
    IN_PROGRESS,
    Call,
    Conference,
    DuplicateNames,
    Participant,
    SpaceSettings,
    SpaceState,
    Stream,
)

_Resource = TypeVar("_Resource")

_AUTHENTICATION = 20003
_NO_SUCH_RESOURCE = 20404
_NOT_IN_PROGRESS = 21220
_API_VERSION = "2010-04-01"
_NORTH_AMERICAN_DIGITS = 12
_KNOWN_AFTERWARDS = (  # of a call
    *("annotation", "group_sid", "audio_in_mos", "sip_result_code", "audio_rtt_avg", "audio_rtt_min", "audio_rtt_max"),
    *("audio_out_jitter_min", "audio_out_jitter_max", "audio_out_jitter_avg", "audio_out_lost"),
)
_DUPLICATED_NAME = "Duplicated stream name"  # documented as a status callback's StreamError, never as an HTTP error


@frozen
class Serializer:
    """Serializes one project's resources; ``long_september`` writes "Sept", as the vendor's examples do.

    The shapes are those of https://signalwire.com/docs/compatibility-api/ and its OpenAPI description.
    """

    project: str
    long_september: bool = False

    def conference(self, conference: Conference) -> Json:
        uri = f"{BASE_PATH}{self.project}/Conferences/{conference.sid}"
        return {
            "sid": conference.sid,
            "account_sid": self.project,
            "date_created": self._date(conference.created_at),
            "date_updated": self._date(conference.updated_at),
            "friendly_name": conference.friendly_name,
            "status": conference.status,
            "api_version": _API_VERSION,
            "region": "us1",
            "uri": f"{uri}.json",
            "subresource_uris": {
                "participants": f"{uri}/Participants.json",
                "recordings": f"{uri}/Recordings.json",
            },
        }

    def participant(self, participant: Participant) -> Json:
        room = f"{BASE_PATH}{self.project}/Conferences/{participant.conference_sid}"
        return {
            "account_sid": self.project,
            "call_sid": participant.call_sid,
            "call_sid_to_coach": None,
            "coaching": False,
            "conference_sid": participant.conference_sid,
            "date_created": self._date(participant.created_at),
            "status": participant.status,
            "date_updated": self._date(participant.updated_at),
            "end_conference_on_exit": False,
            "muted": participant.muted,
            "hold": participant.hold,
            "start_conference_on_enter": True,
            "uri": f"{room}/Participants/{participant.call_sid}.json",
        }

    def call(self, call: Call) -> Json:
        """Serialize a call; fields that are unknown before it ends are null, as documented."""
        uri = f"{BASE_PATH}{self.project}/Calls/{call.sid}"
        caller, callee = _formatted(call.from_number), _formatted(call.to_number)
        return {
            "sid": call.sid,
            "account_sid": self.project,
            "date_created": self._date(call.created_at),
            "date_updated": self._date(call.updated_at),
            "parent_call_sid": call.parent_call_sid,
            "to": call.to_number,
            "formatted_to": callee,
            "to_formatted": callee,
            "from": call.from_number,
            "formatted_from": caller,
            "from_formatted": caller,
            "phone_number_sid": None,
            "status": call.status,
            "start_time": self._date_or_null(call.started_at),
            "end_time": self._date_or_null(call.ended_at),
            "duration": 0 if call.started_at is None or call.ended_at is None else int(call.ended_at - call.started_at),
            "price": None,
            "price_unit": "USD",
            "direction": call.direction,
            "answered_by": None,
            "api_version": _API_VERSION,
            "forwarded_from": None,
            "caller_name": None,
            "uri": f"{uri}.json",
            "subresource_uris": {"notifications": None, "recordings": f"{uri}/Recordings.json"},
            **dict.fromkeys(_KNOWN_AFTERWARDS),
        }

    def stream(self, stream: Stream, *, status: str) -> Json:
        """Serialize a stream.

        An unnamed conference stream's name is null; a call stream's name is never null in the documentation, and
        ``StreamName`` defaults to the stream's sid there, so it is the sid here.
        """
        is_call = stream.target_kind == "call"
        target = f"{'Calls' if is_call else 'Conferences'}/{stream.target_sid}"
        return {
            "sid": stream.sid,
            "account_sid": self.project,
            "call_sid" if is_call else "conference_sid": stream.target_sid,
            "name": stream.sid if is_call and stream.name is None else stream.name,
            "status": status,
            "date_updated": self._date(stream.updated_at),
            "uri": f"{BASE_PATH}{self.project}/{target}/Streams/{stream.sid}.json",
        }

    def _date(self, moment: float) -> str:
        date = http_date(int(moment)).replace("GMT", "+0000")
        return date.replace(" Sep ", " Sept ") if self.long_september else date

    def _date_or_null(self, moment: float | None) -> str | None:
        return None if moment is None else self._date(moment)


def _formatted(number: str) -> str:
    if len(number) == _NORTH_AMERICAN_DIGITS and number.startswith("+1"):
        return f"({number[2:5]}) {number[5:8]}-{number[8:]}"
    return number


@frozen
class ApiRequest:
    """A routed and parsed request. ``duplicate`` treats a start's name as taken, whatever it is."""

    route: Route
    authorization: str | None = field(repr=False)
    fields: Fields
    duplicate: DuplicateNames | None = None


class CompatibilityApi:
    def __init__(self, settings: SpaceSettings, state: SpaceState) -> None:
        self._settings = settings
        self._state = state
        self._serializer = Serializer(settings.project, settings.long_september)
        self._credentials = b64encode(f"{settings.project}:{settings.token}".encode()).decode()
        self._operations: dict[str, Callable[[ApiRequest], Response]] = {  # by the first word of their names
            "list": self._list,
            "get": self._get_target,
            "end": self._end_target,
            "start": self._start_stream,
            "stop": self._stop_stream,
        }

    def respond(self, request: ApiRequest) -> Response:
        """Execute a request.

        A wrong AccountSid with right credentials is a 404, as any resource that the project cannot see; the
        vendor documents neither 401 nor 404 for it.
        """
        scheme, _, credentials = (request.authorization or "").partition(" ")
        if credentials != self._credentials or scheme.lower() != "basic":
            return api_error(401, _AUTHENTICATION, "Authentication failed")
        operation = self._operations.get(request.route.operation.partition("-")[0])
        if operation is None or request.route.account_sid != self._settings.project:
            return _NOT_FOUND
        if request.fields.problem is not None:
            return api_error(400, INVALID_ARGUMENT, request.fields.problem)
        try:
            return operation(request)
        except Rejected as rejected:
            return rejected.response

    def _list(self, request: ApiRequest) -> Response:
        route, state, serializer = request.route, self._state, self._serializer
        if route.operation == "list-conferences":
            document = list_document("conferences", state.conferences.values(), serializer.conference, route)
        elif route.operation == "list-participants":
            participants = self._conference(route).participants
            document = list_document("participants", participants, serializer.participant, route)
        else:
            # The participants' call legs can be read but are not listed, so that a Space with calls=20 lists 20.
            calls = (call for call in state.calls.values() if call.conference_sid is None)
            document = list_document("calls", calls, serializer.call, route)
        return json_response(document)

    def _get_target(self, request: ApiRequest) -> Response:
        return self._describe(self._target(request.route))

    def _describe(self, target: Conference | Call) -> Response:
        if isinstance(target, Call):
            return json_response(self._serializer.call(target))
        return json_response(self._serializer.conference(target))

    def _end_target(self, request: ApiRequest) -> Response:
        """End a call or conference. How the vendor rejects the end of one that has ended is not documented."""
        target, kind = self._target(request.route), request.route.target_kind
        problems = check_fields(request.route.operation, request.fields.values)
        if problems:
            return api_error(422, problems[0].code, problems[0].message)
        if target.status in ENDED:
            raise _wrong_state(f"{kind.capitalize()} is already {target.status}")
        status = request.fields.values.get("Status")
        if status == "canceled" and target.status == IN_PROGRESS:
            raise _wrong_state("Call is in progress, so it can only be completed")
        if status is not None and isinstance(target, Call):
            self._state.end_call(target.sid, status)
        elif status is not None:
            self._state.end_conference(target.sid)
        return self._describe(target)

    def _start_stream(self, request: ApiRequest) -> Response:
        kind, values = request.route.target_kind, request.fields.values
        target = self._target(request.route)
        _reject(kind, check_fields(request.route.operation, self._as_wss(values)))
        if target.status != IN_PROGRESS:
            raise _wrong_state(f"The {kind} is not in progress")
        is_taken = self._state.streams.has_name(target.sid, values.get("Name"), ended=not self._settings.reusable_names)
        duplicate = request.duplicate or (self._settings.duplicate_names if is_taken else "allow")
        if duplicate == "http-error":
            _reject(kind, [Problem(_DUPLICATED_NAME)])
        stream = Stream(
            sid=self._state.draw_sid(),
            target_kind=kind,
            target_sid=target.sid,
            created_at=self._state.now(),
            **attributes_of(values),
        )
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
        if stream is None and self._settings.streams_by_name:
            stream = streams.find_named(target.sid, reference)
        stream = _found(stream)
        _reject(route.target_kind, check_fields(route.operation, request.fields.values))
        if not stream.alive:
            # Not documented; status and sentence are our choice.
            raise _wrong_state("Stream is already stopped")
        self._state.stop_stream(stream)
        return json_response(self._serializer.stream(stream, status=stream.status))

    def _as_wss(self, values: Mapping[str, str]) -> Mapping[str, str]:
        """Disguise a ws URL on loopback as the wss one that validation requires, if that is allowed."""
        url = values.get("Url", "")
        return {**values, "Url": f"wss{url[2:]}"} if self._settings.allow_ws and is_ws_on_loopback(url) else values

    def _target(self, route: Route) -> Conference | Call:
        if route.target_kind == "conference":
            return self._conference(route)
        return _found(self._state.calls.get(route.target_sid or ""))

    def _conference(self, route: Route) -> Conference:
        return _found(self._state.conferences.get(route.target_sid or ""))


_NOT_FOUND = api_error(404, _NO_SUCH_RESOURCE, "The requested resource was not found")


def _found(resource: _Resource | None) -> _Resource:
    if resource is None:
        raise Rejected(_NOT_FOUND)
    return resource


def _wrong_state(message: str) -> Rejected:
    return Rejected(api_error(400, _NOT_IN_PROGRESS, message))


def _reject(kind: TargetKind, problems: list[Problem]) -> None:
    # A conference stream's 422 lists all problems; a call stream's has the usual error body.
    if problems and kind == "conference":
        raise Rejected(json_response({"errors": [problem.message for problem in problems]}, status=422))
    if problems:
        raise Rejected(api_error(422, problems[0].code, problems[0].message))


ADMIN_PREFIX = "/_space"
_HIDDEN = frozenset({"authorization_bearer_token", "played_audio"})


class AdminApi:
    """The Space's actual state, for tests and tools: GET /_space, /_space/streams, /_space/requests.

    These are not part of the vendor's API: no authentication, no rate limit, no fault, and they are not logged. So
    they show no secrets: bearer tokens and the values of custom parameters are hidden, URLs have no user, password and
    query.
    """

    def __init__(self, state: SpaceState, requests: RequestLog) -> None:
        self._state = state
        self._log = requests

    def respond(self, method: str, path: str) -> Response:
        views: dict[str, Callable[[], Json]] = {
            ADMIN_PREFIX: self._summary,
            f"{ADMIN_PREFIX}/streams": self._streams,
            f"{ADMIN_PREFIX}/requests": self._requests,
        }
        view = views.get(path)
        if view is None or method != "GET":
            return api_error(404, _NO_SUCH_RESOURCE, f"There are GET {', GET '.join(views)}")
        return json_response(view())

    def _summary(self) -> Json:
        streams = self._state.streams
        return {
            "conferences": len(self._state.conferences),
            "calls": len(self._state.calls),
            "streams": len(streams),
            "active": len(streams.active()),
            "duplicates": len(streams.duplicates()),
            "requests": self._log.count(),
            "max_in_window": self._log.max_in_window(),
        }

    def _streams(self) -> Json:
        """Return every stream that was ever started, without audio; times are POSIX seconds."""
        streams = self._state.streams
        return {
            "streams": [_stream(stream) for stream in streams],
            "active": len(streams.active()),
            "duplicates": [list(pair) for pair in streams.duplicates()],
        }

    def _requests(self) -> Json:
        """Return the logged requests; times are seconds of the Space's monotonic clock."""
        return {
            "requests": [{**asdict(request), "fields": redact_fields(request.fields)} for request in self._log],
            "counts": self._log.counts(),
            "max_in_window": self._log.max_in_window(),
        }


def _stream(stream: Stream) -> Json:
    callback = stream.status_callback
    return {
        **asdict(stream, filter=lambda attribute, _: attribute.name not in _HIDDEN),
        "url": redact_url(stream.url),
        "status_callback": None if callback is None else redact_url(callback),
        "parameters": redact_values(stream.parameters),
    }
