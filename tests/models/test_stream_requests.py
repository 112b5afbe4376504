"""Requests of starts: validation before anything is sent, and no secret in a repr."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from attrs import evolve, field, fields, frozen
from attrs.exceptions import FrozenInstanceError

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import CallbackMethod, Codec, StartCallStream, StartConferenceStream, Track
from signalwire_streams.models._validation import SECRET

URL = "wss://audio.example.com/stream"
KINDS: Mapping[str, tuple[type[StartConferenceStream] | type[StartCallStream], str]] = {
    "conference": (StartConferenceStream, "conference_sid"),
    "call": (StartCallStream, "call_sid"),
}
both_kinds = pytest.mark.parametrize("kind", KINDS)


def start(kind: str, /, **settings: Any) -> StartConferenceStream | StartCallStream:
    model, target = KINDS[kind]
    given: dict[str, Any] = {"url": URL, target: "b3877c40-da60-4998-90ad-b792e98472cf", **settings}
    return model(**given)


def refused_alike(**settings: Any) -> str:
    """Return the message with which a start is rejected, the same on a conference and on a call."""
    messages = {refusal(kind, **settings) for kind in KINDS}
    assert len(messages) == 1
    return messages.pop()


def refusal(kind: str, /, **settings: Any) -> str:
    """Return the message of a rejected start; it is one line and a ValueError too."""
    with pytest.raises(InvalidRequestError) as caught:
        start(kind, **settings)
    error = caught.value
    assert isinstance(error, ValueError)
    assert (error.sent, error.attempts) == ("no", 0)
    assert str(error).isprintable()
    return str(error)


URL_REFUSALS = {
    "ws": ("ws://audio.example.com/stream", "write 'wss://audio.example.com/stream'"),
    "http": ("http://audio.example.com/stream", "write 'wss://audio.example.com/stream'"),
    "https": ("https://audio.example.com/stream", "write 'wss://audio.example.com/stream'"),
    "ws in capitals": ("WS://audio.example.com", "write 'wss://audio.example.com'"),
    "ftp": ("ftp://audio.example.com", "write 'wss://audio.example.com'"),
    "no scheme": ("audio.example.com/stream", "write 'wss://audio.example.com/stream'"),
    "no scheme, with a port": ("audio.example.com:8443", "write 'wss://audio.example.com:8443'"),
    "one slash": ("https:/audio.example.com", "write 'wss://audio.example.com'"),
    "no slash": ("wss:audio.example.com", "write 'wss://audio.example.com'"),
    "a host alone after two slashes": ("//audio.example.com/stream", "write 'wss://audio.example.com/stream'"),
    "query string": ("wss://audio.example.com/stream?a=1", "parameters={...}"),
    "empty query string": ("wss://audio.example.com/stream?", "parameters={...}"),
    "query of a relative url": ("/stream?a=1", "parameters={...}"),
    "fragment": ("wss://audio.example.com/stream#top", "remove the '#'"),
    "empty": ("", "the wss:// address of your WebSocket server"),
    "only blanks": (" \t ", "the wss:// address of your WebSocket server"),
    "a blank within": ("wss://audio.example.com/my stream", "percent-encode"),
    "a blank after": ("wss://audio.example.com/stream ", "percent-encode"),
    "a line break": ("wss://audio.example.com/stream\n", "percent-encode"),
    "a tab": ("wss://audio\t.example.com/stream", "percent-encode"),
    "a control character": ("wss://audio.example.com/\x00", "percent-encode"),
    "a lone surrogate": ("wss://audio.example.com/\ud83d", "percent-encode"),
    "a blank beyond ASCII": ("wss://audio.example.com/\u2003", "percent-encode"),
    "no host": ("wss:///stream", "wss://host:443/path"),
    "only a scheme": ("wss://", "wss://host:443/path"),
    "only a port": ("wss://:443/", "wss://host:443/path"),
    "a port that is none": ("wss://audio.example.com:https/", "wss://host:443/path"),
    "a port out of range": ("wss://audio.example.com:65536/", "wss://host:443/path"),
    "port 0": ("wss://audio.example.com:0/", "wss://host:443/path"),
    "half an IPv6 address": ("wss://[::1/stream", "wss://host:443/path"),
    "user name and password": ("wss://ada:pw@audio.example.com/", "authorization_bearer_token"),
    "user alone": ("wss://ada@audio.example.com/", "authorization_bearer_token"),
    "empty user": ("wss://@audio.example.com/", "authorization_bearer_token"),
    "a number": (7, "url must be a str, not int"),
    "bytes": (b"wss://audio.example.com/", "url must be a str, not bytes"),
    "nothing": (None, "url must be a str, not NoneType"),
}


@pytest.mark.parametrize(("url", "advice"), URL_REFUSALS.values(), ids=URL_REFUSALS)
def test_invalid_stream_url_is_rejected(url: object, advice: str) -> None:
    """A url other than a bare wss address is rejected with what to write instead."""
    message = refused_alike(url=url)
    assert message.startswith("url ")
    assert advice in message


@both_kinds
@pytest.mark.parametrize(
    "url",
    [
        "wss://audio.example.com",
        "wss://audio.example.com/",
        "wss://audio.example.com:8443/a/b/c.wss",
        "WSS://AUDIO.EXAMPLE.COM/Stream",
        "wss://192.0.2.7:1/stream",
        "wss://[2001:db8::1]:8443/stream",
        "wss://audio.example.com/a%20b/%C3%A9",
        "wss://audio.example.com/a@b;c=d&e",
        "/relative/stream",
    ],
)
def test_valid_stream_url_is_kept(kind: str, url: str) -> None:
    """A wss address, or a relative one, is taken to the letter."""
    assert start(kind, url=url).url == url


HANDLE_REFUSALS = {
    "empty": "",
    "a slash": "a/b",
    "a leading slash": "/a",
    "a backslash": "a\\b",
    "a question mark": "a?b",
    "a hash": "a#b",
    "a percent sign": "a%2fb",
    "up": "..",
    "up within": "a..b",
    "here": ".",
    "a blank": "a b",
    "a blank before": " a",
    "a blank after": "a ",
    "a tab": "a\tb",
    "a line break": "a\n",
    "a zero": "a\x00b",
    "a delete character": "a\x7f",
    "a line separator": "a\u2028b",
    "a blank that does not break": "a\xa0b",
    "a character without width": "a\u200bb",
    "a lone surrogate": "a\udc80",
    "text that runs backwards": "a\u202eb",
    "a number": 7,
    "bytes": b"abc",
}


@both_kinds
@pytest.mark.parametrize("handle", HANDLE_REFUSALS.values(), ids=HANDLE_REFUSALS)
def test_invalid_sid_is_rejected(kind: str, handle: object) -> None:
    """A sid that could lead elsewhere than to its own path is rejected by the name of its argument."""
    _, target = KINDS[kind]
    message = refusal(kind, **{target: handle})
    assert message.startswith(target)
    assert any(advice in message for advice in ("write it without", "write the one", "must be a str"))


@pytest.mark.parametrize("handle", HANDLE_REFUSALS.values(), ids=HANDLE_REFUSALS)
def test_invalid_name_is_rejected(handle: object) -> None:
    """A stream can be stopped by its name, so a name has to fit a path as a sid does."""
    assert refused_alike(name=handle).startswith("name ")


@both_kinds
@pytest.mark.parametrize(
    "handle",
    [
        "b3877c40-da60-4998-90ad-b792e98472st",
        "CA0123456789abcdef0123456789abcdef",
        "my_stream",
        "a.b",
        ".a",
        "a:b@c",
        "größe",
        "通話",
        "x" * 500,
        "a&b=c;d,e+f",
    ],
)
def test_valid_sid_and_name_are_accepted(kind: str, handle: str) -> None:
    """Any printable text that is one path segment will do as sid and as name."""
    _, target = KINDS[kind]
    request = start(kind, name=handle, **{target: handle})
    assert (request.target, request.name) == (handle, handle)


WORD_REFUSALS = {
    "track": ("track", "both", "'inbound_track', 'outbound_track', 'both_tracks'"),
    "track in capitals": ("track", "BOTH_TRACKS", "'inbound_track', 'outbound_track', 'both_tracks'"),
    "empty track": ("track", "", "'both_tracks'"),
    "track as a number": ("track", 1, "'both_tracks'"),
    "track as a list": ("track", ["both_tracks"], "'both_tracks'"),
    "method": ("status_callback_method", "PUT", "'GET', 'POST'"),
    "method in small letters": ("status_callback_method", "post", "'GET', 'POST'"),
}


@pytest.mark.parametrize(("field", "word", "choices"), WORD_REFUSALS.values(), ids=WORD_REFUSALS)
def test_unknown_track_or_method_is_rejected_with_choices(field: str, word: object, choices: str) -> None:
    """A word that the API does not list is rejected, and the listed ones are named."""
    message = refused_alike(**{field: word})
    assert message.startswith(f"{field} {word!r} is unknown")
    assert choices in message


@pytest.mark.parametrize("codec", ["OPUS", "pcmu", "L16@8000", ""])
def test_unknown_codec_is_rejected_with_the_known_ones(codec: str) -> None:
    """A codec that the API does not list is rejected, and the listed ones are named."""
    assert "'PCMU', 'PCMA', 'L16', 'L16@16000h', 'L16@24000h'" in refusal("conference", codec=codec)


@both_kinds
@pytest.mark.parametrize("track", list(Track))
def test_track_is_text_or_member(kind: str, track: Track) -> None:
    """The plain word and the enum's member mean the same."""
    assert start(kind, track=track.value).track is track
    assert start(kind, track=track) == start(kind, track=str(track))


