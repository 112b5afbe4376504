"""`verify_signature` and `sign`."""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import attrs
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from signalwire_streams import InvalidRequestError
from signalwire_streams.callbacks import (
    SHA256_SIGNATURE_HEADER,
    SIGNATURE_HEADER,
    _signature as claims,
    diagnose_signature,
    sign,
    verify_signature,
)

from .signing import FORM, JSON_BODY, KEY, STARTED, URL, form, form_signature, raw_signature

ALIAS = "X-Twilio-Signature"
HASHED = f"bodySHA256={hashlib.sha256(JSON_BODY).hexdigest()}"


@attrs.frozen
class Sent:
    """Arguments of `verify_signature`."""

    url: str
    headers: Mapping[str, str]
    body: bytes = b""
    method: str = "POST"
    keys: Any = (KEY,)

    def good(self, **changes: Any) -> bool:
        return verify_signature(**(attrs.asdict(self, recurse=False) | changes))


def of_form(url: str, header: str = SIGNATURE_HEADER) -> Sent:
    return Sent(url, {"Content-Type": FORM, header: form_signature(url, STARTED)}, form(STARTED))


def of_alias(url: str) -> Sent:
    return of_form(url, ALIAS)


def of_json(url: str) -> Sent:
    return Sent(url, {"Content-Type": "application/json", SIGNATURE_HEADER: raw_signature(url, JSON_BODY)}, JSON_BODY)


def of_strong_json(url: str) -> Sent:
    strong = raw_signature(url, JSON_BODY, algorithm="sha256")
    return Sent(url, {"Content-Type": "application/json", SHA256_SIGNATURE_HEADER: strong}, JSON_BODY)


def of_hashed(url: str) -> Sent:
    before, mark, fragment = url.partition("#")
    url = f"{before}{'&' if '?' in before else '?'}{HASHED}{mark}{fragment}"
    return Sent(url, {"Content-Type": "application/json", SIGNATURE_HEADER: form_signature(url, ())}, JSON_BODY)


def of_get(url: str) -> Sent:
    return Sent(url, {SIGNATURE_HEADER: form_signature(url, ())}, method="GET")


def of_strong_get(url: str) -> Sent:
    return Sent(url, {SHA256_SIGNATURE_HEADER: raw_signature(url, b"", algorithm="sha256")}, method="GET")


SCHEMES = [of_form, of_alias, of_json, of_strong_json, of_hashed, of_get, of_strong_get]
IN_EACH_SCHEME = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.__name__)

SIGNED_AND_SEEN = {
    "as given": (URL, URL),
    "with a query": (f"{URL}?a=1&b=&a=%2F+x", f"{URL}?a=1&b=&a=%2F+x"),
    "a bare question mark": (f"{URL}?", f"{URL}?"),
    "without a path": ("https://example.com", "https://example.com"),
    "with a slash at the end": (f"{URL}/", f"{URL}/"),
    "signed with the standard port": ("https://example.com:443/callbacks?x=1", "https://example.com/callbacks?x=1"),
    "seen with the standard port": ("https://example.com/callbacks?x=1", "https://example.com:443/callbacks?x=1"),
    "plain, signed with port 80": ("http://example.com:80/callbacks", "http://example.com/callbacks"),
    "plain, seen with port 80": ("http://example.com/callbacks", "http://example.com:80/callbacks"),
    "another port": ("https://example.com:8443/callbacks", "https://example.com:8443/callbacks"),
    "another port, signed without": ("https://example.com/callbacks", "https://example.com:8443/callbacks"),
    "another port, signed with the standard one": (
        "https://example.com:443/callbacks",
        "https://example.com:8443/callbacks",
    ),
    "with user and password": ("https://u:p@example.com/callbacks", "https://u:p@example.com/callbacks"),
    "seen with user and password": (URL, "https://u:p@example.com/callbacks"),
    "user, password, and a port that was signed": (
        "https://u:p@example.com:443/callbacks",
        "https://u:p@example.com/callbacks",
    ),
    "with a fragment": (f"{URL}?a=1#top", f"{URL}?a=1#top"),
    "seen with a fragment": (f"{URL}?a=1", f"{URL}?a=1#top"),
    "an address in numbers": ("https://[2001:db8::1]:443/callbacks", "https://[2001:db8::1]/callbacks"),
    "letters beyond ASCII": ("https://exämple.com/rückruf?ö=ß", "https://exämple.com/rückruf?ö=ß"),
    "capitals": ("HTTPS://Example.com:443/Callbacks", "HTTPS://Example.com/Callbacks"),
    "not absolute": ("/callbacks", "/callbacks"),
}


