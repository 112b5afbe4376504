"""Accounts: Spaces, base URLs, credentials, and paths below an account."""

from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given, strategies as st

from signalwire_streams._http.account import API_ROOT, Account, find_account
from signalwire_streams._http.requests import path_of
from signalwire_streams.errors import InvalidRequestError, MalformedResponseError

TOKEN = "PThush-hush"
PROJECT = "b3877c40-da60-4998-90ad-b792e98472af"


def account(**settings: Any) -> Account:
    known: dict[str, Any] = {"space": None, "base_url": None, "project": PROJECT, "token": TOKEN}
    return find_account(**(known | settings))


def refusal(**settings: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        account(**settings)
    message = str(caught.value)
    assert message.isprintable()
    assert "hush" not in message
    return message


@pytest.mark.parametrize(
    ("space", "origin", "prefix"),
    [
        ("example", "https://example.signalwire.com", ""),
        ("my-space-2", "https://my-space-2.signalwire.com", ""),
        ("example.signalwire.com", "https://example.signalwire.com", ""),
        ("api.example.org", "https://api.example.org", ""),
        ("example.signalwire.com:8443", "https://example.signalwire.com:8443", ""),
        ("example.signalwire.com.", "https://example.signalwire.com", ""),
        ("example.", "https://example.signalwire.com", ""),
        ("[2001:db8::1]", "https://[2001:db8::1]", ""),
        ("localhost", "https://localhost", ""),
        ("https://example.signalwire.com", "https://example.signalwire.com", ""),
        ("https://example.signalwire.com/", "https://example.signalwire.com", ""),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080", ""),
    ],
)
def test_space_is_name_host_or_url(space: str, origin: str, prefix: str) -> None:
    """A Space may be given by its name, by its host or by its address."""
    found = account(space=space)
    assert (found.origin, found.prefix) == (origin, prefix)


@pytest.mark.parametrize(
    ("base_url", "origin", "prefix"),
    [
        ("https://example.signalwire.com", "https://example.signalwire.com", ""),
        ("https://example.signalwire.com/api/laml/2010-04-01", "https://example.signalwire.com", ""),
        ("https://example.signalwire.com/api/laml/2010-04-01/", "https://example.signalwire.com", ""),
        ("https://proxy.example.org/sw", "https://proxy.example.org", "/sw"),
        ("https://proxy.example.org/sw/", "https://proxy.example.org", "/sw"),
        ("https://proxy.example.org/sw/api/laml/2010-04-01", "https://proxy.example.org", "/sw"),
        ("HTTPS://Example.SignalWire.com", "https://example.signalwire.com", ""),
        ("https://example.signalwire.com:443", "https://example.signalwire.com", ""),
        ("https://example.signalwire.com:80", "https://example.signalwire.com:80", ""),
        ("https://example.signalwire.com:8443/Sw", "https://example.signalwire.com:8443", "/Sw"),
        ("http://localhost:8080", "http://localhost:8080", ""),
        ("http://LOCALHOST", "http://localhost", ""),
        ("http://127.0.0.1", "http://127.0.0.1", ""),
        ("http://127.8.9.10:80", "http://127.8.9.10", ""),
        ("http://[::1]:8080", "http://[::1]:8080", ""),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]", ""),
        ("http://[::ffff:127.0.0.1]", "http://[::ffff:127.0.0.1]", ""),
        ("http://[::ffff:7f00:1]:8080", "http://[::ffff:127.0.0.1]:8080", ""),
        ("http://[::1%lo]:8080", "http://[::1%lo]:8080", ""),
        ("http://localhost.", "http://localhost", ""),
        ("https://[2001:db8::1]:443", "https://[2001:db8::1]", ""),
        ("https://example.org.", "https://example.org", ""),
        ("https://example.org:", "https://example.org", ""),
        ("https://example.org:0443", "https://example.org", ""),
        ("https://xn--exmple-cua.org", "https://xn--exmple-cua.org", ""),
    ],
)
def test_base_url_may_have_prefix(base_url: str, origin: str, prefix: str) -> None:
    """A base URL is https, or http to this very machine; neither the API's path nor a standard port is part of it."""
    found = account(base_url=base_url)
    assert (found.origin, found.prefix) == (origin, prefix)


