"""Routing: the operation of the Compatibility API that a request line asks for (pure)."""

from typing import Literal
from urllib.parse import parse_qsl, unquote

from attrs import frozen

TargetKind = Literal["conference", "call"]

BASE_PATH = "/api/laml/2010-04-01/Accounts/"  # https://signalwire.com/docs/compatibility-api/
UNKNOWN = "unknown"

# By method, collection, sub-collection and the number of segments after /Accounts/.
_OPERATIONS = {
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

_ABSENT: list[str | None] = [None] * 5

OPERATIONS = frozenset({*_OPERATIONS.values(), UNKNOWN})


@frozen
class Route:
    """A parsed request line: its operation, and the sids in its path."""

    operation: str
    path: str
    query: str = ""
    account_sid: str = ""
    target_kind: TargetKind = "conference"
    target_sid: str | None = None
    stream: str | None = None

    def query_fields(self) -> dict[str, str]:
        """Return the query's fields; of a repeated one the last."""
        return dict(parse_qsl(self.query, keep_blank_values=True)) if self.query else {}


def find_route(method: str, raw_path: str) -> Route:
    """Parse a request line.

    Every path is valid with and without ``.json``: the vendor's own ``uri`` values carry the suffix
    (https://signalwire.com/docs/compatibility-api/), its documented paths do not. Segments are percent-decoded
    one by one, so an encoded slash stays inside its segment.
    """
    path, _, query = raw_path.partition("?")
    if not path.startswith(BASE_PATH):
        return Route(UNKNOWN, path, query)
    segments = path[len(BASE_PATH) :].removesuffix(".json").split("/")
    if "%" in path:
        segments = [unquote(segment) for segment in segments]
    account, collection, target, subcollection, stream = [*segments, *_ABSENT][:5]
    return Route(
        operation=_OPERATIONS.get((method, collection or "", subcollection or "", len(segments)), UNKNOWN),
        path=path,
        query=query,
        account_sid=account or "",
        target_kind="call" if collection == "Calls" else "conference",
        target_sid=target,
        stream=stream,
    )
