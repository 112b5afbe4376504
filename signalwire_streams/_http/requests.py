"""What the resources ask for, spelled as exchanges: the one place where the API's paths are written.

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
        InvalidRequestError: a text holds half a surrogate pair, which no encoding can carry.
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
    """Encode fields whose names are what they are on the wire."""
    encoded = "&".join([f"{name}={_quoted(value)}" for name, value in fields.items()])
    # No encoding error is the cause of this one, since it would carry the text.
    if _SURROGATE.search(encoded):
        raise InvalidRequestError("a text holds half a surrogate pair: write one that UTF-8 can carry")
    return encoded


def _quoted(text: str) -> str:
    return text if needs_no_escaping(text) else quote_plus(text, errors="surrogatepass")


# One address serves thousands of starts, and it holds no secret.
@lru_cache(maxsize=256)
def _quoted_address(url: str) -> str:
    return _encode({"": url})[1:]


def query(filters: Mapping[str, object]) -> str:
    """Encode the filters of a list, leaving out what is None.

    Returns:
        The query with its question mark, or nothing.
    """
    written = {_quoted(name): _text(value) for name, value in filters.items() if value is not None}
    return "?" + _encode(written) if written else ""


def _text(value: object) -> str:
    # A boolean in a form body is inferred to be spelled as JSON spells it; the documentation does not say.
    return str(value).lower() if isinstance(value, bool) else str(value)


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


MAX_PAGE_SIZE = 1000
"""Source: https://signalwire.com/docs/compatibility-api/rest/overview (pagination)"""

Start = StartConferenceStream | StartCallStream

_SHORT_NAME = 64
_TARGET_KEYS = {"Conferences": "conference_sid", "Calls": "call_sid"}

# SignalWire's sids are shaped like UUIDs, though not all of the documented ones are hexadecimal; Twilio's differ.
_SID = re.compile("[0-9A-Za-z]{8}(-[0-9A-Za-z]{4}){3}-[0-9A-Za-z]{12}|[A-Z]{2}[0-9a-f]{32}")


def generate_name() -> str:
    """Make a Name that no other start has."""
    return f"{GENERATED_NAME}{token_hex(12)}"


def _comes_back(name: str) -> bool:
    """Return True if an answer repeats the name as it was sent.

    Another answer's name tells it from ours. But the Space may trim or shorten a name that a caller chose.
    """
    return name.startswith(GENERATED_NAME) or (needs_no_escaping(name) and len(name) <= _SHORT_NAME)


def start(account: Account, request: Start, *, deadline: float | None, errand: CallContext) -> Request:
    """Spell a start.

    Args:
        account: who asks.
        request: what for, with its name already decided.
        deadline: seconds for the whole call, or None for the policy's own.
        errand: in which lane it goes, and what tells how far it is.
    """
    if isinstance(request, StartConferenceStream):
        collection, noun, kind = "Conferences", "conference", Operation.CONFERENCE_START
    else:
        collection, noun, kind = "Calls", "call", Operation.CALL_START
    echo = {_TARGET_KEYS[collection]: request.target, "account_sid": account.sid}
    if request.name is not None and _comes_back(request.name):
        echo["name"] = request.name
    return Request(
        method="POST",
        path=account.path(collection, request.target, "Streams"),
        operation=kind if request.name is not None else Operation.UNNAMED_START,
        description=f"start a stream on {noun}",
        target=request.target,
        body=start_form(request),
        name=request.name,
        has_unique_name=request.name is not None and request.name.startswith(GENERATED_NAME),
        priority=errand.priority,
        deadline=check_deadline(deadline),
        echo=echo,
        redact=account.secrets + request.secrets,
        state=errand.state,
    )


def stop_kind(handle: str) -> Operation:
    """Return the kind of a stop whose handle is a bare text: a sid by its form, or else a name."""
    return Operation.STOP if _SID.fullmatch(handle) else Operation.STOP_BY_NAME


def stop(
    account: Account,
    collection: str,
    target: str,
    handle: str,
    kind: Operation,
    *,
    deadline: float | None,
    errand: CallContext,
) -> Request:
    """Spell a stop.

    Args:
        account: who asks.
        collection: ``Conferences`` or ``Calls``.
        target: the sid of the conference or call.
        handle: the stream's sid or name.
        kind: what is known of the handle.
        deadline: seconds for the whole call, or None for the policy's own.
        errand: in which lane it goes, and what tells how far it is.
    """
    echo = {_TARGET_KEYS[collection]: target}
    if kind is not Operation.STOP_BY_NAME:
        echo["sid"] = handle
    elif _comes_back(handle):
        echo["name"] = handle
    return Request(
        method="POST",
        path=account.path(collection, target, "Streams", handle),
        operation=kind,
        description=f"stop stream {handle} on {'conference' if collection == 'Conferences' else 'call'}",
        target=target,
        body=STOP,
        name=handle,
        priority=errand.priority,
        deadline=check_deadline(deadline),
        echo=echo,
        redact=account.secrets,
        state=errand.state,
    )


def read(account: Account, *segments: str) -> Request:
    """Spell the reading of one conference or call."""
    return _read(account, account.path(*segments), "/".join(segments), "sid", {"sid": segments[-1]})


def read_list(
    account: Account, *segments: str, filters: Mapping[str, object], page_size: int | None, key: str
) -> Request:
    """Spell the reading of a list's first page.

    Raises:
        InvalidRequestError: the page size is not one that the API takes.
    """
    if page_size is not None and check_count(page_size, "page_size") > MAX_PAGE_SIZE:
        raise InvalidRequestError(f"page_size must be from 1 to {MAX_PAGE_SIZE}, not {page_size!r}")
    path = account.path(*segments) + query({**filters, "PageSize": page_size})
    collection, *target = segments
    echo = {_TARGET_KEYS[collection]: target[0]} if target else {}
    return _read(account, path, "/".join(segments), key, echo)


def next_page(account: Account, first: Request, uri: str) -> Request:
    """Spell the reading of a further page, whose address the Space gave; it is followed as it stands.

    Raises:
        MalformedResponseError: the address leads to another host.
    """
    return _read(account, account.same_host_path(uri), first.target, first.required_key, first.echo)


def _read(account: Account, path: str, target: str, expects: str, echo: Mapping[str, str]) -> Request:
    return Request(
        method="GET",
        path=path,
        operation=Operation.READ,
        description="read",
        target=target,
        required_key=expects,
        echo=echo,
        redact=account.secrets,
    )


def copy_for_new_call(exchange: Request) -> Request:
    """Spell an exchange anew, for another call with a progress of its own."""
    return evolve(exchange, state=CallState())
