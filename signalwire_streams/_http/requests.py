"""Request builders: the one place that knows the API's paths and form fields.

Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams and .../streams
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from email.utils import format_datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeAlias
from urllib.parse import quote, quote_plus

from attrs import evolve, fields

from signalwire_streams._http.account import Account
from signalwire_streams._http.messages import CallState, Request, create_request
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import (
    GENERATED_NAME,
    Operation,
    SignedTokens,
    StartCallStream,
    StartConferenceStream,
    TargetKind,
)
from signalwire_streams.models._requests import WIRE_NAME
from signalwire_streams.models._validation import (
    a_kind_of,
    check_count,
    check_path_segment,
    needs_no_escaping,
    secrets_of,
)

# The beginning of an encoded lone surrogate; no valid text is encoded like this.
_SURROGATE = re.compile("%ED%[AB]")

Start: TypeAlias = StartConferenceStream | StartCallStream

STOP = b"Status=stopped"
"""Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams ("Only 'stopped' is allowed")"""
_END = b"Status=completed"
"""Source: https://signalwire.com/docs/compatibility-api/rest/calls and .../conferences (update)"""
MAX_PAGE_SIZE = 1000
"""Source: https://signalwire.com/docs/compatibility-api/rest/overview (pagination)"""

_SHORT_NAME = 64

# SignalWire's sids are shaped like UUIDs, though not all of the documented ones are hexadecimal; Twilio's differ.
_SID = re.compile("[0-9A-Za-z]{8}(-[0-9A-Za-z]{4}){3}-[0-9A-Za-z]{12}|[A-Z]{2}[0-9a-f]{32}")

# The wire names of each model's fields; and for those besides the address and the name, how to read their values at
# once, and the values if none of them is set.
_WIRE_NAMES = {
    model: {each.name: each.metadata[WIRE_NAME] for each in fields(model) if WIRE_NAME in each.metadata}
    for model in (StartConferenceStream, StartCallStream)
}
_OPTIONS = {model: [name for name in names if name not in {"url", "name"}] for model, names in _WIRE_NAMES.items()}
_VALUES = {model: attrgetter(*names) for model, names in _OPTIONS.items()}
_UNSET: dict[type[Start], tuple[object, ...]] = {
    model: tuple({} if name == "parameters" else None for name in names) for model, names in _OPTIONS.items()
}


def start_form(request: Start) -> bytes:
    """Encode a start as ``application/x-www-form-urlencoded``.

    Raises:
        InvalidRequestError: a string contains a lone surrogate, which cannot be encoded.
    """
    model = type(request)
    form = f"Url={_quoted_address(request.url)}"
    if request.name is not None:
        form += f"&Name={_quoted(request.name)}"
    if (values := _VALUES[model](request)) != _UNSET[model]:  # compared as a whole, since few requests have any
        form += _encoded_options(model, values)
    return form.encode("ascii")


def _encoded_options(model: type[Start], values: tuple[Any, ...]) -> str:
    form: dict[str, str] = {}
    for name, value in zip(_OPTIONS[model], values, strict=True):
        wire_name = _WIRE_NAMES[model][name]
        if isinstance(value, dict):
            for number, (key, text) in enumerate(value.items(), start=1):
                form[f"{wire_name}{number}.Name"] = key
                form[f"{wire_name}{number}.Value"] = text
        elif value is not None and not isinstance(value, SignedTokens):  # each attempt adds its own
            form[wire_name] = _text(value)
    return f"&{_encode(form)}" if form else ""


def _minter(request: Start, tokens: SignedTokens, state: CallState) -> Callable[[], bytes]:
    mint = tokens._minter(request)  # noqa: SLF001  (private to users, not to this package)
    name = _WIRE_NAMES[type(request)]["authorization_bearer_token"]

    def mint_field() -> bytes:
        state.minted += (mint(),)
        return f"&{name}={state.minted[-1]}".encode("ascii")  # it needs no escaping

    return mint_field


def _encode(fields: Mapping[str, str]) -> str:
    encoded = "&".join([f"{name}={_quoted(value)}" for name, value in fields.items()])
    # No encoding error is the cause of this one, since it would carry the text.
    if "%ED%" in encoded and _SURROGATE.search(encoded):
        raise InvalidRequestError("a string contains a lone surrogate: pass text that can be encoded as UTF-8")
    return encoded


def path_of(account: Account, collection: str, *segments: str) -> str:
    """Return the path of one of the account's collections, or below it; each segment is percent-encoded."""
    path = account.root + collection
    for segment in segments:
        path += f"/{_escaped(segment)}"
    return path


def _escaped(segment: str) -> str:
    return segment if needs_no_escaping(segment) else quote(segment, safe="@:")


def _quoted(text: str) -> str:
    return text if needs_no_escaping(text) else quote_plus(text, errors="surrogatepass")


# One URL serves thousands of starts, and it holds no secret.
@lru_cache(maxsize=256)
def _quoted_address(url: str) -> str:
    return _encode({"": url})[1:]


def query(filters: Mapping[str, object]) -> str:
    written = {_quoted(name): _text(value) for name, value in filters.items() if value is not None}
    return "?" + _encode(written) if written else ""


