"""Calls, as the Space lists them."""

from collections.abc import Mapping
from datetime import datetime

from attrs import field, frozen

from signalwire_streams.models.dates import parse_date
from signalwire_streams.models._enums import AnsweredBy, CallDirection, CallStatus


@frozen(kw_only=True)
class Call:
    """A call.

    Attributes:
        sid: the call's id.
        status: a `CallStatus`, or the word as it came where it is none of them.
        from_: who called (``from`` on the wire).
        duration: seconds.
        audio_rtt_avg: milliseconds, like the other round-trip times and jitters.
        extra: keys of the answer that this version does not know, as they came.

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

    @property
    def date_created(self) -> datetime | None:
        """When the call was created, aware, or None where the text can't be read."""
        return parse_date(self.date_created_text)

    @property
    def date_updated(self) -> datetime | None:
        """When the call last changed, aware, or None where the text can't be read."""
        return parse_date(self.date_updated_text)
