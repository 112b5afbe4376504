"""Imports go down only, each library is used where it belongs, and a request passes through few files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import signalwire_streams
from benchmarks.trace import Trace, traces

PACKAGE = Path(signalwire_streams.__file__).parent
FLOORS = {
    "errors": 0,
    "clock": 0,
    "_asgi": 1,
    "_signals": 1,
    "models": 1,
    "_http": 2,
    "receiver": 2,
    "callbacks": 2,
    "adapters": 3,
    "middleware": 3,
    "resources": 4,
    "redis_rate_limit": 4,
    "bulk": 5,
    "keep_streaming": 6,
    "_client": 7,
    "__init__": 8,
    "telemetry": 8,
    "fleet": 9,
    "page": 9,
    "_cli": 10,
    "pytest_plugin": 10,
    "__main__": 11,
}
APART = {"simulator"}
ONLY_IN = {
    "aiohttp": {"_http", "_client", "receiver", "callbacks", "page", "simulator"},
    "cattrs": {"_http"},
    "yarl": {"_http", "page", "receiver", "simulator"},
    "docket": {"fleet"},
    "livekit": {"adapters"},
    "jwt": {"models"},
    "numpy": {"receiver"},
    "opentelemetry": {"telemetry"},
    "pipecat": {"adapters"},
    "redis": {"fleet", "redis_rate_limit"},
    "soxr": {"receiver"},
    "trustme": {"simulator"},
    "pytest": {"pytest_plugin"},
    "pytest_asyncio": {"pytest_plugin"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def wrong_imports(path: Path) -> Iterator[str]:
    """Find the imports of a module that are neither from its own package nor from a layer below."""
    room = room_of(path)
    for module in imports_of(path):
        top, _, rest = module.partition(".")
        target = rest.partition(".")[0] or "__init__"
        if top != "signalwire_streams":
            allowed = room in ONLY_IN.get(top, {room})
        elif room in APART or target in APART:
            allowed = room in {target, "_cli", "pytest_plugin"}
        else:
            allowed = target == room or FLOORS[target] < FLOORS[room]
        if not allowed:
            yield f"{path.relative_to(PACKAGE)} imports {module}"


def test_imports_go_down_only() -> None:
    """A module imports from its own package or from a layer below."""
    assert [wrong for path in MODULES for wrong in wrong_imports(path)] == []


def test_modules_stay_small() -> None:
    """A module is one thing, and short enough to read."""
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 600} == {}


def test_trace_counts_a_switch_when_the_next_call_is_in_another_file() -> None:
    trace = Trace(["a.py", "a.py", "b.py", "a.py"])
    assert trace.visits == ["a.py", "b.py", "a.py"]
    assert str(trace) == "2 files, 2 switches, 4 calls"


async def test_start_and_bulk_item_pass_through_few_files() -> None:
    """The limits are what is reached now: a change that needs more is to be looked at."""
    start, item = (await traces()).values()
    assert {"resources/_conferences.py", "middleware/_retry.py", "_http/transport.py"} <= set(start.calls)
    assert (len(set(start.calls)) <= 12, len(start.visits) <= 29) == (True, True), start
    assert (len(set(item.calls)) <= 18, len(item.visits) <= 44) == (True, True), item
