"""The Compatibility API's JSON and HTTP: resources, streams, errors, dates, messages (pure).

The shapes are those of https://signalwire.com/docs/compatibility-api/ and its OpenAPI description.
"""

import json
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from http import HTTPStatus

from attrs import field, frozen

from signalwire_streams.simulator._requests import BASE_PATH
from signalwire_streams.simulator._state import Call, Conference, Participant, Stream

# strftime would follow the machine's locale.
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SEPTEMBER = 9


@lru_cache(maxsize=1024)
def _date_and_time(seconds: int, long_september: bool) -> str:  # noqa: FBT001  (a cache key)
    moment = time.gmtime(seconds)
    month = "Sept" if long_september and moment.tm_mon == _SEPTEMBER else _MONTHS[moment.tm_mon - 1]
    clock = f"{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}"
    return f"{_DAYS[moment.tm_wday]}, {moment.tm_mday:02} {month} {moment.tm_year} {clock}"


def http_date(moment: float) -> str:
    """Format a POSIX timestamp as the Date header does, ``Wed, 19 Sep 2018 21:00:00 GMT``."""
    return f"{_date_and_time(int(moment), False)} GMT"


Json = dict[str, object]

_MORE_INFO = "https://signalwire.com/docs/compatibility-api/reference/errors"
_API_VERSION = "2010-04-01"
_NORTH_AMERICAN_DIGITS = 12
_KNOWN_AFTERWARDS = (  # of a call
    *("annotation", "group_sid", "audio_in_mos", "sip_result_code", "audio_rtt_avg", "audio_rtt_min", "audio_rtt_max"),
    *("audio_out_jitter_min", "audio_out_jitter_max", "audio_out_jitter_avg", "audio_out_lost"),
)
_REASONS = {status.value: status.phrase for status in HTTPStatus}


@frozen
class Response:
    """An HTTP response. ``created`` is the sid of the stream that it started, for the request log."""

    status: int
    body: bytes = field(repr=False)
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(factory=dict)
    created: str | None = None


class Refused(Exception):  # noqa: N818  (a response to the client, not a failure of the simulator)
    """Ends an operation with an error response."""

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response


def json_response(body: Mapping[str, object], *, status: int = 200, created: str | None = None) -> Response:
    return Response(status, json.dumps(body).encode(), created=created)


def api_error(status: int, code: int, message: str) -> Response:
    """Return the API's usual error, ``{code, message, more_info, status}``."""
    return json_response(
        {"code": code, "message": message, "more_info": f"{_MORE_INFO}#{code}", "status": status}, status=status
    )


def error_list(messages: Iterable[str]) -> Response:
    """Return 422 as conference streams do: ``{"errors": [text, ...]}``, all problems at once."""
    return json_response({"errors": list(messages)}, status=422)


def reason_phrase(status: int) -> str:
    return _REASONS.get(status, "Unknown")


def retry_after_header(retry_after: float | str | None) -> dict[str, str]:
    """Return a Retry-After header: seconds without a trailing fraction of zero, a text unchanged; empty for None."""
    if retry_after is None:
        return {}
    return {"Retry-After": retry_after if isinstance(retry_after, str) else f"{retry_after:g}"}


def http_message(response: Response, more_headers: Mapping[str, str] | None = None) -> bytes:
    """Encode a response: status line, headers, body; its own headers override the additional ones."""
    head = (
        f"HTTP/1.1 {response.status} {reason_phrase(response.status)}\r\n"
        f"Content-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n"
    )
    headers = {**(more_headers or {}), **response.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}{lines}\r\n".encode("latin-1") + response.body


@frozen
class Serializer:
    """Serializes one project's resources; ``long_september`` writes "Sept", as the vendor's examples do."""

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
        """Serialize a call; what is not known before it ends is null, as documented."""
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
        return f"{_date_and_time(int(moment), self.long_september)} +0000"

    def _date_or_null(self, moment: float | None) -> str | None:
        return None if moment is None else self._date(moment)


def _formatted(number: str) -> str:
    if len(number) == _NORTH_AMERICAN_DIGITS and number.startswith("+1"):
        return f"({number[2:5]}) {number[5:8]}-{number[8:]}"
    return number
