"""Who is asking, and where: the project, its token, and the Space, as they are written on the wire."""

import re
from base64 import b64encode
from ipaddress import ip_address
from urllib.parse import SplitResult, quote, urlsplit

from attrs import field, frozen

from signalwire_streams.errors import InvalidRequestError, MalformedResponseError
from signalwire_streams.models.checks import is_handle, is_plain, public_url

API_ROOT = "/api/laml/2010-04-01"
"""Source: https://signalwire.com/docs/compatibility-api/rest/overview"""

_NAME = re.compile(r"[A-Za-z0-9-]+")
_DOMAIN = "signalwire.com"


@frozen
class Account:
    """A project (the API's ``AccountSid``) on a Space, with its API token.

    Source for the Basic scheme: https://signalwire.com/docs/compatibility-api/rest/overview

    Attributes:
        origin: scheme, host and port of the Space.
        prefix: a path in front of the API, where a proxy puts one; otherwise empty.
        sid: the project id.
        token: the API token.
        secrets: what must never be shown: the token, bare and as the header spells it.
    """

    origin: str
    prefix: str
    sid: str
    token: str = field(repr=False)
    secrets: tuple[str, ...] = field(init=False, repr=False, eq=False)
    _root: str = field(init=False, repr=False, eq=False)

    @secrets.default
    def _secrets(self) -> tuple[str, ...]:
        return (self.token, self.authorization.removeprefix("Basic "))

    @_root.default
    def _path_of_all(self) -> str:
        return f"{self.prefix}{API_ROOT}/Accounts/{quote(self.sid, safe='@:')}/"

    @property
    def authorization(self) -> str:
        """The value of the ``Authorization`` header."""
        return "Basic " + b64encode(f"{self.sid}:{self.token}".encode()).decode("ascii")

    def path(self, *segments: str) -> str:
        """Build a path below this account; each segment is percent-encoded."""
        return self._root + "/".join(
            [segment if is_plain(segment) else quote(segment, safe="@:") for segment in segments]
        )

    def same_host_path(self, uri: str) -> str:
        """Check an address that the Space gave, and give its path, exactly as the Space spelled it.

        Raises:
            MalformedResponseError: it leads to another host, or could not be sent as it stands.
        """
        scheme, separator, rest = uri.partition("://")
        host, slash, tail = rest.partition("/")
        same = bool(separator) and _origin(scheme, host) == self.origin
        path = slash + tail if same else uri
        if not path.startswith("/") or path.startswith("//"):
            raise MalformedResponseError("the Space points to a next page on another host, which is not followed")
        if not all("!" <= character <= "~" for character in path):
            raise MalformedResponseError("the Space points to a next page whose address holds blanks or is not ASCII")
        return path


def find_account(*, space: str | None, base_url: str | None, project: str | None, token: str | None) -> Account:
    """Make an account of what the caller wrote.

    Args:
        space: a Space's name (``example``), its host (``example.signalwire.com``), or a base URL.
        base_url: a base URL, instead of ``space``: https, or plain http to this very machine.
        project: the project id.
        token: the API token.

    Raises:
        InvalidRequestError: something is missing or can't be right; the message says what to write instead.
    """
    for what, value in {"project": project, "token": token, "space": space, "base_url": base_url}.items():
        if value is not None and not isinstance(value, str):
            raise InvalidRequestError(f"{what} must be a str, not {type(value).__name__}")
    if not project:
        raise InvalidRequestError("project is missing: pass the Project ID of your Space's API page")
    if not token:
        raise InvalidRequestError("token is missing: pass an API token of your Space's API page")
    if not all("!" <= character <= "~" for character in token):
        raise InvalidRequestError("token holds blanks or is not ASCII: pass the API token alone, as it was shown")
    if ":" in project:
        raise InvalidRequestError("project holds a ':': pass the Project ID alone, and the token as token=")
    if not is_handle(project):
        raise InvalidRequestError("project holds characters that no Project ID has: pass it as the API page shows it")
    if bool(space) == bool(base_url):
        raise InvalidRequestError(
            "pass either space='example' (for example.signalwire.com) or base_url=, one of the two"
        )
    parts = _split(base_url or _space_url(space or ""))
    prefix = parts.path.rstrip("/").removesuffix(API_ROOT)
    return Account(origin=_origin(parts.scheme, parts.netloc), prefix=prefix, sid=project, token=token)


def _space_url(space: str) -> str:
    if "://" in space:
        return space
    if ("." in space or ":" in space or space == "localhost") and "/" not in space:
        return f"https://{space}"
    if not _NAME.fullmatch(space):
        raise InvalidRequestError(
            "space holds characters that no Space's name has: write it as in 'example.signalwire.com'"
        )
    return f"https://{space}.{_DOMAIN}"


def _origin(scheme: str, netloc: str) -> str:
    standard_port = {"https": ":443", "http": ":80"}.get(scheme.lower(), "")
    return f"{scheme}://{netloc.removesuffix(standard_port)}".lower()


def _split(url: str) -> SplitResult:
    shown = public_url(url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidRequestError(f"{shown!r} is no Space: write its name, such as 'example', or 'https://host'")
    if parts.username is not None:
        raise InvalidRequestError("the base URL carries a user and password: pass project= and token= instead")
    if parts.query or parts.fragment:
        raise InvalidRequestError(f"{shown!r} must be a bare address: leave out what follows the '?' or '#'")
    if parts.scheme == "http" and not _is_loopback(host):
        raise InvalidRequestError(f"plain http would send the token readable to all: write 'https://{host}'")
    if parts.scheme not in {"http", "https"}:
        raise InvalidRequestError(f"{shown!r} is no web address: write 'https://{host}'")
    return parts


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
