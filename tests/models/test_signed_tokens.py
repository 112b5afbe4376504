"""Signed tokens: what can be wrong with keys, ttl and claims, and what a token says."""

import json
import pickle
import sys
import traceback
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_urlsafe
from types import MappingProxyType
from typing import Any

import jwt
import pytest
from attrs import evolve

import signalwire_streams
from signalwire_streams import (
    Clock,
    ConferenceStream,
    InvalidRequestError,
    SignedTokens,
    StartCallStream,
    StartConferenceStream,
)
from signalwire_streams.models._signed_tokens import RejectedTokenError
from signalwire_streams.receiver import TokenClaims

URL = "wss://rx.example.com/audio"
KEY, OTHER = f"hush-{'k' * 40}", f"hush-{'o' * 40}"
REQUEST = StartConferenceStream(conference_sid="room", url=URL, name="audit", parameters={"desk": "7"})
PACKAGE = str(Path(signalwire_streams.__file__).parent)


class Wall:
    """A wall clock that tests set."""

    def __init__(self, time: float = 1_000_000.0) -> None:
        self.time = time
        self.clock = Clock(wall_time=lambda: self.time)


@pytest.fixture
def wall() -> Wall:
    return Wall()


def payload_of(token: str) -> dict[str, Any]:
    text = token.split(".")[1]
    content: dict[str, Any] = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return content


def minted(tokens: SignedTokens, request: Any = REQUEST) -> str:
    return str(tokens.mint(request))


