"""Forms and headers, read the one way that both the signature and the events rely on."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias
from urllib.parse import parse_qsl

from signalwire_streams.errors import InvalidRequestError

Pairs: TypeAlias = tuple[tuple[str, str], ...]
Fields: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""Names and values of a form; pairs where a name may come more than once."""

_MOST_FIELDS = 1_000
_WANTED = "fields must be a mapping of str to str, or pairs of them: write parse_qsl(text, keep_blank_values=True)"

# What no encoder of forms leaves as it is. JSON always has some of it, so that no body is both a form and JSON.
_NO_FORM = re.compile(rb"[^!$%&'()*+,\-./0-9:;=?@A-Z_a-z~]|%(?![0-9A-Fa-f]{2})")


def read_form(body: bytes) -> Pairs | None:
    """Read a form's fields in the order in which they came, blank values kept.

    Args:
        body: the raw body.

    Returns:
        The pairs, or None where the body can't be a form: raw blanks, quotes, braces or bytes beyond ASCII,
        wrong escapes, text that is not UTF-8, a field without a name, more than 1,000 fields.
    """
    if _NO_FORM.search(body):
        return None
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        return None
    return tuple(pairs) if all(name for name, _ in pairs) else None


def read_query(query: str) -> Pairs:
    """Read a query's fields; a query may hold what the caller's own address brings, so anything can be read."""
    return tuple(parse_qsl(query, keep_blank_values=True))


def as_pairs(fields: object) -> Pairs:
    """Give a form's names and values as pairs.

    Raises:
        InvalidRequestError: they are not all of type str, or not pairs.
    """
    items = fields.items() if isinstance(fields, Mapping) else fields
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise InvalidRequestError(_WANTED)
    pairs = tuple(items)
    if not all(_is_pair(pair) for pair in pairs):
        raise InvalidRequestError(_WANTED)
    return tuple((name, value) for name, value in pairs)


def header_values(headers: Mapping[str, object], name: str) -> tuple[str, ...]:
    """Give a header's values, one for each time it came; a name's letters may be of either case.

    Blanks around a value go, since they are no part of it in HTTP; what is no str counts as an empty one.
    """
    wanted = name.lower()
    found = [value for key, value in headers.items() if str(key).lower() == wanted]
    return tuple(value.strip(" \t") if isinstance(value, str) else "" for value in found)


def _is_pair(pair: object) -> bool:
    return isinstance(pair, tuple | list) and len(pair) == len(("name", "value")) and all(map(_is_text, pair))


def _is_text(text: object) -> bool:
    return isinstance(text, str)
