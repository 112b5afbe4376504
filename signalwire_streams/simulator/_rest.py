"""The Compatibility API's operations: a request goes in, an answer comes out (pure but for the state it changes).

https://signalwire.com/docs/compatibility-api/. The order of the checks is our reading: authentication, account,
conference or call, fields, state, name.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeVar

from attrs import define, field, frozen

from signalwire_streams.simulator._pagination import (
    BadQuery,
    Listed,
    Page,
    cut_page,
    page_uris,
    select_calls,
    select_conferences,
    select_participants,
)
from signalwire_streams.simulator._routes import Route, TargetKind
from signalwire_streams.simulator._serializers import Answer, Spelling, api_error, error_list, json_answer
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

__all__ = ["ApiRequest", "CompatibilityApi", "DuplicateNames"]

DuplicateNames = Literal["stream-error", "http-error", "allow"]

INVALID_ARGUMENT: Final = 10000
AUTHENTICATION: Final = 20003
NO_SUCH_RESOURCE: Final = 20404
NOT_IN_PROGRESS: Final = 21220
#: Documented as a status callback's StreamError only, never as an HTTP answer.
DUPLICATED_NAME: Final = "Duplicated stream name"

T = TypeVar("T", bound=Listed)


@frozen
class ApiRequest:
    """A request as the operations see it. ``duplicate`` treats a start's name as taken, whatever it is."""

    route: Route
    authorization: str | None = field(repr=False)
    query: Mapping[str, str]
    fields: Fields
    duplicate: DuplicateNames | None = None


