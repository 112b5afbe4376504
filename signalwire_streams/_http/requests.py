"""Request builders: the one place that knows the API's paths and form fields.

Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams and .../streams
"""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from email.utils import format_datetime
from functools import lru_cache
from secrets import token_hex
from urllib.parse import quote_plus

from attrs import evolve, fields

from signalwire_streams._http.account import Account
from signalwire_streams._http.messages import CallContext, CallState, Request
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import GENERATED_NAME, Operation, StartCallStream, StartConferenceStream
from signalwire_streams.models._requests import WIRE_NAME
from signalwire_streams.models._validation import check_count, check_deadline, needs_no_escaping

# How the encoding of half a surrogate pair begins; no valid text encodes so.
_SURROGATE = re.compile("%ED%[AB]")

STOP = b"Status=stopped"
"""Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams ("Only 'stopped' is allowed")"""


_FORM_FIELDS = {
    model: [(each.name, each.metadata[WIRE_NAME]) for each in fields(model) if WIRE_NAME in each.metadata]
    for model in (StartConferenceStream, StartCallStream)
}


def start_form(request: StartConferenceStream | StartCallStream) -> bytes:
    """Encode a start as ``application/x-www-form-urlencoded``.

    Raises:
        InvalidRequestError: a string contains a lone surrogate, which cannot be encoded.
    """
    form: dict[str, str] = {}
    for name, wire_name in _FORM_FIELDS[type(request)]:
        value = getattr(request, name)
        if isinstance(value, Mapping):
            for number, (key, text) in enumerate(value.items(), start=1):
                form[f"{wire_name}{number}.Name"] = key
                form[f"{wire_name}{number}.Value"] = text
        elif value is not None:
            form[wire_name] = _text(value)
    url = f"Url={_quoted_address(form.pop('Url'))}"
    return (f"{url}&{_encode(form)}" if form else url).encode("ascii")


def _encode(fields: Mapping[str, str]) -> str:
    encoded = "&".join([f"{name}={_quoted(value)}" for name, value in fields.items()])
    # No encoding error is the cause of this one, since it would carry the text.
    if _SURROGATE.search(encoded):
        raise InvalidRequestError("a string contains a lone surrogate: pass text that can be encoded as UTF-8")
    return encoded


def _quoted(text: str) -> str:
    return text if needs_no_escaping(text) else quote_plus(text, errors="surrogatepass")


# One URL serves thousands of starts, and it holds no secret.
@lru_cache(maxsize=256)
def _quoted_address(url: str) -> str:
    return _encode({"": url})[1:]


def query(filters: Mapping[str, object]) -> str:
    """Return the query with its question mark, without filters that are None, or an empty string."""
    written = {_quoted(name): _text(value) for name, value in filters.items() if value is not None}
    return "?" + _encode(written) if written else ""


def _text(value: object) -> str:
    if isinstance(value, str):
        return value  # a masked one stays so in this frame
    # A boolean in a form body is inferred to be written as in JSON; the documentation does not say.
    return str(value).lower() if isinstance(value, bool) else str(value)


def day(value: date | str | None, what: str) -> str | None:
    """Format a day for the conference filters: ``YYYY-MM-DD``."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, datetime):
        return _aware(value, what).astimezone(UTC).date().isoformat()
    return value.isoformat()


def moment(value: datetime | str | None, what: str) -> str | None:
    """Format a moment for the call filters: RFC 2822 in GMT."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, datetime):
        raise InvalidRequestError(f"{what} is a {type(value).__name__}: write it as datetime(..., tzinfo=UTC)")
    return format_datetime(_aware(value, what).astimezone(UTC), usegmt=True)


def _aware(value: datetime, what: str) -> datetime:
    if value.tzinfo is None:
        raise InvalidRequestError(f"{what} has no time zone: write it as datetime(..., tzinfo=UTC)")
    return value


MAX_PAGE_SIZE = 1000
"""Source: https://signalwire.com/docs/compatibility-api/rest/overview (pagination)"""

Start = StartConferenceStream | StartCallStream

_SHORT_NAME = 64
_TARGET_KEYS = {"Conferences": "conference_sid", "Calls": "call_sid"}

# SignalWire's sids are shaped like UUIDs, though not all of the documented ones are hexadecimal; Twilio's differ.
_SID = re.compile("[0-9A-Za-z]{8}(-[0-9A-Za-z]{4}){3}-[0-9A-Za-z]{12}|[A-Z]{2}[0-9a-f]{32}")


