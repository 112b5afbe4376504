"""The account: project, API token and Space, checked and in the form that requests need."""

import re
from base64 import b64encode
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import SplitResult, quote, urlsplit

from attrs import field, frozen

from signalwire_streams._http.error_bodies import redact
from signalwire_streams.errors import InvalidRequestError, MalformedResponseError
from signalwire_streams.models._validation import Secret, is_path_segment, kind_of, masks_secrets, redact_url

API_ROOT = "/api/laml/2010-04-01"
"""Source: https://signalwire.com/docs/compatibility-api/rest/overview"""

_NAME = re.compile(r"[A-Za-z0-9-]+\.?")
_NETLOC = re.compile(r"(\[[0-9A-Fa-f:.]+(%[^][]+)?\]|[^][:]+)(:[0-9]*)?")
_STANDARD_PORTS = {"https": 443, "http": 80}
_AUTHORITY = re.compile("(?:([A-Za-z][A-Za-z0-9+.-]*):)?//([^/?]*)")
_DOMAIN = "signalwire.com"


@frozen
class Account:
    """A project (the API's ``AccountSid``) on a Space, with its API token.

    Source for the Basic scheme: https://signalwire.com/docs/compatibility-api/rest/overview

    Attributes:
        origin: scheme, host and port of the Space.
        prefix: a path in front of the API, where a proxy puts one; otherwise empty.
        secrets: the token, as passed and as encoded in the header.
        root: the path of everything that belongs to the project.
    """

    origin: str
    prefix: str
    sid: str
    token: str = field(repr=False)
    secrets: tuple[str, ...] = field(init=False, repr=False, eq=False)
    root: str = field(init=False, repr=False, eq=False)

    @secrets.default
    def _secrets(self) -> tuple[str, ...]:
        return (self.token, Secret(self.authorization.removeprefix("Basic ")))

    @root.default
    def _root(self) -> str:
        return f"{self.prefix}{API_ROOT}/Accounts/{quote(self.sid, safe='@:')}/"

    @property
    def authorization(self) -> str:
        return Secret("Basic " + b64encode(f"{self.sid}:{self.token}".encode()).decode("ascii"))

    def same_host_path(self, uri: str) -> str:
        """Return the path and query of a next page's address as the Space wrote them, without a fragment.

        It must be a path from the host's root, or have this Space's own scheme, host and port.
        """
        if not all("!" <= character <= "~" for character in uri):
            raise self._bad_next_page(uri, "contains whitespace or non-ASCII characters")
        if "\\" in uri:
            raise self._bad_next_page(uri, "contains a backslash")
        address, _, _ = uri.partition("#")
        path = address
        if found := _AUTHORITY.match(address):
            scheme, netloc = found.groups()
            self._check_same_origin(uri, scheme or self.origin.partition(":")[0], netloc)
            path = address[found.end() :]
        if not path.startswith("/") or path.startswith("//"):
            raise self._bad_next_page(uri, "is not an absolute path")
        # The Space does not know of the prefix that a proxy in front of it takes away.
        return self.prefix + path if path.startswith(f"{API_ROOT}/") else path

    def _check_same_origin(self, uri: str, scheme: str, netloc: str) -> None:
        if "@" in netloc:
            raise self._bad_next_page(uri, "contains a user name and password")
        try:
            theirs, ours = urlsplit(f"{scheme}://{netloc}"), urlsplit(self.origin)
            origin = _origin(theirs)
        except ValueError:
            raise self._bad_next_page(uri, "is not a valid address") from None
        if origin == self.origin:
            return
        differs = "host" if theirs.hostname != ours.hostname else "scheme" if theirs.scheme != ours.scheme else "port"
        raise self._bad_next_page(uri, f"is on another {differs} than {self.origin}")

    def _bad_next_page(self, uri: str, why: str) -> MalformedResponseError:
        # A query may name what a filter looked for, so it is shown only where there is nothing else to show.
        shown = redact(redact_url(uri) if "//" in uri else uri, self.secrets)
        return MalformedResponseError(f"the Space's next page {shown!r} {why}, so it is not followed", sent="yes")