@define(eq=False)
class CompatibilityApi:
    """Serves one project of the Space."""

    _state: SpaceState
    _spelling: Spelling
    _token: str = field(repr=False)
    _duplicate_names: DuplicateNames
    _streams_by_name: bool
    _allow_ws: bool
    _credentials: str = field(init=False, repr=False)
    _operations: Mapping[str, Callable[[ApiRequest], Answer]] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        pair = f"{self._spelling.project}:{self._token}"
        self._credentials = b64encode(pair.encode()).decode()
        self._operations = {
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

    def answer(self, request: ApiRequest) -> Answer:
        """Carry a request out.

        A wrong AccountSid with right credentials is answered 404, as any resource that the project cannot see; the
        vendor documents neither 401 nor 404 for it.
        """
        scheme, _, credentials = (request.authorization or "").partition(" ")
        if credentials != self._credentials or scheme.lower() != "basic":
            return api_error(401, AUTHENTICATION, "Authentication failed")
        operation = self._operations.get(request.route.operation)
        if operation is None or request.route.account_sid != self._spelling.project:
            return _not_found()
        if request.fields.problem is not None:
            return api_error(400, INVALID_ARGUMENT, request.fields.problem)
        try:
            return operation(request)
        except BadQuery as refused:
            return api_error(refused.status, refused.code, refused.message)

    def _list_conferences(self, request: ApiRequest) -> Answer:
        matching = select_conferences(self._state.conferences.values(), request.query)
        page = cut_page(matching, request.query)
        return _page_answer(request, page, "conferences", self._spelling.conference)

    def _list_participants(self, request: ApiRequest) -> Answer:
        conference = self._conference(request.route)
        if conference is None:
            return _not_found()
        matching = select_participants(conference.participants, request.query)
        page = cut_page(matching, request.query)
        return _page_answer(request, page, "participants", self._spelling.participant)

    def _list_calls(self, request: ApiRequest) -> Answer:
        # The participants' call legs are served by sid but not listed, so that a Space made with calls=20 lists 20.
        standalone = (call for call in self._state.calls.values() if call.conference_sid is None)
        page = cut_page(select_calls(standalone, request.query), request.query)
        return _page_answer(request, page, "calls", self._spelling.call)

    def _get_conference(self, request: ApiRequest) -> Answer:
        conference = self._conference(request.route)
        return _not_found() if conference is None else json_answer(self._spelling.conference(conference))

    def _get_call(self, request: ApiRequest) -> Answer:
        call = self._state.calls.get(request.route.target_sid or "")
        return _not_found() if call is None else json_answer(self._spelling.call(call))

    def _end_conference(self, request: ApiRequest) -> Answer:
        conference = self._conference(request.route)
        if conference is None:
            return _not_found()
        problems = check_end_conference(request.fields.values)
        if problems:
            return api_error(422, problems[0].code, problems[0].message)
        if conference.status == "completed":
            return _wrong_state("Conference is already completed")
        if "Status" in request.fields.values:
            self._state.end_conference(conference.sid)
        return json_answer(self._spelling.conference(conference))

    def _start_stream(self, request: ApiRequest) -> Answer:
        route, values = request.route, request.fields.values
        target = self._state.find_target(route.target_kind, route.target_sid)
        if target is None:
            return _not_found()
        problems = check_start(route.target_kind, self._as_wss(values))
        if problems:
            return _invalid(route.target_kind, problems)
        if target.status != IN_PROGRESS:
            return _wrong_state(f"The {route.target_kind} is not in progress")
        duplicate = request.duplicate or self._duplicate(target, values.get("Name"))
        if duplicate == "http-error":
            return _invalid(route.target_kind, [Problem(DUPLICATED_NAME)])
        stream = self._new_stream(route.target_kind, target, values)
        if duplicate == "stream-error":
            # The start is answered as if it had worked; only a status callback would tell that it did not.
            stream.error, stream.status = DUPLICATED_NAME, "stopped"
        self._state.start_stream(stream)
        created = stream.sid if stream.alive else None
        return json_answer(self._spelling.stream(stream, status="queued"), created=created)

    def _stop_stream(self, request: ApiRequest) -> Answer:
        route = request.route
        target = self._state.find_target(route.target_kind, route.target_sid)
        stream = self._find_stream(target, route.stream)
        if stream is None:
            return _not_found()
        problems = check_stop(request.fields.values)
        if problems:
            return _invalid(route.target_kind, problems)
        if not stream.alive:
            # The vendor documents no answer for this; status and sentence are our reading.
            return _wrong_state("Stream is already stopped")
        self._state.stop_stream(stream)
        return json_answer(self._spelling.stream(stream, status=stream.status))

    def _as_wss(self, values: Mapping[str, str]) -> Mapping[str, str]:
        """Let a loopback ws address pass for the wss one that the checks want, where that is allowed."""
        url = values.get("Url", "")
        return {**values, "Url": f"wss{url[2:]}"} if self._allow_ws and is_ws_on_loopback(url) else values

    def _conference(self, route: Route) -> Conference | None:
        return self._state.conferences.get(route.target_sid or "")

    def _find_stream(self, target: Conference | Call | None, reference: str | None) -> Stream | None:
        if target is None or reference is None:
            return None
        found = self._state.streams.find(target.sid, reference)
        if found is None and self._streams_by_name:
            return self._state.streams.find_named(target.sid, reference)
        return found

    def _duplicate(self, target: Conference | Call, name: str | None) -> DuplicateNames:
        taken = self._state.streams.has_active_name(target.sid, name)
        return self._duplicate_names if taken else "allow"

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


def _page_answer(request: ApiRequest, page: Page[T], name: str, spell: Callable[[T], Mapping[str, object]]) -> Answer:
    frame = page_uris(page, request.route.path, request.query)
    return json_answer({**frame, name: [spell(item) for item in page.items]})


def _not_found() -> Answer:
    return api_error(404, NO_SUCH_RESOURCE, "The requested resource was not found")


def _wrong_state(message: str) -> Answer:
    return api_error(400, NOT_IN_PROGRESS, message)


def _invalid(kind: TargetKind, problems: list[Problem]) -> Answer:
    # Conference streams answer 422 with every problem in a list of texts; call streams with the usual error body.
    if kind == "conference":
        return error_list(problem.message for problem in problems)
    return api_error(422, problems[0].code, problems[0].message)
