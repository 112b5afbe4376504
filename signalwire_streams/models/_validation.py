"""Validation of arguments: each message says what to write instead.

Every check raises `InvalidRequestError` before anything is sent. Messages never repeat a query string, a
user and password in a URL, a parameter's value or a token.
"""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import cache, lru_cache, wraps
from itertools import zip_longest
from typing import Any, ParamSpec, SupportsIndex, TypeVar, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import Attribute, fields, frozen

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._enums import Codec
from signalwire_streams.models._fast import fast_init

MAX_PARAMETERS = 99
"""``Parameter1`` to ``Parameter99``. Source: https://signalwire.com/docs/compatibility-api/rest/streams"""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_MAY_HOLD_SECRET = re.compile("[?#@]")
_HANDLE = re.compile(r"[^\s/\\?#%]+")
_PLAIN = re.compile(r"[0-9A-Za-z_-]+")
CODEC_NAMES = tuple(dict.fromkeys([*(codec.partition("@")[0] for codec in Codec), "G722"]))
_CODEC = re.compile(rf"({'|'.join(CODEC_NAMES)})(@(?P<rate>[1-9][0-9]{{0,5}})h)?(@(?P<packet>[1-9][0-9]{{0,3}})i)?")
_CODECS = frozenset(codec.value for codec in Codec)
_RATES, _PACKET_TIMES = (8_000, 192_000), (5, 500)
_YEAR = 366 * 24 * 3600

needs_no_escaping = _PLAIN.fullmatch
"""Matches a string that needs no encoding in a URL or a form, like nearly all sids and names."""


def redact_url(url: str) -> str:
    """Return the part of a URL that may be shown: no query, no fragment, no user and password.

    Everything up to the last ``@`` goes, even if it may belong to the path or the query: a password that was not
    encoded can hold anything.
    """
    before, at, rest = url.rpartition("@")
    scheme, separator, _ = before.partition("://")
    start = scheme + separator if at and separator and _SCHEME.fullmatch(scheme) else ""
    return start + re.split(r"[?#]", rest)[0]


def secrets_in(url: str) -> tuple[str, ...]:
    """Return the parts of a URL that may not be shown: its query, and its user with password."""
    before, _, query = url.partition("?")
    userinfo = before.partition("://")[2].rpartition("@")[0]
    values, password = [value for _, value in parse_qsl(query)], userinfo.partition(":")[2]
    parts = (query, *values, userinfo, password, unquote(userinfo), unquote(password))
    return tuple(dict.fromkeys(part for part in parts if part))


SECRET = "secret"  # noqa: S105  (the key of a mark, not a secret)
"""Metadata key: True if the value is never shown or stored, ``"partly"`` if only `redact_url` of it is."""


def secrets_of(request: object) -> tuple[str, ...]:
    """Return the secret values of a request, and the private parts of its URLs."""
    found: tuple[str, ...] = ()
    for name, mark in _secret_fields(type(request)):  # type: ignore[arg-type]  # mypy: no class is hashable
        value = getattr(request, name)
        if not value:
            continue
        if isinstance(value, dict):
            found += tuple(value.values())
        elif isinstance(value, str):
            found += (value,) if mark is True else secrets_in(value)
    return found


@cache
def _secret_fields(model: type[Any]) -> list[tuple[str, object]]:
    return [(each.name, each.metadata[SECRET]) for each in fields(model) if SECRET in each.metadata]


def is_path_segment(value: str) -> bool:
    """Return True if a text can be one segment of a URL path."""
    return bool(
        needs_no_escaping(value)
        or (_HANDLE.fullmatch(value) and value.isprintable() and ".." not in value and value != ".")
    )


def check_path_segment(value: object, what: str) -> str:
    """Check a sid or a stream's name, which becomes one segment of a URL path, and return it."""
    if not isinstance(value, str):
        raise InvalidRequestError(f"{what} must be a str, not {kind_of(value)}")
    if needs_no_escaping(value):
        return value
    if not value:
        raise InvalidRequestError(f"{what} is empty: write the one that the API or your dashboard shows")
    if not is_path_segment(value):
        raise InvalidRequestError(
            f"{what} {value!r} can't be part of a path: write it without whitespace, '/', '\\', '?', '#', '%', '..'"
        )
    return value


def check_text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{what} must be a str, not {kind_of(value)}")
    if not is_encodable(value):
        raise InvalidRequestError(f"{what} contains a lone surrogate: pass text that can be encoded as UTF-8")
    return value


def validate_stream_url(_: object, __: "Attribute[Any]", value: object) -> None:
    """Check ``Url``: wss only and without a query string.

    Source: https://signalwire.com/docs/compatibility-api/rest/streams ("The only supported protocol is wss")
    """
    _check_stream_url(_text(value, "url", "the wss:// address of your WebSocket server"))


