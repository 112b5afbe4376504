"""The shapes of the vendor's OpenAPI description, written independently: every property, and its values."""

import re
from collections.abc import Callable, Mapping
from typing import Any

Shape = Mapping[str, Callable[[Any], bool]]

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_DATE = re.compile(
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d "
    r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sept?|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d \+0000"
)


def uuid(value: Any) -> bool:
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def date(value: Any) -> bool:
    return isinstance(value, str) and _DATE.fullmatch(value) is not None


def text(value: Any) -> bool:
    return isinstance(value, str)


def boolean(value: Any) -> bool:
    return isinstance(value, bool)


def integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def null(value: Any) -> bool:
    return value is None


def uri(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/api/laml/2010-04-01/Accounts/")


def nullable(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: value in values


def items(shape: Shape) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(mismatches(item, shape) == [] for item in value)


def nested(shape: Shape) -> Callable[[Any], bool]:
    return lambda value: mismatches(value, shape) == []


def mismatches(document: Any, shape: Shape) -> list[str]:
    """Name every property that is missing, unknown or of the wrong kind."""
    if not isinstance(document, dict):
        return [f"not an object: {document!r}"]
    missing = [f"{name} is missing" for name in shape.keys() - document.keys()]
    unknown = [f"{name} is unknown" for name in document.keys() - shape.keys()]
    wrong = [
        f"{name} is {document[name]!r}"
        for name, check in shape.items()
        if name in document and not check(document[name])
    ]
    return sorted([*missing, *unknown, *wrong])


STREAM_STATUS = one_of("queued", "in-progress", "stopped")
CALL_STATUS = one_of("queued", "ringing", "in-progress", "canceled", "completed", "busy", "failed", "no-answer")

ERROR: Shape = {"code": integer, "message": text, "more_info": text, "status": integer}
ERROR_LIST: Shape = {"errors": lambda value: isinstance(value, list) and all(text(item) for item in value)}
CONFERENCE_STREAM: Shape = {
    "account_sid": uuid,
    "conference_sid": uuid,
    "date_updated": date,
    "name": nullable(text),
    "sid": uuid,
    "status": STREAM_STATUS,
    "uri": uri,
}
CALL_STREAM: Shape = {
    "sid": uuid,
    "account_sid": uuid,
    "call_sid": uuid,
    "name": text,
    "status": STREAM_STATUS,
    "date_updated": date,
    "uri": uri,
}
CONFERENCE: Shape = {
    "sid": uuid,
    "account_sid": uuid,
    "date_created": date,
    "date_updated": date,
    "friendly_name": text,
    "status": one_of("init", "in-progress", "completed"),
    "api_version": one_of("2010-04-01"),
    "region": text,
    "uri": uri,
    "subresource_uris": nested({"participants": uri, "recordings": uri}),
}
PARTICIPANT: Shape = {
    "account_sid": uuid,
    "call_sid": uuid,
    "call_sid_to_coach": nullable(uuid),
    "coaching": boolean,
    "conference_sid": uuid,
    "date_created": date,
    "status": one_of("completed", "in-progress"),
    "date_updated": date,
    "end_conference_on_exit": boolean,
    "muted": boolean,
    "hold": boolean,
    "start_conference_on_enter": boolean,
    "uri": uri,
}
CALL: Shape = {
    "sid": uuid,
    "account_sid": uuid,
    "date_created": date,
    "date_updated": date,
    "parent_call_sid": nullable(uuid),
    "to": text,
    "formatted_to": text,
    "to_formatted": text,
    "from": text,
    "formatted_from": text,
    "from_formatted": text,
    "phone_number_sid": nullable(uuid),
    "status": CALL_STATUS,
    "start_time": nullable(date),
    "end_time": nullable(date),
    "duration": integer,
    "price": nullable(lambda value: isinstance(value, int | float)),
    "price_unit": text,
    "direction": one_of("inbound", "outbound"),
    "answered_by": nullable(one_of("human", "machine")),
    "api_version": text,
    "forwarded_from": null,
    "caller_name": null,
    "uri": uri,
    "subresource_uris": nested({"notifications": null, "recordings": uri}),
    "annotation": null,
    "group_sid": null,
    "audio_in_mos": nullable(lambda value: isinstance(value, int | float)),
    "sip_result_code": nullable(text),
    "audio_rtt_avg": nullable(integer),
    "audio_rtt_min": nullable(integer),
    "audio_rtt_max": nullable(integer),
    "audio_out_jitter_min": nullable(integer),
    "audio_out_jitter_max": nullable(integer),
    "audio_out_jitter_avg": nullable(integer),
    "audio_out_lost": nullable(integer),
}


def page(name: str, shape: Shape) -> Shape:
    """Return the shape of a list's page."""
    return {
        "uri": uri,
        "first_page_uri": uri,
        "next_page_uri": nullable(uri),
        "previous_page_uri": nullable(uri),
        "page": integer,
        "page_size": integer,
        name: items(shape),
    }
