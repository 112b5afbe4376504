"""The secrets that a journal leaves out of its requests: given again by who resumes it."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click
from attrs import evolve, field, frozen

from signalwire_streams import InvalidRequestError, PlannedRequest
from signalwire_streams._cli.bulk.targets import BadLine, Line, Read
from signalwire_streams.cli.bulk.requests import Start

_TargetAndName = tuple[str, str | None]


@frozen
class Secrets:
    """What was given again: by options for all, and by the lines of the file that the run was started with.

    Attributes:
        parameters: custom parameters for all.
        bearer_token: the token for all.
        status_callback: the address for all.
        lines: the fields of the lines, by target and name, in their order.
    """

    parameters: Mapping[str, str] = field(factory=dict, repr=False)
    bearer_token: str | None = field(default=None, repr=False)
    status_callback: str | None = field(default=None, repr=False)
    lines: Mapping[_TargetAndName, Sequence[Mapping[str, Any]]] = field(factory=dict, repr=False)

    def complete(self, planned: Iterable[PlannedRequest]) -> Iterator[Start]:
        """Give each request with its secrets.

        Raises:
            UsageError: one is missing; the sentence says which option gives it.
        """
        left = {key: deque(lines) for key, lines in self.lines.items()}
        for one in planned:
            line = _next(left, one.request)
            yield one.request if one.complete else self._completed(one, line)

    def given_to(self, planned: PlannedRequest) -> Start:
        """Give a request what the options say, without a file.

        Raises:
            InvalidRequestError: something is missing.
        """
        try:
            return planned.request if planned.complete else self._completed(planned, {})
        except click.UsageError:
            raise InvalidRequestError(
                f"{planned.request.target} needs secrets that are not kept in Redis ({', '.join(planned.left_out)}): "
                "start all workers with the options that give them"
            ) from None

    def _completed(self, planned: PlannedRequest, line: Mapping[str, Any]) -> Start:
        request = planned.request
        own = line.get("parameters")
        values = {**self.parameters, **(own if isinstance(own, dict) else {})}
        missing = [f"--parameter {name}=..." for name in planned.parameters if name not in values]
        token = line.get("authorization_bearer_token", self.bearer_token)
        if planned.bearer_token and token is None:
            missing.append("--bearer-token-file FILE")
        callback = line.get("status_callback", self.status_callback)
        if planned.status_callback and callback is None:
            missing.append("--status-callback URL")
        if missing:
            raise click.UsageError(
                f"the journal keeps no secrets, and {request.target} had some: give them again with "
                f"{' '.join(missing)}, or name the FILE that they came from after the journal"
            )
        parameters = {name: values[name] for name in planned.parameters}
        completed = evolve(request, parameters=parameters)
        if planned.bearer_token:
            completed = evolve(completed, authorization_bearer_token=token)
        return evolve(completed, status_callback=callback) if planned.status_callback else completed


def by_target(lines: Iterable[Read]) -> dict[_TargetAndName, list[Mapping[str, Any]]]:
    """Arrange a file's lines by what they start; those that are wrong started nothing.

    Raises:
        UsageError: a line hides those behind it.
    """
    found: dict[_TargetAndName, list[Mapping[str, Any]]] = {}
    for line in lines:
        if isinstance(line, BadLine) and line.hides_more:
            raise click.UsageError(f"line {line.number} of the FILE: {line.why}")
        if isinstance(line, Line):
            sid, name = line.fields.get("conference_sid") or line.fields.get("call_sid"), line.fields.get("name")
            found.setdefault((str(sid), name if isinstance(name, str) else None), []).append(line.fields)
    return found


def _next(left: Mapping[_TargetAndName, "deque[Mapping[str, Any]]"], request: Start) -> Mapping[str, Any]:
    """Give the line that a request came from: the first one for its target and name that is not used yet."""
    lines = left.get((request.target, request.name)) or left.get((request.target, None))
    return lines.popleft() if lines else {}