PLAIN_HTTP = [
    "http://example.signalwire.com",
    "http://10.0.0.1",
    "http://0.0.0.0",
    "http://localhost.example.org",
    "http://127.0.0.1.example.org",
    "http://[::2]",
    "http://127.1",
    "http://2130706433",
    "http://[::ffff:10.0.0.1]",
    "http://[fe80::1%eth0]",
    "HTTP://example.org",
]


@pytest.mark.parametrize("url", PLAIN_HTTP)
@pytest.mark.parametrize("argument", ["space", "base_url"])
def test_plain_http_is_accepted_for_loopback_only(argument: str, url: str) -> None:
    """The token goes out readable to this machine alone."""
    assert "plain http would send the token unencrypted: write 'https://" in refusal(**{argument: url})


def test_advice_keeps_brackets_of_ipv6_address() -> None:
    """The address that the message proposes can be used as it stands."""
    for url in ("http://[2001:db8::1]", "http://[2001:db8::1]:8080/x", "ftp://[2001:db8::1]"):
        message = refusal(base_url=url)
        assert message.endswith("write 'https://[2001:db8::1]'")
    assert account(base_url="https://[2001:db8::1]").origin == "https://[2001:db8::1]"


URL_REFUSALS = {
    "query": ("https://example.org/?token=hush", "remove the '?' or '#' and everything after it"),
    "fragment": ("https://example.org/#hush", "remove the '?' or '#' and everything after it"),
    "user name and password": ("https://ada:hush@example.org", "pass project= and token= instead"),
    "user alone": ("https://hush@example.org", "pass project= and token= instead"),
    "a host after a backslash": ("http://localhost\\@example.org", "pass project= and token= instead"),
    "no host": ("https:///x", "write its name, such as 'example', or 'https://host'"),
    "no scheme": ("//example.org", "write 'https://example.org'"),
    "another scheme": ("ftp://example.org", "write 'https://example.org'"),
    "wss": ("wss://example.org", "write 'https://example.org'"),
    "a word": ("example", "write its name, such as 'example', or 'https://host'"),
    "a blank": ("https://example.org/my proxy", "write its name"),
    "a line break": ("https://example.org\n", "write its name"),
    "a path beyond ASCII": ("https://example.org/\u00e9", "write its name"),
    "a host beyond ASCII": ("https://ex\u00e4mple.org", "write its name"),
    "a password with a slash": ("https://ada:hu/hush@example.org", "write its name"),
    "a password with an @": ("https://ada:hush@hush@example.org", "pass project= and token= instead"),
    "half an IPv6 address": ("https://[::1", "write its name"),
    "port 0": ("https://example.org:0", "write its name"),
    "brackets around a name": ("https://[v1.example]", "write its name"),
    "text behind an IPv6 address": ("https://[::1]x", "write its name"),
    "a port that is none": ("https://example.org:http", "write its name"),
}


@pytest.mark.parametrize(("url", "advice"), URL_REFUSALS.values(), ids=URL_REFUSALS)
def test_invalid_base_url_is_rejected(url: str, advice: str) -> None:
    """A base URL with more or less than an address is rejected with what to write, and secrets are not repeated."""
    assert advice in refusal(base_url=url)


@pytest.mark.parametrize(
    "space", ["my space", "ada:hush@example", "a?b", "a#b", "example\n", "::1", "example/", "exam/ple", "exämple", "/"]
)
def test_invalid_space_is_rejected(space: str) -> None:
    """A Space that is neither name nor host is rejected."""
    assert refusal(space=space)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"space": "example", "project": None}, "project is missing"),
        ({"space": "example", "project": ""}, "project is missing"),
        ({"space": "example", "token": None}, "token is missing"),
        ({"space": "example", "token": ""}, "token is missing"),
        ({"space": "example", "token": b"hush"}, "token must be a str, not bytes"),
        ({"space": "example", "token": "hush hush"}, "token contains whitespace or non-ASCII characters"),
        ({"space": "example", "token": "hush\n"}, "token contains whitespace or non-ASCII characters"),
        ({"space": "example", "token": "hüsh"}, "token contains whitespace or non-ASCII characters"),
        ({"space": "example", "project": "a/b"}, "project contains characters"),
        ({"space": "example", "project": 7}, "project must be a str"),
        ({"space": "example", "project": "abc:hush"}, "project contains a ':'"),
        ({"space": "example", "project": "abc:hush "}, "project contains a ':'"),
        ({"space": 7}, "space must be a str, not int"),
        ({"base_url": b"https://example.org"}, "base_url must be a str, not bytes"),
        ({}, "pass exactly one of space='example'"),
        ({"space": "", "base_url": ""}, "pass exactly one of space='example'"),
        ({"space": "example", "base_url": "https://example.org"}, "pass exactly one of space="),
    ],
    ids=str,
)
def test_missing_or_invalid_setting_is_rejected(settings: dict[str, Any], words: str) -> None:
    """Each missing or impossible setting is rejected by its name; a token is never repeated."""
    assert words in refusal(**settings)


