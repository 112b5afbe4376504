"""Secrets of a run, which neither a journal nor Redis stores: passed again by options, or by the original file."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click
from attrs import evolve, field, frozen

from signalwire_streams import InvalidRequestError, PlannedRequest, StartConferenceStream
from signalwire_streams._cli.bulk_targets import NAMING, SIDS, BadLine, Defaults, Line, Read, Start
from signalwire_streams._cli.options import CONFERENCE_ONLY, FIELDS, adding, field_option

_SECRET = ("parameters", "authorization_bearer_token")
_OPTIONAL = set(FIELDS) - {*_SECRET, *SIDS}


@frozen
class Secrets:
    """Secrets that were passed again: by options for all, and by the lines of the file that the run was started with.

    Attributes:
        parameters: custom parameters for all.
        bearer_token: the token for all.
        status_callback: the URL for all.
        lines: the lines, by the id of their conference or call.
    """

    parameters: Mapping[str, str] = field(factory=dict, repr=False)
    bearer_token: str | None = field(default=None, repr=False)
    status_callback: str | None = field(default=None, repr=False)
    lines: Mapping[str, Sequence[Line]] = field(factory=dict, repr=False)

    def complete(self, plan: Callable[[], Iterable[PlannedRequest]]) -> Iterator[Start]:
        """Return each request of a journal with its secrets. The plan is read twice, since it may be long.

        Raises:
            UsageError: one is missing, or it is uncertain which line a request came from.
        """
        unset = _unset_options(plan()) if self.lines else frozenset()
        unused = {sid: list(lines) for sid, lines in self.lines.items()}
        for one in plan():
            yield self._completed(one, _line_of(one, unused.get(one.request.target, []), unset))

    def add_to(self, planned: PlannedRequest) -> Start:
        """Return a request with the secrets from the options.

        Raises:
            InvalidRequestError: one is missing.
        """
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
        values = {**self.parameters, **line.get("parameters", {})}
        missing = [f"--parameter {name}=..." for name in planned.parameters if name not in values]
        token = line.get("authorization_bearer_token", self.bearer_token)
        if planned.bearer_token and token is None:
            missing.append("--bearer-token-file FILE")
        callback = line.get("status_callback", self.status_callback)
        if planned.status_callback and callback is None:
            missing.append("--status-callback URL")
        if missing:
            raise click.UsageError(
                f"the journal contains no secrets, and {request.target} had some: pass them again with "
                f"{' '.join(missing)}, or add the original FILE after the journal"
            )
        return evolve(
            request,
            parameters={name: values[name] for name in planned.parameters},
            authorization_bearer_token=token if planned.bearer_token else None,
            status_callback=callback if planned.status_callback else request.status_callback,
        )


def secret_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of the fields that no journal keeps, and pass them to the command as its `Secrets`."""

    @adding(*map(field_option, (*_SECRET, "status_callback")))
    @functools.wraps(command)
    def with_secrets(
        *,
        parameters: dict[str, str],
        authorization_bearer_token: str | None,
        status_callback: str | None,
        **others: object,
    ) -> None:
        command(secrets=Secrets(parameters, authorization_bearer_token, status_callback), **others)

    return with_secrets


def by_target(lines: Iterable[Read]) -> dict[str, list[Line]]:
    """Group a file's lines by the id of their conference or call; those that are invalid started nothing.

    Raises:
        UsageError: a line makes those after it unreadable.
    """
    found: dict[str, list[Line]] = {}
    for line in lines:
        if isinstance(line, BadLine) and line.hides_more:
            raise click.UsageError(f"line {line.number} of the FILE: {line.why}")
        if isinstance(line, Line):
            sid = line.fields.get("conference_sid", line.fields.get("call_sid"))
            if isinstance(sid, str):
                found.setdefault(sid, []).append(line)
    return found


def _unset_options(planned: Iterable[PlannedRequest]) -> frozenset[str]:
    """Return the fields for which the start had no option, since a request of the plan has their default."""
    unset: set[str] = set()
    for one in planned:
        request = one.request
        known = _OPTIONAL - (set() if isinstance(request, StartConferenceStream) else CONFERENCE_ONLY)
        if request.unnamed or request.name is not None:
            known = known - NAMING  # a line with one of them overrides both options
        if one.status_callback:
            known = known - {"status_callback"}
        unset |= known - _differing(request)
    return frozenset(unset)


def _differing(request: Start) -> set[str]:
    return {name for name in _OPTIONAL if getattr(request, name) != FIELDS[name].default}


def _line_of(planned: PlannedRequest, unused: list[Line], unset: frozenset[str]) -> Mapping[str, Any]:
    """Take the line that a request came from, and return its fields; none if the file does not have its target.

    A line counts only if the checks of the start accept it and make this very request of it. The journal does not
    record the options of the start, so they may have supplied what the line lacks, as far as the plan allows that.
    """
    fits = (line for line in unused if _fits(line, planned))
    exact = (line for line in fits if _is_exact(line, planned, unset))
    first, others = next(exact, None), exact
    if first is None:  # perhaps the file was written for the resume, and repeats the secrets only
        fits = (line for line in unused if _fits(line, planned))
        first, others = next(fits, None), fits
    if first is None and unused and not planned.is_complete:
        raise click.UsageError(
            f"no line of the FILE makes the stream that the run planned on {planned.request.target} (see line "
            f"{unused[0].number}): name the FILE that the run was started with"
        )
    if first is None:
        return {}
    lacks = _supplied(first, planned)
    # If the start accepted the first line, then also each other one that needs the same options.
    rivals = (line for line in others if lacks and not lacks <= _supplied(line, planned))
    rival = next((line for line in rivals if not _same_secrets(first, line)), None)
    if rival is not None and not planned.is_complete:
        raise click.UsageError(
            f"lines {first.number} and {rival.number} of the FILE have different secrets, and both may be the "
            f"stream on {planned.request.target}: leave out the one that was not started"
        )
    unused.remove(first)
    return first.fields


def _fits(line: Line, planned: PlannedRequest) -> bool:
    known = {name: getattr(planned.request, name) for name in _OPTIONAL}
    try:
        made = PlannedRequest.from_request(Defaults(known).request(line.fields))
    except InvalidRequestError:
        return False
    return (
        made.request == planned.request
        and made.bearer_token <= planned.bearer_token
        and made.status_callback <= planned.status_callback
    )


def _supplied(line: Line, planned: PlannedRequest) -> set[str]:
    """Return the fields of a request that an option must have supplied if it came from this line."""
    overridden = NAMING if NAMING & line.fields.keys() else set()
    return _differing(planned.request) - line.fields.keys() - overridden


def _is_exact(line: Line, planned: PlannedRequest, unset: frozenset[str]) -> bool:
    return set(line.fields.get("parameters", ())) <= set(planned.parameters) and not _supplied(line, planned) & unset


def _same_secrets(one: Line, other: Line) -> bool:
    return all(one.fields.get(name) == other.fields.get(name) for name in (*_SECRET, "status_callback"))
