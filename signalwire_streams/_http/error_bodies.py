"""Parsing of error bodies in all of the platform's shapes and of their headers; redaction of untrusted text."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from json import dumps
from math import isfinite
from unicodedata import combining, normalize
from urllib.parse import quote, quote_plus

from attrs import frozen

from signalwire_streams.models._responses import parse_date

_REQUEST_ID = ("X-Request-Id", "X-Amzn-RequestId", "X-Correlation-Id", "CF-Ray")
_MAX_ID = 128
_YEAR = 366 * 24 * 3600


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds the Space asks to wait, or None.

    ``retry-after-ms`` in milliseconds; ``Retry-After`` in seconds, whole or with a fraction, or as an HTTP date
    measured against the response's own ``Date``, so that a wrong clock here does no harm. The longest one counts if
    there are several. More than a year is not believed: it is a Unix time, for example, and would stop all requests
    for good.
    """
    now = parse_date(headers.get("Date")) or datetime.now(UTC)
    milliseconds = _seconds(headers.get("retry-after-ms"))
    waits = [_wait(text, now) for name, text in headers.items() if name.lower() == "retry-after"]
    waits.append(None if milliseconds is None else milliseconds / 1000)
    return max((wait for wait in waits if wait is not None and wait <= _YEAR), default=None)


def _wait(text: str, now: datetime) -> float | None:
    seconds = _seconds(text)
    if seconds is not None:
        return seconds
    until = parse_date(text)
    return None if until is None else max(0.0, (until - now).total_seconds())


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if isfinite(seconds) and seconds >= 0 else None


def request_id(headers: Mapping[str, str]) -> str | None:
    for name in _REQUEST_ID:
        value = headers.get(name)
        if value and value.isprintable():
            return value[:_MAX_ID]
    return None


TOO_MANY_REQUESTS_CODE = 20429
"""Source: https://signalwire.com/docs/compatibility-api/rest/error-codes"""

NOT_IN_PROGRESS = 21220
"""The call or conference is not in a state to stream. Source: as above"""

_LETTERS, _UNSEEN = re.compile(r"\s*([0-9A-Za-z]+)"), re.compile("[^!-~]")
_MAX_TEXT = 300
_MAX_READ = 2048  # characters of a text in which secrets are looked for
_LONGEST_CHARACTER = 12  # characters that one may take when it is encoded: "%F0%9F%98%80"
_MAX_SENTENCES = 20
_SHORT = 3
_PREFIX, _LONG_PREFIX = 8, 16
_BEGINNING = 24  # characters whose normal form has the letters of a prefix: a Korean syllable may take three
_MAX_DIGITS = 9
_DIGITS = re.compile(f"[0-9]{{1,{_MAX_DIGITS}}}")
_FIRST_CODE = 10_000
_BAD_REQUEST, _UNPROCESSABLE, _NO_STATUS = 400, 422, 600

# The HTTP wording of a duplicate is not documented; the callback says "Duplicated stream name". The name of a
# parameter, a codec or a project may be rejected in the same words, so the noun before "name" counts.
_DUPLICATE_NAME = re.compile(
    r"""
    duplicate\w*\s+(?:stream\s+)?name
    | (?:^ | [:;,.(]\s* | \b(?:the|this|that|its|same|a|with|by|of|stream(?:'s|s)?)\s+ | \bstream[_ ]?)
      ["'`]?name["'`]? (?!\s+of\b(?!\s+(?:the|this|that|a)\s+stream))
      \b .{0,40} \b(?: taken | (?<!not\s)in\suse | unique | already\s(?:exists?|running|used|active|registered|started))
    """,
    re.IGNORECASE | re.VERBOSE,
)
_OTHER_NAME = re.compile(r"\bparameters?\W{0,2}\d|\bparameter name\b", re.IGNORECASE)
_ALREADY_STOPPED = re.compile(
    r"\balready\b.{0,20}\b(stopped|ended|completed)|\bnot (running|in.progress)", re.IGNORECASE
)
_NOT_RUNNING = re.compile(r"^not\b|\b(streams?|calls?|conferences?|it)\b.{0,60}\bnot\b|\balready\b", re.IGNORECASE)
_FOR_NOW = re.compile(
    r"\b(yet|later|try again|again in|retry|temporar\w*|queued|pending|starting|initiali[sz]ing|not (been )?started)\b",
    re.IGNORECASE,
)

_TARGET = re.compile(r"\b(call|conference)\b", re.IGNORECASE)
_STREAM = re.compile(r"\bstream\b", re.IGNORECASE)


