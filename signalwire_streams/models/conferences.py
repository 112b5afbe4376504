"""Conferences and who is in them, as the Space lists them."""

from collections.abc import Mapping
from datetime import datetime

from attrs import field, frozen

from signalwire_streams.models.dates import parse_date
from signalwire_streams.models._enums import ConferenceStatus, ParticipantStatus


@frozen(kw_only=True)
class Conference:
    """A conference.

    Attributes:
        sid: the conference's id.
        status: a `ConferenceStatus`, or the word as it came where it is none of them.
        friendly_name: the room's name.
        extra: keys of the answer that this version does not know, as they came.

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

    @property
    def date_created(self) -> datetime | None:
        """When the conference was created, aware, or None where the text can't be read."""
        return parse_date(self.date_created_text)

    @property
    def date_updated(self) -> datetime | None:
        """When the conference last changed, aware, or None where the text can't be read."""
        return parse_date(self.date_updated_text)


@frozen(kw_only=True)
class Participant:
    """One call in a conference.

    Attributes:
        call_sid: the participant's call.
        status: a `ParticipantStatus`, or the word as it came where it is none of them.
        extra: keys of the answer that this version does not know, as they came.

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

    @property
    def date_created(self) -> datetime | None:
        """When the participant joined, aware, or None where the text can't be read."""
        return parse_date(self.date_created_text)

    @property
    def date_updated(self) -> datetime | None:
        """When the participant last changed, aware, or None where the text can't be read."""
        return parse_date(self.date_updated_text)
