"""What a caller asks for: validated, immutable, ready to be sent as often as needed."""

from collections.abc import Mapping
from typing import Any, TypedDict

from attrs import Attribute, field, frozen
from attrs.converters import optional

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._enums import CallbackMethod, Codec, Track
from signalwire_streams.models._validation import (
    check_bearer_token,
    check_callback_url,
    check_codec,
    check_flag,
    check_parameters,
    check_path_segment,
    check_stream_url,
    check_word,
    masks_secrets_of_init,
    redact_url,
)


class StartOptions(TypedDict, total=False):
    """The fields of a start besides its target, ``url``, ``name`` and token; see `StartConferenceStream` for each."""

    track: Track | str | None
    codec: Codec | str | None
    realtime: bool | None
    status_callback: str | None
    status_callback_method: CallbackMethod | str | None
    parameters: Mapping[str, str] | None
    deadline: float | None


class OpenOptions(StartOptions, total=False):
    """What starting and receiving a stream takes besides its target and token; see `MediaReceiver.open`."""

    url: str
    name: str | None
    socket_timeout: float


GENERATED_NAME = "sws-"
"""How each name begins that this package generates; such a name is used for one start only."""


# attrs takes the type that a caller may pass from the converter's argument: these say it.
def _url(value: str) -> str:
    return check_stream_url(value)


def _name(value: str) -> str:
    return check_path_segment(value, "name")


def _unnamed(value: bool) -> bool:  # noqa: FBT001  (attrs calls converters by position)
    return check_flag(value, "unnamed")


def _track(value: Track | str) -> Track:
    return check_word(value, Track, "track")


def _callback(value: str) -> str:
    return check_callback_url(value)


def _callback_method(value: CallbackMethod | str) -> CallbackMethod:
    return check_word(value, CallbackMethod, "status_callback_method")


def _parameters(value: Mapping[str, str]) -> Mapping[str, str]:
    return check_parameters(value)


def _bearer_token(value: str) -> str:
    return check_bearer_token(value)


def _conference_sid(value: str) -> str:
    return check_path_segment(value, "conference_sid")


def _codec(value: Codec | str) -> Codec | str:
    return check_codec(value)


def _realtime(value: bool) -> bool:  # noqa: FBT001  (attrs calls converters by position)
    return check_flag(value, "realtime")


def _call_sid(value: str) -> str:
    return check_path_segment(value, "call_sid")


def _not_on_a_call(_: object, attribute: "Attribute[None]", value: Any) -> None:  # noqa: ANN401
    if value is not None:
        raise InvalidRequestError(f"{attribute.name} is for conference streams only: leave it out on a call")


def _shown_url(url: str | None) -> str:
    return repr(redact_url(url)) if url else "None"


def _shown_names(parameters: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name!r}: ***" for name in parameters) + "}"


@masks_secrets_of_init
@frozen(kw_only=True)
class StartStream:
    """What every start has in common. Use `StartConferenceStream` or `StartCallStream`.

    Attributes:
        url: ``Url``, the wss address that the Space dials; no query string.
        name: ``Name``, unique per conference or call. Left out, the client makes one, because the name is
            what makes a start safe to send again and what the stream can be stopped by.
        unnamed: True to send no ``Name`` at all. A start without a name is never sent twice, so a lost
            answer ends in `StreamOutcomeUnknownError`.
        track: ``Track``; the API's default is both.
        status_callback: ``StatusCallback``, an http(s) address that hears of the stream.
        status_callback_method: ``StatusCallbackMethod``; the API's default is POST.
        parameters: ``Parameter1.Name``/``.Value`` and so on, at most 99, handed to the WebSocket server.
        authorization_bearer_token: ``AuthorizationBearerToken``, sent with the WebSocket upgrade.

    Raises:
        InvalidRequestError: a field can't be right; the message says what to write instead.

    Source: https://signalwire.com/docs/compatibility-api/rest/streams
    """

    url: str = field(converter=_url)
    name: str | None = field(default=None, converter=optional(_name))
    unnamed: bool = field(default=False, converter=_unnamed)
    track: Track | None = field(default=None, converter=optional(_track))
    status_callback: str | None = field(default=None, converter=optional(_callback), repr=_shown_url)
    status_callback_method: CallbackMethod | None = field(default=None, converter=optional(_callback_method))
    parameters: Mapping[str, str] = field(factory=dict, converter=_parameters, repr=_shown_names, hash=False)
    authorization_bearer_token: str | None = field(default=None, converter=optional(_bearer_token), repr=False)

    def __attrs_post_init__(self) -> None:
        if self.unnamed and self.name is not None:
            raise InvalidRequestError("name and unnamed=True contradict each other: write one of the two")


@masks_secrets_of_init
@frozen(kw_only=True)
class StartConferenceStream(StartStream):
    """Start a stream on a conference.

    Attributes:
        conference_sid: the conference, as `Conference.sid` shows it.
        codec: ``StreamCodec``: a `Codec`, or a text such as ``"PCMU@40i"``.
        realtime: ``StreamRealTime``.

    Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams
    """

    conference_sid: str = field(converter=_conference_sid)
    codec: Codec | str | None = field(default=None, converter=optional(_codec))
    realtime: bool | None = field(default=None, converter=optional(_realtime))

    @property
    def target(self) -> str:
        """The sid that the stream is started on."""
        return self.conference_sid


@masks_secrets_of_init
@frozen(kw_only=True)
class StartCallStream(StartStream):
    """Start a stream on a call. A call's stream has no codec and no realtime switch.

    Attributes:
        call_sid: the call, as `Call.sid` shows it.

    Source: https://signalwire.com/docs/compatibility-api/rest/streams
    """

    call_sid: str = field(converter=_call_sid)
    codec: None = field(default=None, validator=_not_on_a_call, repr=False)
    realtime: None = field(default=None, validator=_not_on_a_call, repr=False)

    @property
    def target(self) -> str:
        """The sid that the stream is started on."""
        return self.call_sid
