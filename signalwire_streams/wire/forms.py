"""Requests to form bodies: the one place where the API's field names are written.

Source of the names: https://signalwire.com/docs/compatibility-api/rest/streams
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote_plus

from attrs import fields
from cattrs import Converter
from cattrs.gen import make_dict_unstructure_fn, override

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import StartCallStream, StartConferenceStream
from signalwire_streams.models._validation import is_plain

_FIELDS = {
    "url": "Url",
    "name": "Name",
    "track": "Track",
    "codec": "StreamCodec",
    "realtime": "StreamRealTime",
    "status_callback": "StatusCallback",
    "status_callback_method": "StatusCallbackMethod",
    "authorization_bearer_token": "AuthorizationBearerToken",
}

# How the encoding of half a surrogate pair begins; no valid text encodes so.
_SURROGATE = re.compile("%ED%[AB]")

STOP = b"Status=stopped"
"""Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams ("Only 'stopped' is allowed")"""


def _form_hooks() -> Mapping[type, Callable[[Any], dict[str, str]]]:
    converter = Converter()
    # A boolean in a form body is inferred to be spelled as JSON spells it; the documentation does not say.
    converter.register_unstructure_hook(bool, lambda flag: "true" if flag else "false")
    hooks: dict[type, Callable[[Any], dict[str, str]]] = {}
    for request in (StartConferenceStream, StartCallStream):
        renames = {
            attribute.name: override(rename=_FIELDS[attribute.name], omit_if_default=True)
            if attribute.name in _FIELDS
            else override(omit=True)
            for attribute in fields(request)
        }
        hooks[request] = make_dict_unstructure_fn(request, converter, **renames)  # type: ignore[arg-type]
    return hooks


# Called by hand: looking a hook up takes the converter longer than the hook takes.
_UNSTRUCTURE = _form_hooks()


def start_form(request: StartConferenceStream | StartCallStream) -> bytes:
    """Encode a start as ``application/x-www-form-urlencoded``.

    Raises:
        InvalidRequestError: a text holds half a surrogate pair, which no encoding can carry.
    """
    form = _UNSTRUCTURE[type(request)](request)
    for number, (name, value) in enumerate(request.parameters.items(), start=1):
        form[f"Parameter{number}.Name"] = name
        form[f"Parameter{number}.Value"] = value
    url = f"Url={_quoted_address(form.pop('Url'))}"
    return (f"{url}&{_encode(form)}" if form else url).encode("ascii")


def _encode(fields: Mapping[str, str]) -> str:
    """Encode fields whose names are what they are on the wire."""
    encoded = "&".join([f"{name}={_quoted(value)}" for name, value in fields.items()])
    # No encoding error is the cause of this one, since it would carry the text.
    if _SURROGATE.search(encoded):
        raise InvalidRequestError("a text holds half a surrogate pair: write one that UTF-8 can carry")
    return encoded


def _quoted(text: str) -> str:
    return text if is_plain(text) else quote_plus(text, errors="surrogatepass")


# One address serves thousands of starts, and it holds no secret.
@lru_cache(maxsize=256)
def _quoted_address(url: str) -> str:
    return _encode({"": url})[1:]


def query(filters: Mapping[str, object]) -> str:
    """Encode the filters of a list, leaving out what is None.

    Returns:
        The query with its question mark, or nothing.
    """
    written = {_quoted(name): _filter_text(value) for name, value in filters.items() if value is not None}
    return "?" + _encode(written) if written else ""


def _filter_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def day(value: date | str | None, what: str) -> str | None:
    """Write a day as the conference filters want it: ``YYYY-MM-DD``."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, datetime):
        return _aware(value, what).astimezone(UTC).date().isoformat()
    return value.isoformat()


def moment(value: datetime | str | None, what: str) -> str | None:
    """Write a moment as the call filters want it: RFC 2822 in GMT."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, datetime):
        raise InvalidRequestError(f"{what} is a {type(value).__name__}: write it as datetime(..., tzinfo=UTC)")
    return format_datetime(_aware(value, what).astimezone(UTC), usegmt=True)


def _aware(value: datetime, what: str) -> datetime:
    if value.tzinfo is None:
        raise InvalidRequestError(f"{what} names no time zone: write it as datetime(..., tzinfo=UTC)")
    return value
