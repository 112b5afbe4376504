"""The public names."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import get_type_hints

import pytest

import signalwire_streams
from signalwire_streams import StreamsClient, bulk, middleware


def test_public_names_are_sorted_and_exist() -> None:
    """Every public name exists, and the list is in order."""
    names = signalwire_streams.__all__

    assert names == sorted(names, key=lambda name: (name.islower(), name))
    assert all(hasattr(signalwire_streams, name) for name in names)
    assert {
        "StreamsClient",
        "StartConferenceStream",
        "StartCallStream",
        "StreamsError",
        "ApiError",
        "BadRequestError",
        "AuthenticationError",
        "PermissionDeniedError",
        "NotFoundError",
        "UnprocessableError",
        "RateLimitedError",
        "ServerError",
        "TransportError",
        "StreamOutcomeUnknownError",
        "MalformedResponseError",
        "InvalidRequestError",
        "Track",
        "Codec",
        "StreamStatus",
    } <= set(names)


def test_middleware_values_are_public_in_their_own_module() -> None:
    """They are not among the first names that a user sees."""
    own = {"Handler", "Middleware", "Request", "Response", "Result"}
    assert own <= set(middleware.__all__)
    assert own.isdisjoint(signalwire_streams.__all__)
    shared = set(middleware.__all__) - own
    assert {getattr(middleware, name) for name in shared} == {getattr(signalwire_streams, name) for name in shared}


def test_unknown_name_raises_attribute_error() -> None:
    """A misspelt name raises it, as in any module; a private one too, and nothing is imported for it."""
    for name in ("StreamClient", "_private", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module 'signalwire_streams' has no attribute '{name}'"):
            getattr(signalwire_streams, name)


def test_dir_lists_all_public_names() -> None:
    """An interactive session completes all of them."""
    offered = dir(signalwire_streams)
    assert set(signalwire_streams.__all__) <= set(offered)
    assert len(set(offered)) == len(offered)
    assert {"TYPE_CHECKING", "import_module"}.isdisjoint([*offered, *dir(bulk)])


def test_version_is_that_of_the_distribution() -> None:
    """It is read when it is first used, and imports no other name."""
    assert signalwire_streams.__version__ == version("signalwire-streams")
    code = "import sys, signalwire_streams as s; print(s.__version__, 'signalwire_streams._client' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert shown.stdout.split() == [signalwire_streams.__version__, "False"]
    assert "__version__" in dir(signalwire_streams)


def test_modules_are_attributes() -> None:
    """A module that is imported with the names is an attribute of the package."""
    code = "import signalwire_streams as s; print(s.errors.ApiError is s.ApiError)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603

    assert shown.stdout.strip() == "True"
    found = getattr(signalwire_streams, "__getattr__")("errors")  # noqa: B009  (type checkers see no such function)
    assert found is signalwire_streams.errors


@pytest.mark.parametrize(
    ("statement", "packages"),
    [
        ("import signalwire_streams", set()),
        ("from signalwire_streams import ApiError", {"errors"}),
        ("from signalwire_streams import StartCallStream", {"errors", "clock", "models"}),
        (
            "from signalwire_streams.callbacks import verify_signature",
            {"callbacks", "errors", "clock", "models", "_asgi"},
        ),
        ("from signalwire_streams.receiver import MediaReceiver", {"receiver", "errors", "clock", "models", "_asgi"}),
        (
            "from signalwire_streams import StreamsClient",
            {"_client", "clock", "bulk", "resources", "middleware", "_http", "errors", "models"},
        ),
    ],
)
def test_import_loads_only_what_it_needs(statement: str, packages: set[str]) -> None:
    """The command line, the simulator and the extras are not loaded before they are used."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    modules = set(shown.stdout.split())

    assert {name.split(".")[1] for name in modules if name.startswith("signalwire_streams.")} <= packages
    assert not modules & {"click", "rich", "trustme", "pytest", "redis", "docket"}


def test_client_loads_what_its_first_response_and_its_first_bulk_run_need_with_them() -> None:
    """Most of what a bulk run needs, such as SQLite, is of no use to a client that starts single streams."""
    code = (
        "from signalwire_streams import StreamsClient; import sys; before = set(sys.modules)\n"
        "StreamsClient(space='example', project='p', token='t').start_streams([]); print(*before, '', *sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    before, after = (set(modules.split()) for modules in shown.stdout.split("  "))

    own = {name for name in after - before if name.startswith("signalwire_streams.")}
    assert {"signalwire_streams.bulk._runner", "signalwire_streams.bulk._journal"} <= own
    assert {name.split(".")[1] for name in own} == {"bulk"}
    assert not before & {"sqlite3", "cattrs", "importlib.metadata"}
    assert "sqlite3" in after


def test_bulk_names_are_those_that_type_checkers_see() -> None:
    """They are listed once for type checkers, which read imports, and once for the import on first use."""
    tree = ast.parse(Path(bulk.__file__).read_text())
    seen = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
        if node.module.startswith("signalwire_streams.")
    }
    listed = {
        (f"signalwire_streams.bulk.{module}", name)
        for module, names in vars(bulk)["_MODULES"].items()
        for name in names.split()
    }
    assert seen == listed
    assert {name for _, name in seen} >= set(bulk.__all__)
    assert all(hasattr(bulk, name) for _, name in seen)
    assert set(bulk.__all__) <= set(dir(bulk))
    with pytest.raises(AttributeError, match=r"module 'signalwire_streams.bulk' has no attribute 'BulkRuns'"):
        getattr(bulk, "BulkRuns")  # noqa: B009  (type checkers see no such name)


def test_hints_of_the_client_can_be_evaluated() -> None:
    """Though they name classes of a package that is not loaded yet."""
    assert get_type_hints(StreamsClient.start_streams)["return"].__origin__ is signalwire_streams.BulkRun
    assert get_type_hints(StreamsClient.create_journal)["return"] is signalwire_streams.BulkJournal
