"""Events of status callbacks, parsed from a form's fields or a JSON document (pure)."""

import math
from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeAlias

from attrs import field, frozen

from signalwire_streams.callbacks._signature import Fields, as_pairs
from signalwire_streams.models import Track
from signalwire_streams.models._responses import parse_date

_STARTED, _STOPPED, _FAILED = "stream-started", "stream-stopped", "stream-error"
_CALL_STREAM = "calling.call.stream"
_NAMES = {
    "AccountSid": "account_sid",
    "CallSid": "call_sid",
    "ConferenceSid": "conference_sid",
    "StreamSid": "stream_sid",
    "StreamName": "stream_name",
    "StreamTrack": "track",
    "Timestamp": "timestamp_text",
    "Unique-ID": "unique_id",
}
_MAX_SECONDS = 100_000_000_000  # a greater timestamp is in milliseconds
_EVENT, _ERROR = "StreamEvent", "StreamError"

FIELD_NAMES = (*_NAMES, _EVENT, _ERROR)
"""The documented fields. Source: https://signalwire.com/docs/compatibility-api/rest/streams"""


@frozen(kw_only=True)
class _Callback:
    """Fields of any callback; one that is missing or blank is None.

    Attributes:
        account_sid: the project.
        call_sid: the call, for a stream of a call.
        conference_sid: the conference, for a stream of a conference.
        stream_sid: the stream.
        stream_name: the ``Name`` that it was started with; without one, the platform sends the sid.
        track: a `Track`, or any other word as received.
        timestamp_text: the time exactly as the platform wrote it.
        unique_id: ``Unique-ID`` as received.
        extra: fields that this version does not know, as received; from a `CallbackReceiver` also the parameters in the
            query of the callback's URL.
    """

    account_sid: str | None = None
    call_sid: str | None = None
    conference_sid: str | None = None
    stream_sid: str | None = None
    stream_name: str | None = None
    track: Track | str | None = None
    timestamp_text: str | None = None
    unique_id: str | None = None
    extra: Mapping[str, str] = field(factory=dict, hash=False, repr=False)

    @property
    def timestamp(self) -> datetime | None:
        """The aware time of the event, or None if the text is unreadable."""
        return parse_date(self.timestamp_text)

    @property
    def target(self) -> str | None:
        """The sid of the stream's conference or call."""
        return self.conference_sid or self.call_sid

    @property
    def stream_key(self) -> Hashable | None:
        """The key that all callbacks of one stream share; None if they name no stream."""
        return self.stream_sid

    @property
    def end_reason(self) -> str | None:
        """Why the stream ended, in a few words; None if the event is not its end."""
        return None

    @property
    def is_duplicate(self) -> bool:
        """Whether a second stream of the same sid or name was rejected."""
        return False


@frozen(kw_only=True)
class StreamStarted(_Callback):
    """``stream-started``: the stream sends audio."""


@frozen(kw_only=True)
class StreamStopped(_Callback):
    """``stream-stopped``: the stream ended."""

    @property
    def end_reason(self) -> str:
        return "it was stopped"


@frozen(kw_only=True)
class StreamFailed(_Callback):
    """``stream-error``: the stream failed to start, or broke.

    Attributes:
        error: ``StreamError`` as received, such as ``connection_refused`` or ``Duplicated stream name``.
    """

    error: str | None = None

    @property
    def is_duplicate(self) -> bool:
        """Whether the stream was rejected because another one has its sid or name; that one is still running."""
        return (self.error or "").lower().startswith("duplicate")

    @property
    def end_reason(self) -> str:
        return self.error or "an error without a name"


@frozen(kw_only=True)
class UnknownCallback(_Callback):
    """A callback with an event that this version does not know.

    Attributes:
        event: ``StreamEvent`` of a form or ``event_type`` of JSON, if there is one.
        error: ``StreamError`` as received.
        document: the whole document of a JSON callback.
    """

    event: str | None = None
    error: str | None = None
    document: Mapping[str, Any] | None = field(default=None, hash=False, repr=False)


class CallStreamState(StrEnum):
    """State of a stream that was started by the Calling API or SWML."""

    STREAMING = "streaming"
    """Audio is sent."""
    FINISHED = "finished"
    """The stream has ended."""


