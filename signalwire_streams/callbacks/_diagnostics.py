"""Why a signature is refused: for a person who sets up a server, never for the answer to a request."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import combinations, permutations, product
from time import thread_time
from typing import TypeAlias
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode

from attrs import evolve, field, frozen

from signalwire_streams.callbacks._events import FIELD_NAMES
from signalwire_streams.callbacks._signature import (
    ALIAS_HEADER,
    FORM_TYPE,
    MAX_BODY,
    SHA256_SIGNATURE_HEADER,
    SIGNATURE_HEADER,
    SignedRequest,
    UnverifiableError,
    check_request,
    encoded,
    read_form,
    read_query,
    read_request,
    read_signatures,
    usable_keys,
)
from signalwire_streams.callbacks._urls import UrlParts, equivalent_urls, header_values, query_of, read_forwarded
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

_Changed: TypeAlias = Iterator[tuple[UrlParts, str]]  # URLs that differ in one thing, each with what to change
_Change: TypeAlias = Callable[[UrlParts, Mapping[str, str]], _Changed]


@frozen(kw_only=True)
class SignatureDiagnosis:
    """Why a signature is refused. It holds no key and no signature, neither a given nor an expected one.

    ``str()`` of it is a few lines for a person.

    Attributes:
        valid: whether `verify_signature` accepts the request unchanged.
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


@frozen
class RequestCandidate:
    """A request that may have been signed, and what to change if it was."""

    request: SignedRequest
    changes: tuple[str, ...] = ()


@frozen
class Match:
    """The signed URL if the search found it, what to change, and how many candidates were tried."""

    url: str | None = field(repr=False)
    changes: tuple[str, ...]
    attempts: int
    timed_out: bool = False

    def __str__(self) -> str:
        if self.url is not None:
            return f" It would match as {_shown(self.url)}, with these changes."
        return " The search stopped early: its time limit was reached." if self.timed_out else ""


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
    of them, at most one of them apart from the URL. That takes up to two seconds, so do not call it for each request;
    if a large body or many keys and candidates need more, the summary says that the search stopped early.

    Args:
        url: as for `verify_signature`.
        headers: as for `verify_signature`, all of them.
        body: as for `verify_signature`.
        keys: as for `verify_signature`.
        method: as for `verify_signature`.
        candidates: absolute URLs to try as well, such as the one that was passed as ``StatusCallback``.

    Returns:
        The findings, and what to change.

    Raises:
        InvalidRequestError: an argument has the wrong type; the message says what to write.
    """
    request = read_request(url=url, headers=headers, body=body, method=method)
    suspected = _split_candidates(candidates)
    usable = usable_keys(keys)
    tried = tuple(dict.fromkeys(map(_shown, equivalent_urls(request.url, request.headers))))
    try:
        check_request(request, usable)
    except UnverifiableError as refusal:
        match = _search(request, suspected, usable)
        return SignatureDiagnosis(
            valid=False,
            summary=f"Refused: {refusal}.{match}",
            suggestions=match.changes or tuple(_hints(request, usable)),
            candidate_urls=tried,
            attempts=match.attempts,
            url=match.url,
        )
    signed, _ = next(_matches(request, usable))
    return SignatureDiagnosis(
        valid=True, summary=f"The signature matches {_shown(signed)}.", candidate_urls=tried, url=signed
    )


def _split_candidates(candidates: object) -> list[UrlParts]:
    listed = list(candidates) if isinstance(candidates, Iterable) and not isinstance(candidates, str) else [None]
    split = [UrlParts.split(candidate) if isinstance(candidate, str) else None for candidate in listed]
    absolute = [parts for parts in split if parts is not None]
    if len(absolute) < len(split):
        raise InvalidRequestError("candidates must be a list of absolute URLs: write ['https://host/path']")
    return absolute


def _search(request: SignedRequest, suspected: Sequence[UrlParts], keys: Sequence[Secret]) -> Match:
    until = thread_time() + _MAX_CPU_TIME
    attempts = 0
    for candidate in _candidates(request, suspected):
        attempts += bool(candidate.changes)
        for url, changes in _matches(candidate.request, keys):
            return Match(url, (*candidate.changes, *changes), attempts)
        if thread_time() >= until:
            return Match(None, (), attempts, timed_out=True)
    return Match(None, (), attempts)


def _candidates(request: SignedRequest, suspected: Sequence[UrlParts]) -> Iterator[RequestCandidate]:
    """Yield what may have been signed with up to two changes, at most one of them apart from the URL."""
    near: list[RequestCandidate] = []
    for candidate in url_candidates(request, suspected):
        if len(candidate.changes) <= 1:
            near.append(candidate)
        yield candidate
    for other, candidate in product(_request_candidates(request), near):
        changed = evolve(other.request, url=candidate.request.url)
        yield RequestCandidate(changed, (*other.changes, *candidate.changes))


def _matches(request: SignedRequest, keys: Sequence[Secret]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the URLs that were signed, each with what to change about its key."""
    try:
        signatures = read_signatures(request)
    except UnverifiableError:
        return
    change = "A key has leading or trailing whitespace: remove it."
    stripped = [(Secret(key.strip()), (change,)) for key in keys if key != key.strip()]
    for url in equivalent_urls(request.url, request.headers):
        raw = encoded(url)
        for key, changes in [*((key, ()) for key in keys), *stripped]:
            if raw is not None and any(signature.verify(raw, key) for signature in signatures):
                yield url, changes


