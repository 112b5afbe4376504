"""Requests as a journal and a fleet store them: every field except the secrets, which the model's metadata marks."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeAlias

from attrs import Attribute, evolve, field, fields, frozen
from attrs.validators import deep_iterable, instance_of

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import (
    CallStream,
    ConferenceStream,
    SignedTokens,
    StartCallStream,
    StartConferenceStream,
)
from signalwire_streams.models._validation import SECRET, a_kind_of, redact_url

Start: TypeAlias = StartConferenceStream | StartCallStream
Stream: TypeAlias = ConferenceStream | CallStream
PlanRow: TypeAlias = tuple[str, str, str | None, str]
"""Kind, target, name, and the rest as JSON."""

_REQUESTS: dict[str, type[Start]] = {"conference": StartConferenceStream, "call": StartCallStream}
_STREAMS: dict[str, type[Stream]] = {"conference": ConferenceStream, "call": CallStream}
_COLUMNS = frozenset({"conference_sid", "call_sid", "name"})
_SECRET = frozenset(each.name for each in fields(StartConferenceStream) if each.metadata.get(SECRET) is True)
_WRITTEN: dict[type[Start], dict[str, "Attribute[Any]"]] = {
    model: {each.name: each for each in fields(model) if each.name not in _COLUMNS | _SECRET}
    for model in _REQUESTS.values()
}
_WITHHELD = "withheld"
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def target_of(item: Start | Stream) -> tuple[str, str]:
    if isinstance(item, StartConferenceStream | ConferenceStream):
        return "conference", item.conference_sid
    return "call", item.call_sid


def stream_of(kind: str, target: str, **fields: Any) -> Stream:  # noqa: ANN401  (each field has its own type)
    return _STREAMS[kind](**fields | {f"{kind}_sid": target})


def folded(target: str) -> str:
    """Return the canonical form of a target: the Space ignores the case of a UUID."""
    lowered = target.lower()
    return lowered if lowered != target and _UUID.fullmatch(target) else target


@frozen(kw_only=True)
class PlannedRequest:
    """A request as a journal stores it, without its secrets.

    Attributes:
        request: the request, without its secrets.
        parameters: the names of the parameters whose values are left out.
        bearer_token: whether an ``authorization_bearer_token`` is left out, if it is a text.
        signed_tokens: whether `SignedTokens` are left out, so that they have to be passed again.
        status_callback: whether a ``status_callback`` is left out, because it has a query or a password.
    """

    request: Start
    parameters: tuple[str, ...] = field(default=(), validator=deep_iterable(instance_of(str), instance_of(tuple)))
    bearer_token: bool = field(default=False, validator=instance_of(bool))
    signed_tokens: bool = field(default=False, validator=instance_of(bool))
    status_callback: bool = field(default=False, validator=instance_of(bool))

    @classmethod
    def from_request(cls, request: Start) -> Self:
        """Leave the secrets out of a request."""
        callback, token = request.status_callback, request.authorization_bearer_token
        is_private = callback is not None and redact_url(callback) != callback
        return cls(
            request=evolve(
                request,
                parameters={},
                authorization_bearer_token=None,
                status_callback=None if is_private else callback,
            ),
            parameters=tuple(request.parameters),
            bearer_token=isinstance(token, str),
            signed_tokens=isinstance(token, SignedTokens),
            status_callback=is_private,
        )

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left out."""
        return not self.redacted

    @property
    def redacted(self) -> Mapping[str, object]:
        """Names of the fields that are left out."""
        left_out = {
            name: getattr(self, name) for name in ("parameters", "bearer_token", "signed_tokens", "status_callback")
        }
        return {name: value for name, value in left_out.items() if value}


def check_request(request: object) -> Start:
    # Fields that a subclass adds would neither be sent nor stored.
    if not isinstance(request, StartConferenceStream | StartCallStream) or type(request) not in _WRITTEN:
        raise InvalidRequestError(f"an item is {a_kind_of(request)}: pass StartConferenceStream or StartCallStream")
    return request


class DuplicateCheck:
    """Checks that the items of a run are requests, each a different one."""

    def __init__(self) -> None:
        # Hashes instead of the items, which would be most of the memory of a long run.
        self._seen: set[int] = set()

    def check(self, item: object) -> str:
        """Return the canonical form of the item's target."""
        request = check_request(item)
        _, target = target_of(request)
        canonical = folded(target)
        if not request.unnamed:
            key = hash((canonical, request.name))
            if key in self._seen:
                raise InvalidRequestError(f"{target} appears twice in this run: give each of its streams its own name")
            self._seen.add(key)
        return canonical


def plan_rows(requests: Iterable[Start]) -> Iterator[PlanRow]:
    duplicates = DuplicateCheck()
    for request in requests:
        duplicates.check(request)
        yield planned_row(PlannedRequest.from_request(request))


def planned_row(planned: PlannedRequest) -> PlanRow:
    request = planned.request
    values = {name: getattr(request, name) for name in _WRITTEN[type(request)]}
    written = {name: value for name, value in values.items() if value != _WRITTEN[type(request)][name].default}
    if planned.redacted:
        written[_WITHHELD] = planned.redacted
    return *target_of(request), request.name, json.dumps(written)


def planned_request(row: Sequence[Any]) -> PlannedRequest:
    """Read a row that `planned_row` wrote; raise ValueError for any other one."""
    try:
        kind, target, name, text = row
        written: dict[str, Any] = json.loads(text)
        withheld: dict[str, Any] = written.pop(_WITHHELD, {})
        if not written.keys() <= _WRITTEN[_REQUESTS[kind]].keys():
            raise ValueError("an unknown field")
        if isinstance(withheld.get("parameters"), list):
            withheld["parameters"] = tuple(withheld["parameters"])
        request = _REQUESTS[kind](**{f"{kind}_sid": target, "name": name}, **written)
        return PlannedRequest(request=request, **withheld)
    except (TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(str(error)) from error
