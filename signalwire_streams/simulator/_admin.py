"""The Space's actual state, for tests and tools: GET /_space, /_space/streams, /_space/requests.

These are not part of the vendor's API: no authentication, no rate limit, no fault, and they are not logged. So they
show no secrets: bearer tokens and the values of custom parameters are hidden, URLs have no user, password and query.
"""

from collections.abc import Callable

from attrs import asdict

from signalwire_streams.simulator._request_log import RequestLog, redact_fields, redact_url, redact_values
from signalwire_streams.simulator._serializers import Json, Response, api_error, json_response
from signalwire_streams.simulator._state import SpaceState, Stream

PREFIX = "/_space"
_HIDDEN = frozenset({"authorization_bearer_token", "played_audio"})


class AdminApi:
    def __init__(self, state: SpaceState, requests: RequestLog) -> None:
        self._state = state
        self._log = requests

    def answer(self, method: str, path: str) -> Response:
        views: dict[str, Callable[[], Json]] = {
            PREFIX: self._summary,
            f"{PREFIX}/streams": self._streams,
            f"{PREFIX}/requests": self._requests,
        }
        view = views.get(path)
        if view is None or method != "GET":
            return api_error(404, 20404, f"There are GET {', GET '.join(views)}")
        return json_response(view())

    def _summary(self) -> Json:
        streams = self._state.streams
        return {
            "conferences": len(self._state.conferences),
            "calls": len(self._state.calls),
            "streams": len(streams),
            "alive": len(streams.active()),
            "doubled": len(streams.duplicates()),
            "requests": self._log.count(),
            "busiest_window": self._log.max_in_window(),
        }

    def _streams(self) -> Json:
        """Return every stream ever started, without audio; times are POSIX seconds."""
        streams = self._state.streams
        return {
            "streams": [_stream(stream) for stream in streams],
            "alive": len(streams.active()),
            "doubled": [list(pair) for pair in streams.duplicates()],
        }

    def _requests(self) -> Json:
        """Return the logged requests; times are seconds of the Space's monotonic clock."""
        return {
            "requests": [{**asdict(request), "fields": redact_fields(request.fields)} for request in self._log],
            "counts": self._log.counts(),
            "busiest_window": self._log.max_in_window(),
        }


def _stream(stream: Stream) -> Json:
    callback = stream.status_callback
    return {
        **asdict(stream, filter=lambda attribute, _: attribute.name not in _HIDDEN),
        "url": redact_url(stream.url),
        "status_callback": None if callback is None else redact_url(callback),
        "parameters": redact_values(stream.parameters),
    }
