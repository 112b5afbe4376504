"""Streams, as the Space answers them and as the client knows them."""

from collections.abc import Mapping
from datetime import datetime

from attrs import field, frozen

from signalwire_streams.models.dates import parse_date
from signalwire_streams.models._enums import StreamStatus


@frozen(kw_only=True)
class _Stream:
    """What the streams of conferences and of calls have in common.

    Attributes:
        sid: the stream's id. None where the Space started the stream but the id could not be learnt;
            then ``name`` is the handle.
        name: the ``Name`` it was started under, or None.
        status: a `StreamStatus`, or the word as it came where it is none of them.
        account_sid: the project.
        date_updated_text: the date exactly as the Space wrote it.
        uri: the stream's path on the Space.
        ambiguous: True when an earlier attempt of the same start may have done it. ``sid`` may then belong to
            a stream that the Space refuses as a duplicate, so the handle is the **name**.
        already_started: True when the Space refused a repeated start as a duplicate of its own first attempt.
        already_ended: True when a stop found that the stream had ended before, by itself or with its call
            or conference.
        extra: keys of the answer that this version does not know, as they came.
    """

    sid: str | None = None
    name: str | None = None
    status: StreamStatus | str | None = None
    account_sid: str | None = None
    date_updated_text: str | None = None
    uri: str | None = None
    ambiguous: bool = False
    already_started: bool = False
    already_ended: bool = False
    extra: Mapping[str, object] = field(factory=dict, hash=False, repr=False)

    @property
    def date_updated(self) -> datetime | None:
        """The moment of the last change, aware, or None where the text can't be read."""
        return parse_date(self.date_updated_text)


@frozen(kw_only=True)
class ConferenceStream(_Stream):
    """A stream of a conference.

    Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams
    """

    conference_sid: str


@frozen(kw_only=True)
class CallStream(_Stream):
    """A stream of a call; ``api_version`` and ``error_code`` come from older Spaces only.

    Source: https://signalwire.com/docs/compatibility-api/rest/streams
    """

    call_sid: str
    api_version: str | None = None
    error_code: str | None = None