def url_candidates(request: SignedRequest, suspected: Sequence[UrlParts]) -> Iterator[RequestCandidate]:
    """Yield the request at the given URL, then at those with one change, then at those with two."""
    yield RequestCandidate(request)
    found = {request.url}
    for parts, changes in _changed_urls(request, suspected):
        url = str(parts)
        if url not in found:
            found.add(url)
            yield RequestCandidate(evolve(request, url=url), changes)


def _changed_urls(request: SignedRequest, suspected: Sequence[UrlParts]) -> Iterator[tuple[UrlParts, tuple[str, ...]]]:
    given = UrlParts.split(request.url)
    if given is None:
        return
    once = [(parts, change, _CHANGES) for parts, change in _suspected(given, suspected)]
    for index, change_one in enumerate(_CHANGES, 1):
        once += [(parts, change, _CHANGES[index:]) for parts, change in change_one(given, request.headers)]
    for parts, change, _ in once:
        yield parts, (change,)
    for parts, change, others in once:
        for change_another in others:
            for other, second in change_another(parts, request.headers):
                yield other, (change, second)


def _suspected(given: UrlParts, candidates: Sequence[UrlParts]) -> _Changed:
    for candidate in candidates:
        whole = evolve(candidate, query=given.query, fragment="")
        change = (
            f"It was signed for the candidate {redact_url(str(candidate))!r}: set it as public_url, or verify with it."
        )
        yield candidate, change
        yield whole, change
        yield evolve(whole, path=candidate.path.removesuffix("/") + given.path), change


def _change_scheme(parts: UrlParts, _: Mapping[str, str]) -> _Changed:
    for other in {"http://", "https://"} - {parts.scheme.lower()}:
        change = f"The signed URL begins with {other}, not with {parts.scheme}: {_CONFIGURE_PROXY}."
        yield evolve(parts, scheme=other), change


def _change_host(parts: UrlParts, headers: Mapping[str, str]) -> _Changed:
    said = read_forwarded(headers)
    host = UrlParts.split("http://" + (*header_values(headers, "Host"), "")[0])
    sources = {
        "X-Forwarded-Host or Forwarded": (said.host or parts.host, said.port),
        "the Host header": (host.host, host.port) if host else ("", ""),
    }
    for source, (name, port) in sources.items():
        if name and (name, port) != (parts.host, parts.port):
            change = f"The signed host is {name + port!r}, as in {source}, not {parts.host + parts.port!r}"
            yield evolve(parts, host=name, port=port), f"{change}: {_CONFIGURE_PROXY}."


def _add_prefix(parts: UrlParts, headers: Mapping[str, str]) -> _Changed:
    prefix = read_forwarded(headers).prefix
    if prefix:
        change = f"The signed path begins with {prefix!r}, which a proxy removed: include it in public_url."
        yield evolve(parts, path=prefix + parts.path), change


def _change_slash(parts: UrlParts, _: Mapping[str, str]) -> _Changed:
    path = parts.path
    if path.endswith("/"):
        yield evolve(parts, path=path[:-1]), "The signed path does not end with a slash: write it without one."
    else:
        yield evolve(parts, path=path + "/"), "The signed path ends with a slash: write it with one."


def _change_path_encoding(parts: UrlParts, _: Mapping[str, str]) -> _Changed:
    for other in (unquote(parts.path), quote(parts.path, "/%:@!$&'()*+,;=~", errors="replace")):
        if other != parts.path:
            yield evolve(parts, path=other), "The signed path is percent-encoded differently: pass the raw one."


def _change_query(parts: UrlParts, _: Mapping[str, str]) -> _Changed:
    query = parts.query.removeprefix("?")
    if not query:
        return
    yield evolve(parts, query=""), "The signed URL has no query: something in between adds it."
    pieces = query.split("&")
    for order in permutations(pieces) if len(pieces) <= _MAX_PERMUTED else [sorted(pieces)]:
        if list(order) != pieces:
            change = f"The signed query is in another order: {_RAW_QUERY}."
            yield evolve(parts, query="?" + "&".join(order)), change
    pairs = parse_qsl(query, keep_blank_values=True)
    rewritten = [urlencode(pairs, errors="replace", quote_via=way) for way in (quote_plus, quote)]
    for other in (*rewritten, unquote(query), re.sub(r"=(?=&|$)", "", query)):
        if other != query:
            change = f"The signed query is encoded differently: {_RAW_QUERY}."
            yield evolve(parts, query="?" + other), change


_CHANGES: Sequence[_Change] = (
    _change_scheme,
    _change_host,
    _add_prefix,
    _change_slash,
    _change_path_encoding,
    _change_query,
)