@pytest.mark.parametrize(("signed", "seen"), SIGNED_AND_SEEN.values(), ids=SIGNED_AND_SEEN)
def test_equivalent_urls_are_accepted_in_each_scheme(signed: str, seen: str) -> None:
    for scheme in SCHEMES:
        sent, url = scheme(signed), scheme(seen).url

        assert sent.good(url=url), scheme
        assert not sent.good(url=url, keys=["PSK_another"]), scheme


SIGNED_AND_REFUSED = {
    "a slash more": (URL, f"{URL}/"),
    "a slash less": (f"{URL}/", URL),
    "another scheme": (URL, "http://example.com/callbacks"),
    "another host": (URL, "https://example.org/callbacks"),
    "another port that was signed": ("https://example.com:8443/callbacks", URL),
    "another path": (URL, "https://example.com/Callbacks"),
    "a query more": (URL, f"{URL}?a=1"),
    "a query less": (f"{URL}?a=1", URL),
    "a query in another order": (f"{URL}?a=1&b=2", f"{URL}?b=2&a=1"),
    "a query that is encoded another way": (f"{URL}?a=%20", f"{URL}?a=+"),
    "a fragment that was signed": (f"{URL}#top", URL),
    "a fragment that looks like a path": (f"{URL}?a=1", f"{URL}?a=1#/callbacks"),
    "a fragment that looks like a query": (f"{URL}?a=1", f"{URL}?a=1#?a=2"),
    "another user": ("https://u:p@example.com/callbacks", "https://v:p@example.com/callbacks"),
}


@pytest.mark.parametrize(("signed", "seen"), SIGNED_AND_REFUSED.values(), ids=SIGNED_AND_REFUSED)
def test_other_urls_are_rejected_in_each_scheme(signed: str, seen: str) -> None:
    assert [scheme for scheme in SCHEMES if scheme(signed).good(url=scheme(seen).url)] == []


def test_published_form_signature_is_accepted() -> None:
    url = "https://mycompany.com/myapp.php?foo=1&bar=2"
    fields = {
        "CallSid": "CA1234567890ABCDE",
        "Caller": "+14158675309",
        "Digits": "1234",
        "From": "+14158675309",
        "To": "+18005551212",
    }
    signature = "RSOYDt4T1cUTdK1PDd93/VVr8B8="

    assert sign(url=url, fields=fields, key="12345") == signature
    for header in (SIGNATURE_HEADER, ALIAS):
        body = form(list(fields.items()))
        assert verify_signature(url=url, headers={header: signature}, body=body, keys=["12345"])


def test_published_json_signature_is_accepted() -> None:
    url = "https://example.ngrok.io/webhook"
    body = b'{"event":"call.state","params":{"call_id":"abc-123","state":"answered"}}'
    signature = "c3c08c1fefaf9ee198a100d5906765a6f394bf0f"
    key = "PSKtest1234567890abcdef"

    assert sign(url=url, body=body, key=key) == signature
    assert verify_signature(url=url, headers={SIGNATURE_HEADER: signature}, body=body, keys=[key])


@pytest.mark.parametrize(
    ("credentials", "signed"),
    [
        ("Basic dTpw", "https://u:p@example.com/callbacks"),
        ("basic dTpw", "https://u:p@example.com:443/callbacks"),
        ("Basic dUB4OnAvcQ==", "https://u%40x:p%2Fq@example.com/callbacks"),
    ],
)
def test_authorization_header_counts_as_userinfo(credentials: str, signed: str) -> None:
    """Clients send the userinfo of a URL there, and it belongs to what was signed."""
    sent = of_form(signed)

    assert sent.good(url=URL, headers={**sent.headers, "Authorization": credentials})
    assert not sent.good(url=URL)


@pytest.mark.parametrize(
    "credentials", ["", "Basic", "Basic !", "Basic /w==", "Basic dQ==", "Bearer dTpw", "Basic dTpx"]
)
def test_other_credentials_are_ignored(credentials: str) -> None:
    plain, named = of_form(URL), of_form("https://u:p@example.com/callbacks")

    assert plain.good(headers={**plain.headers, "Authorization": credentials})
    assert not named.good(url=URL, headers={**named.headers, "Authorization": credentials})
    twice = {**named.headers, "Authorization": "Basic dTpw", "authorization": credentials}
    assert not named.good(url=URL, headers=twice)


