"""Diagnosis of a rejected signature."""

import json
import re
from itertools import count
from time import thread_time
from typing import Any
from urllib.parse import quote

import attrs
import pytest
from hypothesis import given, strategies as st

from signalwire_streams import InvalidRequestError
from signalwire_streams.callbacks import (
    SHA256_SIGNATURE_HEADER,
    SIGNATURE_HEADER,
    SignatureDiagnosis,
    _diagnostics,
    diagnose_signature,
    verify_signature,
)
from signalwire_streams.callbacks._diagnostics import url_candidates
from signalwire_streams.callbacks._events import FIELD_NAMES
from signalwire_streams.callbacks._signature import MAX_BODY, SignedRequest
from signalwire_streams.callbacks._urls import Headers

from .signing import FORM, JSON_BODY, KEY, STARTED, URL, form, form_signature, raw_signature

SEEN = "http://127.0.0.1:8080/callbacks"


def explained(signed: str = URL, seen: str = SEEN, /, **others: Any) -> SignatureDiagnosis:
    """Diagnose a form that was signed for one URL and received at another."""
    headers = {SIGNATURE_HEADER: form_signature(signed, STARTED), "Content-Type": FORM} | others.pop("headers", {})
    told: dict[str, Any] = {"url": seen, "headers": headers, "body": form(STARTED), "keys": [KEY]}
    return diagnose_signature(**(told | others))


PROXIES = {
    "TLS ends before": ("https://example.com/callbacks", "http://example.com/callbacks", {}, ["begins with https://"]),
    "plain, and seen as TLS": ("http://example.com/callbacks", URL, {}, ["begins with http://"]),
    "another host, forwarded": (
        URL,
        "https://inner/callbacks",
        {"X-Forwarded-Host": "example.com"},
        ["host is 'example.com', as in X-Forwarded-Host"],
    ),
    "another host, in the standard's words": (
        URL,
        SEEN,
        {"Forwarded": "host=example.com;proto=https"},
        ["begins with https://", "as in X-Forwarded-Host or Forwarded"],
    ),
    "another host, as it was asked for": (
        "http://example.com/callbacks",
        SEEN,
        {"Host": "example.com"},
        ["as in the Host header"],
    ),
    "another port": (
        "https://example.com:8443/callbacks",
        URL,
        {"X-Forwarded-Port": "8443"},
        ["host is 'example.com:8443'"],
    ),
    "a slash less": (f"{URL}/", URL, {}, ["ends with a slash"]),
    "a slash more": (URL, f"{URL}/", {}, ["does not end with a slash"]),
    "a prefix that was taken off": (
        "https://example.com/api/callbacks",
        URL,
        {"X-Forwarded-Prefix": "/api/"},
        ["begins with '/api'"],
    ),
    "a decoded path": ("https://example.com/a%20b", "https://example.com/a b", {}, ["encoded differently"]),
    "an encoded path": ("https://example.com/a b", "https://example.com/a%20b", {}, ["encoded differently"]),
    "a query that was added": (URL, f"{URL}?utm=1", {}, ["has no query"]),
    "a query in another order": (f"{URL}?z=1&a=2&m=3", f"{URL}?a=2&m=3&z=1", {}, ["another order"]),
    "a long query that was sorted": (f"{URL}?a=1&b=2&c=3&d=4&e=5", f"{URL}?e=5&d=4&c=3&b=2&a=1", {}, ["another order"]),
    "a decoded query": (f"{URL}?a=b%2Fc", f"{URL}?a=b/c", {}, ["query is encoded differently"]),
    "a query with blanks as %20": (f"{URL}?a=b+c", f"{URL}?a=b%20c", {}, ["query is encoded differently"]),
    "a query with blanks as +": (f"{URL}?a=b%20c", f"{URL}?a=b+c", {}, ["query is encoded differently"]),
    "an encoded query": (f"{URL}?a=b:c", f"{URL}?a=b%3Ac", {}, ["query is encoded differently"]),
    "a query without signs of equality": (f"{URL}?a&b=1", f"{URL}?a=&b=1", {}, ["query is encoded differently"]),
    "another scheme and a prefix": (
        "https://example.com/api/callbacks",
        "http://example.com/callbacks",
        {"X-Forwarded-Prefix": "/api"},
        ["begins with https://", "begins with '/api'"],
    ),
    "another host and another order": (
        f"{URL}?b=1&a=2",
        "https://inner/callbacks?a=2&b=1",
        {"X-Forwarded-Host": "example.com"},
        ["'example.com'", "another order"],
    ),
}