@pytest.mark.parametrize("codec", list(Codec))
def test_codec_is_text_or_member(codec: Codec) -> None:
    """The plain word and the enum's member mean the same."""
    assert start("conference", codec=codec.value).codec is codec
    assert start("conference", codec=codec).codec is codec


@both_kinds
@pytest.mark.parametrize("method", list(CallbackMethod))
def test_callback_method_is_text_or_member(kind: str, method: CallbackMethod) -> None:
    """The plain word and the enum's member mean the same."""
    assert start(kind, status_callback_method=method.value).status_callback_method is method


@pytest.mark.parametrize(
    ("field", "value"), [("codec", "PCMU"), ("codec", Codec.L16), ("realtime", True), ("realtime", False)]
)
def test_call_has_neither_codec_nor_realtime(field: str, value: object) -> None:
    """Fields of conference streams are rejected on a call instead of being silently ignored."""
    assert refusal("call", **{field: value}) == f"{field} is for conference streams only: omit it on a call"


@pytest.mark.parametrize("value", ["true", 1, 0, "yes", [], 1.0])
@pytest.mark.parametrize(
    ("kind", "switch"), [("conference", "realtime"), ("conference", "unnamed"), ("call", "unnamed")]
)
def test_flag_must_be_bool(kind: str, switch: str, value: object) -> None:
    """A word or number in place of True or False is rejected."""
    assert refusal(kind, **{switch: value}) == f"{switch} must be True or False, not {value!r}"