def test_credentials_cannot_forge_another_host() -> None:
    """A user or password cannot stand for a host and a path."""
    overheard = of_form("https://other.example/x@example.com/callbacks")
    forged = {**overheard.headers, "Authorization": "Basic b3RoZXIuZXhhbXBsZS94Og=="}  # other.example/x:

    assert not overheard.good(url=URL, headers=forged)


@pytest.mark.parametrize(
    "keys", [[KEY], [KEY, "PSK_old"], ["PSK_old", KEY], ("PSK_old", KEY), {KEY}, ["", KEY, None, 5]]
)
def test_any_of_several_keys_is_accepted(keys: Any) -> None:
    """During a rotation; values that are no keys are ignored beside one."""
    assert of_form(URL).good(keys=keys)


@pytest.mark.parametrize("keys", [None, [], [""], [" \t"], [None], [5], [b"bytes"], ["\ud800"], [["nested"]]])
def test_missing_key_accepts_nothing(keys: Any) -> None:
    """Also what was signed with an empty key."""
    for key in ("", " \t", "?", KEY):
        headers = {SIGNATURE_HEADER: form_signature(URL, STARTED, key)}
        assert not verify_signature(url=URL, headers=headers, body=form(STARTED), keys=keys)


@IN_EACH_SCHEME
@pytest.mark.parametrize("kind", [dict, CIMultiDict, lambda headers: CIMultiDictProxy(CIMultiDict(headers))])
def test_header_names_ignore_case(scheme: Any, kind: Any) -> None:
    """In any mapping."""
    sent = scheme(URL)

    for spell in (str.upper, str.lower, str.swapcase):
        assert sent.good(headers=kind({spell(name): value for name, value in sent.headers.items()}))


@IN_EACH_SCHEME
def test_whitespace_around_a_header_is_ignored(scheme: Any) -> None:
    """A line break is not, and neither are blanks inside."""
    sent = scheme(URL)

    def with_values(spoil: Any) -> dict[str, str]:
        return {name: spoil(value) if "Signature" in name else value for name, value in sent.headers.items()}

    assert sent.good(headers=with_values(lambda value: f" \t{value} "))
    assert not sent.good(headers=with_values(lambda value: f"{value}\n"))
    assert not sent.good(headers=with_values(lambda value: f"{value[:9]} {value[9:]}"))
    assert not sent.good(headers=with_values(lambda value: f"{value}, {value}"))


@pytest.mark.parametrize("given", [None, "", " ", "x", "é", "\ud800", 5, b"bytes", ["list"]])
@pytest.mark.parametrize("scheme", [of_form, of_json, of_get])
def test_missing_or_malformed_signature_is_rejected(scheme: Any, given: Any) -> None:
    sent = scheme(URL)
    rest = {name: value for name, value in sent.headers.items() if "Signature" not in name}

    assert not sent.good(headers=rest)
    for name in (SIGNATURE_HEADER, ALIAS, SHA256_SIGNATURE_HEADER):
        assert not sent.good(headers={**rest, name: given})


@IN_EACH_SCHEME
def test_repeated_signature_header_is_rejected(scheme: Any) -> None:
    """It is unclear which one counts."""
    sent = scheme(URL)
    name = next(name for name in sent.headers if "Signature" in name)
    twice = CIMultiDict(sent.headers)
    twice.add(name, sent.headers[name])

    assert not sent.good(headers=twice)
    assert not sent.good(headers={**sent.headers, name.lower(): "x"})


@IN_EACH_SCHEME
def test_missing_argument_is_rejected(scheme: Any) -> None:
    sent = scheme(URL)

    assert sent.good()
    for part in ("url", "headers", "body", "method", "keys"):
        assert not sent.good(**{part: None})


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"keys": KEY}, r"keys=\[key\]"),
        ({"keys": KEY.encode()}, r"keys=\[key\]"),
        ({"keys": {"main": KEY}}, r"keys=\[key\]"),
        ({"keys": 5}, r"keys=\[key\]"),
        ({"url": URL.encode()}, r"str\(url\)"),
        ({"headers": [(SIGNATURE_HEADER, "x")]}, r"dict\(headers\)"),
        ({"body": form(STARTED).decode()}, "raw bytes"),
        ({"body": dict(STARTED)}, "raw bytes"),
        ({"method": 5}, "'GET' or 'POST'"),
    ],
)
def test_wrong_argument_is_rejected_with_advice(wrong: Any, hint: str) -> None:
    """The message shows no key."""
    with pytest.raises(InvalidRequestError, match=hint) as caught:
        of_form(URL).good(**wrong)

    assert KEY not in str(caught.value)