@pytest.mark.parametrize(("signed", "seen", "headers", "advice"), PROXIES.values(), ids=PROXIES)
def test_signed_url_is_found_after_changes_by_proxies(
    signed: str, seen: str, headers: dict[str, str], advice: list[str]
) -> None:
    explanation = explained(signed, seen, headers=headers)

    assert not explanation.valid
    assert explanation.url == signed
    assert type(explanation.url) is str
    assert len(explanation.suggestions) == len(advice)
    for words in advice:
        assert any(words in sentence for sentence in explanation.suggestions), explanation.suggestions
    assert explanation.attempts >= 1
    assert explanation.suggestions[0] in str(explanation)
    assert str(explanation).startswith("Rejected: the signature does not match. It would match as 'http")


@pytest.mark.parametrize(
    ("signed", "candidate"),
    [
        ("https://example.com/hooks/v1/callbacks", "https://example.com/hooks/v1"),
        ("https://example.com/hooks/v1/callbacks", "https://example.com/hooks/v1/callbacks"),
        ("https://example.com/hooks", "https://u:secret@example.com/hooks#part"),
        ("https://example.com/hooks?id=7", "https://example.com/hooks?id=7"),
    ],
)
def test_candidates_are_tried_whole_with_query_and_before_path(signed: str, candidate: str) -> None:
    explanation = explained(signed, candidates=["https://other.example/", candidate])

    assert explanation.url == signed
    assert "public_url" in explanation.suggestions[0]
    assert "secret" not in str(explanation)
    assert explained(signed).url is None


def test_three_changes_at_once_are_not_found() -> None:
    """Two are: the search stays small, and with a candidate the rest is a single change."""
    seen, headers = "http://10.0.0.7:8080/callbacks", {"X-Forwarded-Host": "example.com", "X-Forwarded-Prefix": "/api"}
    signed = "https://example.com/api/callbacks"

    assert explained(signed, seen, headers=headers).url is None
    assert explained(signed, seen, headers=headers, candidates=[signed]).url == signed
    assert explained(signed.replace("https", "http"), seen, headers=headers).url == signed.replace("https", "http")


def test_candidates_with_fewest_changes_come_first() -> None:
    """So that the suggestions are the shortest that fit, and no URL is tried twice."""
    request = SignedRequest(url=f"{SEEN}?a=1&b=2", headers=Headers({"Host": "example.com"}), body=b"", method="POST")
    candidates = list(url_candidates(request, ()))
    changes = [len(changes) for _, changes in candidates]

    assert changes == sorted(changes)
    assert (changes[0], changes[-1]) == (0, 2)
    assert len({candidate.url for candidate, _ in candidates}) == len(candidates)


def test_valid_signature_names_the_signed_url() -> None:
    explanation = explained("https://example.com:443/callbacks?token=secret", f"{URL}?token=secret")

    assert explanation.valid
    assert explanation.url == "https://example.com:443/callbacks?token=secret"
    assert str(explanation) == "The signature matches 'https://example.com:443/callbacks?token=***'."
    assert (explanation.suggestions, explanation.attempts) == ((), 0)


