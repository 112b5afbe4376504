"""Public names and imports of the package."""

import ast
import textwrap
from pathlib import Path

import pytest

from signalwire_streams import callbacks

MODULES = sorted(Path(callbacks.__file__).parent.glob("*.py"))


def test_public_names_exist() -> None:
    assert all(hasattr(callbacks, name) for name in callbacks.__all__)
    assert {
        "CallbackReceiver",
        "StreamFailed",
        "StreamStarted",
        "StreamStopped",
        "UnknownCallback",
        "diagnose_signature",
        "parse_callback",
        "sign",
        "verify_signature",
    } <= set(callbacks.__all__)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_only_the_receiver_imports_aiohttp(path: Path) -> None:
    """Verification and parsing are pure, so that they work in any web framework."""
    tree = ast.walk(ast.parse(path.read_text()))
    imported = {node.module or "" for node in tree if isinstance(node, ast.ImportFrom)}

    assert any(name.partition(".")[0] == "aiohttp" for name in imported) is (path.name == "_receiver.py")


def test_example_for_fastapi_compiles() -> None:
    text = (callbacks.__doc__ or "").partition("Starlette::")[2].partition("Callbacks by GET")[0]
    names = compile(textwrap.dedent(text), "<example>", "exec").co_names

    assert {"FastAPI", "verify_signature", "parse_callback"} <= set(names)
