"""The README and the guides name everything that is public, and nothing that does not exist."""

import ast
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


@pytest.mark.parametrize("command", list(commands(program)), ids=" ".join)
def test_command_is_in_the_guide_to_the_command_line(command: tuple[str, ...]) -> None:
    group, *name = command
    rows = [line for line in prose_of("command-line").splitlines() if line.startswith(f"| `{group}`")]
    assert len(rows) == 1
    assert all(f"`{word}`" in rows[0] for word in name)


def test_every_extra_is_in_the_readme_and_in_a_guide() -> None:
    for extra in PYPROJECT["project"]["optional-dependencies"]:
        assert f"`{extra}`" in README.read_text(encoding="utf-8")
        assert f"signalwire-streams[{extra}]" in ALL_GUIDES or f"extra `{extra}`" in ALL_GUIDES


def subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def test_every_public_error_is_in_the_guide_to_reliability() -> None:
    for module in ("fleet", "receiver.audio", "redis_rate_limit", "bulk", "keep_streaming"):
        found = import_module(f"signalwire_streams.{module}")
        assert all(hasattr(found, name) for name in found.__all__)
    own = [each for each in subclasses(StreamsError) if each.__module__.startswith("signalwire_streams.")]
    assert len(own) > 15
    assert [each.__name__ for each in own if f"`{each.__name__}`" not in prose_of("reliability")] == []


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
