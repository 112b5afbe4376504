"""A keeper's template, and the request of each attempt that is made from it."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Required, TypeAlias
from urllib.parse import parse_qs, urlsplit, urlunsplit

from attrs import evolve

from signalwire_streams.bulk._serialization import PlannedRequest, planned_row
from signalwire_streams.errors import InvalidRequestError, StreamsError
from signalwire_streams.models import Call, Conference, SignedTokens, StartCallStream, StartConferenceStream
from signalwire_streams.models._enums import TargetKind
from signalwire_streams.models._requests import OptionalFields
from signalwire_streams.models._validation import MAX_PARAMETERS, HiddenItems, kind_of, masks_secrets, redact_url

ATTEMPT = "keep_attempt"
"""Name of the custom parameter, and of the parameter in the callback's URL, that has the number of the attempt."""
TARGET = "keep_target"
"""Name of the custom parameter that has the sid of the conference or call, which start events of conferences lack."""

Start: TypeAlias = StartConferenceStream | StartCallStream
Item: TypeAlias = Conference | Call


class StreamTemplate(OptionalFields, total=False):
    """The fields of a start besides its target and its name; see `StartConferenceStream` for each."""

    url: Required[str]
    parameters: Mapping[str, str]
    authorization_bearer_token: str | SignedTokens | None


Template: TypeAlias = StreamTemplate | Callable[[Item], StreamTemplate | Awaitable[StreamTemplate | None] | None]
"""The fields, or a function of the conference or call that returns them, or None for one that is not streamed."""

_REQUESTS: Mapping[TargetKind, Callable[..., Start]] = {
    TargetKind.CONFERENCE: StartConferenceStream,
    TargetKind.CALL: StartCallStream,
}
_FIELDS = StreamTemplate.__annotations__.keys()
_TEMPLATE_TIMEOUT = 30.0  # seconds for an async one


def chooses(where: Callable[[Item], object], item: Item) -> bool:
    """Return whether a user's function chooses an item."""
    try:
        chosen = where(item)
    except Exception as error:
        raise InvalidRequestError(f"where raised {type(error).__name__} for {item.sid}") from error
    if inspect.isawaitable(chosen):
        raise InvalidRequestError("where returns an awaitable: write def, or let an async template return None")
    return bool(chosen)


async def apply_template(template: Callable[[Item], object], item: Item) -> object:
    """Return what a template that is a function returns, to be checked by `request_for`."""
    try:
        fields = template(item)
        if inspect.isawaitable(fields):
            async with asyncio.timeout(_TEMPLATE_TIMEOUT) as timer:
                fields = await fields
    except StreamsError:
        raise
    except Exception as error:
        if isinstance(error, TimeoutError) and timer.expired():
            text = f"the template returned nothing for {item.sid} within {_TEMPLATE_TIMEOUT:g} s: make it return sooner"
            raise InvalidRequestError(text) from None
        raise InvalidRequestError(f"the template raised {type(error).__name__} for {item.sid}") from error
    return fields


@masks_secrets
def request_for(kind: TargetKind, sid: str, template: object, *, is_received: bool) -> Start:
    """Return the request that a template is for one target, without a name.

    Args:
        kind: the target's.
        sid: the target's.
        template: what the user passed, or what the user's function returned.
        is_received: whether receivers of this process admit each stream by a token of its own.

    Raises:
        InvalidRequestError: it is not a template; the message says what to write instead.
    """
    if not isinstance(template, HiddenItems):
        raise InvalidRequestError(
            f"the template is {kind_of(template)}: write the fields of a start, such as "
            "{'url': 'wss://example.com/audio'}, or a function that returns them"
        )
    names = [str(name) for name, _ in template.items()]
    unknown = [name for name in names if name not in _FIELDS]
    if unknown:
        raise InvalidRequestError(
            f"the template has a field {unknown[0]!r}: omit it, since the keeper chooses target and name, and the "
            f"fields of a template are {', '.join(sorted(_FIELDS))}"
        )
    if "url" not in names:
        raise InvalidRequestError("the template has no url: write {'url': 'wss://example.com/audio'}")
    request = _REQUESTS[kind](**{kind.target_key: sid}, **dict(template.items()))
    if is_received and request.authorization_bearer_token is not None:
        raise InvalidRequestError(
            "each stream gets a token of its own for the receivers: omit authorization_bearer_token in the template"
        )
    query = urlsplit(request.status_callback or "").query
    if ATTEMPT in parse_qs(query, keep_blank_values=True):
        raise InvalidRequestError(
            f"the template's status_callback has a parameter {ATTEMPT!r}, which the keeper adds: rename yours"
        )
    added = {ATTEMPT, TARGET}
    if len(request.parameters) > MAX_PARAMETERS - len(added) or added & request.parameters.keys():
        raise InvalidRequestError(
            f"the template's parameters leave no room for {ATTEMPT!r} and {TARGET!r}, which the keeper adds: pass at "
            f"most {MAX_PARAMETERS - len(added)} others"
        )
    return request


def receiver_of(request: Start) -> str:
    """Return the scheme, host and port of a request's URL."""
    return "/".join(redact_url(request.url).split("/", 3)[:3])


def fingerprint(request: Start) -> str:
    """Return a text that differs if a field of the request differs that is not secret, or the names of its parameters.

    A secret leaves no trace in it, since a short one could be guessed from its hash.
    """
    *_, fields = planned_row(PlannedRequest.from_request(request))
    return sha256(fields.encode()).hexdigest()[:16]


def attempt_of(request: Start, *, number: int, name: str, token: str | None) -> Start:
    """Return the request of one attempt, whose socket and callbacks say which it is.

    Args:
        request: the request of `request_for`.
        number: the attempt's.
        name: the stream's.
        token: a bearer token of its own; None leaves that of the template.
    """
    callback = request.status_callback
    if callback is not None:
        url = urlsplit(callback)
        query = "&".join(part for part in (url.query, f"{ATTEMPT}={number}") if part)
        callback = urlunsplit(url._replace(query=query, fragment=""))  # a fragment is never sent
    return evolve(
        request,
        name=name,
        status_callback=callback,
        parameters={**request.parameters, ATTEMPT: str(number), TARGET: request.target},
        authorization_bearer_token=request.authorization_bearer_token if token is None else token,
    )
