"""What a run is to start, as its journal keeps it: everything about a request but its secrets."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeAlias

from attrs import define, evolve, field, fields, frozen

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import StartCallStream, StartConferenceStream
from signalwire_streams.models._validation import redact_url

Start: TypeAlias = StartConferenceStream | StartCallStream
PlanRow: TypeAlias = tuple[str, str, str | None, str]
"""Kind, target, name, and the rest as JSON."""

_COLUMNS = frozenset({"conference_sid", "call_sid", "name"})
# All other fields are written; a callback only where `PlannedRequest.of` does not leave it out.
_SECRET = frozenset({"parameters", "authorization_bearer_token"})
_WITHHELD = "withheld"
_WRITTEN = {
    model: tuple(attribute for attribute in fields(model) if attribute.name not in _COLUMNS | _SECRET)
    for model in (StartConferenceStream, StartCallStream)
}


@frozen(kw_only=True)
class PlannedRequest:
    """A request as a journal keeps it, without its secrets.

    Attributes:
        request: what is to be started.
        parameters: the names of the parameters whose values are left out.
        bearer_token: whether an ``authorization_bearer_token`` is left out.
        status_callback: whether a ``status_callback`` is left out, because it has a query or a password.
    """

    request: Start
    parameters: tuple[str, ...] = ()
    bearer_token: bool = False
    status_callback: bool = False

    @classmethod
    def from_request(cls, request: Start) -> Self:
        """Leave the secrets out of a request."""
        callback = request.status_callback
        is_private = callback is not None and redact_url(callback) != callback
        return cls(
            request=evolve(
                request,
                parameters={},
                authorization_bearer_token=None,
                status_callback=None if is_private else callback,
            ),
            parameters=tuple(request.parameters),
            bearer_token=request.authorization_bearer_token is not None,
            status_callback=is_private,
        )

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left out."""
        return not self.redacted

    @property
    def redacted(self) -> Mapping[str, object]:
        """What is left out, by name."""
        left_out = {name: getattr(self, name) for name in ("parameters", "bearer_token", "status_callback")}
        return {name: value for name, value in left_out.items() if value}


def check_request(request: object) -> Start:
    """Make sure that an item is a request.

    Raises:
        InvalidRequestError: it is none.
    """
    if not isinstance(request, StartConferenceStream | StartCallStream):
        raise InvalidRequestError(
            f"an item is a {type(request).__name__}: pass StartConferenceStream or StartCallStream"
        )
    return request


@define(eq=False)
class DuplicateCheck:
    """Tells whether the items of a run are requests, and each another one."""

    # Hashes instead of the items, which would be most of the memory of a long run.
    _seen: set[int] = field(init=False, factory=set)

    def check(self, item: object) -> None:
        """Check the next item.

        Raises:
            InvalidRequestError: it is no request, or its target came before under the same name.
        """
        request = check_request(item)
        if request.unnamed:
            return
        key = hash((request.target, request.name))
        if key in self._seen:
            raise InvalidRequestError(
                f"{request.target} comes twice in this run: give each of its streams a name of its own"
            )
        self._seen.add(key)


def plan_rows(requests: Iterable[Start]) -> Iterator[PlanRow]:
    """Check requests and write them down.

    Raises:
        InvalidRequestError: one is no request, or comes twice.
    """
    once = DuplicateCheck()
    for request in requests:
        once.check(request)
        yield plan_row(request)


def plan_row(request: Start) -> PlanRow:
    """Write a request down, without its secrets."""
    return planned_row(PlannedRequest.from_request(request))


def planned_row(planned: PlannedRequest) -> PlanRow:
    """Write down a request whose secrets were left out."""
    request = planned.request
    kind, written = ("conference" if isinstance(request, StartConferenceStream) else "call"), {}
    for attribute in _WRITTEN[type(request)]:
        value = getattr(request, attribute.name)
        if value != attribute.default:
            written[attribute.name] = value
    if planned.redacted:
        written[_WITHHELD] = planned.redacted
    return kind, request.target, request.name, json.dumps(written)


def planned_request(row: PlanRow) -> PlannedRequest:
    """Read a request that was written down."""
    kind, target, name, text = row
    written: dict[str, Any] = json.loads(text)
    withheld: dict[str, Any] = written.pop(_WITHHELD, {})
    request: Start
    if kind == "conference":
        request = StartConferenceStream(conference_sid=target, name=name, **written)
    else:
        request = StartCallStream(call_sid=target, name=name, **written)
    return PlannedRequest(request=request, **withheld | {"parameters": tuple(withheld.get("parameters", ()))})
