"""Diagnosis of rejected signatures, for someone who sets up a server; never part of the response to a request."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, combinations, permutations, product
from time import thread_time
from typing import TypeAlias
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode

from attrs import evolve, field, frozen

from signalwire_streams.callbacks._events import FIELD_NAMES
from signalwire_streams.callbacks._signature import (
    ALIAS_HEADER,
    FORM_TYPE,
    MAX_BODY,
    MISMATCH,
    SHA256_SIGNATURE_HEADER,
    SIGNATURE_HEADER,
    SignedRequest,
    UnverifiableError,
    usable_keys,
)
from signalwire_streams.callbacks._urls import (
    Forwarded,
    Headers,
    UrlParts,
    equivalent_urls,
    parse_each,
    split_host,
)
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import Secret, masks_secrets, redact_url

_MAX_CPU_TIME = 2.0  # seconds that a search may take
_MAX_BLANK_FIELDS = 3
_MAX_PERMUTED = 4  # parameters of a query
_MAX_SHOWN = 80
_SIGNATURE_HEADERS = (SIGNATURE_HEADER, ALIAS_HEADER, SHA256_SIGNATURE_HEADER)
_CONFIGURE_PROXY = "set public_url, or trust_forwarded=True if your own proxy sets X-Forwarded-*"
_RAW_QUERY = "pass the request's raw query, not one that was encoded again"
_RAW_BODY = "pass the raw bytes of the request, not ones that were encoded again"

_Changes: TypeAlias = tuple[str, ...]
_Candidate: TypeAlias = tuple[SignedRequest, _Changes]
"""A request that may have been signed, and what to change if it was."""
_ChangedUrls: TypeAlias = Iterator[tuple[int, UrlParts, str]]
"""A kind of change, what a URL becomes by it, and what to change if that was signed. A kind is applied once."""


@frozen(kw_only=True)
class SignatureDiagnosis:
    """The reason why a signature is rejected. It contains no key and no signature, neither received nor expected.

    Its ``str()`` is a few lines for people.

    Attributes:
        valid: whether `verify_signature` accepts the request unchanged; also False if the time limit came first.
        summary: the problem in one sentence, or that there is none.
        suggestions: what to change, in sentences, the likeliest first.
        candidate_urls: the URLs that `verify_signature` tries, without passwords and the values of queries.
        attempts: how many further URLs and bodies were tried.
        url: the URL that was signed, if one was found, with all its parts.
    """

    valid: bool
    summary: str
    suggestions: tuple[str, ...] = ()
    candidate_urls: tuple[str, ...] = ()
    attempts: int = 0
    url: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        lines = [self.summary]
        if self.suggestions:
            lines += ["What to change:", *(f"- {sentence}" for sentence in self.suggestions)]
        if self.candidate_urls and not self.valid:
            lines += ["URLs that verification tries:", *(f"- {url}" for url in self.candidate_urls)]
            lines.append(f"Other candidates tried: {self.attempts}.")
        return "\n".join(lines)


@masks_secrets
def diagnose_signature(
    *,
    url: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    keys: Sequence[str],
    method: str = "POST",
    candidates: Sequence[str] = (),
) -> SignatureDiagnosis:
    """Diagnose why `verify_signature` rejects a request that should be genuine.

    It tries what proxies and frameworks usually change: the scheme, the host (as ``Host``, ``X-Forwarded-Host`` and
    ``Forwarded`` have it), the port, a trailing slash, a prefix that was removed, order and encoding of the query,
    the content type, a body that was serialized again or lost its blank fields. It finds any one of these and any two
    of them, at most one of them outside the URL. That takes up to two seconds, so do not call it for each request;
    if a large body or many keys and candidates need more, the summary says that the time limit was reached.

    The arguments and their errors are those of `verify_signature`; pass all headers. ``candidates`` are absolute URLs
    to try as well, such as the one that was passed as ``StatusCallback``.
    """
    until = thread_time() + _MAX_CPU_TIME
    request = SignedRequest.read(url=url, headers=headers, body=body, method=method)
    suspected = parse_each(candidates, UrlParts.split)
    if suspected is None:
        raise InvalidRequestError("candidates must be a list of absolute URLs: write ['https://host/path']")
    diagnosis = _search(request, suspected, usable_keys(keys), until)
    return evolve(
        diagnosis, candidate_urls=tuple(dict.fromkeys(map(_shown, equivalent_urls(request.url, request.headers))))
    )


def _search(
    request: SignedRequest, suspected: Sequence[UrlParts], keys: Sequence[Secret], until: float
) -> SignatureDiagnosis:
    change = "A key has leading or trailing whitespace: remove it."
    changed_keys: dict[str, _Changes] = {Secret(key.strip()): (change,) for key in keys}
    changed_keys.update(dict.fromkeys(keys, ()))
    rejected, attempts = "", 0
    for candidate, changes in chain([(request, ())], _candidates(request, suspected)):
        attempts += bool(changes)
        try:
            url, key = _find_match(candidate, changed_keys if rejected else keys, until)
        except UnverifiableError as error:
            rejected = rejected or f"Rejected: {error}."
            continue
        except TimeoutError:
            if not rejected:
                change = "Pass only the keys of the request's own project."
                summary = "Not all keys were tried: the time limit was reached."
                return SignatureDiagnosis(valid=False, summary=summary, suggestions=(change,))
            rejected += " The search stopped early: its time limit was reached."
            break
        summary = f"{rejected} It would match as {_shown(url)}, with these changes."
        if not rejected:
            summary = f"The signature matches {_shown(url)}."
        suggestions = (*changes, *changed_keys[key])
        return SignatureDiagnosis(
            valid=not rejected, summary=summary, suggestions=suggestions, attempts=attempts, url=str(url)
        )
    causes = tuple(_likely_causes(request, keys))
    return SignatureDiagnosis(valid=False, summary=rejected, suggestions=causes, attempts=attempts)


def _find_match(request: SignedRequest, keys: Iterable[str], until: float) -> tuple[str, str]:
    """Return the URL and the key that a request was signed with.

    Raises:
        UnverifiableError: it was signed with none of the keys.
        TimeoutError: the time is up.
    """
    _check_time(until)  # a body that can't be read takes time as well
    for url, key, is_signed in request.comparisons(tuple(keys)):
        if is_signed:
            return url, key
        _check_time(until)
    raise UnverifiableError(MISMATCH)


def _candidates(request: SignedRequest, suspected: Sequence[UrlParts]) -> Iterator[_Candidate]:
    """Yield requests that may have been signed: with up to two changes, at most one of them outside the URL."""
    near: list[_Candidate] = []
    for candidate, changes in url_candidates(request, suspected):
        if len(changes) <= 1:
            near.append((candidate, changes))
        yield candidate, changes
    for other, change in _changed_requests(request):  # one at a time, since each may have a body of its own
        for candidate, changes in near:
            yield evolve(other, url=candidate.url), (change, *changes)


def _check_time(until: float) -> None:
    if thread_time() >= until:
        raise TimeoutError


def url_candidates(request: SignedRequest, suspected: Sequence[UrlParts]) -> Iterator[_Candidate]:
    yield request, ()
    given = UrlParts.split(request.url)
    if given is None:
        return
    found = {request.url}
    once = [*_replace_by(given, suspected), *_changed_once(given, request.headers)]
    twice = (
        (parts, (change, second))
        for kind, changed, change in once
        for another, parts, second in _changed_once(changed, request.headers)
        if another > kind
    )
    for parts, changes in chain(((parts, (change,)) for _, parts, change in once), twice):
        url = str(parts)
        if url not in found:
            found.add(url)
            yield evolve(request, url=url), changes


def _replace_by(given: UrlParts, candidates: Sequence[UrlParts]) -> _ChangedUrls:
    for candidate in candidates:
        shown = redact_url(str(candidate))
        change = f"It was signed for the candidate {shown!r}: set it as public_url, or verify with it."
        whole = evolve(candidate, query=given.query, fragment="")
        before_path = evolve(whole, path=candidate.path.removesuffix("/") + given.path)
        yield from ((0, parts, change) for parts in (candidate, whole, before_path))


def _changed_once(parts: UrlParts, headers: Headers) -> _ChangedUrls:
    forwarded = Forwarded.from_headers(headers)
    yield from _change_origin(parts, forwarded, headers)
    yield from _change_path(parts, forwarded)
    yield from _change_query(parts)


def _change_origin(parts: UrlParts, forwarded: Forwarded, headers: Headers) -> _ChangedUrls:
    for other in {"http://", "https://"} - {parts.scheme.lower()}:
        change = f"The signed URL begins with {other}, not with {parts.scheme}: {_CONFIGURE_PROXY}."
        yield 1, evolve(parts, scheme=other), change
    sources = {
        "X-Forwarded-Host or Forwarded": (forwarded.host or parts.host, forwarded.port),
        "the Host header": split_host(headers.get("Host", "")) or ("", ""),
    }
    for source, (name, port) in sources.items():
        if name and (name, port) != (parts.host, parts.port):
            change = f"The signed host is {name + port!r}, as in {source}, not {parts.host + parts.port!r}"
            yield 2, evolve(parts, host=name, port=port), f"{change}: {_CONFIGURE_PROXY}."


def _change_path(parts: UrlParts, forwarded: Forwarded) -> _ChangedUrls:
    path = parts.path
    if forwarded.prefix:
        change = f"The signed path begins with {forwarded.prefix!r}, which a proxy removed: include it in public_url."
        yield 3, evolve(parts, path=forwarded.prefix + path), change
    if path.endswith("/"):
        yield 4, evolve(parts, path=path[:-1]), "The signed path does not end with a slash: write it without one."
    else:
        yield 4, evolve(parts, path=path + "/"), "The signed path ends with a slash: write it with one."
    for other in (unquote(path), quote(path, "/%:@!$&'()*+,;=~", errors="replace")):
        if other != path:
            yield 5, evolve(parts, path=other), "The signed path is percent-encoded differently: pass the raw one."


def _change_query(parts: UrlParts) -> _ChangedUrls:
    query = parts.query.removeprefix("?")
    if not query:
        return
    yield 6, evolve(parts, query=""), "The signed URL has no query: a proxy or a framework adds it."
    pieces = query.split("&")
    for order in permutations(pieces) if len(pieces) <= _MAX_PERMUTED else [sorted(pieces)]:
        if list(order) != pieces:
            change = f"The signed query is in another order: {_RAW_QUERY}."
            yield 6, evolve(parts, query="?" + "&".join(order)), change
    pairs = parse_qsl(query, keep_blank_values=True)
    rewritten = [urlencode(pairs, errors="replace", quote_via=way) for way in (quote_plus, quote)]
    for other in (*rewritten, unquote(query), re.sub(r"=(?=&|$)", "", query)):
        if other != query:
            yield 6, evolve(parts, query="?" + other), f"The signed query is encoded differently: {_RAW_QUERY}."


def _changed_requests(request: SignedRequest) -> Iterator[tuple[SignedRequest, str]]:
    """Yield the request with another method, content type or body, and what to change if it was signed."""
    body, headers = request.body, request.headers
    for method, signed in {"GET": b"", "POST": body}.items():
        change = f"It was signed as a {method}: verify it as one{'' if signed else ', without a body'}."
        yield evolve(request, method=method, body=signed), change
    if request.method == "GET":
        change = "Its query was signed as a form, which is not supported: choose POST for callbacks."
        yield evolve(request, method="POST", body=request.query), change
    if SHA256_SIGNATURE_HEADER in headers:
        change = f"Its {SHA256_SIGNATURE_HEADER} is wrong and the weaker one is right: find what changed it."
        yield evolve(request, headers=headers.replaced(SHA256_SIGNATURE_HEADER)), change
    for kind in (FORM_TYPE, "application/json"):
        change = f"It was signed as {kind}: pass the request's own Content-Type, and only one."
        yield evolve(request, headers=headers.replaced("Content-Type", kind)), change
    for raw in (body.strip(), body + b"\n", *_serialized_again(body)):
        if raw != body:
            yield evolve(request, body=raw), f"The signed body is encoded differently: {_RAW_BODY}."
    names = {name for name, _ in request.form or ()}
    missing = [name for name in FIELD_NAMES if name not in names] if names else []
    for count in range(1, _MAX_BLANK_FIELDS + 1):
        for blank in combinations(missing, count):
            listed = ", ".join(blank)
            change = f"The signed form has blank fields that this one lacks ({listed}): keep blank values; {_RAW_BODY}."
            yield evolve(request, body=body + f"&{'=&'.join(blank)}=".encode()), change


def _serialized_again(body: bytes) -> Iterator[bytes]:
    with suppress(ValueError, RecursionError):
        document = json.loads(body)
        for separators, ascii_only in product(((",", ":"), (", ", ": ")), (False, True)):
            text = json.dumps(document, separators=separators, ensure_ascii=ascii_only)
            yield text.encode("utf-8", "replace")


def _likely_causes(request: SignedRequest, keys: Sequence[str]) -> Iterator[str]:
    """Yield likely causes when no candidate matches; what is certain comes first."""
    if not keys:
        yield "No key was passed: pass the project's Signing Key, which begins with PSK_."
    if request.headers.keys().isdisjoint(_SIGNATURE_HEADERS):
        sent = "either the platform did not send this, or a proxy removes that header"
        yield f"No {SIGNATURE_HEADER} was received: {sent}."
    if UrlParts.split(request.url) is None:
        yield "The URL is not absolute: pass the full URL, as 'https://host/path?query'."
    length = request.headers.get("Content-Length", "")
    if re.fullmatch(r"[0-9]{1,15}", length) and int(length) != len(request.body):
        lengths = f"Content-Length says {length} bytes, and the body has {len(request.body)}"
        yield f"{lengths}: something read or rewrote it. Pass the raw bytes of the request."
    if any(key.startswith("PT") for key in keys):
        yield "A key looks like an API token: requests are signed with the Signing Key, which begins with PSK_."
    is_readable = len(request.body) <= MAX_BODY
    fields = request.query_fields if request.method == "GET" else is_readable and request.form
    if project := dict(fields or ()).get("AccountSid", "")[:_MAX_SHOWN]:
        yield f"The request belongs to project {project!r}: use the Signing Key of that project."
    yield (
        "Make sure that the keys are Signing Keys (PSK_..., under API Credentials), not API tokens: a request does not "
        "show which of them was used. After a reset, pass the new key and the old one."
    )
    yield "Pass the URL that was given as StatusCallback as a candidate, so that it is tried as well."


def _shown(url: str) -> str:
    """Return a URL with the names in its query, but without the values and without a password."""
    parts = UrlParts.split(url)
    if parts is None or "@" in parts.path:  # a password that is not encoded may hold a slash
        return repr(redact_url(url))
    pieces = [piece.partition("=") for piece in parts.query.removeprefix("?").split("&")]
    query = "&".join(f"{name}=***" if equals else name and "***" for name, equals, _ in pieces)
    query = parts.query and f"?{query}"
    fragment = parts.fragment and "#***"
    userinfo = parts.userinfo and "***@"
    return repr(parts.scheme + userinfo + parts.host + parts.port + parts.path + query + fragment)
