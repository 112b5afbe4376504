"""What a run would send, written instead of sent. Secrets are named, not shown."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
from attrs import asdict

from signalwire_streams import PlannedRequest, StartConferenceStream
from signalwire_streams.cli.bulk.requests import Start
from signalwire_streams._cli.output import clean, write_aligned, write_json

_HIDDEN = "***"


def write_dry_run(requests: Sequence[Start], *, as_json: bool) -> None:
    """Write the requests, one per line."""
    if as_json:
        for request in requests:
            write_json(_facts(request))
        return
    if requests:
        write_aligned([_cells(request) for request in requests])
    click.echo(f"{len(requests):,} streams would be started. Nothing was sent.")


def _facts(request: Start) -> Mapping[str, Any]:
    planned = PlannedRequest.of(request)
    fields = asdict(planned.request)
    kind = "conference" if isinstance(request, StartConferenceStream) else "call"
    fields.pop(f"{kind}_sid")
    hidden: dict[str, Any] = {"parameters": dict.fromkeys(planned.parameters, _HIDDEN)}
    if planned.bearer_token:
        hidden["authorization_bearer_token"] = _HIDDEN
    if planned.status_callback:
        hidden["status_callback"] = _HIDDEN
    return {
        "kind": kind,
        "target": request.target,
        **{name: value for name, value in {**fields, **hidden}.items() if value not in (None, {})},
        "name": request.name if request.name or request.unnamed else f"sws-RUN-{request.target}",
    }


def _cells(request: Start) -> tuple[str, ...]:
    facts = dict(_facts(request))
    first = [facts.pop(name) or "-" for name in ("kind", "target", "name", "url")]
    words = [f"{name}={_spell(value)}" for name, value in facts.items() if (name, value) != ("unnamed", False)]
    return (*map(clean, first), clean(" ".join(words)))


def _spell(value: object) -> str:
    return ",".join(value) if isinstance(value, dict) else str(value)
