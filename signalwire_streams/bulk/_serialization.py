"""Requests as a journal and a fleet store them: every field but the secrets."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeAlias

from attrs import evolve, fields, frozen

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import CallStream, ConferenceStream, StartCallStream, StartConferenceStream
from signalwire_streams.models._validation import redact_url

Start: TypeAlias = StartConferenceStream | StartCallStream
PlanRow: TypeAlias = tuple[str, str, str | None, str]
"""Kind, target, name, and the rest as JSON."""

_REQUESTS: dict[str, type[Start]] = {"conference": StartConferenceStream, "call": StartCallStream}
_STREAMS: dict[str, type[ConferenceStream | CallStream]] = {"conference": ConferenceStream, "call": CallStream}
_COLUMNS = frozenset({"conference_sid", "call_sid", "name"})
# All other fields are written; a callback only where it holds no secret.
_SECRET = frozenset({"parameters", "authorization_bearer_token"})
_WRITTEN = {
    model: tuple(attribute for attribute in fields(model) if attribute.name not in _COLUMNS | _SECRET)
    for model in _REQUESTS.values()
}
_WITHHELD = "withheld"
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def target_kind(item: Start | ConferenceStream | CallStream) -> str:
    """Return ``conference`` or ``call``."""
    return "conference" if isinstance(item, StartConferenceStream | ConferenceStream) else "call"


def stream_of(
    kind: str, target: str, *, sid: str | None, name: str | None, ambiguous: bool
) -> ConferenceStream | CallStream:
    fields: dict[str, Any] = {f"{kind}_sid": target, "sid": sid, "name": name, "ambiguous": ambiguous}
    return _STREAMS[kind](**fields)


def folded(target: str) -> str:
    """Return the canonical form of a target: the Space ignores the case of a UUID."""
    return target.lower() if _UUID.fullmatch(target) else target


@frozen(kw_only=True)
class PlannedRequest:
    """A request as a journal stores it, without its secrets.

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
        """Names of the fields that are left out."""
        left_out = {name: getattr(self, name) for name in ("parameters", "bearer_token", "status_callback")}
        return {name: value for name, value in left_out.items() if value}


def check_request(request: object) -> Start:
    if not isinstance(request, StartConferenceStream | StartCallStream):
        raise InvalidRequestError(
            f"an item is a {type(request).__name__}: pass StartConferenceStream or StartCallStream"
        )
    return request


class DuplicateCheck:
    """Checks that the items of a run are requests, each a different one."""

    def __init__(self) -> None:
        # Hashes instead of the items, which would be most of the memory of a long run.
        self._seen: set[int] = set()

    def check(self, item: object) -> None:
        request = check_request(item)
        if request.unnamed:
            return
        key = hash((folded(request.target), request.name))
        if key in self._seen:
            raise InvalidRequestError(
                f"{request.target} appears twice in this run: give each of its streams its own name"
            )
        self._seen.add(key)


def plan_rows(requests: Iterable[Start]) -> Iterator[PlanRow]:
    """Check requests and serialize them."""
    duplicates = DuplicateCheck()
    for request in requests:
        duplicates.check(request)
        yield planned_row(PlannedRequest.from_request(request))


def planned_row(planned: PlannedRequest) -> PlanRow:
    """Serialize a request whose secrets were left out."""
    request = planned.request
    values = ((attribute, getattr(request, attribute.name)) for attribute in _WRITTEN[type(request)])
    written = {attribute.name: value for attribute, value in values if value != attribute.default}
    if planned.redacted:
        written[_WITHHELD] = planned.redacted
    return target_kind(request), request.target, request.name, json.dumps(written)


def planned_request(row: Sequence[Any]) -> PlannedRequest:
    """Read a row of `planned_row`; raise ValueError for one that is none."""
    try:
        kind, target, name, text = row
        written: dict[str, Any] = json.loads(text)
        withheld = {"parameters": (), **written.pop(_WITHHELD, {})}
        request = _REQUESTS[kind](**{f"{kind}_sid": target, "name": name}, **written)
        parameters = tuple(withheld.pop("parameters"))
        return PlannedRequest(request=request, parameters=parameters, **withheld)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(str(error)) from error
