"""The README and the guides name everything that is public, and nothing that does not exist."""

import ast
import builtins
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

import signalwire_streams
from signalwire_streams import StreamsError, pytest_plugin
from signalwire_streams._cli.main import program
from signalwire_streams.simulator import FaultKind
from tests.guides.documents import BLOCKS, DOCUMENTS, GUIDES, README, ROOT, blocks_of, code_of, prose_of
from tests.guides.test_commands import sessions

PROJECT = signalwire_streams.__path__[0]
ALL_GUIDES = "\n".join(path.read_text(encoding="utf-8") for path in GUIDES.glob("*.md"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINK = re.compile(r"\]\(([^)]+)\)")
PYTHON = [block for block in BLOCKS if block.language == "python"]


def test_the_first_two_blocks_of_the_readme_are_the_two_commands() -> None:
    """Each is the only line of its block; .ci/run runs the second one."""
    first, second = blocks_of("README")[:2]
    for block in (first, second):
        assert block.language == "sh"
        assert len(block.text.splitlines()) == 1
    assert "demo" in first.text
    assert "tests" in second.text


def test_the_readme_is_short() -> None:
    """Its prose can be read in five minutes."""
    assert len(prose_of("README").split()) <= 1_100


def test_agents_md_has_two_pages() -> None:
    assert len(DOCUMENTS["AGENTS"].read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("document", sorted(path.stem for path in GUIDES.glob("*.md") if path.stem != "index"))
def test_guide_begins_with_its_purpose_and_a_program(document: str) -> None:
    text = DOCUMENTS[document].read_text(encoding="utf-8")
    title, _, rest = text.partition("\n\n")
    assert re.fullmatch(r"# [A-Z].*", title)
    assert rest.startswith("For ")
    assert "## " not in text.partition("```")[0].replace(title, "") or document in {"api-facts", "fleet"}
    assert any(block.language in {"python", "console"} for block in blocks_of(document))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """Relative ones to a file, and to a heading of it."""
    for link in LINK.findall(prose_of(document)):
        if link.startswith("https://"):
            continue
        name, _, heading = link.partition("#")
        target = (DOCUMENTS[document].parent / name).resolve() if name else DOCUMENTS[document]
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not heading or heading in anchors, link


def test_the_readme_has_no_relative_links_on_pypi() -> None:
    """Which resolves none; the substitutions turn them into plain text."""
    text = README.read_text(encoding="utf-8")
    assert "](signalwire_streams/" in text
    for rule in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert [link for link in LINK.findall(text) if not link.startswith("https://")] == []


def test_every_guide_is_in_the_index_and_in_the_readme() -> None:
    for text in (DOCUMENTS["index"].read_text(encoding="utf-8"), README.read_text(encoding="utf-8")):
        for path in GUIDES.glob("*.md"):
            assert path.stem == "index" or f"{path.name})" in text


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.title)
def test_program_has_a_name_compiles_and_is_run_by_a_test(block: Any) -> None:
    assert re.fullmatch(r"[\w-]+/\w+\.py", block.title)
    assert code_of(block.title) == block.text
    compile(block.text, block.title, "exec")
    assert any(f'"{block.title}"' in path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))


def test_every_block_has_a_language_that_is_tested() -> None:
    assert {block.language for block in BLOCKS} == {"python", "console", "sh", "nginx"}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def rows_of(document: str, head: str) -> list[list[str]]:
    """Return the words of code in the first cell of each row of a table."""
    table = prose_of(document).partition(head)[2].partition("\n\n")[0].splitlines()[2:]
    return [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in table]


def test_the_guide_to_the_command_line_lists_each_command() -> None:
    rows = rows_of("command-line", "| command | |")
    listed = [(group, *word) for group, *words in rows for word in (zip(words, strict=True) if words else [()])]
    assert sorted(listed) == sorted(commands(program))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_exist(document: str) -> None:
    """Those of the command line; the others are of nox and of Redis."""

    def options(command: click.Command) -> Iterator[str]:
        for parameter in command.params:
            yield from (*parameter.opts, *parameter.secondary_opts)
        if isinstance(command, click.Group):
            for name in command.list_commands(context := click.Context(command)):
                found = command.get_command(context, name)
                assert found is not None
                yield from options(found)

    known = {*options(program), "--help", "--session", "--appendfsync", "--requirepass"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose_of(document))) <= known


def test_every_extra_is_in_the_readme_and_in_a_guide() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert sorted(word for row in rows_of("README", "| extra | ") for word in row) == sorted(extras)
    for extra in extras:
        assert f"signalwire-streams[{extra}]" in ALL_GUIDES or f"extra `{extra}`" in ALL_GUIDES


def subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def test_every_public_error_is_in_the_guide_to_reliability() -> None:
    for module in pkgutil.walk_packages([PROJECT], "signalwire_streams."):
        if not re.search(r"\._|\.adapters\.|__main__", module.name):  # the adapters need their frameworks
            found = import_module(module.name)
            assert all(hasattr(found, name) for name in getattr(found, "__all__", ()))
    own = {each.__name__ for each in subclasses(StreamsError) if each.__module__.startswith("signalwire_streams.")}
    assert len(own) > 15
    assert own <= set(re.findall(r"`(\w+)`", prose_of("reliability")))
    others = {"BulkError", "StreamsError", "ApiError", *vars(builtins), "CancelledError"}
    named = {name for document in DOCUMENTS for name in re.findall(r"`(\w+Error)`", prose_of(document))}
    assert named <= own | others


def test_every_fixture_and_every_fault_is_in_the_guide_to_testing() -> None:
    fixtures = [name for name in pytest_plugin.__all__ if name.islower()]
    for name in [*fixtures, *(kind.value for kind in FaultKind)]:
        assert name in prose_of("testing"), name
        assert re.search(rf"`{name}[`(]|`{name}\.", prose_of("testing")), name


def test_every_nox_session_is_in_the_guide_to_contributing() -> None:
    text = DOCUMENTS["contributing"].read_text(encoding="utf-8") + DOCUMENTS["benchmarks"].read_text(encoding="utf-8")
    named = set(re.findall(r"[\w-]+", " ".join(re.findall(r"nox --session ([\w ]+)", text))))
    public = {name for name, node in sessions().items() if "nox.session" in map(ast.unparse, node.decorator_list)}
    assert public - named <= {"aiohttp"}


def test_every_public_logger_is_in_the_guide_to_telemetry() -> None:
    text = prose_of("telemetry")
    for path in Path(PROJECT).rglob("*.py"):
        for name in re.findall(r'getLogger\("signalwire_streams\.(\w+)', path.read_text(encoding="utf-8")):
            assert re.search(rf"`(signalwire_streams)?\.{name}`", text), name