def test_body_may_be_any_bytes_like_object() -> None:
    sent = of_json(URL)

    assert sent.good(body=bytearray(sent.body))
    assert sent.good(body=memoryview(sent.body))


class TestSha1AndSha256:
    """A SHA-1 signature beside a SHA-256 one."""

    WEAK = raw_signature(URL, JSON_BODY)
    STRONG = raw_signature(URL, JSON_BODY, algorithm="sha256")

    def good(self, **headers: str) -> bool:
        names = {"weak": SIGNATURE_HEADER, "strong": SHA256_SIGNATURE_HEADER, "alias": ALIAS}
        spelled = {names[name]: value for name, value in headers.items()}
        return verify_signature(url=URL, headers=spelled, body=JSON_BODY, keys=[KEY])

    def test_either_signature_alone_is_accepted(self) -> None:
        """A missing SHA-256 signature does not weaken a SHA-1 one."""
        assert self.good(weak=self.WEAK)
        assert self.good(strong=self.STRONG)
        assert self.good(weak=self.WEAK, strong=self.STRONG)

    def test_sha256_decides_for_json(self) -> None:
        """A right SHA-1 signature does not save a wrong SHA-256 one."""
        assert not self.good(weak=self.WEAK, strong=self.STRONG[:-1] + "x")
        assert not self.good(weak=self.WEAK, strong=self.WEAK)
        assert not self.good(weak=self.WEAK, strong="")
        assert self.good(weak="x", strong=self.STRONG)

    def test_header_and_alias_are_equal(self) -> None:
        """One right signature of the two is enough."""
        assert self.good(alias=self.WEAK)
        assert self.good(weak="x", alias=self.WEAK)
        assert self.good(weak=self.WEAK, alias="x")
        assert not self.good(weak="x", alias="x")
        assert not self.good(alias=self.STRONG)

    def test_hex_signature_is_case_sensitive(self) -> None:
        assert not self.good(weak=self.WEAK.upper())

    def test_sha256_covers_the_raw_form(self) -> None:
        body = form(STARTED)
        headers = {"Content-Type": FORM, SHA256_SIGNATURE_HEADER: raw_signature(URL, body, algorithm="sha256")}
        assert verify_signature(url=URL, headers=headers, body=body, keys=[KEY])
        assert not verify_signature(url=URL, headers=headers, body=body + b"&", keys=[KEY])


class TestSha256HeaderOfAForm:
    """The header is defined for JSON only, so it says nothing against a form's own signature."""

    BODY = form(STARTED)
    SHAPES: Mapping[str, Sequence[str]] = {
        "none": [],
        "right": [raw_signature(URL, BODY, algorithm="sha256")],
        "wrong": [raw_signature("https://elsewhere.example/", BODY, algorithm="sha256")],
        "base64": ["RSOYDt4T1cUTdK1PDd93/VVr8B8="],
        "prefixed": ["sha256=" + raw_signature(URL, BODY, algorithm="sha256")],
        "empty": [""],
        "twice": ["a", "b"],
        "no ASCII": ["é"],
    }

    def fits(self, weak: str, strong: Sequence[str], body: bytes = BODY, method: str = "POST") -> bool:
        headers = CIMultiDict([(SIGNATURE_HEADER, weak), *((SHA256_SIGNATURE_HEADER, value) for value in strong)])
        if method == "POST":
            headers["Content-Type"] = FORM if body == self.BODY else "application/json"
        arguments: dict[str, Any] = {"url": URL, "headers": headers, "body": body, "keys": [KEY], "method": method}
        fits = verify_signature(**arguments)
        assert diagnose_signature(**arguments).valid is fits
        return fits

    @pytest.mark.parametrize("strong", SHAPES.values(), ids=SHAPES)
    def test_sha256_header_does_not_spoil_a_form(self, strong: Sequence[str]) -> None:
        assert self.fits(form_signature(URL, STARTED), strong)
        assert self.fits(form_signature(URL, ()), strong, b"", "GET")

    @pytest.mark.parametrize("strong", SHAPES.values(), ids=SHAPES)
    def test_wrong_sha256_rejects_json(self, strong: Sequence[str]) -> None:
        assert self.fits(raw_signature(URL, JSON_BODY), strong, JSON_BODY) is (strong == [])

    @pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"right"}))
    def test_wrong_sha1_of_a_form_needs_a_right_sha256(self, shape: str) -> None:
        assert not self.fits("x", self.SHAPES[shape])
        assert self.fits("x", self.SHAPES["right"])


