"""What the package offers, and what it is made of."""

import ast
import textwrap
from pathlib import Path

import pytest

from signalwire_streams import callbacks

MODULES = sorted(Path(callbacks.__file__).parent.glob("*.py"))


def test_public_names_exist() -> None:
    """Every public name exists, and is documented."""
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
    """Verifying and reading are pure, so that they serve any web framework."""
    tree = ast.walk(ast.parse(path.read_text()))
    imported = {node.module or "" for node in tree if isinstance(node, ast.ImportFrom)}

    assert any(name.partition(".")[0] == "aiohttp" for name in imported) is (path.name == "_receiver.py")


def test_example_for_fastapi_compiles() -> None:
    """The example for other frameworks is Python."""
    text = (callbacks.__doc__ or "").partition("Starlette::")[2].partition("Callbacks that come by GET")[0]
    names = compile(textwrap.dedent(text), "<example>", "exec").co_names

    assert {"FastAPI", "verify_signature", "parse_callback"} <= set(names)