def _request_candidates(request: SignedRequest) -> Iterator[RequestCandidate]:
    """Yield the request with another method, content type or body."""
    body = request.body
    for method, signed in {"GET": b"", "POST": body}.items():
        change = f"It was signed as a {method}: verify it as one{'' if signed else ', without a body'}."
        yield RequestCandidate(evolve(request, method=method, body=signed), (change,))
    if request.method == "GET":
        change = "Its query was signed as a form, which is not supported: choose POST for callbacks."
        form = encoded(query_of(request.url)) or b""
        yield RequestCandidate(evolve(request, method="POST", body=form), (change,))
    if header_values(request.headers, SHA256_SIGNATURE_HEADER):
        change = f"Its {SHA256_SIGNATURE_HEADER} is wrong and the weaker one right: find what changed it."
        headers = _without(request.headers, SHA256_SIGNATURE_HEADER)
        yield RequestCandidate(evolve(request, headers=headers), (change,))
    for kind in (FORM_TYPE, "application/json"):
        change = f"It was signed as {kind}: pass the request's own Content-Type, and only one."
        headers = _without(request.headers, "Content-Type") | {"Content-Type": kind}
        yield RequestCandidate(evolve(request, headers=headers), (change,))
    for raw in (body.strip(), body + b"\n", *_serialized_again(body)):
        if raw != body:
            change = f"The signed body is encoded differently: {_RAW_BODY}."
            yield RequestCandidate(evolve(request, body=raw), (change,))
    names = {name for name, _ in read_form(body) or ()}
    missing = [name for name in FIELD_NAMES if name not in names] if names else []
    for count in range(1, _MAX_BLANK_FIELDS + 1):
        for blank in combinations(missing, count):
            listed = ", ".join(blank)
            change = f"The signed form has blank fields that this one lacks ({listed}): keep blank values; {_RAW_BODY}."
            raw = body + f"&{'=&'.join(blank)}=".encode()
            yield RequestCandidate(evolve(request, body=raw), (change,))


def _without(headers: Mapping[str, str], dropped: str) -> dict[str, str]:
    return {name: value for name, value in headers.items() if str(name).lower() != dropped.lower()}


def _serialized_again(body: bytes) -> Iterator[bytes]:
    with suppress(ValueError, RecursionError):
        document = json.loads(body)
        for separators, ascii_only in product(((",", ":"), (", ", ": ")), (False, True)):
            text = json.dumps(document, separators=separators, ensure_ascii=ascii_only)
            yield text.encode("utf-8", "replace")


def _hints(request: SignedRequest, keys: Sequence[str]) -> Iterator[str]:
    """Yield likely reasons when no candidate matches; what is certain comes first."""
    if not keys:
        yield "No key was passed: pass the project's Signing Key, which begins with PSK_."
    if not any(header_values(request.headers, name) for name in _SIGNATURE_HEADERS):
        yield (
            f"No {SIGNATURE_HEADER} was received: either the platform did not send this, or a "
            "proxy removes that header."
        )
    if UrlParts.split(request.url) is None:
        yield "The URL is not absolute: pass the full URL, as 'https://host/path?query'."
    length = (*header_values(request.headers, "Content-Length"), "")[0]
    if re.fullmatch(r"[0-9]{1,15}", length) and int(length) != len(request.body):
        yield (
            f"Content-Length says {length} bytes, and the body has {len(request.body)}: something read or rewrote it. "
            "Pass the raw bytes of the request."
        )
    if any(key.startswith("PT") for key in keys):
        yield "A key looks like an API token: requests are signed with the Signing Key, which begins with PSK_."
    project = _fields(request).get("AccountSid", "")[:_MAX_SHOWN]
    if project:
        yield f"The request belongs to project {project!r}: use the Signing Key of that project."
    yield (
        "Make sure that the keys are Signing Keys (PSK_..., under API Credentials) and no API tokens, which "
        "cannot be seen from a request; after a reset pass the new key and the old one."
    )
    yield "Pass the URL that was given as StatusCallback as a candidate, so that it is tried as well."


def _fields(request: SignedRequest) -> dict[str, str]:
    if request.method == "GET":
        return dict(read_query(query_of(request.url)))
    return dict(read_form(request.body) or ()) if len(request.body) <= MAX_BODY else {}


def _shown(url: str) -> str:
    """Return a URL with the names of its query, and without its values and a password."""
    parts = UrlParts.split(url)
    if parts is None or "@" in parts.path:  # a password that is not encoded may hold a slash
        return repr(redact_url(url))
    pieces = [piece.partition("=") for piece in parts.query.removeprefix("?").split("&")]
    query = "&".join(f"{name}=***" if equals else name and "***" for name, equals, _ in pieces)
    query = parts.query and f"?{query}"
    fragment = parts.fragment and "#***"
    userinfo = parts.userinfo and "***@"
    return repr(parts.scheme + userinfo + parts.host + parts.port + parts.path + query + fragment)