# One URL serves thousands of starts, and what is accepted holds no secret.
@lru_cache(maxsize=256)
def _check_stream_url(url: str) -> None:
    shown = redact_url(url)
    if any(character.isspace() or not character.isprintable() for character in url):
        raise InvalidRequestError(f"url {shown!r} contains whitespace or control characters: percent-encode them")
    if "?" in url:
        raise InvalidRequestError(
            f"url {shown!r} has a query string, which SignalWire rejects: pass the values as parameters={{...}}"
        )
    if "#" in url:
        raise InvalidRequestError(f"url {shown!r} has a fragment: remove the '#' and everything after it")
    if url.startswith("//"):
        raise InvalidRequestError(f"url has no scheme: write 'wss://{shown.lstrip('/') or 'host/path'}'")
    if url.startswith("/"):  # "Absolute or relative URL" says the API; what it is relative to, it does not
        return
    scheme = _scheme_of(url)
    if scheme is None:
        bare = re.sub(r"^(https?|wss?):|^[A-Za-z]+:(?=/)", "", shown, flags=re.IGNORECASE).lstrip("/") or "host/path"
        raise InvalidRequestError(f"url {shown!r} does not start with a scheme and '://': write 'wss://{bare}'")
    if scheme.lower() != "wss":
        bare = shown.partition("://")[2]
        raise InvalidRequestError(f"url starts with {scheme}://, but SignalWire accepts wss only: write 'wss://{bare}'")
    _check_host(url, shown)


def _scheme_of(url: str) -> str | None:
    scheme, separator, _ = url.partition("://")
    return scheme if separator and _SCHEME.fullmatch(scheme) else None


def _check_host(url: str, shown: str) -> None:
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise InvalidRequestError(
            f"url {shown!r} contains a user name and password: pass authorization_bearer_token=... instead"
        )
    if not _has_host(url):
        raise InvalidRequestError("url has no host, or an invalid port: write it as 'wss://host:443/path'")


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def validate_callback_url(_: object, __: "Attribute[Any]", value: object) -> None:
    """Check ``StatusCallback``: an absolute http or https URL."""
    url = _text(value, "status_callback", "the https:// address that receives status callbacks")
    good = url.lower().startswith(("http://", "https://")) and _has_host(url) and url.isprintable()
    if not good or " " in url:
        raise InvalidRequestError(
            f"status_callback {redact_url(url)!r} is not an http(s) URL: write it as 'https://host/path'"
        )


def check_parameters(value: Mapping[str, str]) -> Mapping[str, str]:
    """Check the custom parameters: at most 99, names not empty, names and values of type str."""
    if not isinstance(value, dict | Mapping):  # nearly all are dicts, and that check is faster
        raise InvalidRequestError(f"parameters must be a mapping of names to values, not {kind_of(value)}")
    if len(value) > MAX_PARAMETERS:
        raise InvalidRequestError(
            f"{len(value)} parameters are too many: SignalWire accepts {MAX_PARAMETERS}; combine some into one value"
        )
    for name, text in value.items():
        if not isinstance(name, str):
            raise InvalidRequestError(f"a parameter's name is of type {type(name).__name__}: write it as a str")
        if not name.strip():
            raise InvalidRequestError("a parameter has an empty name: give each value its own name")
        if not isinstance(text, str):
            raise InvalidRequestError(f"parameter {name!r} is of type {kind_of(text)}: write its value as a str")
        if not is_encodable(name + text):
            raise InvalidRequestError("a parameter contains a lone surrogate: pass text that can be encoded as UTF-8")
    return dict(value)


def is_encodable(text: str) -> bool:
    """Return False if a text contains a lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def validate_bearer_token(_: object, __: "Attribute[Any]", value: object) -> None:
    """Check the bearer token: it becomes a header of the WebSocket upgrade, so visible ASCII only."""
    if isinstance(value, HidesSecrets):  # SignedTokens
        return
    if not isinstance(value, str):
        raise InvalidRequestError(f"authorization_bearer_token must be a str or SignedTokens, not {kind_of(value)}")
    token = _text(value, "authorization_bearer_token", "the token that your WebSocket server expects")
    if not all("!" <= character <= "~" for character in token):
        raise InvalidRequestError(
            "authorization_bearer_token contains whitespace or non-ASCII characters: write the bare "
            "token, without 'Bearer'"
        )


def check_flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{what} must be True or False, not {value!r}")
    return value


def check_deadline(value: object) -> float | None:
    return None if value is None else check_seconds(value, "deadline")


def check_seconds(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _YEAR:
        raise InvalidRequestError(f"{what} must be a number of seconds above 0, and at most a year")
    return value


def check_patience(value: object, what: str) -> float:
    """Return a number of seconds, which may be 0."""
    if value == 0 and not isinstance(value, bool):
        return 0
    try:
        return check_seconds(value, what)
    except InvalidRequestError:
        raise InvalidRequestError(f"{what} must be a number of seconds, 0 or more, and at most a year") from None


def check_awaitable(value: object, expected: str) -> Awaitable[object]:
    """Check that a user's handler returned something to await, and return it; *expected* is how to write it."""
    if not inspect.isawaitable(value):
        raise InvalidRequestError(f"the handler returned {a_kind_of(value)}, which can't be awaited: write {expected}")
    return value


