"""What a stream's status callback says. Pure: from a form's fields, or a JSON document, to a value."""

import math
from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeAlias

from attrs import field, frozen

from signalwire_streams.callbacks._request_parsing import Fields, as_pairs
from signalwire_streams.models import Track
from signalwire_streams.models._responses import parse_date

STARTED = "stream-started"
STOPPED = "stream-stopped"
ERRORED = "stream-error"
CALL_STREAM = "calling.call.stream"

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
_LAST_SECOND = 100_000_000_000  # a later moment is in milliseconds
_EVENT, _ERROR = "StreamEvent", "StreamError"

FIELD_NAMES = (*_NAMES, _EVENT, _ERROR)
"""The documented fields. Source: https://signalwire.com/docs/compatibility-api/rest/streams"""


@frozen(kw_only=True)
class _Callback:
    """What every callback of a stream may say; a field that is missing or blank is None.

    Attributes:
        account_sid: the project.
        call_sid: the call, for a stream of a call.
        conference_sid: the conference, for a stream of a conference.
        stream_sid: the stream.
        stream_name: the ``Name`` that it was started under; the platform puts the sid where none was given.
        track: a `Track`, or the word as it came where it is none.
        timestamp_text: the time exactly as the platform wrote it.
        unique_id: ``Unique-ID``, as it came.
        extra: fields that this version does not know, as they came.
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
        """The moment of the event, aware, or None where the text can't be read."""
        return parse_date(self.timestamp_text)

    @property
    def target(self) -> str | None:
        """The sid of the conference or call that the stream is of."""
        return self.conference_sid or self.call_sid

    @property
    def stream_key(self) -> Hashable | None:
        """The key that all callbacks of one stream share; None if they name no stream."""
        return self.stream_sid

    @property
    def end_reason(self) -> str | None:
        """How the stream ended, in a few words; None where the event does not say that it did."""
        return None

    @property
    def is_duplicate(self) -> bool:
        """Whether the event tells that a second stream of one id or name was refused."""
        return False


@frozen(kw_only=True)
class StreamStarted(_Callback):
    """``stream-started``: audio begins to flow."""


@frozen(kw_only=True)
class StreamStopped(_Callback):
    """``stream-stopped``: the stream ended."""

    @property
    def end_reason(self) -> str:
        """That it was stopped."""
        return "it was stopped"


@frozen(kw_only=True)
class StreamFailed(_Callback):
    """``stream-error``: the stream could not start, or broke.

    Attributes:
        error: ``StreamError`` as it came, such as ``connection_refused`` or ``Duplicated stream name``.
    """

    error: str | None = None

    @property
    def is_duplicate(self) -> bool:
        """Whether the stream was refused since one of its id or name lives already on the conference.

        That one goes on: this error says nothing against it.
        """
        words = (self.error or "").lower().replace("_", " ")
        return words.startswith("duplicate")

    @property
    def end_reason(self) -> str:
        """The error as it came."""
        return self.error or "an error without a name"


@frozen(kw_only=True)
class UnknownCallback(_Callback):
    """A callback whose event this version does not know.

    Attributes:
        event: ``StreamEvent`` of a form or ``event_type`` of JSON as it came, or None where there was none.
        error: ``StreamError`` as it came.
        document: the whole document, where it came as JSON.
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
    """``calling.call.stream``: the state of a call's stream changed, which the Calling API or SWML started.

    These callbacks come as JSON. `call_sid` is their ``call_id``, `account_sid` their ``project_id`` and `stream_name`
    their ``name``; they have no `stream_sid`.

    Attributes:
        state: a `CallStreamState`, or the word as it came where it is none.
        control_id: the stream's id, chosen by its starter and unique on its call.
        url: the address that the audio is sent to.
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
        """The moment of the event, aware; JSON has it in seconds since 1970."""
        return _moment(self.timestamp_text) or parse_date(self.timestamp_text)

    @property
    def end_reason(self) -> str | None:
        """That it has finished, once the state is `finished`."""
        return "it has finished" if self.state == CallStreamState.FINISHED else None


CallbackEvent: TypeAlias = StreamStarted | StreamStopped | StreamFailed | CallStreamChanged | UnknownCallback
"""What `parse_callback` gives."""


def parse_callback(fields: Fields | Mapping[str, Any]) -> CallbackEvent:
    """Read a status callback.

    Verify the request first: this reads whatever it is given.

    Args:
        fields: names and values of the form, or of the query where callbacks come by GET. Where a name comes more
            than once, the first one counts. Where the body is JSON, its document: ``json.loads(body)``.

    Returns:
        A `StreamStarted`, `StreamStopped`, `StreamFailed`, of JSON a `CallStreamChanged`, or for any other event an
        `UnknownCallback`.

    Raises:
        InvalidRequestError: the fields are no mapping of str to str, no pairs, and no document of an event.
    """
    if isinstance(fields, Mapping) and ("event_type" in fields or isinstance(fields.get("params"), Mapping)):
        return read_document(fields)
    told: dict[str, str] = {}
    for name, value in as_pairs(fields):
        told.setdefault(name, value)
    known: dict[str, Any] = {ours: told.get(theirs) or None for theirs, ours in _NAMES.items()}
    known["track"] = _track(known["track"])
    known["extra"] = {name: value for name, value in told.items() if name not in FIELD_NAMES}
    event, error = told.get(_EVENT) or None, told.get(_ERROR) or None
    if event == ERRORED:
        return StreamFailed(**known, error=error)
    if event not in {STARTED, STOPPED}:
        return UnknownCallback(**known, event=event, error=error)
    if error:
        known["extra"][_ERROR] = error
    return StreamStarted(**known) if event == STARTED else StreamStopped(**known)


def read_document(document: Mapping[str, Any]) -> CallStreamChanged | UnknownCallback:
    """Read a JSON callback, whatever it says."""
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
    if event != CALL_STREAM:
        return UnknownCallback(**known, event=event)
    word = _text(params.get("state"))
    return CallStreamChanged(
        **known,
        state=next((state for state in CallStreamState if state == word), word),
        control_id=_text(params.get("control_id")),
        url=_text(params.get("url")),
    )


def _text(value: object) -> str | None:
    """Return a JSON text or number as text; None for what is blank or neither."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value) or None


def _moment(text: str | None) -> datetime | None:
    try:
        seconds = float(text or "nan")
        if seconds > _LAST_SECOND:
            seconds /= 1000
        return datetime.fromtimestamp(seconds, UTC) if math.isfinite(seconds) else None
    except (ValueError, OverflowError, OSError):
        return None


def _track(word: str | None) -> Track | str | None:
    return next((track for track in Track if track == word), word)