@both_kinds
def test_name_with_unnamed_is_rejected(kind: str) -> None:
    """A start is either named or unnamed."""
    assert refusal(kind, name="room", unnamed=True) == (
        "name and unnamed=True contradict each other: write one of the two"
    )
    assert start(kind, unnamed=True).name is None


CALLBACK_REFUSALS = {
    "no scheme": "example.com/heard",
    "wss": "wss://example.com/heard",
    "no host": "https:///heard",
    "a blank": "https://example.com/my heard",
    "a line break": "https://example.com/\r\nX-Evil: 1",
    "half an IPv6 address": "https://[::1/heard",
    "a relative one": "/heard",
    "a port out of range": "https://example.com:65536/heard",
    "a port that is none": "https://example.com:https/heard",
    "port 0": "https://example.com:0/heard",
}


@pytest.mark.parametrize("url", CALLBACK_REFUSALS.values(), ids=CALLBACK_REFUSALS)
def test_callback_that_is_not_a_web_address_is_rejected(url: str) -> None:
    """A status callback has to be an absolute http or https address."""
    message = refused_alike(status_callback=url)
    assert message.startswith("status_callback ")
    assert "write it as 'https://host/path'" in message


@pytest.mark.parametrize(("value", "words"), [("", "is empty: write the https://"), (7, "must be a str, not int")])
def test_callback_that_is_not_a_string_is_rejected(value: object, words: str) -> None:
    """An empty callback, or one of another type, is rejected."""
    assert words in refused_alike(status_callback=value)


@both_kinds
@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/heard",
        "http://example.com:8080/heard?id=7&x=%20#part",
        "HTTPS://user:pw@example.com:1/",
    ],
)
def test_callback_may_have_a_query(kind: str, url: str) -> None:
    """A status callback is taken to the letter, query string and password included."""
    assert start(kind, status_callback=url).status_callback == url


