"""How requests and outcomes are written in Redis: as JSON, without secrets, and never as anything that runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import fields_dict, frozen

from signalwire_streams import errors
from signalwire_streams.bulk.outcomes import SUCCEEDED, BulkOutcome, BulkState, label_of
from signalwire_streams.bulk._serialization import PlannedRequest, Start, planned_request, planned_row
from signalwire_streams.errors import Phase, StreamsError
from signalwire_streams.models import CallStream, ConferenceStream, StartConferenceStream

_ERRORS = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, StreamsError)
}
_NOT_OF_STREAMS = frozenset({"conference_sid", "call_sid", "extra"})
"""Fields of a stream that are not written: its request has the target, and unknown keys may hold anything."""
_MAY_RUN = SUCCEEDED | {BulkState.UNKNOWN}
_PARTS = 4
_ROW = 4


@frozen
class Planned:
    """A start of a run.

    Attributes:
        request: what is to be started, without secrets.
        may_run: whether an earlier run may have started it.
    """

    request: PlannedRequest
    may_run: bool = False


def write_batch(starts: Sequence[Planned]) -> str:
    """Write starts down, in their order."""
    rows = [(*planned_row(start.request), *([True] if start.may_run else [])) for start in starts]
    return json.dumps(rows, separators=(",", ":"))


def read_batch(text: bytes | str) -> list[Planned]:
    """Read starts that were written down."""
    return [Planned(planned_request(tuple(row[:4])), may_run=len(row) > _ROW) for row in json.loads(text)]


def write_outcome(outcome: BulkOutcome[Any]) -> str:
    """Write an outcome down; its item is known by its index."""
    facts: dict[str, Any] = {
        "index": outcome.index,
        "state": outcome.state.value,
        "attempts": outcome.attempts,
        "seconds": round(outcome.seconds, 4),
    }
    stream, error = outcome.stream, outcome.error
    if stream is not None:
        kept = {name: getattr(stream, name) for name in fields_dict(type(stream)) if name not in _NOT_OF_STREAMS}
        facts["stream"] = {name: value for name, value in kept.items() if value not in (None, False)}
    if error is not None:
        known = {name: getattr(error, name) for name in fields_dict(type(error))}
        facts["error"] = {"class": type(error).__name__, **known}
    return json.dumps(facts, separators=(",", ":"))


def read_index(text: bytes | str) -> tuple[int, Mapping[str, Any]]:
    """Read which item an outcome is of, and the rest of it for `read_outcome`."""
    facts: dict[str, Any] = json.loads(text)
    return int(facts["index"]), facts


def read_outcome(facts: Mapping[str, Any], item: Start) -> BulkOutcome[Start]:
    """Read an outcome that was written down."""
    stream = facts.get("stream")
    return BulkOutcome(
        index=facts["index"],
        item=item,
        state=BulkState(facts["state"]),
        stream=None if stream is None else _stream_on(item, stream),
        error=_read_error(facts["error"]) if "error" in facts else None,
        attempts=facts["attempts"],
        seconds=facts["seconds"],
    )


def _stream_on(request: Start, fields: Mapping[str, Any]) -> ConferenceStream | CallStream:
    if isinstance(request, StartConferenceStream):
        return ConferenceStream(conference_sid=request.target, **fields)
    return CallStream(call_sid=request.target, **fields)


def _read_error(facts: Mapping[str, Any]) -> StreamsError:
    # A newer worker may know errors that this reader does not.
    kind = _ERRORS.get(facts["class"], StreamsError)
    fields = {name: value for name, value in facts.items() if name in fields_dict(kind)}
    if "phase" in fields:
        fields["phase"] = Phase(fields["phase"])
    if "errors" in fields:
        fields["errors"] = tuple(fields["errors"])
    return kind(**fields)


def error_label(outcome: BulkOutcome[Any]) -> str:
    """Give what an outcome's error is counted by, or an empty text."""
    return "" if outcome.error is None else label_of(outcome.error)


def intended(owner: str) -> str:
    """Write the mark of a start that its owner may have sent."""
    return f"i:{owner}"


def settled(outcome: BulkOutcome[Any]) -> str:
    """Write the mark of a start that has ended."""
    stream = outcome.stream
    ambiguous, sid = (int(stream.ambiguous), stream.sid or "") if stream is not None else (0, "")
    return f"f:{outcome.state.value}:{ambiguous}:{sid}"


@frozen
class Mark:
    """A start's mark.

    Attributes:
        text: as it is in Redis; empty where there is none.
        may_run: whether an earlier run may have made this start.
    """

    text: str = ""
    may_run: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether the start has ended."""
        return self.text.startswith("f:")

    @property
    def state(self) -> str:
        """How the start ended, as a `BulkState`'s text, or an empty one."""
        return self.text.split(":", 2)[1] if self.is_settled else ""

    @property
    def is_doubtful(self) -> bool:
        """Whether it may have been sent, and nothing is known of its end."""
        return self.text.startswith("i:") or (self.may_run and not self.text)

    def stream_of(self, request: Start) -> ConferenceStream | CallStream | None:
        """Give the stream that it started, or may have started."""
        if self.is_doubtful:
            return _stream_on(request, {"name": request.name})
        parts = self.text.split(":", _PARTS - 1)
        if len(parts) < _PARTS or parts[1] not in _MAY_RUN:
            return None
        return _stream_on(request, {"name": request.name, "ambiguous": parts[2] == "1", "sid": parts[3] or None})