@frozen
class Problem:
    """A parsed error body.

    Attributes:
        sentences: the messages as received; `redact` makes them safe to show.
        code: the platform's error code.
        more_info: the URL of the platform's page about the code, as received.
        is_api: whether the body has the documented shape with a code of the platform, and is not a gateway's.
        status: the HTTP status of the error, as the API's own body has it.
    """

    sentences: tuple[str, ...] = ()
    code: int | None = None
    more_info: str | None = None
    is_api: bool = False
    status: int | None = None

    @property
    def is_of_platform(self) -> bool:
        return self.status is not None or (self.code or 0) >= _FIRST_CODE

    @property
    def says_duplicate_name(self) -> bool:
        return any(_DUPLICATE_NAME.search(sentence) and not _OTHER_NAME.search(sentence) for sentence in self.sentences)

    @property
    def says_already_stopped(self) -> bool:
        return not self._is_for_now and any(
            _ALREADY_STOPPED.search(sentence) and _NOT_RUNNING.search(sentence) for sentence in self.sentences
        )

    @property
    def says_target_ended(self) -> bool:
        """Whether it rejects a stop because the call or conference is not in progress, and so no stream of it runs."""
        said = " ".join(self.sentences)
        if self.code == NOT_IN_PROGRESS:
            return not self._is_for_now and bool(_TARGET.search(said) or not _STREAM.search(said))
        return self.says_already_stopped and bool(_TARGET.search(said)) and not _STREAM.search(said)

    @property
    def _is_for_now(self) -> bool:
        return any(_FOR_NOW.search(sentence) for sentence in self.sentences)


def read_problem(document: object) -> Problem:
    """Parse an error body.

    The shapes: ``{code, message, more_info, status}``; ``{errors: [str]}`` (422 of conference streams);
    ``{errors: [{code, message}]}`` (elsewhere on the platform). Anything else is an empty problem.
    """
    if not isinstance(document, dict):
        return Problem()
    errors = document.get("errors")
    errors = errors if isinstance(errors, list) else []
    entries = [error if isinstance(error, dict) else {"message": error} for error in errors]
    listed = [sentence for entry in entries for sentence in _texts(entry, "message", "detail")[:1] if sentence.strip()]
    codes = [_number(each.get("code")) for each in (document, *entries)]
    said = _texts(document, "message")
    # A gateway's own JSON may have a code and a message too, but says nothing about the Space.
    is_api = bool(said and (codes[0] or 0) >= _FIRST_CODE and document.keys() & {"more_info", "status"})
    status = _number(document.get("status")) or _BAD_REQUEST
    if not _BAD_REQUEST <= status < _NO_STATUS:
        status = _BAD_REQUEST
    return Problem(
        sentences=tuple(sentence for sentence in (*said, *listed) if sentence.strip())[:_MAX_SENTENCES],
        code=next((code for code in codes if code is not None), None),
        more_info=next(iter(_texts(document, "more_info")), None),
        is_api=is_api,
        # A list of errors has no status; the API sends it with a 422.
        status=status if is_api else _UNPROCESSABLE if listed else None,
    )


def _texts(document: Mapping[str, object], *keys: str) -> list[str]:
    return [text for text in map(document.get, keys) if isinstance(text, str)]


def _number(value: object) -> int | None:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    return value if type(value) is int and 0 <= value < 10**_MAX_DIGITS else None


def redact(text: str, secrets: Iterable[str]) -> str:
    """Make a peer's text safe to show: no secret, no line break, no control character, at most 300 characters.

    Secrets are replaced first, since truncating the text could leave half of one, and in every encoding that a response
    may use. A response may also trim a secret, wrap or truncate it, so white space does not count, and eight or more
    characters of its beginning are hidden as well. A secret of three characters or fewer is replaced only where it
    stands as a word of its own, since it would otherwise tear other words apart.
    """
    hidden = {secret[:_MAX_READ] for secret in secrets}
    # Long enough to find a secret whole that begins in the part that may be shown.
    text = text[: _MAX_READ + _LONGEST_CHARACTER * max(map(len, hidden), default=0)]
    kept, end = [], 0
    for start, stop in _find(hidden, text):
        if end <= start:
            kept += [text[end:start], "***"]
        end = max(end, stop)
    kept.append(text[end:_MAX_READ])
    flat = " ".join("".join(character if character.isprintable() else " " for character in "".join(kept)).split())
    return flat if len(flat) <= _MAX_TEXT else flat[: _MAX_TEXT - 1] + "…"