def with_json(body: bytes, signed: bytes, **headers: str) -> SignatureDiagnosis:
    told = {SIGNATURE_HEADER: raw_signature(URL, signed), "Content-Type": "application/json"} | headers
    return diagnose_signature(url=URL, headers=told, body=body, keys=[KEY])


class TestChangedRequest:
    """The URL is right, and something else differs from what was signed."""

    @pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
    @pytest.mark.parametrize("plain", [True, False])
    def test_json_serialized_again_is_found(self, separators: tuple[str, str], plain: bool) -> None:
        """Parsing and serializing changes whitespace and escapes."""
        document = {"name": "é", "n": [1, 2]}
        signed = json.dumps(document, separators=separators, ensure_ascii=plain).encode()
        explanation = with_json(json.dumps(document, indent=2).encode(), signed)
        assert explanation.url == URL
        assert "raw bytes" in explanation.suggestions[0]

    def test_added_or_removed_line_break_is_found(self) -> None:
        assert "raw bytes" in with_json(JSON_BODY + b"\r\n", JSON_BODY).suggestions[0]
        assert "raw bytes" in with_json(JSON_BODY, JSON_BODY + b"\n").suggestions[0]

    @pytest.mark.parametrize(
        "body", [b"[" * 100_000, b'{"a":1e999}', b'{"a":"\\ud800"}', b"{\xff}", b"[" + b"9" * 5_000 + b"]"]
    )
    def test_json_that_cannot_be_serialized_is_skipped(self, body: bytes) -> None:
        assert with_json(body, b"{}").url is None

    @pytest.mark.parametrize(
        "names", [["CallSid"], ["CallSid", "StreamError"], ["CallSid", "ConferenceSid", "StreamError"]]
    )
    def test_dropped_blank_fields_are_found(self, names: list[str]) -> None:
        kept = [(name, value) for name, value in STARTED if name not in names]
        signature = form_signature(URL, [*kept, *((name, "") for name in names)])
        explanation = explained(URL, URL, body=form(kept), headers={SIGNATURE_HEADER: signature})
        assert explanation.url == URL
        assert f"({', '.join(names)})" in explanation.suggestions[0]

    @pytest.mark.parametrize("kind", ["application/json", "text/plain; x", None])
    def test_changed_content_type_is_found(self, kind: str | None) -> None:
        explanation = explained(URL, URL, headers={"Content-Type": kind, "content-type": "text/plain"})
        assert "Content-Type appears more than once" in explanation.summary
        assert "Content-Type" in explanation.suggestions[0]
        assert explained(URL, URL, headers={"Content-Type": "application/json"}).url == URL

    def test_wrong_method_is_found(self) -> None:
        """In either direction."""
        explanation = explained(URL, URL, method="GET")
        assert explanation.suggestions == ("It was signed as a POST: verify it as one.",)
        headers = {SIGNATURE_HEADER: form_signature(URL, ())}
        explanation = explained(URL, URL, headers=headers)
        assert explanation.suggestions == ("It was signed as a GET: verify it as one, without a body.",)

    @pytest.mark.parametrize("signed", [URL, f"{URL}?{form(STARTED).decode()}"])
    def test_get_signed_as_a_form_is_found(self, signed: str) -> None:
        """That a GET is signed by its URL alone is an inference; this is how it would show if that were wrong."""
        headers = {SIGNATURE_HEADER: form_signature(signed, STARTED)}
        explanation = diagnose_signature(
            url=f"{URL}?{form(STARTED).decode()}", headers=headers, keys=[KEY], method="GET"
        )
        assert not explanation.valid
        assert "choose POST" in explanation.suggestions[0]

    def test_whitespace_around_a_key_is_found(self) -> None:
        """For example, a key file that was read with its line break."""
        explanation = explained(URL, URL, keys=[f"{KEY}\n"])
        assert "whitespace" in explanation.suggestions[0]
        assert explanation.url == URL

    def test_wrong_sha256_beside_right_sha1_is_found(self) -> None:
        """It is still rejected."""
        headers = {
            "Content-Type": "application/json",
            SIGNATURE_HEADER: raw_signature(URL, JSON_BODY),
            SHA256_SIGNATURE_HEADER: "x",
        }
        explanation = explained(URL, URL, headers=headers, body=JSON_BODY)
        assert not explanation.valid
        assert SHA256_SIGNATURE_HEADER in explanation.suggestions[0]

    def test_one_url_change_and_one_other_change_are_found(self) -> None:
        explanation = explained(URL, URL.replace("https", "http"), method="GET")
        assert len(explanation.suggestions) == 2
        assert explanation.url == URL