class TestBodyConfusion:
    """A request of one kind that poses as another kind."""

    def refused(self, headers: Mapping[str, str], body: bytes, url: str = URL, method: str = "POST") -> bool:
        return not verify_signature(url=url, headers=headers, body=body, keys=[KEY], method=method)

    @pytest.mark.parametrize("kind", [FORM, "application/json", "text/plain", ""])
    def test_json_does_not_pass_as_empty_form(self, kind: str) -> None:
        """A signature over the URL alone accepts no JSON."""
        assert self.refused({"Content-Type": kind, SIGNATURE_HEADER: form_signature(URL, ())}, JSON_BODY)

    @pytest.mark.parametrize("kind", [FORM, "application/json", "text/plain", ""])
    def test_form_fields_do_not_pass_as_raw_body(self, kind: str) -> None:
        """A form's signature does not cover a body of its bare names and values."""
        joined = b"".join(name.encode() + value.encode() for name, value in [("A", "b"), ("C", "d&StreamSid=x")])
        assert self.refused({"Content-Type": kind, SIGNATURE_HEADER: raw_signature(URL, joined)}, joined)

    def test_json_does_not_pass_as_form(self) -> None:
        """Whatever its content type and signature."""
        body = b'{"name":"&StreamSid=x&StreamEvent=stream-stopped&"}'
        strong = raw_signature(URL, body, algorithm="sha256")
        assert self.refused({"Content-Type": FORM, SHA256_SIGNATURE_HEADER: strong}, body)
        assert self.refused({"Content-Type": FORM, SIGNATURE_HEADER: raw_signature(URL, body)}, body)

    @pytest.mark.parametrize(
        "kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json", ""]
    )
    def test_json_content_types_are_accepted(self, kind: str) -> None:
        """Without a type, JSON is recognized by its looks."""
        assert not self.refused({"Content-Type": kind, SIGNATURE_HEADER: raw_signature(URL, JSON_BODY)}, JSON_BODY)

    @pytest.mark.parametrize("kind", [f"{FORM}; charset=utf-8", FORM.upper(), "", "text/plain"])
    def test_form_content_types_are_accepted(self, kind: str) -> None:
        """With parameters, or none at all."""
        assert not self.refused({"Content-Type": kind, SIGNATURE_HEADER: form_signature(URL, STARTED)}, form(STARTED))

    def test_json_type_with_another_body_is_rejected(self) -> None:
        """Whichever signature it brings."""
        for signature in (raw_signature(URL, b""), form_signature(URL, ())):
            assert self.refused({"Content-Type": "application/json", SIGNATURE_HEADER: signature}, b"")

    def test_repeated_content_type_is_rejected(self) -> None:
        headers = {"Content-Type": FORM, "content-type": FORM, SIGNATURE_HEADER: form_signature(URL, STARTED)}
        assert self.refused(headers, form(STARTED))

    def test_get_with_body_is_rejected(self) -> None:
        """The platform sends none."""
        headers = {SIGNATURE_HEADER: form_signature(URL, ())}
        assert not self.refused(headers, b"", method="GET")
        assert not self.refused(headers, b"", method="get")
        assert self.refused(headers, b"a=1", method="GET")
        assert self.refused(
            {SHA256_SIGNATURE_HEADER: raw_signature(URL, b"a=1", algorithm="sha256")}, b"a=1", method="GET"
        )

    @pytest.mark.parametrize("method", ["", "PUT", "HEAD", "DELETE", "post "])
    def test_other_methods_are_rejected(self, method: str) -> None:
        """The platform uses GET and POST only."""
        assert self.refused({SIGNATURE_HEADER: form_signature(URL, ())}, b"", method=method)

    @pytest.mark.parametrize(
        ("named", "body", "fits"),
        [
            (HASHED, JSON_BODY, True),
            (HASHED.replace("bodySHA256", "x=1&bodySHA256"), JSON_BODY, True),
            (HASHED[:11] + HASHED[11:].upper(), JSON_BODY, True),
            (HASHED, JSON_BODY + b" ", False),
            (HASHED, b"", False),
            (HASHED, form(STARTED), False),
            (HASHED[:-1], JSON_BODY, False),
            ("bodySHA256=", JSON_BODY, False),
            ("bodySHA256=", b"", False),
            ("bodySHA256=é", JSON_BODY, False),
            (f"{HASHED}&{HASHED}", JSON_BODY, False),
            (f"bodySHA256=&{HASHED}", JSON_BODY, False),
            (f"bodySHA256={hashlib.sha256(b'any').hexdigest()}", b"any", True),
        ],
    )
    def test_body_must_match_body_sha256_of_the_url(self, named: str, body: bytes, fits: bool) -> None:
        """Whichever method it comes with."""
        url = f"{URL}?{named}"
        headers = {SIGNATURE_HEADER: form_signature(url, ())}
        assert self.refused(headers, body, url) is not fits
        assert self.refused(headers, b"", url, method="GET")

    def test_body_sha256_url_accepts_signed_json_but_no_form(self) -> None:
        url = f"{URL}?{HASHED}"
        assert not self.refused({SIGNATURE_HEADER: raw_signature(url, JSON_BODY)}, JSON_BODY, url)
        url = f"{URL}?bodySHA256={hashlib.sha256(form(STARTED)).hexdigest()}"
        assert self.refused({SIGNATURE_HEADER: form_signature(url, STARTED)}, form(STARTED), url)

    @pytest.mark.parametrize(
        "body",
        [
            b"a=\xff",
            b"a=%ff",
            b"a=%",
            b"a=%4",
            b"a=%zz",
            b"a=b c",
            b'a="b"',
            b"a=b\n",
            b"a=\x00",
            b"=b",
            b"a=1&=b",
            "a=é".encode(),
            b"&".join([b"a=1"] * 1_001),
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--',
        ],
    )
    def test_body_that_is_not_a_form_is_rejected(self, body: bytes) -> None:
        """Whichever signature they bring."""
        pairs = [
            (name, value) for name, _, value in (piece.partition("=") for piece in body.decode("latin-1").split("&"))
        ]
        read = parse_qsl(body.decode("latin-1"), keep_blank_values=True)
        signatures = [form_signature(URL, fields) for fields in (pairs, read, ())]
        for signature in (*signatures, raw_signature(URL, body)):
            for kind in ({}, {"Content-Type": FORM}):
                assert self.refused({**kind, SIGNATURE_HEADER: signature}, body)


