"""The Space's resources: streams, conferences, calls, participants, and pages of them."""

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import ClassVar, Generic, TypeVar

from attrs import field, frozen

from signalwire_streams.models._enums import (
    AnsweredBy,
    CallDirection,
    CallStatus,
    ConferenceStatus,
    ParticipantStatus,
    StreamStatus,
    TargetKind,
)

# The documentation's own examples spell months with four letters ("25 Sept 2018"), which RFC 2822 does not
# know and the standard parser rejects.
_LONG_MONTH = re.compile(r"\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]+\b", re.IGNORECASE)
# "2018-09-25 20:00:00 UTC" and "2018-09-25 20:00:00 +0200", as many servers write a time for people.
_ZONE = re.compile(r"(?<=\d)\s*(?:(UTC|GMT|Z)|([+-]\d\d(?::?\d\d)?))$", re.IGNORECASE)
# Valid in ISO 8601 and RFC 2822, but datetime has neither: a leap second, and midnight at the end of a day.
_LEAP_SECOND = re.compile(r"(?<=[T\s]\d\d:[0-5]\d:)60(?!\d)", re.IGNORECASE)
_END_OF_DAY = re.compile(r"(?<=[T\s])24(?=:00(?::00(?:[.,]0+)?)?(?![\d:.,]))", re.IGNORECASE)


def parse_date(text: str | None) -> datetime | None:
    """Parse an RFC 2822 or ISO 8601 date into an aware ``datetime``, or return None.

    The platform writes, for example, ``Tue, 25 Sept 2018 20:00:00 +0000`` or ``2018-09-25 20:00:00 UTC``. Without a
    zone it is UTC; a leap second becomes the second after it.
    """
    if not text:
        return None
    text, leap_seconds = _LEAP_SECOND.subn("59", text.strip(), count=1)
    text, ends_of_day = _END_OF_DAY.subn("00", text, count=1)
    beyond = timedelta(days=ends_of_day, seconds=leap_seconds)
    for read in (_rfc_2822, _iso_8601):
        with suppress(ValueError, OverflowError, IndexError, TypeError):
            moment = read(text) + beyond
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None


def _rfc_2822(text: str) -> datetime:
    return parsedate_to_datetime(_LONG_MONTH.sub(r"\1", text))


def _iso_8601(text: str) -> datetime:
    return datetime.fromisoformat(_ZONE.sub(lambda zone: zone[2] or "+00:00", text))


_Item_co = TypeVar("_Item_co", covariant=True)


@frozen(kw_only=True)
class Page(Generic[_Item_co]):
    """One page of a list, with the addresses of other pages as the Space wrote them.

    Attributes:
        next_page_uri: the address of the next page, or None on the last one. It is followed unchanged.
        page: the page's number, from 0.
        page_size: how many items a full page holds.
    """

    items: tuple[_Item_co, ...]
    uri: str | None = None
    first_page_uri: str | None = None
    next_page_uri: str | None = None
    previous_page_uri: str | None = None
    page: int | None = None
    page_size: int | None = None


class _Updated:
    __slots__ = ()
    date_updated_text: str | None

    @property
    def date_updated(self) -> datetime | None:
        """When it last changed, aware, or None if the text can't be parsed."""
        return parse_date(self.date_updated_text)


class _Dated(_Updated):
    __slots__ = ()
    date_created_text: str | None

    @property
    def date_created(self) -> datetime | None:
        """When it was created (for a participant: joined), aware, or None if the text can't be parsed."""
        return parse_date(self.date_created_text)