class TestHints:
    """Without a match there are hints; what is certain comes first."""

    def hints(self, **others: Any) -> str:
        explanation = explained("https://elsewhere.example/", URL, **others)
        assert not explanation.valid
        assert explanation.url is None
        assert "What to change:" in str(explanation)
        return " ".join(explanation.suggestions)

    def test_usual_causes_are_always_named(self) -> None:
        """Those that cannot be seen from a request."""
        hints = self.hints()
        assert "Signing Key" in hints
        assert "API tokens" in hints
        assert "given as StatusCallback as a candidate" in hints
        assert "b08dacad-85c6-40f7-83e5-f8ae3f1b8d3a" in hints

    def test_missing_signature_is_named(self) -> None:
        explanation = diagnose_signature(url=URL, headers={}, body=form(STARTED), keys=[KEY])
        assert explanation.summary == "Rejected: there is no signature."
        assert "removes that header" in explanation.suggestions[0]
        explanation = diagnose_signature(url=URL, headers={SIGNATURE_HEADER: ""}, body=form(STARTED), keys=[KEY])
        assert explanation.summary == f"Rejected: {SIGNATURE_HEADER} is empty."

    @pytest.mark.parametrize("keys", [[], [""], None])
    def test_missing_key_is_named(self, keys: Any) -> None:
        assert "No key was passed" in self.hints(keys=keys)
        assert explained(URL, URL, keys=keys).summary == "Rejected: there is no key."

    def test_api_token_as_key_is_named(self) -> None:
        """And not shown."""
        hints = self.hints(keys=["PT0123456789abcdef"])
        assert "looks like an API token" in hints
        assert "0123456789abcdef" not in hints
        assert "looks like an API token" in self.hints(keys=["PSK_b", "PT0123456789abcdef"])
        assert "looks like an API token" not in self.hints(keys=[])

    def test_body_shorter_than_content_length_is_named(self) -> None:
        """Something else has read it."""
        hints = self.hints(body=b"", headers={"Content-Length": "120"})
        assert "Content-Length says 120 bytes, and the body has 0" in hints
        assert "Content-Length" not in self.hints(headers={"Content-Length": "9" * 5_000})

    def test_too_large_body_is_not_read(self) -> None:
        body = b"AccountSid=p-1&a=" + b"b" * MAX_BODY
        explanation = explained("https://elsewhere.example/", URL, body=body)
        assert "the body is too large" in explanation.summary
        assert "p-1" not in str(explanation)

    def test_advice_names_no_python_arguments(self) -> None:
        """It has to hold on the command line as well."""
        advice = self.hints(keys=[]) + self.hints(body=b"", headers={"Content-Length": "9"}, keys=[f"PT{KEY} "])
        advice += " ".join(explained(URL, "/callbacks").suggestions + explained(URL, URL, method="GET").suggestions)
        assert not re.search(r"\w+=|\[|\(\)", advice), advice

    def test_relative_url_is_named(self) -> None:
        explanation = explained("https://elsewhere.example/", "/callbacks?token=secret")
        assert "not absolute" in explanation.suggestions[0]
        assert explanation.candidate_urls == ("'/callbacks'",)

    def test_project_of_a_get_is_read_from_its_query(self) -> None:
        explanation = diagnose_signature(
            url=f"{URL}?AccountSid=project-1", headers={SIGNATURE_HEADER: "x"}, keys=[KEY], method="get"
        )
        assert "'project-1'" in " ".join(explanation.suggestions)

    @pytest.mark.parametrize(
        "url", ["", "\ud800", "https://[/", "ftp://example.com/\udcff?a=\ud800", "http://a/\ud800"]
    )
    def test_diagnosis_of_malformed_url_raises_nothing(self, url: str) -> None:
        assert explained(URL, url).url is None