def test_blank_values_and_repeated_names_are_signed_in_order() -> None:
    pairs = [("b", "2"), ("a", ""), ("b", "1"), ("B", "0"), ("a", " x ")]
    headers = {SIGNATURE_HEADER: form_signature(URL, pairs)}

    assert verify_signature(url=URL, headers=headers, body=b"b=2&a=&b=1&B=0&a=+x+", keys=[KEY])
    assert verify_signature(url=URL, headers=headers, body=b"B=0&a&a=%20x%20&b=2&b=1", keys=[KEY])
    assert not verify_signature(url=URL, headers=headers, body=b"b=1&a=&b=2&B=0&a=+x+", keys=[KEY])
    assert not verify_signature(url=URL, headers=headers, body=b"b=2&a=&b=1&B=0&a=x", keys=[KEY])


def test_too_large_body_is_rejected_unhashed(monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"padding": "x" * claims.MAX_BODY}).encode()
    sent = Sent(URL, {SIGNATURE_HEADER: raw_signature(URL, body)}, body)
    monkeypatch.setattr(claims, "hmac", SimpleNamespace())

    assert not sent.good()


@pytest.mark.parametrize("url", ["", "\ud800", "https://example.com/\ud800", "https://[", "https://a:b/", "://", "\n"])
def test_malformed_url_is_rejected_without_error(url: str) -> None:
    assert not of_form(URL).good(url=url)