def _text(value: object) -> str:
    if isinstance(value, str):
        return value  # if it is masked, it stays so in this frame
    # A boolean in a form body is inferred to be written as in JSON; the documentation does not say.
    return str(value).lower() if isinstance(value, bool) else str(value)


def day(value: date | str | None, what: str) -> str | None:
    """Format a day for the conference filters: ``YYYY-MM-DD``."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, datetime):
        return _aware(value, what).astimezone(UTC).date().isoformat()
    if not isinstance(value, date):
        raise InvalidRequestError(f"{what} is {a_kind_of(value)}: write it as date(2026, 12, 31)")
    return value.isoformat()


def moment(value: datetime | str | None, what: str) -> str | None:
    """Format a moment for the call filters: RFC 2822 in GMT."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, datetime):
        raise InvalidRequestError(f"{what} is {a_kind_of(value)}: write it as datetime(..., tzinfo=UTC)")
    return format_datetime(_aware(value, what).astimezone(UTC), usegmt=True)


def _aware(value: datetime, what: str) -> datetime:
    if value.tzinfo is None:
        raise InvalidRequestError(f"{what} has no time zone: write it as datetime(..., tzinfo=UTC)")
    return value


def _comes_back(name: str) -> bool:
    """Return True if a response to us must repeat the name; the Space may trim or shorten one that a caller chose."""
    return name.startswith(GENERATED_NAME) or (len(name) <= _SHORT_NAME and needs_no_escaping(name) is not None)


def start(account: Account, request: Start, *, deadline: float | None, state: CallState) -> Request:
    kind, name, tokens = request.kind, request.name, request.authorization_bearer_token
    if isinstance(tokens, SignedTokens) and state.mint is None:  # else it is another part of the same call
        state.mint = _minter(request, tokens, state)
    target: str = getattr(request, kind.target_key)
    echo = {kind.target_key: target, "account_sid": account.sid}
    if name is not None and _comes_back(name):
        echo["name"] = name
    return create_request(
        method="POST",
        path=f"{account.root}{kind.collection}/{_escaped(target)}/Streams",
        operation=kind.start if name is not None else Operation.UNNAMED_START,
        description="start a stream on " + kind,
        target=target,
        body=start_form(request),
        name=name,
        has_unique_name=name is not None and name.startswith(GENERATED_NAME),
        priority=state.priority,
        deadline=deadline,
        echo=echo,
        redact=account.secrets + secrets_of(request),
        state=state,
    )


def stop_kind(handle: str) -> Operation:
    """Return the operation of a stop by text: a sid by its form, or else a name."""
    return Operation.STOP if _SID.fullmatch(handle) else Operation.STOP_BY_NAME


def stop(
    account: Account,
    kind: TargetKind,
    target: str,
    handle: str,
    operation: Operation,
    *,
    deadline: float | None,
    state: CallState,
) -> Request:
    check_path_segment(handle, "stream")
    echo = {kind.target_key: target}
    if operation is not Operation.STOP_BY_NAME:
        echo["sid"] = handle
    elif _comes_back(handle):
        echo["name"] = handle
    return create_request(
        method="POST",
        path=path_of(account, kind.collection, target, "Streams", handle),
        operation=operation,
        description=f"stop stream {handle} on {kind}",
        target=target,
        body=STOP,
        name=handle,
        priority=state.priority,
        deadline=deadline,
        echo=echo,
        redact=account.secrets,
        state=state,
    )


def end(account: Account, kind: TargetKind, sid: str, *, deadline: float | None) -> Request:
    return create_request(
        method="POST",
        path=path_of(account, kind.collection, sid),
        operation=Operation.END,
        description=f"end {kind}",
        target=sid,
        body=_END,
        deadline=deadline,
        echo={"sid": sid},
        redact=account.secrets,
    )


def read(account: Account, kind: TargetKind, sid: str) -> Request:
    target = f"{kind.collection}/{sid}"
    return _read(account, path_of(account, kind.collection, sid), "get", target=target, echo={"sid": sid})


def read_list(
    account: Account, kind: TargetKind, *inside: str, filters: Mapping[str, object], page_size: int | None
) -> Request:
    """Build a read of a list's first page: of all conferences or calls, or of what is *inside* one of them.

    Raises:
        InvalidRequestError: the API does not take this page size.
    """
    if page_size is not None and check_count(page_size, "page_size") > MAX_PAGE_SIZE:
        raise InvalidRequestError(f"page_size must be from 1 to {MAX_PAGE_SIZE}, not {page_size!r}")
    segments = (kind.collection, *inside)
    return _read(
        account,
        path_of(account, *segments) + query({**filters, "PageSize": page_size}),
        "list",
        target="/".join(segments),
        required_key=segments[-1].lower(),
        echo={kind.target_key: inside[0]} if inside else {},
    )


def page_at(first: Request, path: str) -> Request:
    """Build the request for another page than the first one, or for that once more."""
    return evolve(first, path=path, state=CallState())


def _read(
    account: Account, path: str, description: str, *, target: str, echo: Mapping[str, str], required_key: str = "sid"
) -> Request:
    return create_request(
        method="GET",
        path=path,
        operation=Operation.READ,
        description=description,
        target=target,
        required_key=required_key,
        echo=echo,
        redact=account.secrets,
    )
