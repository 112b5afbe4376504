"""The form of a start, by the API's own field names."""

from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, strategies as st

from signalwire_streams._http.requests import STOP, start_form
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import CallbackMethod, Codec, StartCallStream, StartConferenceStream, Track

URL = "wss://your-application.com/audiostream"


def fields_of(request: StartConferenceStream | StartCallStream) -> list[tuple[str, str]]:
    """Read a form back, strictly, as a server would."""
    return parse_qsl(start_form(request).decode("ascii"), keep_blank_values=True, strict_parsing=True)


def test_every_field_of_a_conference_start() -> None:
    """Each field has the name that the API documents for it, and nothing else is sent."""
    request = StartConferenceStream(
        conference_sid="b3877c40-da60-4998-90ad-b792e98472cf",
        url=URL,
        name="my_conference_stream",
        track="both_tracks",
        status_callback="https://your-api-endpoint.com/stream-status?id=7",
        status_callback_method="GET",
        parameters={"FirstName": "Jane", "LastName": "Doe"},
        authorization_bearer_token="your-bearer-token",
        codec="L16@16000h",
        realtime=True,
    )
    assert dict(fields_of(request)) == {
        "Url": URL,
        "Name": "my_conference_stream",
        "Track": "both_tracks",
        "StatusCallback": "https://your-api-endpoint.com/stream-status?id=7",
        "StatusCallbackMethod": "GET",
        "StreamCodec": "L16@16000h",
        "StreamRealTime": "true",
        "AuthorizationBearerToken": "your-bearer-token",
        "Parameter1.Name": "FirstName",
        "Parameter1.Value": "Jane",
        "Parameter2.Name": "LastName",
        "Parameter2.Value": "Doe",
    }
    assert len(fields_of(request)) == 12


def test_every_field_of_a_call_start() -> None:
    """A call's start has the same form, without codec and realtime."""
    request = StartCallStream(
        call_sid="b3877c40-da60-4998-90ad-b792e98472ca",
        url=URL,
        name="my_first_stream",
        track=Track.INBOUND,
        status_callback="https://your-api-endpoint.com/stream-status",
        status_callback_method=CallbackMethod.POST,
        parameters={"FirstName": "Jane"},
        authorization_bearer_token="your-bearer-token",
    )
    assert dict(fields_of(request)) == {
        "Url": URL,
        "Name": "my_first_stream",
        "Track": "inbound_track",
        "StatusCallback": "https://your-api-endpoint.com/stream-status",
        "StatusCallbackMethod": "POST",
        "AuthorizationBearerToken": "your-bearer-token",
        "Parameter1.Name": "FirstName",
        "Parameter1.Value": "Jane",
    }


@pytest.mark.parametrize(
    ("request_", "form"),
    [
        (
            StartConferenceStream(conference_sid="c", url=URL),
            b"Url=wss%3A%2F%2Fyour-application.com%2Faudiostream",
        ),
        (
            StartCallStream(call_sid="c", url=URL, unnamed=True),
            b"Url=wss%3A%2F%2Fyour-application.com%2Faudiostream",
        ),
        (StartCallStream(call_sid="c", url="/s", name="a:b@c"), b"Url=%2Fs&Name=a%3Ab%40c"),
        (StartCallStream(call_sid="c", url="/s", name="größe"), b"Url=%2Fs&Name=gr%C3%B6%C3%9Fe"),
        (
            StartCallStream(call_sid="c", url="/s", parameters={"a b": "x & y=z+\n"}),
            b"Url=%2Fs&Parameter1.Name=a+b&Parameter1.Value=x+%26+y%3Dz%2B%0A",
        ),
        (
            StartCallStream(call_sid="c", url="/s", parameters={"a": ""}),
            b"Url=%2Fs&Parameter1.Name=a&Parameter1.Value=",
        ),
        (
            StartConferenceStream(conference_sid="c", url="/s", realtime=False),
            b"Url=%2Fs&StreamRealTime=false",
        ),
        (
            StartConferenceStream(conference_sid="c", url="/s", realtime=True),
            b"Url=%2Fs&StreamRealTime=true",
        ),
    ],
    ids=["bare", "unnamed", "name", "umlaut", "parameter", "empty value", "false", "true"],
)
def test_start_form_omits_none_and_percent_encodes_utf8(
    request_: StartConferenceStream | StartCallStream, form: bytes
) -> None:
    """Omitted fields are not sent, and the others are percent-encoded UTF-8."""
    assert start_form(request_) == form


def test_ninety_nine_parameters_are_numbered_in_their_order() -> None:
    """Parameters are numbered from 1 to 99 as the caller ordered them."""
    request = StartCallStream(
        call_sid="c", url=URL, parameters={f"n{number}": f"v{number}" for number in range(1, 100)}
    )
    sent = fields_of(request)[1:]
    assert sent == [
        pair
        for number in range(1, 100)
        for pair in ((f"Parameter{number}.Name", f"n{number}"), (f"Parameter{number}.Value", f"v{number}"))
    ]


@pytest.mark.parametrize("parameters", [{"a": "\ud83d"}, {"\udc80": "x"}, {"a": "x", "b": "y\udfff"}])
def test_half_a_surrogate_pair_is_refused(parameters: dict[str, str]) -> None:
    """Text that no encoding can carry is refused as the caller's mistake, and not repeated."""
    with pytest.raises(InvalidRequestError, match="a lone surrogate") as caught:
        start_form(StartCallStream(call_sid="c", url=URL, parameters=parameters))
    assert str(caught.value).isprintable()
    assert caught.value.__cause__ is None


def test_stop_form_is_one_field() -> None:
    """The only status that a stream can be given is stopped."""
    assert parse_qsl(STOP.decode("ascii"), strict_parsing=True) == [("Status", "stopped")]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_PATH = st.text(st.characters(exclude_categories=["Cs", "C", "Z"], exclude_characters="?#"), max_size=20)
_COMMON = {
    "url": _PATH.map(lambda path: f"wss://example.com/{path}"),
    "name": st.none() | st.from_regex(r"[\w:@&=+;,-]{1,30}", fullmatch=True).filter(str.isprintable),
    "track": st.none() | st.sampled_from(Track),
    "status_callback": st.none() | _PATH.map(lambda path: f"https://example.com/{path}?a=b&c=%20"),
    "status_callback_method": st.none() | st.sampled_from(CallbackMethod),
    "parameters": st.dictionaries(_TEXT.filter(lambda name: name.strip()), _TEXT, max_size=5),
    "authorization_bearer_token": st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
}
_STARTS = st.fixed_dictionaries(
    {**_COMMON, "codec": st.none() | st.sampled_from(Codec), "realtime": st.none() | st.booleans()}
)


@given(_STARTS)
def test_form_round_trips_any_request(given_: dict[str, Any]) -> None:
    """A server that decodes the form of any valid start finds every value as the caller wrote it."""
    sent = dict(fields_of(StartConferenceStream(conference_sid="c", **given_)))
    parameters = given_["parameters"]
    expected = {
        "Url": given_["url"],
        "Name": given_["name"],
        "Track": given_["track"],
        "StatusCallback": given_["status_callback"],
        "StatusCallbackMethod": given_["status_callback_method"],
        "AuthorizationBearerToken": given_["authorization_bearer_token"],
        "StreamCodec": given_["codec"],
        "StreamRealTime": None if given_["realtime"] is None else str(given_["realtime"]).lower(),
    }
    for number, (name, value) in enumerate(parameters.items(), start=1):
        expected |= {f"Parameter{number}.Name": name, f"Parameter{number}.Value": value}
    assert sent == {name: value for name, value in expected.items() if value is not None}