@masks_secrets
def find_account(*, space: str | None, base_url: str | None, project: str | None, token: str | None) -> Account:
    """Check a caller's settings; a Space may be its name, its host, or a base URL."""
    for what, value in {"project": project, "token": token, "space": space, "base_url": base_url}.items():
        if value is not None and not isinstance(value, str):
            raise InvalidRequestError(f"{what} must be a str, not {kind_of(value)}")
    if not project:
        raise InvalidRequestError("project is missing: pass the Project ID shown on your Space's API page")
    if not token:
        raise InvalidRequestError("token is missing: pass an API token from your Space's API page")
    if not all("!" <= character <= "~" for character in token):
        raise InvalidRequestError(
            "token contains whitespace or non-ASCII characters: pass only the API token, exactly as shown"
        )
    if ":" in project:
        raise InvalidRequestError("project contains a ':': pass only the Project ID, and the token as token=")
    if not is_path_segment(project):
        raise InvalidRequestError(
            "project contains characters that are invalid in a Project ID: copy it from the API page"
        )
    if bool(space) == bool(base_url):
        raise InvalidRequestError("pass exactly one of space='example' (for example.signalwire.com) and base_url=")
    parts = _split(base_url or Secret(_space_url(space or "")))
    prefix = parts.path.rstrip("/").removesuffix(API_ROOT)
    return Account(origin=_origin(parts), prefix=prefix, sid=project, token=token)


def _space_url(space: str) -> str:
    if "://" in space:
        return space
    if ("." in space.rstrip(".") or ":" in space or space == "localhost") and "/" not in space:
        return f"https://{space}"
    if not _NAME.fullmatch(space):
        raise InvalidRequestError(
            "space contains characters that are invalid in a Space's name: write it as in 'example.signalwire.com'"
        )
    return f"https://{space.removesuffix('.')}.{_DOMAIN}"


def _origin(parts: SplitResult) -> str:
    host = (parts.hostname or "").removesuffix(".")
    address = _ip_address(host)
    if isinstance(address, IPv6Address):
        # Python writes an IPv4 address within an IPv6 one as such only from 3.13 on.
        host = f"[{address if address.ipv4_mapped is None else f'::ffff:{address.ipv4_mapped}'}]"
    port = "" if parts.port in {None, _STANDARD_PORTS.get(parts.scheme)} else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def _split(url: str) -> SplitResult:
    fault = _fault_of(url)
    if fault is not None:
        raise InvalidRequestError(fault)
    return urlsplit(url)


def _fault_of(url: str) -> str | None:
    # A separate function, because its variables may hold a password and no traceback leads into it.
    shown = redact_url(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    is_text = url.isascii() and url.isprintable() and " " not in url
    if not host or not is_text or port == 0 or not _NETLOC.fullmatch(parts.netloc.rpartition("@")[2]):
        return f"{shown!r} is not a Space: write its name, such as 'example', or 'https://host'"
    if parts.username is not None:
        return "the base URL contains a user name and password: pass project= and token= instead"
    if parts.query or parts.fragment:
        return f"{shown!r} must not have a query or fragment: remove the '?' or '#' and everything after it"
    advice = "https://" + (f"[{host}]" if ":" in host else host)
    if parts.scheme == "http" and not _is_loopback(host):
        return f"plain http would send the token unencrypted: write '{advice}'"
    if parts.scheme not in _STANDARD_PORTS:
        return f"{shown!r} is not an http(s) URL: write '{advice}'"
    return None


def _is_loopback(host: str) -> bool:
    if host.removesuffix(".") == "localhost":
        return True
    address = _ip_address(host)
    # Python looks into an IPv4 address within an IPv6 one only from 3.13 on.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address is not None and (mapped or address).is_loopback


def _ip_address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