@pytest.mark.parametrize("url", ["https://u:se/cret@example.com/a", "http://http://u:secret@example.com/a?cret=1"])
def test_password_with_unencoded_slash_is_not_shown(url: str) -> None:
    explanation = explained("https://elsewhere.example/", url, candidates=[URL, "https://e.com//u:secret@a/"])
    assert "cret" not in str(explanation)
    assert "example.com/a" in str(explanation)


@pytest.mark.parametrize(
    ("query", "attempts"), [("a=1&b=2&c=3", 75), ("a=1&b=2&c=3&d=4", 237), ("a=1&b=2&c=3&d=4&e=5", 30)]
)
def test_number_of_attempts_is_bounded(query: str, attempts: int) -> None:
    """All orders of up to four parameters are tried, and of more only the sorted one."""
    assert explained("https://elsewhere.example/", f"{URL}?{query}").attempts == attempts


@pytest.mark.parametrize(("missing", "is_found"), [(3, True), (4, False)])
def test_up_to_three_lost_blank_fields_are_found(missing: int, *, is_found: bool) -> None:
    """Frameworks drop blank fields when they parse a form."""
    received = [("StreamEvent", "stream-started")]
    signed = [*received, *((name, "") for name in FIELD_NAMES if name != "StreamEvent")][: missing + 1]
    headers = {SIGNATURE_HEADER: form_signature(URL, signed), "Content-Type": FORM}
    diagnosis = diagnose_signature(url=URL, headers=headers, body=form(received), keys=[KEY])
    assert any("blank fields that this one lacks" in change for change in diagnosis.suggestions) is is_found


STOPPED = "The search stopped early: its time limit was reached."


def test_search_over_its_time_limit_reports_that_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = explained("https://elsewhere.example/", f"{URL}?a=1&b=2&c=3")
    monkeypatch.setattr(_diagnostics, "thread_time", count(step=0.2).__next__)
    stopped = explained("https://elsewhere.example/", f"{URL}?a=1&b=2&c=3")

    assert whole.attempts > 50
    assert stopped.attempts == 2
    assert whole.summary == "Rejected: the signature does not match."
    assert stopped.summary == f"Rejected: the signature does not match. {STOPPED}"


def test_diagnosis_over_its_time_limit_reports_untried_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether one of the others signed the request is not known then, so it is not called rejected."""
    monkeypatch.setattr(_diagnostics, "thread_time", count(step=0.2).__next__)
    explanation = explained(keys=[f"PSK_{number}" for number in range(60)], candidates=[URL])

    assert explanation.summary == "Not all keys were tried: the time limit was reached."
    assert not explanation.valid
    assert (explanation.url, explanation.attempts) == (None, 0)
    assert "the request's own project" in str(explanation)


def test_search_ends_after_two_seconds_of_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a tenth of a second later here."""
    looks = count()
    monkeypatch.setattr(_diagnostics, "thread_time", lambda: 100 + next(looks) / 10)
    explanation = explained("https://elsewhere.example/", headers={"X-Twilio-Signature": "x"})

    assert explanation.summary.endswith("time limit was reached.")
    assert next(looks) == 1 + 20