def test_authorization_is_basic() -> None:
    """The user is the project id, and the password the API token."""
    scheme, _, encoded = account(space="example").authorization.partition(" ")
    assert scheme == "Basic"
    assert b64decode(encoded).decode() == f"{PROJECT}:{TOKEN}"


def test_account_repr_hides_token() -> None:
    """An account is shown without its token, which counts as a secret in both spellings."""
    found = account(space="example")
    assert PROJECT in repr(found)
    assert "hush" not in repr(found)
    assert found.secrets == (TOKEN, found.authorization[len("Basic ") :])


@pytest.mark.parametrize(
    ("segments", "path"),
    [
        (("Calls",), "Calls"),
        (("Conferences", "b3877c40", "Streams", "b3877c40st"), "Conferences/b3877c40/Streams/b3877c40st"),
        (("Calls", "a:b@c"), "Calls/a:b@c"),
        (("Calls", "a/b"), "Calls/a%2Fb"),
        (("Calls", "../x?y#z%"), "Calls/..%2Fx%3Fy%23z%25"),
        (("Calls", "größe"), "Calls/gr%C3%B6%C3%9Fe"),
        (("Calls", "a b;c&d=e+f"), "Calls/a%20b%3Bc%26d%3De%2Bf"),
    ],
)
def test_paths_are_percent_encoded(segments: tuple[str, ...], path: str) -> None:
    """Each segment stays one segment."""
    assert path_of(account(space="example"), *segments) == f"/api/laml/2010-04-01/Accounts/{PROJECT}/{path}"


def test_path_includes_prefix_and_encoded_project() -> None:
    """A proxy's prefix goes in front of the API's path, and the project is a segment like another."""
    found = account(base_url="https://proxy.example.org/sw", project="prøject")
    assert path_of(found, "Calls") == "/sw/api/laml/2010-04-01/Accounts/pr%C3%B8ject/Calls"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/api/x?Page=1&PageToken=PA5678", "/api/x?Page=1&PageToken=PA5678"),
        ("https://example.signalwire.com/api/x?Page=1", "/api/x?Page=1"),
        ("HTTPS://Example.SignalWire.com/Api/x", "/Api/x"),
        ("https://example.signalwire.com:443/api/x", "/api/x"),
        ("/api/x?to=https://example.org/", "/api/x?to=https://example.org/"),
        ("/api/%C3%B8?q=a%20b", "/api/%C3%B8?q=a%20b"),
        ("/", "/"),
    ],
)
def test_next_page_on_same_host_is_followed_unchanged(uri: str, path: str) -> None:
    """The address of a next page goes out exactly as the Space wrote it."""
    assert account(space="example").same_host_path(uri) == path


