"""Reading what an error body says, in any of the platform's shapes."""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from html import escape
from json import dumps
from math import isfinite
from urllib.parse import quote, quote_plus

from attrs import frozen

from signalwire_streams.models._responses import parse_date

_REQUEST_ID = ("X-Request-Id", "X-Amzn-RequestId", "X-Correlation-Id", "CF-Ray")
_MAX_ID = 128


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Read how long the Space asks to wait.

    ``retry-after-ms`` in milliseconds; ``Retry-After`` in seconds, whole or with a fraction, or as an HTTP date
    measured against the response's own ``Date``, so that a wrong clock here does no harm. Of several the longest.

    Returns:
        Seconds, at least 0, or None where nothing readable is said.
    """
    now = parse_date(headers.get("Date")) or datetime.now(UTC)
    milliseconds = _seconds(headers.get("retry-after-ms"))
    waits = [_wait(text, now) for name, text in headers.items() if name.lower() == "retry-after"]
    waits.append(None if milliseconds is None else milliseconds / 1000)
    return max((wait for wait in waits if wait is not None), default=None)


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
    """Read the Space's own id of the answer, for its support."""
    for name in _REQUEST_ID:
        value = headers.get(name)
        if value and value.isprintable():
            return value[:_MAX_ID]
    return None


TOO_MANY_REQUESTS = 20429
"""Source: https://signalwire.com/docs/compatibility-api/rest/error-codes"""

NOT_IN_PROGRESS = 21220
"""The call or conference is not in a state to stream. Source: as above"""

_MAX_TEXT = 300
_MAX_READ = 2048  # characters of a text in which secrets are looked for
_LONGEST_CHARACTER = 12  # characters that one may take when it is encoded: "%F0%9F%98%80"
_MAX_SENTENCES = 20
_SHORT = 3
_BEGINNING = 12
_MAX_DIGITS = 9
_FIRST_CODE = 10_000

# How the duplicate of a name is worded over HTTP is not documented; the callback says "Duplicated stream name".
_DUPLICATE_NAME = re.compile(
    r"duplicate\w*\s+(stream\s+)?name|(?<!parameter )\bname\b.{0,40}\b(already|taken|in use|unique)", re.IGNORECASE
)
_ALREADY_STOPPED = re.compile(
    r"\balready\b.{0,20}\b(stopped|ended|completed)|\bnot (running|in.progress)", re.IGNORECASE
)

_TARGET = re.compile(r"\b(call|conference)\b", re.IGNORECASE)
_STREAM = re.compile(r"\bstream\b", re.IGNORECASE)


@frozen
class Problem:
    """What an error body says.

    Attributes:
        sentences: the messages as they came; `presentable` makes them fit to be shown.
        code: the platform's error code.
        more_info: the address of the platform's page about the code, as it came.
        is_api: whether the body has the documented shape with a code of the platform, and is not a gateway's.
    """

    sentences: tuple[str, ...] = ()
    code: int | None = None
    more_info: str | None = None
    is_api: bool = False

    @property
    def says_duplicate_name(self) -> bool:
        """Whether it refuses a start because a stream of that name is there already."""
        return any(_DUPLICATE_NAME.search(sentence) for sentence in self.sentences)

    @property
    def says_already_stopped(self) -> bool:
        """Whether it refuses a stop because there is nothing left to stop."""
        return any(_ALREADY_STOPPED.search(sentence) for sentence in self.sentences)

    @property
    def says_target_ended(self) -> bool:
        """Whether it refuses a stop because the call or conference is not in progress, so that no stream of it runs."""
        said = " ".join(self.sentences)
        if self.code == NOT_IN_PROGRESS:
            return bool(_TARGET.search(said)) or not _STREAM.search(said)
        return self.says_already_stopped and bool(_TARGET.search(said)) and not _STREAM.search(said)


