"""A run's secrets, which neither a journal nor Redis stores: passed again as options, or in the original file."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click
from attrs import evolve, field, frozen

from signalwire_streams import InvalidRequestError, PlannedRequest, SignedTokens, StartCallStream
from signalwire_streams._cli.bulk_targets import NAMING, SIDS, BadLine, Line, Read, Start, make_request, make_requests
from signalwire_streams._cli.options import CONFERENCE_ONLY, FIELDS, SECRETS, field_option, passing
from signalwire_streams.bulk._serialization import folded

_OPTIONAL = set(FIELDS) - {"parameters", "authorization_bearer_token", *SIDS}


@frozen
class Secrets:
    """Secrets that were passed again: with options for all, and in the lines of the run's FILE, by their targets."""

    options: Mapping[str, Any] = field(factory=dict, repr=False)
    lines: Mapping[str, Sequence[Line]] = field(factory=dict, repr=False)

    def complete(self, plan: Callable[[], Iterable[PlannedRequest]]) -> Iterator[Start]:
        """Return each request of a journal with its secrets. The plan is read twice, since it may be long."""
        plans: dict[str, list[PlannedRequest]] = {}
        for planned in plan() if self.lines else ():
            if (sid := folded(planned.request.target)) in self.lines:
                plans.setdefault(sid, []).append(planned)
        matches = {
            sid: iter(_match(found, self.lines[sid]))
            for sid, found in plans.items()
            if not all(planned.is_complete for planned in found)
        }
        for planned in plan():
            match = matches.get(folded(planned.request.target))
            yield self._completed(planned, {} if match is None else next(match).fields)

    def add_to(self, planned: PlannedRequest) -> Start:
        try:
            return self._completed(planned, {})
        except click.UsageError:
            raise InvalidRequestError(
                f"{planned.request.target} needs secrets that are not kept in Redis ({', '.join(planned.redacted)}): "
                "start all workers with the options that provide them"
            ) from None

    def _completed(self, planned: PlannedRequest, line: Mapping[str, Any]) -> Start:
        request = planned.request
        if planned.is_complete:
            return request
        parameters = {**self.options.get("parameters", {}), **line.get("parameters", {})}
        token, callback = (
            line.get(name, self.options.get(name)) for name in ("authorization_bearer_token", "status_callback")
        )
        missing = [f"--parameter {name}=..." for name in planned.parameters if name not in parameters]
        if planned.bearer_token and not isinstance(token, str):
            missing.append("--bearer-token-file FILE")
        if planned.signed_tokens and not isinstance(token, SignedTokens):
            missing.append("--token-key-file FILE")
        if planned.status_callback and callback is None:
            missing.append("--status-callback URL")
        if missing:
            raise click.UsageError(
                f"the journal contains no secrets, and {request.target} had some: pass them again with "
                f"{' '.join(missing)}, or add the original FILE after the journal"
            )
        return evolve(
            request,
            parameters={name: parameters[name] for name in planned.parameters},
            authorization_bearer_token=token if planned.bearer_token or planned.signed_tokens else None,
            status_callback=callback if planned.status_callback else request.status_callback,
        )


secret_options = passing("secrets", lambda **options: Secrets(options), *map(field_option, SECRETS))
"""The options of the fields that no journal keeps."""


def by_target(lines: Iterable[Read]) -> dict[str, list[Line]]:
    """Group a file's lines by the sid of their conference or call; invalid ones started nothing."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if isinstance(line, BadLine) and line.hides_more:
            raise click.UsageError(f"line {line.number} of the FILE: {line.why}")
        if isinstance(line, Line):
            sid = line.fields.get("conference_sid", line.fields.get("call_sid"))
            if isinstance(sid, str):
                found.setdefault(folded(sid), []).append(line)
    return found


def _match(plan: Sequence[PlannedRequest], lines: Sequence[Line]) -> Sequence[Line]:
    """Return the line of each request that a run planned on one target; raise if several with different secrets fit."""
    target = plan[0].request.target
    if len(lines) == len(plan):
        # Either the start took all of them, or the file was written for the resume and repeats the secrets only.
        possible = [lines] if all(map(_matches, lines, plan)) else []
    else:
        possible = [taken for options in _options_of(plan) if (taken := _taken(lines, options, plan))]
    if not possible:
        raise click.UsageError(
            f"the lines of the FILE for {target} (see line {lines[0].number}) do not match the streams that the run "
            "planned on it: name the FILE that the run was started with"
        )
    for other in possible[1:]:
        for one, another in zip(possible[0], other, strict=True):
            if any(one.fields.get(name) != another.fields.get(name) for name in SECRETS):
                numbers = sorted((one.number, another.number))
                raise click.UsageError(
                    f"lines {numbers[0]} and {numbers[1]} of the FILE have different secrets, and either may be the "
                    f"stream on {target}: remove the one that was not started"
                )
    return possible[0]


def _options_of(plan: Sequence[PlannedRequest]) -> Iterator[dict[str, Any]]:
    """Yield the options that the start may have had, as far as they decide which lines it used; no journal has them.

    Without --url, it skipped the lines without a url; the name decided which lines it skipped as duplicates.
    """
    names = {planned.request.name for planned in plan}
    namings: list[dict[str, Any]] = [{"unnamed": True}, *({"name": name} for name in {None, *names})]
    for url in {None, *(planned.request.url for planned in plan)}:
        for naming in namings:
            yield {"url": url, "name": None, "unnamed": None, **naming}


def _taken(lines: Sequence[Line], options: Mapping[str, Any], plan: Sequence[PlannedRequest]) -> Sequence[Line] | None:
    """Return the lines that a start with these options used, or None if they do not match the plan."""
    requests, _ = make_requests(lines, options)
    taken = [line for line in lines if line.number in requests]
    if len(taken) != len(plan):
        return None
    others: dict[str, Any] = {}  # the other options, as the plan implies them
    parameters: set[str] = set()
    for line, planned in zip(taken, plan, strict=True):
        if not _matches(line, planned, options):
            return None
        if any(others.setdefault(name, value) != value for name, value in _from_options(line, planned).items()):
            return None
        own = line.fields.get("parameters", {}).keys()
        if not own <= set(planned.parameters):
            return None
        parameters |= set(planned.parameters) - own
    return taken if all(parameters <= set(planned.parameters) for planned in plan) else None


def _matches(line: Line, planned: PlannedRequest, options: Mapping[str, Any] | None = None) -> bool:
    known = {name: getattr(planned.request, name) for name in _OPTIONAL}
    try:
        made = PlannedRequest.from_request(make_request(line.fields, {**known, **(options or {})}))
    except InvalidRequestError:
        return False
    return (
        made.request == planned.request
        and made.bearer_token <= planned.bearer_token
        and made.status_callback <= planned.status_callback
    )


def _from_options(line: Line, planned: PlannedRequest) -> dict[str, Any]:
    """Return the values that a request has from the options of the start, since its line has none."""
    is_call = isinstance(planned.request, StartCallStream)
    names = _OPTIONAL - NAMING - {"url"} - (CONFERENCE_ONLY if is_call else set())
    values = {name: getattr(planned.request, name) for name in names}
    values["authorization_bearer_token"] = (planned.bearer_token, planned.signed_tokens)
    values["status_callback"] = planned.status_callback or values["status_callback"]
    return {name: value for name, value in values.items() if name not in line.fields}