NOT_FOLLOWED = {
    "https://elsewhere.example.org/api/x?q=hush": "'https://elsewhere.example.org/api/x' is on another host than https://",
    "https://example.signalwire.com.example.org/api": "is on another host",
    "//example.org/api": "'//example.org/api' is on another host",
    "https://example.signalwire.com:8443/api": "is on another port",
    "https://example.signalwire.com:80/api": "is on another port",
    "http://example.signalwire.com/api": "is on another scheme",
    "https://example.signalwire.com:http/api": "is not a valid address",
    "https://[::1/api": "is not a valid address",
    "https://hush@example.signalwire.com/api": "contains a user name and password",
    "https://ada:hush@example.org/api": "'https://example.org/api' contains a user name and password",
    "https://example.signalwire.com@example.org/api": "contains a user name and password",
    "///example.org/api": "is on another host",
    "https:///example.org/api": "is on another host",
    "https://example.signalwire.com//example.org/api": "is not an absolute path",
    "https://example.signalwire.com?Page=1": "is not an absolute path",
    "https://example.signalwire.com": "is not an absolute path",
    "https://example.signalwire.com#/api": "is not an absolute path",
    "api/x": "'api/x' is not an absolute path",
    "api//example.org": "is not an absolute path",
    "?Page=1": "'?Page=1' is not an absolute path",
    "#page": "is not an absolute path",
    "null": "'null' is not an absolute path",
    "mailto:ada@example.org": "is not an absolute path",
    f"?Token={TOKEN}": "'?Token=***' is not an absolute path",
    "\\\\example.org": "contains a backslash",
    "/\\example.org": "contains a backslash",
}


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        (f"{API_ROOT}/Accounts/p/Calls?Page=1", f"/gate/signalwire{API_ROOT}/Accounts/p/Calls?Page=1"),
        (f"https://example.org{API_ROOT}/Accounts/p/Calls", f"/gate/signalwire{API_ROOT}/Accounts/p/Calls"),
        (f"/gate/signalwire{API_ROOT}/Accounts/p/Calls", f"/gate/signalwire{API_ROOT}/Accounts/p/Calls"),
        ("/elsewhere?Page=1", "/elsewhere?Page=1"),
    ],
)
def test_next_page_behind_a_prefix_gets_the_prefix(uri: str, path: str) -> None:
    """A Space does not know of the path under which a proxy offers it."""
    assert account(base_url="https://example.org/gate/signalwire/").same_host_path(uri) == path


@pytest.mark.parametrize(("uri", "words"), NOT_FOLLOWED.items(), ids=NOT_FOLLOWED)
def test_next_page_on_another_origin_or_without_path_is_rejected(uri: str, words: str) -> None:
    """The token goes to no other host, scheme or port than the caller's own, and the error quotes the address."""
    with pytest.raises(MalformedResponseError) as caught:
        account(space="example").same_host_path(uri)
    assert words in str(caught.value)
    assert "hush" not in str(caught.value)
    assert str(caught.value).endswith("so it is not followed")
    assert caught.value.sent == "yes"


@pytest.mark.parametrize(
    ("base_url", "uri"),
    [
        ("https://example.org", "//example.org/x"),
        ("https://example.org", "//EXAMPLE.org:443/x"),
        ("https://example.org", "https://example.org:0443/x"),
        ("https://example.org", "https://example.org:/x"),
        ("https://example.org.", "https://example.org/x"),
        ("https://example.org", "https://example.org./x"),
        ("https://example.org", "/x#top"),
        ("https://example.org", "https://example.org/x#//elsewhere.example"),
        ("http://[::1]:8080", "http://[0:0:0:0:0:0:0:1]:8080/x"),
    ],
)
def test_next_page_on_same_origin_is_followed_in_any_notation(base_url: str, uri: str) -> None:
    """A scheme that is left out, a default port, a trailing dot and a fragment change nothing."""
    assert account(base_url=base_url).same_host_path(uri) == "/x"


@pytest.mark.parametrize("base_url", ["https://Example.signalwire.com", "https://example.signalwire.com:443"])
def test_next_page_origin_matches_any_notation_of_base_url(base_url: str) -> None:
    """Capitals and a standard port in the caller's own address make no other host of the Space's."""
    assert account(base_url=base_url).same_host_path("https://example.signalwire.com/x") == "/x"


@pytest.mark.parametrize("uri", ["/api/a b", "/api/\r\nX-Evil: 1", "/api/ø", "/api/\t", "/api/\x00", "/api/\u2028"])
def test_next_page_with_unsafe_characters_is_rejected(uri: str) -> None:
    """An address with blanks, or beyond ASCII, is not mended but rejected."""
    with pytest.raises(MalformedResponseError, match="contains whitespace or non-ASCII characters") as caught:
        account(space="example").same_host_path(uri)
    assert str(caught.value).isprintable()


@given(st.text())
def test_any_next_page_stays_on_host(uri: str) -> None:
    """Any text is a visible ASCII path below the origin, or rejected."""
    try:
        path = account(space="example").same_host_path(uri)
    except MalformedResponseError:
        return
    assert path.startswith("/")
    assert not path.startswith("//")
    assert path.isascii()
    assert path.isprintable()
    assert " " not in path