def check_count(value: object, what: str, *, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidRequestError(f"{what} must be a whole number of {least} or more, not {value!r}")
    return value


def check_kind(value: object, kind: type, what: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise InvalidRequestError(f"{what} must be a {kind.__name__}, not {kind_of(value)}")


def check_waits(policy: object, family: str) -> None:
    """Check that the first wait of a backoff is at most the longest one."""
    first, longest = getattr(policy, f"{family}_initial"), getattr(policy, f"{family}_max")
    if first > longest:
        raise InvalidRequestError(
            f"{family}_initial must be at most {family}_max, which is {longest!r}, not {first!r}: pass both"
        )


def names_only(values: Mapping[str, object]) -> str:
    """Return the repr of a mapping whose values may be secret."""
    return "{" + ", ".join(f"{name!r}: ***" for name in values) + "}"


def check_codec(value: Codec | str) -> Codec | str:
    """Return a `Codec`, or a text with a sample rate or packet time unchanged."""
    if isinstance(value, str):
        text = str(value)
        if text in _CODECS:
            return Codec(text)
        found = _CODEC.fullmatch(text)
        if found and _is_within(found["rate"], *_RATES) and _is_within(found["packet"], *_PACKET_TIMES):
            return text
    documented = ", ".join(repr(codec.value) for codec in Codec)
    raise InvalidRequestError(
        f"codec {value!r} is unknown: write one of {documented}, or {', '.join(CODEC_NAMES)} with a sample rate "
        f"({_RATES[0]} to {_RATES[1]}) and a packet time ({_PACKET_TIMES[0]} to {_PACKET_TIMES[1]} ms) if wanted, "
        "as in 'PCMU@40i' or 'L16@24000h@40i'"
    )


def _is_within(digits: str | None, least: int, most: int) -> bool:
    return digits is None or least <= int(digits) <= most


def _text(value: object, what: str, wanted: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{what} must be a str, not {kind_of(value)}")
    if not value.strip():
        raise InvalidRequestError(f"{what} is empty: write {wanted}")
    return value


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Model = TypeVar("_Model")
_MASK = "***"
_mark_coroutine_function: Callable[[object], object] = getattr(
    inspect, "markcoroutinefunction", lambda function: function
)


class Secret(str):
    """A string with a ``repr`` that hides it. Otherwise it behaves like the plain string."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _MASK

    def __getitem__(self, index: SupportsIndex | slice) -> str:
        return Secret(super().__getitem__(index))  # what shortens a long value shows a part of it


class HidesSecrets:
    """Base of objects that hold secrets and show none of them, so that they need no mask."""

    __slots__ = ()


@frozen
class Unusable:
    """Replaces a value of a wrong type, which may contain a secret: the checks need only its type."""

    kind: str


def kind_of(value: object) -> str:
    """Return the name of a value's type before it was masked, for messages."""
    if isinstance(value, Unusable):
        return value.kind
    return "str" if isinstance(value, Secret) else type(value).__name__


def a_kind_of(value: object) -> str:
    """Return the same with its article, such as ``an int``."""
    kind = kind_of(value)
    return f"{'an' if kind[0] in 'aeioAEIO' else 'a'} {kind}"


def mask(value: object) -> object:
    """Return the value with a ``repr`` that hides it; a mapping keeps the names of its values."""
    if value is None or isinstance(value, Secret | Unusable | HidesSecrets):
        return value
    if isinstance(value, str):
        return Secret(value)
    if isinstance(value, Mapping):
        return {name: mask(text) for name, text in value.items()}
    return Unusable(type(value).__name__)


def mask_each(value: object) -> object:
    """Mask the values of a list; a value that is not a list is masked as a whole."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return mask(value)
    return tuple(map(mask, value))


def _mask_url(value: object) -> object:
    """Mask an address that has a query, a fragment, a user or a password."""
    return value if isinstance(value, str) and not _MAY_HOLD_SECRET.search(value) else mask(value)


def _mask_journal(value: object) -> object:
    """Mask the URL of a journal that is no file."""
    return _mask_url(value) if isinstance(value, str) and "://" in value else value


def _mask_project(value: object) -> object:
    """Mask a Project ID with text after a colon, where the token would be."""
    return value if isinstance(value, str) and ":" not in value else mask(value)


class HiddenItems:
    """The items of a mapping, which may be a multidict, in an object whose ``repr`` hides them."""

    __slots__ = ("items",)

    def __init__(self, mapping: Mapping[str, object]) -> None:
        self.items = mapping.items


def _hide_items(value: object) -> object:
    return HiddenItems(value) if isinstance(value, Mapping) else mask(value)


def _mask_template(value: object) -> object:
    return value if callable(value) or isinstance(value, HiddenItems) else _hide_items(value)


_MASKED_ARGUMENTS: Mapping[str, Callable[[object], object]] = {
    "authorization_bearer_token": mask,
    "candidates": mask_each,
    "environment": mask,
    "headers": _hide_items,
    "key": mask,
    "keys": mask_each,
    "parameters": mask,
    "token": mask,
    "base_url": _mask_url,
    "journal": _mask_journal,
    "project": _mask_project,
    "public_url": _mask_url,
    "space": _mask_url,
    "status_callback": _mask_url,
    "template": _mask_template,
    "url": _mask_url,
}


def _unchanged(value: object) -> object:
    return value


def masks_secrets(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate a function whose arguments may be secrets: its own frame gets them masked, by their names.

    An argument that it does not take is masked too, since the secret may be the one with the wrong name or place.
    """
    parameters = inspect.signature(function).parameters.values()
    by_position = [
        _MASKED_ARGUMENTS.get(parameter.name, _unchanged)
        for parameter in parameters
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    plain_positions = 0 if any(hide is not _unchanged for hide in by_position) else len(by_position)
    plain_names = {parameter.name for parameter in parameters} - _MASKED_ARGUMENTS.keys()
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:  # Unpack[...] of a TypedDict
            [options] = get_args(parameter.annotation)
            plain_names |= options.__annotations__.keys() - _MASKED_ARGUMENTS.keys()

    @wraps(function)
    def masked(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        if len(arguments) > plain_positions:
            masks = zip_longest(by_position[: len(arguments)], arguments, fillvalue=mask)
            arguments = tuple(hide(value) for hide, value in masks)  # type: ignore[assignment]
        for name in named:  # noqa: PLC0206  (no local variable is bound to a secret)
            if name not in plain_names:
                named[name] = _MASKED_ARGUMENTS.get(name, mask)(named[name])
        return function(*arguments, **named)

    if inspect.iscoroutinefunction(function):
        # As asyncio and unittest.mock know a coroutine function before Python 3.12, and as inspect does since.
        vars(masked)["_is_coroutine"] = getattr(asyncio.coroutines, "_is_coroutine", None)
        _mark_coroutine_function(masked)
    return masked


def if_given(validate: Callable[[object, "Attribute[Any]", Any], None]) -> Callable[..., None]:
    """Return a validator that accepts None as well; attrs's own is a class, and four times as expensive."""

    @wraps(validate)
    def validate_given(model: object, attribute: "Attribute[Any]", value: object) -> None:
        if value is not None:
            validate(model, attribute, value)

    return validate_given


def masks_secrets_of_init(model: type[_Model]) -> type[_Model]:
    """Decorate a class whose generated ``__init__`` takes secrets, and is to be fast."""
    model.__init__ = masks_secrets(fast_init(model))  # type: ignore[method-assign]  # it has the same signature
    return model


def from_masked(model: type[_Model], **values: Any) -> _Model:  # noqa: ANN401  (each field has its own type)
    """Create an instance of such a class from arguments that `masks_secrets` has masked already."""
    instance = model.__new__(model)
    model.__init__.__wrapped__(instance, **values)  # type: ignore[attr-defined]
    return instance


def validate_count(_: object, attribute: "Attribute[Any]", value: object) -> None:
    check_count(value, attribute.name, least=attribute.metadata.get("least", 0))


def validate_seconds(_: object, attribute: "Attribute[Any]", value: object) -> None:
    check_seconds(value, attribute.name)


def validate_path_segment(_: object, attribute: "Attribute[Any]", value: object) -> None:
    check_path_segment(value, attribute.name)


def validate_flag(_: object, attribute: "Attribute[Any]", value: object) -> None:
    check_flag(value, attribute.name)


def validate_fraction(_: object, attribute: "Attribute[Any]", value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InvalidRequestError(f"{attribute.name} must be a fraction above 0 and up to 1, not {value!r}")


def validate_backoff(_: object, attribute: "Attribute[Any]", value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise InvalidRequestError(f"{attribute.name} must be a number of seconds from 0, not {value!r}")