@pytest.mark.parametrize("body", [b"a=" + b"x" * (MAX_BODY - 2), b"[" + b" " * (MAX_BODY - 2) + b"]"])
def test_diagnosis_with_many_keys_and_a_large_body_stays_within_its_limit(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is looked at after each hash, also while the request itself is verified."""
    monkeypatch.setattr(_diagnostics, "_MAX_CPU_TIME", 0.05)
    headers = {"X-Twilio-Signature": "x", SHA256_SIGNATURE_HEADER: "x", "Authorization": "Basic dTpw"}
    began = thread_time()
    explanation = explained(keys=[f"PSK_{number}" for number in range(400)], headers=headers, body=body)

    assert "time limit was reached" in explanation.summary
    assert thread_time() - began < 0.5


@pytest.mark.parametrize(
    ("body", "query"),
    [
        (b"a=%41" * 209_000 + b"&=", "a=1&b=2&c=3"),
        (b"a=" + b"x" * (MAX_BODY - 2), ""),
        (b"", "a=%2f&" * 20_000),
        (b'{"a":[' + b"{}," * 300_000 + b"{}]}", ""),
    ],
    ids=["a form that can't be read", "a form", "a query", "JSON"],
)
def test_search_over_large_request_is_bounded(body: bytes, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if there is much to parse and nothing to compare."""
    monkeypatch.setattr(_diagnostics, "_MAX_CPU_TIME", 0.05)
    candidates = [f"https://{number}.example/" for number in range(20)]
    began = thread_time()
    explanation = explained("https://elsewhere.example/", f"{URL}?{query}", body=body, candidates=candidates)

    assert explanation.summary.endswith("time limit was reached.")
    assert thread_time() - began < 3


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"url": None}, r"str\(url\)"),
        ({"headers": None}, r"dict\(headers\)"),
        ({"body": None}, "raw bytes"),
        ({"keys": KEY}, r"keys=\[key\]"),
        ({"candidates": URL}, r"\['https://host/path'\]"),
        ({"candidates": ["example.com"]}, r"\['https://host/path'\]"),
        ({"candidates": [5]}, r"\['https://host/path'\]"),
        ({"candidates": None}, r"\['https://host/path'\]"),
    ],
)
def test_wrong_argument_is_rejected_with_advice(wrong: dict[str, Any], hint: str) -> None:
    told: dict[str, Any] = {"url": URL, "headers": {}, "keys": [KEY]} | wrong
    with pytest.raises(InvalidRequestError, match=hint):
        diagnose_signature(**told)


@given(
    seen=st.sampled_from([URL, SEEN, f"{URL}/?token={KEY}&a=1", f"https://u:{KEY}@example.com/callbacks?{KEY}#{KEY}"]),
    signed=st.sampled_from([URL, f"{URL}/", "https://elsewhere.example/"]),
    headers=st.dictionaries(
        st.sampled_from(
            ["Host", "X-Forwarded-Host", "X-Forwarded-Prefix", "X-Forwarded-Proto", "Authorization", "Forwarded"]
        ),
        st.one_of(st.text(max_size=12), st.just("example.com"), st.just("https"), st.just(f"Basic {quote(KEY)}")),
    ),
    method=st.sampled_from(["POST", "GET"]),
)
def test_diagnosis_shows_no_secret_and_agrees_with_verification(
    seen: str, signed: str, headers: dict[str, str], method: str
) -> None:
    """It holds no key and no signature, neither the given nor the expected one."""
    told: dict[str, Any] = {
        "url": seen,
        "headers": {SIGNATURE_HEADER: form_signature(signed, STARTED), **headers},
        "body": form(STARTED),
        "keys": [KEY, "PSK_other"],
        "method": method,
    }
    explanation = diagnose_signature(**told)

    assert explanation.valid is verify_signature(**told)
    shown = f"{explanation}{explanation!r}{attrs.evolve(explanation, url=None)}"
    for secret in (KEY, "PSK_other", form_signature(signed, STARTED), form_signature(seen, STARTED), STARTED[3][1]):
        assert secret not in shown
    assert shown.isprintable() or set(shown) - {"\n"} == {letter for letter in shown if letter.isprintable()}
