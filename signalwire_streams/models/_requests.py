"""Requests to start a stream. Field metadata drives form encoding, storage and redaction."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from copy import copy
from typing import ClassVar, Literal, Self, TypeAlias, TypedDict, TypeVar

from attrs import Attribute, field, frozen
from attrs.converters import optional as maybe

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._enums import CallbackMethod, Codec, TargetKind, Track
from signalwire_streams.models._signed_tokens import SignedTokens
from signalwire_streams.models._validation import (
    SECRET,
    check_codec,
    check_flag,
    check_parameters,
    if_given,
    masks_secrets_of_init,
    redact_url,
    secrets_of,
    validate_bearer_token,
    validate_callback_url,
    validate_flag,
    validate_path_segment,
    validate_stream_url,
)

_Item = TypeVar("_Item")


class OptionalFields(TypedDict, total=False):
    """The optional fields of a start that are passed on as they are; see `StartConferenceStream` for each."""

    track: Track | str | None
    codec: Codec | str | None
    realtime: bool | None
    status_callback: str | None
    status_callback_method: CallbackMethod | str | None


class StartOptions(OptionalFields, total=False):
    """The arguments of a start besides its target, ``url``, ``name`` and token."""

    parameters: Mapping[str, str] | None
    deadline: float | None


WhenLost: TypeAlias = Literal["end", "restart"]
"""What follows when the socket of a stream breaks."""


class OpenOptions(StartOptions, total=False):
    """The arguments of `MediaReceiver.open` besides target and token."""

    url: str
    name: str | None
    socket_timeout: float
    when_lost: WhenLost


GENERATED_NAME = "sws-"
"""Prefix of the names that this package generates; such a name is used for one start only."""


WIRE_NAME = "wire_name"
"""Metadata key: the form field that the API calls it by. ``parameters`` become ``Parameter1.Name`` and so on."""
SCOPE = "scope"
"""Metadata key: ``"conference"`` for a field that calls do not have."""


def _not_on_a_call(_: object, attribute: "Attribute[None]", __: object) -> None:
    raise InvalidRequestError(f"{attribute.name} is for conference streams only: omit it on a call")


def _validate_unnamed(request: "StartStream", attribute: "Attribute[bool]", value: object) -> None:
    if check_flag(value, attribute.name) and request.name is not None:
        raise InvalidRequestError("name and unnamed=True contradict each other: write one of the two")


@frozen(kw_only=True)
class StartStream:
    """Fields that all starts share. Use `StartConferenceStream` or `StartCallStream`.

    Attributes:
        url: ``Url``, the wss address that the Space connects to; no query string.
        name: ``Name``, unique per conference or call. If it is omitted, the client generates one: the name makes
            the start safe to send again, and the stream can be stopped by it.
        unnamed: True to send no ``Name`` at all. A start without a name is not sent again once it may have been
            executed, so a lost response ends in `StreamOutcomeUnknownError`.
        track: ``Track``; the API's default is both.
        status_callback: ``StatusCallback``, the http(s) URL that receives status callbacks.
        status_callback_method: ``StatusCallbackMethod``; the API's default is POST.
        parameters: ``Parameter1.Name``/``.Value`` and so on, at most 99, passed to the WebSocket server.
        authorization_bearer_token: ``AuthorizationBearerToken``, sent with the WebSocket upgrade; or `SignedTokens`,
            which make one when the start is sent.

    Raises:
        InvalidRequestError: a field is invalid; the message says what to write instead.

    Source: https://signalwire.com/docs/compatibility-api/rest/streams
    """

    kind: ClassVar[TargetKind]

    url: str = field(validator=validate_stream_url, metadata={WIRE_NAME: "Url"})
    name: str | None = field(default=None, validator=if_given(validate_path_segment), metadata={WIRE_NAME: "Name"})
    unnamed: bool = field(default=False, validator=_validate_unnamed)
    track: Track | None = field(default=None, converter=maybe(Track), metadata={WIRE_NAME: "Track"})
    status_callback: str | None = field(
        default=None,
        validator=if_given(validate_callback_url),
        repr=lambda url: repr(redact_url(url)) if url else "None",
        metadata={WIRE_NAME: "StatusCallback", SECRET: "partly"},
    )
    status_callback_method: CallbackMethod | None = field(
        default=None, converter=maybe(CallbackMethod), metadata={WIRE_NAME: "StatusCallbackMethod"}
    )
    parameters: Mapping[str, str] = field(
        factory=dict,
        converter=check_parameters,
        repr=lambda parameters: "{" + ", ".join(f"{name!r}: ***" for name in parameters) + "}",
        hash=False,
        metadata={WIRE_NAME: "Parameter", SECRET: True},
    )
    authorization_bearer_token: str | SignedTokens | None = field(
        default=None,
        validator=if_given(validate_bearer_token),
        repr=False,
        metadata={WIRE_NAME: "AuthorizationBearerToken", SECRET: True},
    )

    def with_name(self, name: str) -> Self:
        """Return a copy under a name that was generated for it; its fields are not validated again."""
        twin = copy(self)
        object.__setattr__(twin, "name", name)
        return twin

    @property
    def target(self) -> str:
        """The sid that the stream is started on."""
        target: str = getattr(self, self.kind.target_key)
        return target

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that must never be shown: secret fields, and the private parts of URLs."""
        return secrets_of(self)


@masks_secrets_of_init
@frozen(kw_only=True)
class StartConferenceStream(StartStream):
    """Start a stream on a conference.

    Attributes:
        conference_sid: the conference, as `Conference.sid` shows it.
        codec: ``StreamCodec``: a `Codec`, or a string such as ``"PCMU@40i"``.
        realtime: ``StreamRealTime``.

    Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams
    """

    kind: ClassVar[TargetKind] = TargetKind.CONFERENCE

    conference_sid: str = field(validator=validate_path_segment)
    codec: Codec | str | None = field(
        default=None, converter=maybe(check_codec), metadata={WIRE_NAME: "StreamCodec", SCOPE: "conference"}
    )
    realtime: bool | None = field(
        default=None,
        validator=if_given(validate_flag),
        metadata={WIRE_NAME: "StreamRealTime", SCOPE: "conference"},
    )


@masks_secrets_of_init
@frozen(kw_only=True)
class StartCallStream(StartStream):
    """Start a stream on a call. A call's stream has neither codec nor realtime.

    Attributes:
        call_sid: the call, as `Call.sid` shows it.

    Source: https://signalwire.com/docs/compatibility-api/rest/streams
    """

    kind: ClassVar[TargetKind] = TargetKind.CALL

    call_sid: str = field(validator=validate_path_segment)
    codec: None = field(default=None, validator=if_given(_not_on_a_call), repr=False, metadata={SCOPE: "conference"})
    realtime: None = field(default=None, validator=if_given(_not_on_a_call), repr=False, metadata={SCOPE: "conference"})


async def each(items: Iterable[_Item] | AsyncIterable[_Item]) -> AsyncIterator[_Item]:
    """Iterate over requests, or whatever a bulk run takes, from a sync or async iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
