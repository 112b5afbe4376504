"""What the Space really holds and received, for tests and tools: GET /_space, /_space/streams, /_space/requests.

These are no part of the vendor's API: no authentication, no rate limit, no fault, and they leave no trace. So they
show no secrets: a bearer token and the values of custom parameters are hidden, and addresses have no user, password and
query.
"""

from collections.abc import Callable
from typing import Any, Final

from attrs import Attribute, asdict, define

from signalwire_streams.simulator._request_log import RequestLog, shown_address, shown_fields, shown_names
from signalwire_streams.simulator._serializers import Answer, Json, api_error, json_answer
from signalwire_streams.simulator._state import SpaceState, Stream

__all__ = ["PREFIX", "Inspection"]

PREFIX: Final = "/_space"


def _is_shown(attribute: "Attribute[Any]", _value: object) -> bool:
    return attribute.name not in {"authorization_bearer_token", "played_audio"}


def _stream(stream: Stream) -> Json:
    callback = stream.status_callback
    return {
        **asdict(stream, filter=_is_shown),
        "url": shown_address(stream.url),
        "status_callback": None if callback is None else shown_address(callback),
        "parameters": shown_names(stream.parameters),
    }


@define(eq=False)
class Inspection:
    """Answers the inspection paths."""

    _state: SpaceState
    _journal: RequestLog

    def answer(self, method: str, path: str) -> Answer:
        """Answer a request for an inspection path."""
        views: dict[str, Callable[[], Json]] = {
            PREFIX: self._summary,
            f"{PREFIX}/streams": self._streams,
            f"{PREFIX}/requests": self._requests,
        }
        view = views.get(path)
        if view is None or method != "GET":
            return api_error(404, 20404, f"There are GET {', GET '.join(views)}")
        return json_answer(view())

    def _summary(self) -> Json:
        """Count: ``{conferences, calls, streams, alive, doubled, requests, busiest_window}``, all numbers."""
        streams = self._state.streams
        return {
            "conferences": len(self._state.conferences),
            "calls": len(self._state.calls),
            "streams": len(streams),
            "alive": len(streams.active()),
            "doubled": len(streams.duplicates()),
            "requests": self._journal.count(),
            "busiest_window": self._journal.max_in_window(),
        }

    def _streams(self) -> Json:
        """Show every stream ever started, but no audio; times are POSIX seconds."""
        streams = self._state.streams
        return {
            "streams": [_stream(stream) for stream in streams],
            "alive": len(streams.active()),
            "doubled": [list(pair) for pair in streams.duplicates()],
        }

    def _requests(self) -> Json:
        """Show the journal, the names of all fields included; times are seconds of the Space's monotonic clock."""
        return {
            "requests": [{**asdict(request), "fields": shown_fields(request.fields)} for request in self._journal],
            "counts": self._journal.counts(),
            "busiest_window": self._journal.max_in_window(),
        }
