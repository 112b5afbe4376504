"""The mutation testing tool: which mutants it makes, and that it tests them in a copy of the project."""

import json
import sys
from pathlib import Path

import pytest

from tests.mutation import __main__ as mutation
from tests.mutation.mutators import mutants_of


def changes(source: str) -> set[tuple[str, str]]:
    """Return what each mutant of a module replaces, and by what."""
    return {(mutant.before, mutant.replacement) for mutant in mutants_of("m.py", source.encode())}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a, b):\n    return a < b", {("return a < b", "return None"), ("<", "<=")}),
        ("def f(a, b):\n    return a is not b", {("return a is not b", "return None"), ("is not", "is")}),
        ("def f(a, b):\n    x = (a) not in (b)", {("not in", "in")}),
        ("def f(a, b):\n    x = a and b", {("and", "or")}),
        ("def f(a):\n    x = not a", {("not a", "(a)")}),
        ("def f(a):\n    return False", {("False", "True")}),
        ("LIMIT = 32", {("32", "33"), ("32", "(31)"), ("32", "512"), ("32", "2.0")}),
        ("def f(a):\n    x = a[1]", {("1", "2"), ("1", "(0)")}),
        ("def f(a=True): ...", {("True", "False")}),
        ("def f(a):\n    if a:\n        a()", {("a", "(not (a))"), ("a()", "pass")}),
        ("async def f(a):\n    await a()", {("await a()", "pass")}),
        ("def f(self):\n    self.x = None", {("self.x = None", "pass")}),
        ("def f(a):\n    raise a", {("raise a", "pass")}),
        ("def f(a, b):\n    x = min(a, b)", {("min", "max")}),
        ("def f(a, b):\n    x = a * b", {("*", "/")}),
        ("def f(a):\n    x = -a", {("-a", "(a)")}),
        ("from a import b\nT: TypeAlias = int", set()),
        ("NAME = 'é' + 'b'", set()),
    ],
)
def test_mutants_of_python(source: str, expected: set[tuple[str, str]]) -> None:
    assert changes(source) == expected


def test_mutants_of_lua() -> None:
    """A guard is dropped, negated and made always true; an expiry is dropped."""
    guard = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'taken' end"
    write = "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])"
    condition = "redis.call('GET', KEYS[1]) ~= ARGV[1]"
    assert changes(f'HOLD = """\n{guard}\n{write}\nreturn 1\n"""') == {
        (guard, ""),
        (condition, f"not ({condition})"),
        (condition, "true"),
        ("~=", "=="),
        (write, ""),
        (", 'PX', ARGV[2]", ""),
        ("1", "2"),
    }


def test_mutants_are_placed_by_bytes() -> None:
    """Text that is not ASCII before a change does not shift it."""
    source = 'def f(a):\n    x = "é", a > 2\n'.encode()
    mutated = {mutant.apply(source).decode() for mutant in mutants_of("m.py", source)}
    assert 'def f(a):\n    x = "é", a >= 2\n' in mutated


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project whose tests detect one mutant of two."""
    project = tmp_path / "project"
    package, tests = project / "signalwire_streams" / "_http", project / "tests" / "http"
    package.mkdir(parents=True)
    tests.mkdir(parents=True)
    (project / "benchmarks").mkdir()
    for name in ("noxfile.py", "README.md", "signalwire_streams/__init__.py"):
        (project / name).write_text("")
    (project / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = ["-pno:signalwire_streams"]\n')
    (package / "__init__.py").write_text("def first():\n    raise KeyError\n\n\ndef second():\n    raise KeyError\n")
    (tests / "test_http.py").write_text(
        "import pytest\nfrom signalwire_streams._http import first\n\n"
        "def test_first():\n    with pytest.raises(KeyError):\n        first()\n"
    )
    monkeypatch.setattr(mutation, "PROJECT", project)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # this project's tests need none
    return project


def arguments(*more: str) -> list[str]:
    """The command line; a busy machine may take long for a run, and that detects no mutant."""
    return ["mutation", "_http", "--number", "0", "--seconds", "60", *more]


def test_survivors_are_reported_and_the_project_is_not_changed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    monkeypatch.setenv("COVERAGE_FILE", str(project / "coverage of these tests"))
    results = project.parent / "mutants.json"
    monkeypatch.setattr(sys, "argv", arguments("--at-most", "10", "--json", str(results)))

    with pytest.raises(SystemExit) as ended:
        mutation.main()

    assert ended.value.code == 1
    found = json.loads(results.read_text())["packages"]["_http"]
    assert [(each["line"], each["column"], each["result"]) for each in found["results"]] == [
        (2, 5, "killed"),
        (6, 5, "survived"),
    ]
    assert found["survival_percent"] == 50
    shown = capsys.readouterr().out
    assert shown.endswith(
        "survivors in _http:\n  signalwire_streams/_http/__init__.py:6:5 [statement] raise KeyError -> pass\n"
    )
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_tests_that_run_the_line_of_a_mutant_run_first(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They detect it alone; all tests run against a mutant that no test runs."""
    runs = tmp_path / "runs"
    (project / "tests" / "http" / "test_another.py").write_text(
        f"def test_another():\n    with open({str(runs)!r}, 'a') as file:\n        file.write('.')\n"
    )
    monkeypatch.setattr(sys, "argv", arguments())

    mutation.main()

    assert len(runs.read_text()) == len(["without a mutant", "against the mutant of line 6"])


def test_tests_that_use_a_setting_run_first(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its own line is run by the import, and by no test."""
    runs = tmp_path / "runs"
    (project / "signalwire_streams" / "_http" / "__init__.py").write_text(
        "LEAST, MOST = 1, 2\n\n\ndef first():\n    raise [KeyError, OSError][LEAST]\n"
    )
    (project / "tests" / "http" / "test_http.py").write_text(
        "import pytest\nfrom signalwire_streams._http import first\n\n"
        "def test_first():\n    with pytest.raises(OSError):\n        first()\n"
    )
    (project / "tests" / "http" / "test_another.py").write_text(
        f"def test_another():\n    with open({str(runs)!r}, 'a') as file:\n        file.write('.')\n"
    )
    monkeypatch.setattr(sys, "argv", arguments("--only", "[constant] 1 -> (0)"))

    mutation.main()

    assert len(runs.read_text()) == len(["without a mutant"])


@pytest.mark.parametrize(("output", "words"), [("1 failed", "1 failed"), ("", "ran for more than 7 s")])
def test_tests_that_fail_without_a_mutant_are_rejected(
    project: Path, monkeypatch: pytest.MonkeyPatch, output: str, words: str
) -> None:
    monkeypatch.setattr(mutation, "_run_tests", lambda *_: ("killed", output, 7.0))
    monkeypatch.setattr(sys, "argv", ["mutation", "_http"])
    with pytest.raises(SystemExit, match=f"the tests of _http fail without any mutant:\n.*{words}"):
        mutation.main()


def test_unknown_packages_are_rejected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["mutation", "elsewhere"])
    with pytest.raises(SystemExit):
        mutation.main()
    assert "unknown package elsewhere: choose from _asgi, _cli, _client," in capsys.readouterr().err
