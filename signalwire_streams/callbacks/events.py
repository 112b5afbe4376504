"""What a stream's status callback says. Pure: from a form's fields to a value."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias

from attrs import field, frozen

from signalwire_streams.callbacks.forms import Fields, as_pairs
from signalwire_streams.models import Track
from signalwire_streams.models.dates import parse_date

STARTED = "stream-started"
STOPPED = "stream-stopped"
ERRORED = "stream-error"

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
    def ending(self) -> str | None:
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
    def ending(self) -> str:
        """That it was stopped."""
        return "it was stopped"


@frozen(kw_only=True)
class StreamErrored(_Callback):
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
    def ending(self) -> str:
        """The error as it came."""
        return self.error or "an error without a name"


@frozen(kw_only=True)
class UnknownCallback(_Callback):
    """A callback whose event this version does not know.

    Attributes:
        event: ``StreamEvent`` as it came, or None where there was none.
        error: ``StreamError`` as it came.
    """

    event: str | None = None
    error: str | None = None


CallbackEvent: TypeAlias = StreamStarted | StreamStopped | StreamErrored | UnknownCallback
"""What `read_callback` gives."""


def read_callback(fields: Fields) -> CallbackEvent:
    """Read a status callback's fields.

    Verify the request first: this reads whatever it is given.

    Args:
        fields: names and values of the form, or of the query where callbacks come by GET. Where a name comes more
            than once, the first one counts.

    Returns:
        A `StreamStarted`, `StreamStopped`, `StreamErrored`, or for any other event an `UnknownCallback`.

    Raises:
        InvalidRequestError: the fields are no mapping of str to str and no pairs.
    """
    told: dict[str, str] = {}
    for name, value in as_pairs(fields):
        told.setdefault(name, value)
    known: dict[str, Any] = {ours: told.get(theirs) or None for theirs, ours in _NAMES.items()}
    known["track"] = _track(known["track"])
    known["extra"] = {name: value for name, value in told.items() if name not in FIELD_NAMES}
    event, error = told.get(_EVENT) or None, told.get(_ERROR) or None
    if event == ERRORED:
        return StreamErrored(**known, error=error)
    if event not in {STARTED, STOPPED}:
        return UnknownCallback(**known, event=event, error=error)
    if error:
        known["extra"][_ERROR] = error
    return StreamStarted(**known) if event == STARTED else StreamStopped(**known)


def _track(word: str | None) -> Track | str | None:
    return next((track for track in Track if track == word), word)