PARAMETER_REFUSALS: Mapping[str, tuple[object, str]] = {
    "a hundred": ({f"n{number}": "v" for number in range(100)}, "100 parameters are too many: SignalWire accepts 99"),
    "an empty name": ({"": "v"}, "has an empty name"),
    "a blank name": ({" \t": "v"}, "has an empty name"),
    "a number as value": ({"age": 7}, "parameter 'age' is of type int: write its value as a str"),
    "a number as name": ({7: "v"}, "a parameter's name is of type int: write it as a str"),
    "nothing as value": ({"age": None}, "parameter 'age' is of type NoneType"),
    "bytes as value": ({"age": b"7"}, "parameter 'age' is of type bytes"),
    "a list of pairs": ([("age", "7")], "must be a mapping of names to values, not list"),
    "text": ("age=7", "must be a mapping of names to values, not str"),
    "nothing": (None, "must be a mapping of names to values, not NoneType"),
}


@pytest.mark.parametrize(("parameters", "words"), PARAMETER_REFUSALS.values(), ids=PARAMETER_REFUSALS)
def test_parameters_that_cannot_be_sent_are_rejected(parameters: object, words: str) -> None:
    """At most 99 parameters, each with a name and a text."""
    assert words in refused_alike(parameters=parameters)


@both_kinds
def test_ninety_nine_parameters_are_taken(kind: str) -> None:
    """The most parameters that the API takes are taken, in their order, empty values too."""
    parameters = {f"n{number}": "" for number in range(99)}
    assert list(start(kind, parameters=parameters).parameters.items()) == list(parameters.items())


@both_kinds
def test_later_change_of_the_callers_mapping_changes_no_request(kind: str) -> None:
    """A request keeps its own copy of the parameters."""
    mine = {"a": "1"}
    request = start(kind, parameters=mine)
    mine["b"] = "2"
    assert request.parameters == {"a": "1"}


TOKEN_REFUSALS = {
    "empty": "",
    "blanks": "  ",
    "a blank within": "Bearer s3cret",
    "a line break": "s3cret\r\nX-Evil: 1",
    "not ASCII": "s3crét",
    "a control character": "s3cret\x7f",
    "a number": 7,
}


@pytest.mark.parametrize("token", TOKEN_REFUSALS.values(), ids=TOKEN_REFUSALS)
def test_bearer_token_that_no_header_can_carry_is_rejected(token: object) -> None:
    """A bearer token is visible ASCII; the rejection does not repeat it."""
    message = refused_alike(authorization_bearer_token=token)
    assert message.startswith("authorization_bearer_token ")
    assert "s3cr" not in message


SECRET_KEEPING: Mapping[str, Mapping[str, Any]] = {
    "query of the url": {"url": "wss://audio.example.com/stream?key=hush"},
    "query of a ws url": {"url": "ws://audio.example.com/stream?key=hush"},
    "query without a scheme": {"url": "audio.example.com/stream?key=hush"},
    "fragment of the url": {"url": "wss://audio.example.com/stream#hush"},
    "password of the url": {"url": "wss://ada:hush@audio.example.com/stream"},
    "password of an http url": {"url": "http://ada:hush@audio.example.com/stream"},
    "password beside a blank": {"url": "wss://ada:hush@audio.example.com/my stream"},
    "password beside a query": {"url": "wss://ada:hush@audio.example.com/stream?x"},
    "password without a host": {"url": "wss://ada:hush@/stream"},
    "password without a scheme": {"url": "ada:hush@audio.example.com/stream"},
    "password after a scheme's colon": {"url": "wss:ada:hush@audio.example.com"},
    "password before the scheme": {"url": "ada:hush@wss://audio.example.com"},
    "password of a url without a scheme": {"url": "//ada:hush@audio.example.com/stream"},
    "password with an @": {"url": "wss://ada:hush@hush@audio.example.com/"},
    "password with a slash": {"url": "wss://ada:hush/hush@audio.example.com/"},
    "password with a question mark": {"url": "wss://ada:hush?hush@audio.example.com/"},
    "password with a hash": {"url": "wss://ada:hush#hush@audio.example.com/"},
    "query of the callback": {"status_callback": "ftp://example.com/heard?key=hush"},
    "password of the callback": {"status_callback": "ftp://ada:hush@example.com/heard"},
    "password of the callback with an @": {"status_callback": "ftp://ada:hush@hush@example.com/heard"},
    "token": {"authorization_bearer_token": "Bearer hush"},
    "value of a wrong type": {"parameters": {"card": ["hush"]}},
    "value beside an empty name": {"parameters": {"card": "hush", "": "hush"}},
    "value of too many": {"parameters": {f"n{number}": "hush" for number in range(100)}},
}