def read_problem(document: object) -> Problem:
    """Read an error body.

    The shapes: ``{code, message, more_info, status}``; ``{errors: [str]}`` (422 of conference streams);
    ``{errors: [{code, message}]}`` (elsewhere on the platform). Anything else gives an empty problem.

    Args:
        document: the decoded JSON, or None.
    """
    if not isinstance(document, dict):
        return Problem()
    sentences: list[str] = []
    code = _number(document.get("code"))
    errors = document.get("errors")
    for entry in errors if isinstance(errors, list) else ():
        if isinstance(entry, str):
            sentences.append(entry)
        elif isinstance(entry, dict):
            code = _number(entry.get("code")) if code is None else code
            sentences += [text for text in (entry.get("message"), entry.get("detail")) if isinstance(text, str)][:1]
    message, more_info = document.get("message"), document.get("more_info")
    said = [message] if isinstance(message, str) else []
    sentences = [sentence for sentence in sentences if sentence.strip()]
    return Problem(
        sentences=tuple(sentence for sentence in [*said, *sentences] if sentence.strip())[:_MAX_SENTENCES],
        code=code,
        more_info=more_info if isinstance(more_info, str) else None,
        is_api=_is_documented(document),
    )


def _is_documented(document: Mapping[str, object]) -> bool:
    # A gateway's own JSON may have a code and a message too, and says nothing of what the Space did.
    code = _number(document.get("code"))
    if code is None or code < _FIRST_CODE or not isinstance(document.get("message"), str):
        return False
    return bool(document.keys() & {"more_info", "status"})


def _number(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and isinstance(value, int) and 0 <= value < 10**_MAX_DIGITS else None


def redact(text: str, secrets: Iterable[str]) -> str:
    """Make foreign text fit to be shown: no secret, no line break, no control character, not endless.

    Secrets go first, since cutting the text could leave half of one, and in every spelling that an answer may
    use. A secret of three characters or fewer is replaced only where it stands as a word of its own, since it
    would otherwise tear other words apart.
    """
    hidden = tuple(secrets)
    # Long enough to find a secret whole that begins in the part that may be shown.
    text = text[: _MAX_READ + _LONGEST_CHARACTER * max(map(len, hidden), default=0)]
    folded = _fold(text)
    spans = sorted(span for secret in hidden for span in _find(secret, text, folded))
    kept, end = [], 0
    for start, stop in spans:
        if end <= start < _MAX_READ:
            kept += [text[end:start], "***"]
        end = max(end, stop) if start < _MAX_READ else end
    kept.append(text[end:_MAX_READ])
    flat = " ".join("".join(character if character.isprintable() else " " for character in "".join(kept)).split())
    return flat if len(flat) <= _MAX_TEXT else flat[: _MAX_TEXT - 1] + "…"


def _find(secret: str, text: str, folded: str) -> Iterator[tuple[int, int]]:
    """Return where a secret stands in a text, in any spelling and case."""
    # Secrets may be many and large, and hardly any is in the text. No spelling is shorter than the secret itself, and
    # each begins with a spelling of the secret's beginning.
    if not secret.strip() or len(secret) > len(text):
        return
    if not any(spelling in folded for spelling in _spellings(secret[:_BEGINNING])):
        return
    for spelling in _spellings(secret):
        start = folded.find(spelling)
        while 0 <= start < _MAX_READ:  # no more is shown
            stop = start + len(spelling)
            if len(secret) > _SHORT or not (_is_word(text[start - 1 : start]) or _is_word(text[stop : stop + 1])):
                yield start, stop
            start = folded.find(spelling, start + 1)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _fold(text: str) -> str:
    """Return a text in which upper and lower case are the same, character by character."""
    if text.isascii():
        return text.lower()
    # Some have two lower cases, and some change their length.
    return "".join(character.lower()[0].upper()[0].lower()[0] for character in text)


def _spellings(secret: str) -> set[str]:
    return {
        _fold(spelling)
        for spelling in {
            secret,
            quote_plus(secret, errors="replace"),
            quote(secret, safe="", errors="replace"),
            quote(secret, errors="replace"),
            escape(secret),
            escape(secret).replace("&#x27;", "&#39;"),
            dumps(secret)[1:-1],
            dumps(secret)[1:-1].replace("/", "\\/"),
        }
    }
