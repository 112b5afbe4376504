"""Which operation of the Compatibility API a request line asks for (pure)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote

from attrs import frozen

__all__ = ["BASE_PATH", "OPERATIONS", "UNKNOWN", "Route", "TargetKind", "find_route"]

TargetKind = Literal["conference", "call"]

#: Everything of the API lies below this path (https://signalwire.com/docs/compatibility-api/).
BASE_PATH: Final = "/api/laml/2010-04-01/Accounts/"

UNKNOWN: Final = "unknown"

# (method, collection, sub-collection, how many segments follow /Accounts/) names one operation.
_OPERATIONS: Final[Mapping[tuple[str, str, str, int], str]] = MappingProxyType(
    {
        ("GET", "Conferences", "", 2): "list-conferences",
        ("GET", "Conferences", "", 3): "get-conference",
        ("POST", "Conferences", "", 3): "end-conference",
        ("GET", "Conferences", "Participants", 4): "list-participants",
        ("POST", "Conferences", "Streams", 4): "start-conference-stream",
        ("POST", "Conferences", "Streams", 5): "stop-conference-stream",
        ("GET", "Calls", "", 2): "list-calls",
        ("GET", "Calls", "", 3): "get-call",
        ("POST", "Calls", "Streams", 4): "start-call-stream",
        ("POST", "Calls", "Streams", 5): "stop-call-stream",
    }
)

OPERATIONS: Final = frozenset({*_OPERATIONS.values(), UNKNOWN})

_COLLECTION, _TARGET, _SUBCOLLECTION, _STREAM = 1, 2, 3, 4


@frozen
class Route:
    """A request line, read: the operation and the sids that its path names."""

    operation: str
    path: str
    query: str = ""
    account_sid: str = ""
    target_kind: TargetKind = "conference"
    target_sid: str | None = None
    stream: str | None = None

    def query_fields(self) -> dict[str, str]:
        """Give the query's fields; of a repeated one the last counts."""
        return dict(parse_qsl(self.query, keep_blank_values=True)) if self.query else {}


def find_route(method: str, raw_path: str) -> Route:
    """Read a request line.

    Every path is served with and without ``.json``: the vendor's own ``uri`` values carry the suffix
    (https://signalwire.com/docs/compatibility-api/), its documented paths do not. Segments are percent-decoded
    one by one, so that an encoded slash stays inside its segment.
    """
    path, _, query = raw_path.partition("?")
    if not path.startswith(BASE_PATH):
        return Route(UNKNOWN, path, query)
    segments = path[len(BASE_PATH) :].removesuffix(".json").split("/")
    if "%" in path:
        segments = [unquote(segment) for segment in segments]
    count = len(segments)
    collection = segments[_COLLECTION] if count > _COLLECTION else ""
    subcollection = segments[_SUBCOLLECTION] if count > _SUBCOLLECTION else ""
    return Route(
        _OPERATIONS.get((method, collection, subcollection, count), UNKNOWN),
        path,
        query,
        segments[0],
        "call" if collection == "Calls" else "conference",
        segments[_TARGET] if count > _TARGET else None,
        segments[_STREAM] if count > _STREAM else None,
    )