def _find(secrets: Iterable[str], text: str) -> Iterator[tuple[int, int]]:
    """Return where secrets, or long beginnings of them, stand in the part of a text that may be shown, in order.

    A part that ends within one that was returned before is left out: of many secrets that begin alike, in a text that
    repeats their beginning, each character is compared once.
    """
    folded = _fold(text)
    only_words: dict[str, bool] = {}
    for secret in secrets:
        # Secrets may be many and large, and hardly any is in the text; each variant has plain letters as they are.
        letters = _LETTERS.match(normalize("NFC", secret))
        beginnings = _variants(_beginning(secret)) if letters is None else {letters[1].lower()}
        if not any(beginning[:_PREFIX] in folded for beginning in beginnings):
            continue
        bare = _fold(secret)
        is_trimmed = len(bare) <= _SHORT and secret.casefold() not in text.casefold()
        for variant in _variants(secret):
            only_word = len(secret) <= _SHORT or (is_trimmed and variant == bare)
            only_words[variant] = only_word and only_words.get(variant, True)
    groups: dict[str, list[str]] = {}
    for variant in sorted(only_words):
        groups.setdefault(variant[:_PREFIX], []).append(variant)
    places = [place for letters, place in _clusters(text) for _ in letters] if groups else []
    starts = sorted(
        (found.start(), beginning)
        for beginning in groups
        for found in re.finditer(f"(?={re.escape(beginning)})", folded)
        if places[found.start()][0] < _MAX_READ
    )
    end = 0
    for start, beginning in starts:
        group, index = groups[beginning], 0
        while True:
            wanted = folded[start : max(end + 1, start + len(beginning))]
            index = bisect_left(group, wanted, index)
            if index == len(group) or not group[index].startswith(wanted):
                break
            variant, index = group[index], index + 1
            stop = start + _common_length(variant, folded, start, len(wanted))
            first, last = places[start][0], places[stop - 1][1]
            in_word = _is_word(text[last : last + 1])
            if only_words[variant]:
                is_secret = not (in_word or _is_word(text[first - 1 : first]))
            else:
                length = stop - start
                is_secret = length == len(variant) or length >= _LONG_PREFIX or not in_word
            if is_secret:
                yield first, last
                end = stop


def _common_length(variant: str, folded: str, start: int, known: int) -> int:
    """Return how many characters agree, of which the first *known* do."""
    if folded.startswith(variant, start):
        return len(variant)
    return next(at for at in range(known, len(variant)) if folded[start + at : start + at + 1] != variant[at])


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _beginning(secret: str) -> str:
    """Return a part of a secret that is long enough for the first `_PREFIX` letters of each of its variants."""
    clusters = list(islice(_clusters(secret), _BEGINNING))
    return secret[: clusters[-1][1][1]] if clusters else secret


def _fold(text: str) -> str:
    """Return a text without white space, case and ways to write an accent."""
    if text.isascii():
        return _UNSEEN.sub("", text).lower()
    if not any(map(combining, text)):
        return "".join(map(_letters, text))
    return "".join(letters for letters, _ in _clusters(text))


def _clusters(text: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Return the folded letters of each visible character, and where that is in the text."""
    start = 0
    while start < len(text):
        stop = start + 1
        while stop < len(text) and combining(text[stop]):
            stop += 1
        letters = _letters(text[start]) if stop == start + 1 else _fold_cluster(text[start:stop])
        if letters:
            yield letters, (start, stop)
        start = stop


def _fold_cluster(cluster: str) -> str:
    cluster = normalize("NFC", cluster)
    if cluster.isspace() or not cluster.isprintable():
        return ""
    # The upper case first, since some letters of different alphabets share it.
    letters = cluster.upper().casefold()
    return "".join(letter for letter in letters if not combining(letter)) or letters


_letters = lru_cache(maxsize=4096)(_fold_cluster)  # of single characters, which tell nothing of a secret


def _variants(secret: str) -> set[str]:
    from html import escape  # noqa: PLC0415  (its table of entities is slow to import, and hardly ever needed)

    lines = secret.replace("\r\n", "\n")
    spelled = {
        variant
        for text in {secret, normalize("NFC", secret), " ".join(secret.split()), lines.replace("\n", "\r\n")}
        for variant in (
            text,
            quote_plus(text, errors="replace"),
            quote(text, safe="", errors="replace"),
            quote(text, errors="replace"),
            escape(text),
            escape(text).replace("&#x27;", "&#39;"),
            dumps(text)[1:-1],
            dumps(text)[1:-1].replace("/", "\\/"),
        )
    }
    return {_fold(variant) for variant in spelled} - {""}