@frozen(kw_only=True)
class CallStreamChanged(_Callback):
    """``calling.call.stream``: a stream that the Calling API or SWML started on a call changed its state.

    These callbacks are JSON. `call_sid` is their ``call_id``, `account_sid` their ``project_id`` and `stream_name`
    their ``name``; they have no `stream_sid`.

    Attributes:
        state: a `CallStreamState`, or any other word as received.
        control_id: the stream's id, chosen by its starter and unique on its call.
        url: the URL that the audio is sent to.
        document: the whole document.
    """

    state: CallStreamState | str | None = None
    control_id: str | None = None
    url: str | None = field(default=None, repr=False)
    document: Mapping[str, Any] = field(factory=dict, hash=False, repr=False)

    @property
    def stream_key(self) -> Hashable | None:
        """The call and the control id."""
        return (self.call_sid, self.control_id) if self.control_id else None

    @property
    def timestamp(self) -> datetime | None:
        """The aware time of the event; JSON has it in seconds since 1970."""
        return _from_epoch(self.timestamp_text) or parse_date(self.timestamp_text)

    @property
    def end_reason(self) -> str | None:
        return "it has finished" if self.state == CallStreamState.FINISHED else None


CallbackEvent: TypeAlias = StreamStarted | StreamStopped | StreamFailed | CallStreamChanged | UnknownCallback
"""Any event that `parse_callback` returns."""


def parse_callback(fields: Fields | Mapping[str, Any]) -> CallbackEvent:
    """Parse a status callback. Verify the request first.

    Args:
        fields: names and values of the form, or of the query for callbacks by GET; the first value of a name counts.
            For a JSON body its document: ``json.loads(body)``.

    Returns:
        A `StreamStarted`, `StreamStopped` or `StreamFailed`, for JSON a `CallStreamChanged`, and for any other event
        an `UnknownCallback`.

    Raises:
        InvalidRequestError: the fields are neither a mapping of str to str, nor pairs, nor an event's document.
    """
    if isinstance(fields, Mapping) and _is_document(fields):
        return parse_document(fields)
    values: dict[str, str] = {}
    for name, value in as_pairs(fields):
        values.setdefault(name, value)
    known: dict[str, Any] = {ours: values.get(theirs) or None for theirs, ours in _NAMES.items()}
    known["track"] = next((track for track in Track if track == known["track"]), known["track"])
    known["extra"] = {name: value for name, value in values.items() if name not in FIELD_NAMES}
    event, error = values.get(_EVENT) or None, values.get(_ERROR) or None
    if event == _FAILED:
        return StreamFailed(**known, error=error)
    if event not in {_STARTED, _STOPPED}:
        return UnknownCallback(**known, event=event, error=error)
    if error:
        known["extra"][_ERROR] = error
    return StreamStarted(**known) if event == _STARTED else StreamStopped(**known)


def _is_document(fields: Mapping[str, Any]) -> bool:
    # A form may have a field event_type as well: the user's own query parameters are among its fields.
    return isinstance(fields.get("params"), Mapping) or (
        "event_type" in fields and fields.keys().isdisjoint(FIELD_NAMES)
    )


def parse_document(document: Mapping[str, Any]) -> CallStreamChanged | UnknownCallback:
    """Parse a JSON callback; any document is an event."""
    nested = document.get("params")
    params: Mapping[str, Any] = nested if isinstance(nested, Mapping) else {}
    known: dict[str, Any] = {
        "account_sid": _text(document.get("project_id")) or _text(params.get("project_id")),
        "call_sid": _text(params.get("call_id")),
        "stream_name": _text(params.get("name")),
        "timestamp_text": _text(document.get("timestamp")),
        "document": document,
    }
    event = _text(document.get("event_type"))
    if event != _CALL_STREAM:
        return UnknownCallback(**known, event=event)
    word = _text(params.get("state"))
    return CallStreamChanged(
        **known,
        state=next((state for state in CallStreamState if state == word), word),
        control_id=_text(params.get("control_id")),
        url=_text(params.get("url")),
    )


def _text(value: object) -> str | None:
    """Return a JSON string or number as text; None for an empty string and anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value) or None


def _from_epoch(text: str | None) -> datetime | None:
    try:
        seconds = float(text or "nan")
        if seconds > _MAX_SECONDS:
            seconds /= 1000
        return datetime.fromtimestamp(seconds, UTC) if math.isfinite(seconds) else None
    except (ValueError, OverflowError, OSError):
        return None
