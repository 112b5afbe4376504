"""What the resources ask for, spelled as exchanges: the one place where the API's paths are written.

Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams and .../streams
"""

import re
from collections.abc import Mapping
from secrets import token_hex

from attrs import evolve

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import GENERATED_NAME, Kind, StartCallStream, StartConferenceStream
from signalwire_streams.models._validation import check_count, check_deadline, is_plain, private_parts
from signalwire_streams._http.account import Account
from signalwire_streams._http.messages import Errand, Exchange, Progress
from signalwire_streams.wire.forms import STOP, query, start_form

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
    return name.startswith(GENERATED_NAME) or (is_plain(name) and len(name) <= _SHORT_NAME)


def start(account: Account, request: Start, *, deadline: float | None, errand: Errand) -> Exchange:
    """Spell a start.

    Args:
        account: who asks.
        request: what for, with its name already decided.
        deadline: seconds for the whole call, or None for the policy's own.
        errand: in which lane it goes, and what tells how far it is.
    """
    if isinstance(request, StartConferenceStream):
        collection, noun, kind = "Conferences", "conference", Kind.CONFERENCE_START
    else:
        collection, noun, kind = "Calls", "call", Kind.CALL_START
    echo = {_TARGET_KEYS[collection]: request.target, "account_sid": account.sid}
    if request.name is not None and _comes_back(request.name):
        echo["name"] = request.name
    return Exchange(
        method="POST",
        path=account.path(collection, request.target, "Streams"),
        kind=kind if request.name is not None else Kind.UNNAMED_START,
        verb=f"start a stream on {noun}",
        target=request.target,
        body=start_form(request),
        name=request.name,
        has_unique_name=request.name is not None and request.name.startswith(GENERATED_NAME),
        lane=errand.lane,
        deadline=check_deadline(deadline),
        echo=echo,
        secrets=_secrets(account, request),
        progress=errand.progress,
    )


def _secrets(account: Account, request: Start) -> tuple[str, ...]:
    secrets = account.secrets
    if request.parameters:
        secrets += tuple(request.parameters.values())
    if request.status_callback is not None:
        secrets += private_parts(request.status_callback)
    if request.authorization_bearer_token is not None:
        secrets += (request.authorization_bearer_token,)
    return secrets


def stop_kind(handle: str) -> Kind:
    """Return the kind of a stop whose handle is a bare text: a sid by its form, or else a name."""
    return Kind.STOP if _SID.fullmatch(handle) else Kind.STOP_BY_NAME


def stop(
    account: Account, collection: str, target: str, handle: str, kind: Kind, *, deadline: float | None, errand: Errand
) -> Exchange:
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
    if kind is not Kind.STOP_BY_NAME:
        echo["sid"] = handle
    elif _comes_back(handle):
        echo["name"] = handle
    return Exchange(
        method="POST",
        path=account.path(collection, target, "Streams", handle),
        kind=kind,
        verb=f"stop stream {handle} on {'conference' if collection == 'Conferences' else 'call'}",
        target=target,
        body=STOP,
        name=handle,
        lane=errand.lane,
        deadline=check_deadline(deadline),
        echo=echo,
        secrets=account.secrets,
        progress=errand.progress,
    )


def read(account: Account, *segments: str) -> Exchange:
    """Spell the reading of one conference or call."""
    return _read(account, account.path(*segments), "/".join(segments), "sid", {"sid": segments[-1]})


def read_list(
    account: Account, *segments: str, filters: Mapping[str, object], page_size: int | None, key: str
) -> Exchange:
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


def read_next(account: Account, first: Exchange, uri: str) -> Exchange:
    """Spell the reading of a further page, whose address the Space gave; it is followed as it stands.

    Raises:
        MalformedResponseError: the address leads to another host.
    """
    return _read(account, account.same_host_path(uri), first.target, first.expects, first.echo)


def _read(account: Account, path: str, target: str, expects: str, echo: Mapping[str, str]) -> Exchange:
    return Exchange(
        method="GET",
        path=path,
        kind=Kind.READ,
        verb="read",
        target=target,
        expects=expects,
        echo=echo,
        secrets=account.secrets,
    )


def again(exchange: Exchange) -> Exchange:
    """Spell an exchange anew, for another call with a progress of its own."""
    return evolve(exchange, progress=Progress())