def test_url_bytes_that_are_not_utf_8_are_signed_as_bytes() -> None:
    """Servers represent them as surrogates."""
    raw = f"{URL}?a=".encode() + b"\xff"
    headers = {SIGNATURE_HEADER: raw_signature("", raw + b"[]")}

    assert verify_signature(url=raw.decode("utf-8", "surrogateescape"), headers=headers, body=b"[]", keys=[KEY])


def test_all_signatures_are_compared_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time taken does not tell which key is right."""
    count = 0
    compare = hmac.compare_digest

    def counting(first: bytes, second: bytes) -> bool:
        nonlocal count
        count += 1
        return compare(first, second)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    counts = []
    for keys in ([KEY, "PSK_b"], ["PSK_a", KEY], ["PSK_a", "PSK_b"]):
        count = 0
        of_form("https://u:p@example.com/callbacks#top").good(keys=keys)
        counts.append(count)

    assert counts == [2 * 2 * 2 * 2] * 3


def test_header_and_alias_cost_one_hash_of_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body may have 1 MiB, and anybody can send both headers."""
    digest, hashed = hmac.digest, []

    def counting(key: bytes, text: bytes, algorithm: str) -> bytes:
        hashed.append(algorithm)
        return digest(key, text, algorithm)

    monkeypatch.setattr(hmac, "digest", counting)
    headers = {SIGNATURE_HEADER: "x", "X-Twilio-Signature": "y", SHA256_SIGNATURE_HEADER: "z"}
    assert not verify_signature(url="/relative", headers=headers, body=form(STARTED), keys=[KEY, "PSK_b"])
    assert sorted(hashed) == ["sha1", "sha1", "sha256", "sha256"]


def test_form_may_have_1000_fields() -> None:
    pairs = [("a", str(number)) for number in range(1_000)]
    body = "&".join(f"{name}={value}" for name, value in pairs).encode()
    headers = {SIGNATURE_HEADER: form_signature(URL, pairs)}
    assert verify_signature(url=URL, headers=headers, body=body, keys=[KEY])


class TestSigning:
    """`sign`, for tests and simulators."""

    def test_sign_matches_each_scheme(self) -> None:
        """Base64 for fields and for the URL alone, hex for bodies and SHA-256."""
        assert sign(url=URL, fields=STARTED, key=KEY) == form_signature(URL, STARTED)
        assert sign(url=URL, fields=dict(STARTED), key=KEY) == form_signature(URL, STARTED)
        assert sign(url=URL, fields=CIMultiDict([("b", "2"), ("b", "1")]), key=KEY) == form_signature(
            URL, [("b", "2"), ("b", "1")]
        )
        assert sign(url=URL, body=JSON_BODY, key=KEY) == raw_signature(URL, JSON_BODY)
        assert sign(url=URL, body=JSON_BODY, key=KEY, algorithm="sha256") == raw_signature(
            URL, JSON_BODY, algorithm="sha256"
        )
        assert sign(url=URL, key=KEY) == form_signature(URL, ())
        assert sign(url=URL, key=KEY, algorithm="sha256") == raw_signature(URL, b"", algorithm="sha256")

    @pytest.mark.parametrize(
        ("wrong", "hint"),
        [
            ({"key": ""}, "Signing Key"),
            ({"key": None}, "Signing Key"),
            ({"url": 5}, r"str\(url\)"),
            ({"url": "\ud800"}, "UTF-8"),
            ({"url": f"{URL}\udc80"}, "UTF-8"),
            ({"algorithm": "md5"}, "'sha1' or 'sha256'"),
            ({"body": b""}, "either"),
            ({"algorithm": "sha256"}, "either"),
            ({"fields": None, "body": "text"}, "raw bytes"),
            ({"fields": "a=1"}, "parse_qsl"),
            ({"fields": 5}, "parse_qsl"),
            ({"fields": {"a": ["1"]}}, "parse_qsl"),
            ({"fields": [("a", "b", "c")]}, "parse_qsl"),
            ({"fields": ["ab"]}, "parse_qsl"),
            ({"fields": {"a": "\ud800"}}, "UTF-8"),
        ],
    )
    def test_wrong_argument_is_rejected_with_advice(self, wrong: Any, hint: str) -> None:
        with pytest.raises(InvalidRequestError, match=hint) as caught:
            sign(**({"url": URL, "fields": {"a": "b"}, "key": KEY} | wrong))

        assert KEY not in str(caught.value)