def shown(error: BaseException) -> str:
    """Return an error as tracebacks and error trackers print it, with the local variables of this package."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if frame.f_code.co_filename.startswith(PACKAGE)]
    values = [repr(value) for frame in ours for name, value in frame.f_locals.items() if name != "self"]
    return "\n".join([str(error), *values, *map(shown, filter(None, [error.__cause__, error.__context__]))])


def endless() -> dict[str, Any]:
    claims: dict[str, Any] = {"a": "hush"}
    claims["b"] = claims
    return claims


def nested(depth: int) -> dict[str, Any]:
    claims: Any = "hush"
    for _ in range(depth):
        claims = [claims]
    return {"a": claims}


async def load(_: object) -> dict[str, Any]:
    return {}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no key": ({"keys": []}, "keys is empty: create one with secrets.token_urlsafe"),
    "None": ({"keys": None}, "keys must be a str, or a list of them with the signing key first, not NoneType"),
    "bytes": ({"keys": KEY.encode()}, "keys must be a str, or a list of them .* not bytes"),
    "bytearray": ({"keys": bytearray(KEY.encode())}, "not bytearray"),
    "a set": ({"keys": {KEY, OTHER}}, "with the signing key first, not set"),
    "a mapping": ({"keys": {KEY: OTHER}}, "not dict"),
    "a generator": ({"keys": iter([KEY])}, "not list_iterator"),
    "a number": ({"keys": 7}, "not int"),
    "a list of bytes": ({"keys": [KEY, OTHER.encode()]}, "a key must be a str, not bytes"),
    "a list of lists": ({"keys": [[KEY]]}, "a key must be a str, not list"),
    "a key that is None": ({"keys": [None]}, "a key must be a str, not NoneType"),
    "an empty key": ({"keys": ""}, "a key is shorter than 32 bytes, so it could be guessed"),
    "a short key": ({"keys": "hush" * 7}, "a key is shorter than 32 bytes"),
    "a second key that is short": ({"keys": [KEY, "hush"]}, "a key is shorter than 32 bytes"),
    "a line": ({"keys": f"{KEY}\n"}, "a key begins or ends with whitespace: strip it"),
    "blanks": ({"keys": " " * 40}, "a key begins or ends with whitespace"),
    "a surrogate": ({"keys": f"{KEY}\ud800"}, "lone surrogate"),
    "a PEM key": ({"keys": f"-----BEGIN PUBLIC KEY-----\n{KEY}\n-----END PUBLIC KEY-----"}, "a PEM or SSH key"),
    "an SSH key": ({"keys": f"ssh-rsa {KEY}"}, "a key is a PEM or SSH key"),
    "ttl 0": ({"ttl": 0}, "ttl must be a number of seconds from 1 to 86,400"),
    "negative ttl": ({"ttl": -5}, "ttl must be a number"),
    "ttl of milliseconds": ({"ttl": 300_000}, "ttl must be a number"),
    "ttl nan": ({"ttl": float("nan")}, "ttl must be a number"),
    "ttl inf": ({"ttl": float("inf")}, "ttl must be a number"),
    "ttl True": ({"ttl": True}, "ttl must be a number"),
    "ttl text": ({"ttl": "300"}, "ttl must be a number"),
    "ttl None": ({"ttl": None}, "ttl must be a number"),
    "claims text": ({"claims": "hush"}, "claims must be a mapping, or a function that returns one, not str"),
    "claims pairs": ({"claims": [("a", "hush")]}, "claims must be a mapping, or a function that returns one, not list"),
    "async claims": ({"claims": load}, "claims is an async function: write it with def"),
    "claims with bytes": ({"claims": {"a": b"hush"}}, "claims must be JSON"),
    "claims with a time": ({"claims": {"a": datetime.now(UTC)}}, "claims must be JSON"),
    "claims with a set": ({"claims": {"a": {"hush"}}}, "claims must be JSON"),
    "claims with nan": ({"claims": {"a": float("nan"), "b": "hush"}}, "claims must be JSON"),
    "claims with inf": ({"claims": {"a": [float("inf")]}}, "claims must be JSON"),
    "claims by number": ({"claims": {1: "hush"}}, "claims must be JSON"),
    "claims by None": ({"claims": {None: "hush"}}, "claims must be JSON"),
    "nested by number": ({"claims": {"a": [{"b": {1: "hush"}}]}}, "claims must be JSON"),
    "endless claims": ({"claims": endless()}, "claims must be JSON"),
    "deep claims": ({"claims": nested(100_000)}, "claims must be JSON"),
    "many claims": ({"claims": {"a": "hush" * 600}}, r"claims have 2,408 bytes as JSON, and may have 2,048"),
    **{
        f"claim {name}": ({"claims": {name: "hush", "a": 1}}, f"claims has '{name}', which each token has")
        for name in ("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "kind", "name")
    },
    "two claims of ours": ({"claims": {"sub": 1, "exp": 2}}, "claims has 'exp', 'sub', which each token has"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_argument_is_one_sentence_without_secrets(arguments: dict[str, Any], message: str) -> None:
    """Nothing of it shows a key or the value of a claim."""
    arguments = {"keys": KEY, **arguments}
    with pytest.raises(InvalidRequestError, match=message) as caught:
        SignedTokens(arguments.pop("keys"), **arguments)
    assert "hush" not in shown(caught.value)
    assert "\n" not in str(caught.value)
    [tokens] = [entry.frame.f_locals["self"] for entry in caught.traceback if entry.name == "__init__"]
    assert "SignedTokens(" in repr(tokens)


FAILED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a KeyError": (lambda request: {"a": request.parameters["none"]}, "claims raised KeyError for the stream on room"),
    "None": (lambda _: None, "claims must be a mapping, or a function that returns one, not NoneType"),
    "text": (lambda _: "hush", "claims must be a mapping, or a function that returns one, not str"),
    "bytes": (lambda _: {"a": b"hush"}, "claims must be JSON"),
    "ours": (lambda _: {"sub": "hush"}, "claims has 'sub', which each token has"),
    "much": (lambda _: {"a": "hush" * 600}, "claims have 2,408 bytes"),
}  # fmt: skip


@pytest.mark.parametrize(("claims", "message"), FAILED.values(), ids=FAILED)
def test_wrong_claims_of_a_function_are_one_sentence(claims: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        SignedTokens(KEY, claims=claims).mint(REQUEST)
    assert "hush" not in shown(caught.value)


def test_token_that_fits_in_no_header_is_rejected() -> None:
    tokens = SignedTokens(KEY, claims={"a": "x" * 2000})
    assert 3900 < len(minted(tokens, evolve(REQUEST, name="n" * 780))) < 4096
    long = evolve(REQUEST, name="n" * 2000)
    with pytest.raises(InvalidRequestError, match="the token for room would be longer than 4,096 characters"):
        tokens.mint(long)
    with pytest.raises(RejectedTokenError, match="too long"):
        tokens._decode("x" * 4097)
    with pytest.raises(RejectedTokenError, match="not one of SignedTokens"):
        tokens._decode("x" * 4096)
    room = (
        2900 - len('{"a":""}' + "x" * 2000) - len(json.dumps(dict.fromkeys(("aud", "kind", "sub", "jti", "name"), "")))
    )
    longest = "n" * (room - len("signalwire-streams" + "conference" + "room" + "n" * 16))
    tokens.mint(evolve(REQUEST, name=longest))
    with pytest.raises(InvalidRequestError, match="would be longer"):
        tokens.mint(evolve(REQUEST, name=longest + "n"))


@pytest.mark.parametrize("wrong", ["a-sid", None, ConferenceStream(conference_sid="room")])
def test_mint_for_what_is_no_request_is_rejected(wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"is a {type(wrong).__name__}: pass StartConferenceStream or"):
        SignedTokens(KEY).mint(wrong)


def test_limits_of_arguments_are_exact(wall: Wall) -> None:
    assert [SignedTokens("k" * 32, ttl=ttl)._ttl for ttl in (1, 86_400)] == [1, 86_400]
    for ttl in (0.999, 86_400.001):
        with pytest.raises(InvalidRequestError, match="ttl must be"):
            SignedTokens(KEY, ttl=ttl)
    with pytest.raises(InvalidRequestError, match="shorter than 32 bytes"):
        SignedTokens("k" * 31)
    SignedTokens(KEY, claims={"a": "x" * 2040})
    with pytest.raises(InvalidRequestError, match="2,049 bytes"):
        SignedTokens(KEY, claims={"a": "x" * 2041})
    assert SignedTokens(KEY, clock=wall.clock)._decode(signed(exp=1e11 - 1))["exp"] == 1e11 - 1
    with pytest.raises(RejectedTokenError, match="not one of SignedTokens"):
        SignedTokens(KEY, clock=wall.clock)._decode(signed(exp=1e11))


@pytest.mark.parametrize(
    "claims", [{"tenant": "acme", "seats": [1, 2.5, None, True]}, MappingProxyType({"a": {"b": "ä"}})]
)
@pytest.mark.parametrize("is_function", [False, True])
def test_token_says_what_it_is_for(wall: Wall, claims: Any, *, is_function: bool) -> None:
    tokens = SignedTokens(KEY, ttl=60, claims=(lambda _: claims) if is_function else claims, clock=wall.clock)
    content = tokens._decode(minted(tokens))
    nonce = content.pop("jti")
    assert len(nonce) == 16
    expected = {"aud": "signalwire-streams", "kind": "conference", "sub": "room", "name": "audit", "exp": 1_000_060}
    assert content == {**expected, **claims}


def test_token_is_a_json_web_token(wall: Wall) -> None:
    """Any other library can verify it."""
    tokens = SignedTokens(KEY)
    call = StartCallStream(call_sid="call", url=URL, unnamed=True)
    content = jwt.decode(minted(tokens, call), KEY, ["HS256"], audience="signalwire-streams")
    assert (content["kind"], content["sub"], "name" in content) == ("call", "call", False)


def test_function_gets_the_request() -> None:
    tokens = SignedTokens(KEY, claims=lambda request: {"desk": request.parameters["desk"], "to": request.target})
    assert payload_of(minted(tokens)).items() >= {"desk": "7", "to": "room"}.items()


def test_claims_are_those_of_the_construction() -> None:
    claims = {"a": [1]}
    tokens = SignedTokens(KEY, claims=claims)
    claims["a"].append(2)
    assert payload_of(minted(tokens))["a"] == [1]


def test_expiry_has_a_leeway_of_ten_seconds(wall: Wall) -> None:
    tokens = SignedTokens(KEY, ttl=60, clock=wall.clock)
    token = minted(tokens)
    wall.time += 69.9
    assert tokens._decode(token)["sub"] == "room"
    wall.time += 0.1
    with pytest.raises(RejectedTokenError, match="its token has expired"):
        tokens._decode(token)


def test_tokens_of_one_start_differ_in_their_expiry_only(wall: Wall) -> None:
    tokens = SignedTokens(KEY, ttl=60, clock=wall.clock)
    mint = tokens._minter(REQUEST)
    first = payload_of(mint())
    wall.time += 500
    assert payload_of(mint()) == {**first, "exp": first["exp"] + 500}
    assert payload_of(minted(tokens))["jti"] != first["jti"]


def test_first_key_signs_and_all_verify() -> None:
    old, both, new = SignedTokens(OTHER), SignedTokens([KEY, OTHER]), SignedTokens((KEY,))
    assert both._decode(minted(old))
    assert both._decode(minted(new))
    assert new._decode(minted(both))
    for tokens in (old, SignedTokens(token_urlsafe(32))):
        with pytest.raises(RejectedTokenError, match="altered, or signed with another key"):
            tokens._decode(minted(both))


def signed(key: str = KEY, algorithm: str = "HS256", headers: Any = None, **changed: Any) -> str:
    content = {"aud": "signalwire-streams", "kind": "call", "sub": "c", "jti": "n", "exp": 9_000_000_000, **changed}
    return jwt.encode({name: value for name, value in content.items() if value != "-"}, key, algorithm, headers=headers)


def altered() -> Iterator[str]:
    head, body, signature = signed().split(".")
    yield f"{head}.{body}."
    yield f"{head}.{body}.{'A' * len(signature)}"
    yield f"{head}.{body[:-2]}AA.{signature}"
    yield f"{head}.{signed(sub='other').split('.')[1]}.{signature}"
    yield f"{signed(headers={'kid': 'x'}).split('.')[0]}.{body}.{signature}"
    yield f"{head}.{body}"
    yield f"{signed()}.x"
    yield "."
    yield "x" * 100
    yield "ä.ö.ü"
    yield "\udcff.\udcff.\udcff"
    yield f"{'W1' * 1500}.{body}.{signature}"
    yield f"{jwt.utils.base64url_encode(b'[' * 2000).decode()}.{body}.{signature}"
    yield f"{jwt.utils.base64url_encode(b'[]').decode()}.{body}.{signature}"


FOREIGN: dict[str, str] = {
    "no algorithm": jwt.encode({"sub": "c"}, None, "none"),  # type: ignore[arg-type]
    "another algorithm": signed(KEY * 2, "HS512"),
    "another audience": signed(aud="others"),
    "no audience": signed(aud="-"),
    "no expiry": signed(exp="-"),
    "no nonce": signed(jti="-"),
    "no target": signed(sub="-"),
    "no kind": signed(kind="-"),
    "an expiry in words": signed(exp="tomorrow"),
    "an expiry that is true": signed(exp=True),
    "no end": signed(exp=float("inf")),
    "an expiry that is no number": signed(exp=float("nan")),
    "an expiry beyond dates": signed(exp=10**400),
    "an expiry of 1970": signed(exp=0),
    **{f"altered {number}": token for number, token in enumerate(altered())},
}


@pytest.mark.parametrize("token", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_is_rejected(token: str) -> None:
    with pytest.raises(RejectedTokenError, match=r"^its token "):
        SignedTokens([OTHER, KEY])._decode(token)
    assert SignedTokens([OTHER, KEY])._decode(signed())["sub"] == "c"


def test_nothing_shows_keys_or_claims() -> None:
    tokens = SignedTokens([KEY, OTHER], ttl=90, claims={"card": "hush"})
    request = evolve(REQUEST, authorization_bearer_token=tokens)
    claims = TokenClaims(kind="call", target="c", name=None, expires_at=datetime.now(UTC), custom={"card": "hush"})  # type: ignore[arg-type]
    assert repr(tokens) == "SignedTokens(2 keys, ttl=90)"
    assert repr(SignedTokens(KEY)) == "SignedTokens(1 key, ttl=300)"
    assert "hush" not in f"{tokens} {request} {vars(tokens)} {claims}"
    assert "custom={'card': ***}" in repr(claims)
    assert request.secrets == ("7",)


def test_tokens_can_be_copied_to_another_process() -> None:
    tokens = SignedTokens(KEY, claims={"a": 1})
    assert pickle.loads(pickle.dumps(tokens))._decode(minted(tokens))["a"] == 1  # noqa: S301


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'signalwire-streams\[tokens\]'"):
        SignedTokens(KEY)


@pytest.mark.parametrize(("token", "kind"), [(b"hush", "bytes"), (7, "int"), ([], "list")])
def test_token_of_another_type_is_rejected(token: Any, kind: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"must be a str or SignedTokens, not {kind}"):
        StartCallStream(call_sid="c", url=URL, authorization_bearer_token=token)


async def test_fake_clock_advances_wall_time() -> None:
    clock = Clock.fake()
    before, began = clock.wall_time(), clock.now()
    await clock.sleep(3600)
    assert clock.wall_time() - before == pytest.approx(3600, abs=60)
    assert clock.now() - began == pytest.approx(3600, abs=60)