@frozen(kw_only=True)
class _Stream(_Updated):
    """Fields of the streams of conferences and of calls.

    Attributes:
        sid: None if the Space started the stream but its sid was lost; then ``name`` is the handle.
        name: the ``Name`` it was started under, or None.
        status: a `StreamStatus`, or the unknown text as received.
        account_sid: the project.
        date_updated_text: the date exactly as the Space wrote it.
        uri: the stream's path on the Space.
        ambiguous: True if an earlier attempt of the same start may have started it, or the response did not name what
            was asked for. ``sid`` may then belong to another stream, so the handle is the **name**.
        already_started: True if the Space rejected a repeated start as a duplicate of its own first attempt.
        already_ended: True if a stop found that the stream had ended before, by itself or with its call or conference.
        extra: keys of the response that this version does not know, as received.
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
    kind: ClassVar[TargetKind]


@frozen(kw_only=True)
class ConferenceStream(_Stream):
    """A stream of a conference.

    Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams
    """

    kind: ClassVar[TargetKind] = TargetKind.CONFERENCE

    conference_sid: str


@frozen(kw_only=True)
class CallStream(_Stream):
    """A stream of a call; ``api_version`` and ``error_code`` come from older Spaces only.

    Source: https://signalwire.com/docs/compatibility-api/rest/streams
    """

    kind: ClassVar[TargetKind] = TargetKind.CALL

    call_sid: str
    api_version: str | None = None
    error_code: str | None = None


@frozen(kw_only=True)
class Call(_Dated):
    """A call.

    Attributes:
        status: a `CallStatus`, or the unknown text as received.
        from_: the caller (``from`` on the wire).
        duration: seconds.
        audio_rtt_avg: milliseconds, like the other round-trip times and jitters.
        extra: keys of the response that this version does not know, as received.

    Source: https://signalwire.com/docs/compatibility-api/rest/calls
    """

    sid: str
    status: CallStatus | str | None = None
    from_: str | None = None
    to: str | None = None
    formatted_from: str | None = None
    from_formatted: str | None = None
    formatted_to: str | None = None
    to_formatted: str | None = None
    direction: CallDirection | str | None = None
    answered_by: AnsweredBy | str | None = None
    account_sid: str | None = None
    parent_call_sid: str | None = None
    phone_number_sid: str | None = None
    start_time_text: str | None = None
    end_time_text: str | None = None
    date_created_text: str | None = None
    date_updated_text: str | None = None
    duration: int | None = None
    price: float | None = None
    price_unit: str | None = None
    api_version: str | None = None
    forwarded_from: str | None = None
    caller_name: str | None = None
    annotation: str | None = None
    group_sid: str | None = None
    sip_result_code: str | None = None
    audio_in_mos: float | None = None
    audio_rtt_avg: int | None = None
    audio_rtt_min: int | None = None
    audio_rtt_max: int | None = None
    audio_out_jitter_min: int | None = None
    audio_out_jitter_max: int | None = None
    audio_out_jitter_avg: int | None = None
    audio_out_lost: int | None = None
    uri: str | None = None
    subresource_uris: Mapping[str, object] = field(factory=dict, hash=False)
    extra: Mapping[str, object] = field(factory=dict, hash=False, repr=False)

    @property
    def start_time(self) -> datetime | None:
        """When the call began, aware, or None."""
        return parse_date(self.start_time_text)

    @property
    def end_time(self) -> datetime | None:
        """When the call ended, aware, or None."""
        return parse_date(self.end_time_text)


@frozen(kw_only=True)
class Conference(_Dated):
    """A conference.

    Attributes:
        status: a `ConferenceStatus`, or the unknown text as received.
        friendly_name: the room's name.
        extra: keys of the response that this version does not know, as received.

    Source: https://signalwire.com/docs/compatibility-api/rest/conferences
    """

    sid: str
    status: ConferenceStatus | str | None = None
    friendly_name: str | None = None
    account_sid: str | None = None
    date_created_text: str | None = None
    date_updated_text: str | None = None
    api_version: str | None = None
    region: str | None = None
    uri: str | None = None
    subresource_uris: Mapping[str, object] = field(factory=dict, hash=False)
    extra: Mapping[str, object] = field(factory=dict, hash=False, repr=False)


@frozen(kw_only=True)
class Participant(_Dated):
    """One call in a conference.

    Attributes:
        call_sid: the participant's call.
        status: a `ParticipantStatus`, or the unknown text as received.
        extra: keys of the response that this version does not know, as received.

    Source: https://signalwire.com/docs/compatibility-api/rest/participants
    """

    call_sid: str
    conference_sid: str | None = None
    status: ParticipantStatus | str | None = None
    account_sid: str | None = None
    call_sid_to_coach: str | None = None
    coaching: bool | None = None
    muted: bool | None = None
    hold: bool | None = None
    start_conference_on_enter: bool | None = None
    end_conference_on_exit: bool | None = None
    date_created_text: str | None = None
    date_updated_text: str | None = None
    uri: str | None = None
    extra: Mapping[str, object] = field(factory=dict, hash=False, repr=False)