def generate_name() -> str:
    """Return a Name that no other start has."""
    return f"{GENERATED_NAME}{token_hex(12)}"


def _comes_back(name: str) -> bool:
    """Return True if a response to us must repeat the name; the Space may trim or shorten one that a caller chose."""
    return name.startswith(GENERATED_NAME) or (needs_no_escaping(name) and len(name) <= _SHORT_NAME)


def start(account: Account, request: Start, *, deadline: float | None, context: CallContext) -> Request:
    """Build a start with its final name."""
    if isinstance(request, StartConferenceStream):
        collection, noun, operation = "Conferences", "conference", Operation.CONFERENCE_START
    else:
        collection, noun, operation = "Calls", "call", Operation.CALL_START
    echo = {_TARGET_KEYS[collection]: request.target, "account_sid": account.sid}
    if request.name is not None and _comes_back(request.name):
        echo["name"] = request.name
    return Request(
        method="POST",
        path=account.path(collection, request.target, "Streams"),
        operation=operation if request.name is not None else Operation.UNNAMED_START,
        description=f"start a stream on {noun}",
        target=request.target,
        body=start_form(request),
        name=request.name,
        has_unique_name=request.name is not None and request.name.startswith(GENERATED_NAME),
        priority=context.priority,
        deadline=check_deadline(deadline),
        echo=echo,
        redact=account.secrets + request.secrets,
        state=context.state,
    )


def stop_kind(handle: str) -> Operation:
    """Return the operation of a stop by text: a sid by its form, or else a name."""
    return Operation.STOP if _SID.fullmatch(handle) else Operation.STOP_BY_NAME


def stop(
    account: Account,
    collection: str,
    target: str,
    handle: str,
    operation: Operation,
    *,
    deadline: float | None,
    context: CallContext,
) -> Request:
    """Build a stop of the stream with a sid or name, the *handle*."""
    echo = {_TARGET_KEYS[collection]: target}
    if operation is not Operation.STOP_BY_NAME:
        echo["sid"] = handle
    elif _comes_back(handle):
        echo["name"] = handle
    return Request(
        method="POST",
        path=account.path(collection, target, "Streams", handle),
        operation=operation,
        description=f"stop stream {handle} on {'conference' if collection == 'Conferences' else 'call'}",
        target=target,
        body=STOP,
        name=handle,
        priority=context.priority,
        deadline=check_deadline(deadline),
        echo=echo,
        redact=account.secrets,
        state=context.state,
    )


def read(account: Account, *segments: str) -> Request:
    """Build a read of one conference or call."""
    target, echo = "/".join(segments), {"sid": segments[-1]}
    return _read(account, account.path(*segments), description="get", target=target, required_key="sid", echo=echo)


def read_list(
    account: Account, *segments: str, filters: Mapping[str, object], page_size: int | None, key: str
) -> Request:
    """Build a read of a list's first page.

    Raises:
        InvalidRequestError: the API does not take this page size.
    """
    if page_size is not None and check_count(page_size, "page_size") > MAX_PAGE_SIZE:
        raise InvalidRequestError(f"page_size must be from 1 to {MAX_PAGE_SIZE}, not {page_size!r}")
    path = account.path(*segments) + query({**filters, "PageSize": page_size})
    collection, *target = segments
    echo = {_TARGET_KEYS[collection]: target[0]} if target else {}
    return _read(account, path, description="list", target="/".join(segments), required_key=key, echo=echo)


def next_page(account: Account, first: Request, uri: str) -> Request:
    """Build a read of the next page, at the address from the previous one.

    Raises:
        MalformedResponseError: the address leads to another host.
    """
    path = account.same_host_path(uri)
    return _read(
        account,
        path,
        description=first.description,
        target=first.target,
        required_key=first.required_key,
        echo=first.echo,
    )


def _read(
    account: Account, path: str, *, description: str, target: str, required_key: str, echo: Mapping[str, str]
) -> Request:
    return Request(
        method="GET",
        path=path,
        operation=Operation.READ,
        description=description,
        target=target,
        required_key=required_key,
        echo=echo,
        redact=account.secrets,
    )


def copy_for_new_call(request: Request) -> Request:
    """Return a copy of the request with a new state."""
    return evolve(request, state=CallState())