@pytest.mark.parametrize("settings", SECRET_KEEPING.values(), ids=SECRET_KEEPING)
def test_rejection_repeats_no_secret(settings: Mapping[str, Any]) -> None:
    """No rejection repeats a query, a password, a token or a parameter's value."""
    assert "hush" not in refused_alike(**settings)


@both_kinds
def test_repr_shows_no_secret(kind: str) -> None:
    """The repr of a request contains no token, no value, and neither query nor password of the callback."""
    request = start(
        kind,
        name="room-7",
        track="both_tracks",
        status_callback="https://ada:hush0@hush1@example.com/heard?key=hush2#hush3",
        parameters={"card": "hush4", "pin": "hush5"},
        authorization_bearer_token="hush6",
    )
    for shown in (repr(request), str(request), f"{request}"):
        assert "hush" not in shown
        assert "ada" not in shown
        assert "https://example.com/heard" in shown
        assert "{'card': ***, 'pin': ***}" in shown
        assert "name='room-7'" in shown


@both_kinds
def test_repr_has_the_fields_of_its_kind_but_the_token(kind: str) -> None:
    """A call's stream has no codec and no realtime switch, so its repr has none either."""
    model, target = KINDS[kind]
    hidden = {"authorization_bearer_token", *(() if kind == "conference" else ("codec", "realtime"))}
    shown = repr(start(kind))
    names = re.findall(r"(\w+)=", shown)
    assert names == [each.name for each in fields(model) if each.name not in hidden]
    assert {"url", "parameters", target} <= set(names)
    assert "status_callback=None" in shown
    assert "parameters={}" in shown
    assert shown.startswith(f"{model.__name__}(")
    assert len(shown.splitlines()) == 1


@both_kinds
def test_request_cannot_be_changed(kind: str) -> None:
    """A request is frozen."""
    request = start(kind)
    with pytest.raises(FrozenInstanceError):
        request.url = "wss://elsewhere.example.com"  # type: ignore[misc]


@both_kinds
def test_equal_requests_are_one_member_of_a_set(kind: str) -> None:
    """A request is hashable, parameters and all."""
    requests = {start(kind, parameters={"a": "1"}) for _ in range(2)}
    assert requests == {start(kind, parameters={"a": "1"})}
    assert len({start(kind, name="a"), start(kind, name="b")}) == 2


@both_kinds
def test_changed_copy_is_checked_as_well(kind: str) -> None:
    """``attrs.evolve`` gives another request, by the same rules."""
    request = start(kind, parameters={"a": "1"}, track="inbound_track", authorization_bearer_token="t")
    assert evolve(request) == request
    named = evolve(request, name="room", track="both_tracks")
    assert (named.name, named.track, named.parameters) == ("room", Track.BOTH, {"a": "1"})
    assert request.name is None
    with pytest.raises(InvalidRequestError):
        evolve(request, url="ws://audio.example.com")
    with pytest.raises(InvalidRequestError):
        evolve(named, unnamed=True)


def test_omitted_options_are_not_sent() -> None:
    """Omitted options are not sent, so the API's defaults apply."""
    request = StartConferenceStream(conference_sid="c", url=URL)
    unsaid = (
        request.name,
        request.track,
        request.status_callback,
        request.status_callback_method,
        request.authorization_bearer_token,
        request.codec,
        request.realtime,
    )
    assert unsaid == (None,) * 7
    assert request.unnamed is False
    assert request.parameters == {}


def test_target_is_the_sid() -> None:
    """The target of a start is its conference, or its call."""
    assert StartConferenceStream(conference_sid="conf", url=URL).target == "conf"
    assert StartCallStream(call_sid="call", url=URL).target == "call"


def test_fields_are_given_by_name() -> None:
    """No field can be mixed up by its position."""
    with pytest.raises(TypeError):
        StartCallStream("call", URL)  # type: ignore[call-arg]


def test_secret_field_of_one_kind_is_among_its_secrets() -> None:
    @frozen(kw_only=True)
    class StartWithPin(StartConferenceStream):
        pin: str = field(repr=False, metadata={SECRET: True})

    start = StartWithPin(conference_sid="a", url="wss://b", pin="1234", authorization_bearer_token="token")
    assert set(start.secrets) == {"token", "1234"}
    assert StartConferenceStream(conference_sid="a", url="wss://b").secrets == ()


@both_kinds
def test_bearer_token_may_have_any_visible_ascii(kind: str) -> None:
    visible = "".join(map(chr, range(ord("!"), ord("~") + 1)))
    assert start(kind, authorization_bearer_token=visible).authorization_bearer_token == visible
