"""``python -m tests.mutation [package ...] [option ...]``; see ``--help``.

Samples mutants of each package, runs the tests of that package against each, and reports the mutants that survive.
The project is copied to a temporary directory first, and only that copy is ever changed. A mutant is broken code that
really runs: memory, file sizes and time are limited, and its whole process group is killed at the end.
"""

import argparse
import compileall
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from py_compile import PycInvalidationMode
from tempfile import TemporaryDirectory
from typing import Any

from attrs import field, frozen
from coverage import CoverageData

from tests.mutation.mutators import Mutant, mutants_of

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = "signalwire_streams"
EVERYWHERE = ["tests/test_defaults.py", "tests/test_reprs.py"]
TESTS: Mapping[str, Sequence[Sequence[str]]] = {
    "_asgi": (["tests/callbacks/test_asgi.py", "tests/receiver/test_asgi.py"],),
    "_cli": (["tests/cli"], [*EVERYWHERE, "tests/simulator/test_dial.py"]),
    "_client": (["tests/client"], [*EVERYWHERE, "tests/bulk", "tests/middleware/test_pacing.py"]),
    "_http": (["tests/http"], ["tests/client"], [*EVERYWHERE, "tests/test_pytest_plugin.py"], ["tests/transport"]),
    "_signals": (["tests/test_signals.py"],),
    "adapters": (["tests/adapters"], EVERYWHERE),
    "bulk": (["tests/bulk"], [*EVERYWHERE, "tests/middleware/test_adaptive_concurrency.py"]),
    "callbacks": (["tests/callbacks"], EVERYWHERE),
    "clock": (["tests/test_clock.py"], ["tests/client"]),
    "errors": (["tests/test_errors.py"], ["tests/http", "tests/client"]),
    "fleet": (["tests/fleet"], EVERYWHERE),
    "keep_streaming": (["tests/keep_streaming"], ["tests/receiver/test_restarts.py"], EVERYWHERE),
    "middleware": (["tests/middleware"], EVERYWHERE, ["tests/transport"]),
    "models": (
        ["tests/models"],
        ["tests/http"],
        [*EVERYWHERE, "tests/middleware/test_policies.py", "tests/callbacks/test_masked_keys.py"],
        ["tests/client"],
    ),
    "page": (["tests/page"], EVERYWHERE),
    "pytest_plugin": (["tests/test_pytest_plugin.py"],),
    "receiver": (["tests/receiver"], EVERYWHERE),
    "redis_rate_limit": (["tests/redis_rate_limit"], EVERYWHERE),
    "resources": (["tests/client"], ["tests/transport", "tests/http"]),
    "simulator": (
        ["tests/simulator"],
        [*EVERYWHERE, "tests/test_pytest_plugin.py", "tests/receiver/test_faults.py"],
        ["tests/receiver/test_bidirectional.py", "tests/receiver/test_pcm_over_sockets.py"],
        ["tests/client"],
    ),
    "telemetry": (["tests/test_telemetry.py"], EVERYWHERE),
}
"""The packages and modules that are mutated, and the tests of each: its own ones first, then those of its users."""
COPIED = (PACKAGE, "tests", "benchmarks", "pyproject.toml", "noxfile.py", "README.md")

_NO_TESTS_COLLECTED = 5
_MOST_COVERING = 30  # test functions that run first against a mutant
_COVERED_BEFORE = 5  # lines in which the statement of a mutant may have begun
_ASSIGNED = re.compile(r"\s*([\w, ]+)(?::[^=]*)?=[^=]")  # also the default of an argument in a line of its own
_LONGEST_BASELINE = 1200.0  # seconds
_SHOWN = 4000  # characters of a failed run
_MOST_MEMORY = 6 * 1024**3
_LARGEST_FILE = 1024**3


@frozen
class Verdict:
    """The result of one mutant.

    Attributes:
        mutant: the mutant.
        result: ``killed``, ``timeout`` or ``survived``.
        seconds: how long its tests ran.
    """

    mutant: Mutant
    result: str
    seconds: float


@frozen
class PackageResult:
    """The results of one package.

    Attributes:
        package: its name.
        mutants: how many mutants it has in all.
        verdicts: the results of those that were sampled.
        seconds: how long all of it took.
    """

    package: str
    mutants: int
    verdicts: Sequence[Verdict] = field(repr=False)
    seconds: float

    def count(self, result: str) -> int:
        """Return the number of mutants with this result."""
        return sum(verdict.result == result for verdict in self.verdicts)

    @property
    def survival(self) -> float:
        """The percentage of sampled mutants that no test detected."""
        return 100 * self.count("survived") / max(1, len(self.verdicts))


class BaselineError(Exception):
    """The tests of a package fail without any mutant."""


def main() -> None:
    """Sample, run and report."""
    options = _options()
    results = []
    with TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        _copy_project(copy)
        for package in options.packages or TESTS:
            try:
                results.append(_test_package(copy, package, options))
            except BaselineError as error:
                sys.exit(f"the tests of {package} fail without any mutant:\n{error}")
    print("\n".join(_table(results)))
    if options.json is not None:
        options.json.write_text(json.dumps(_document(results, options), indent=1) + "\n", "utf-8")
    if options.at_most is not None and any(result.survival > options.at_most for result in results):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("packages", nargs="*", metavar="package", help=f"{', '.join(TESTS)}; all by default")
    parser.add_argument("--number", type=int, default=20, help="mutants per package (default: %(default)s); 0 for all")
    parser.add_argument("--seed", type=int, default=1, help="which mutants are sampled (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="time limit per mutant; by default twice the baseline")
    parser.add_argument("--only", default="", help="only mutants whose description contains this text")
    parser.add_argument("--tests", nargs="+", help="run these tests instead of those that concern the package")
    parser.add_argument("--at-most", type=float, help="fail if more than this percentage of a package survives")
    parser.add_argument("--json", type=Path, help="write every result to this file")
    options = parser.parse_args()
    if unknown := set(options.packages) - set(TESTS):
        parser.error(f"unknown package {', '.join(sorted(unknown))}: choose from {', '.join(TESTS)}")
    return options


def _copy_project(copy: Path) -> None:
    for name in COPIED:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PROJECT / name, copy / name)
    # Checked by content: a mutant may have the size and the time of the source that it replaces.
    compileall.compile_dir(copy, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    where = [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
    found = subprocess.run(where, cwd=copy, env=_environment(copy), check=True, capture_output=True, text=True)  # noqa: S603
    if not Path(found.stdout.strip()).is_relative_to(copy.resolve()):
        sys.exit(f"{found.stdout.strip()} would be tested, not the copy in {copy}")


def _test_package(copy: Path, package: str, options: argparse.Namespace) -> PackageResult:
    began = time.monotonic()
    sources = _sources(copy, package)
    mutants = [
        mutant for path in sources for mutant in mutants_of(path.relative_to(copy).as_posix(), path.read_bytes())
    ]
    chosen = [mutant for mutant in mutants if options.only in str(mutant)]
    if options.number:
        order = random.Random(f"{options.seed}:{package}")  # noqa: S311
        chosen = order.sample(chosen, min(options.number, len(chosen)))
    baseline = _Baseline(copy, package, _stages(copy, package, options.tests), options.seconds)
    print(f"{package}: {len(chosen)} of {len(mutants)} mutants, {baseline.seconds:.0f} s without one", flush=True)
    verdicts = [_test_mutant(copy, baseline, mutant) for mutant in chosen]
    return PackageResult(package, len(mutants), verdicts, time.monotonic() - began)


def _sources(copy: Path, package: str) -> list[Path]:
    path = copy / PACKAGE / package
    return sorted(path.rglob("*.py")) or [path.with_suffix(".py")]  # a module has no folder


def _stages(copy: Path, package: str, chosen: list[str] | None) -> list[list[str]]:
    stages = [chosen] if chosen else [[name for name in tests if (copy / name).exists()] for tests in TESTS[package]]
    return [tests for tests in stages if tests]


class _Baseline:
    """All tests without a mutant: how long they take, and which of them run each line.

    Those that run the line of a mutant detect most mutants, in a small part of the time of all tests. What a test runs
    in another process is not known. So all tests run against a mutant that survives these.
    """

    def __init__(self, copy: Path, package: str, stages: Sequence[Sequence[str]], limit: float | None) -> None:
        self._stages = stages
        self._lines: dict[tuple[str, int], set[str]] = {}
        data = copy / ".coverage"
        data.unlink(missing_ok=True)
        tests = [name for tests in stages for name in tests]
        options = ["-p", "pytest_cov", f"--cov={PACKAGE}", "--cov-context=test", "--cov-report=", "--cov-fail-under=0"]
        result, output, self.seconds = _run_tests(copy, [*options, *tests], _LONGEST_BASELINE)
        if result != "survived":
            raise BaselineError(output[-_SHOWN:] or f"they ran for more than {self.seconds:.0f} s")
        self.limit = limit or 2 * self.seconds + 5
        covered = CoverageData(str(data))
        covered.read()
        self._texts: dict[str, list[str]] = {}
        for path in _sources(copy, package):
            self._texts[path.relative_to(copy).as_posix()] = path.read_text("utf-8").splitlines()
            for line, contexts in covered.contexts_by_lineno(str(path.resolve())).items():
                # All cases of a test function, since an id may have characters that a command line must not have.
                functions = {context.partition("|")[0].partition("[")[0] for context in contexts} - {""}
                self._lines[path.relative_to(copy).as_posix(), line] = functions
        self._sizes = Counter(function for functions in self._lines.values() for function in functions)

    def stages_for(self, mutant: Mutant) -> list[Sequence[str]]:
        """Return the stages of a mutant: the tests that run its line and little else, then all tests."""
        covering = sorted(self._covering(mutant), key=lambda function: (self._sizes[function], function))
        return [*([covering[:_MOST_COVERING]] if covering else []), *self._stages]

    def _covering(self, mutant: Mutant) -> set[str]:
        for line in range(mutant.line, mutant.line - _COVERED_BEFORE, -1):
            if functions := self._lines.get((mutant.path, line)):
                return functions
        # Settings are run when their module is imported, by no test: those that run a line with its name are as good.
        lines = self._texts[mutant.path][: mutant.line]
        if mutant.kind == "lua":  # within a string
            lines = [line for line in lines if line.endswith('"""') and _ASSIGNED.match(line)]
        assigned = _ASSIGNED.match(lines[-1])
        names = set(re.findall(r"\w+", assigned[1])) if assigned else set()
        return set().union(
            *(
                self._lines.get((path, number), set())
                for path, lines in self._texts.items()
                for number, line in enumerate(lines, 1)
                if not names.isdisjoint(re.findall(r"\w+", line))
            )
        )


def _test_mutant(copy: Path, baseline: _Baseline, mutant: Mutant) -> Verdict:
    path = copy / mutant.path
    source = path.read_bytes()
    path.write_bytes(mutant.apply(source))
    total, result = 0.0, "survived"
    try:
        for tests in baseline.stages_for(mutant):
            result, _, seconds = _run_tests(copy, tests, baseline.limit)
            total += seconds
            if result != "survived":
                break
    finally:
        path.write_bytes(source)
    print(f"  {result:<8} {total:4.0f} s  {mutant}", flush=True)
    return Verdict(mutant, result, total)


def _run_tests(copy: Path, tests: Sequence[str], limit: float) -> tuple[str, str, float]:
    """Return the result, the output and the duration of these tests."""
    plugins = ["-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist", "-p", "no:cov"]
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "--no-header", *plugins, *tests]
    began = time.monotonic()
    process = subprocess.Popen(  # noqa: S603
        pytest,
        cwd=copy,
        env=_environment(copy),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_limit_resources,  # noqa: PLW1509  (this process has one thread)
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return "timeout", "", time.monotonic() - began
    finally:
        _kill_group(process)
    if process.returncode == _NO_TESTS_COLLECTED:
        raise BaselineError(f"no tests in {', '.join(tests)}")
    return "killed" if process.returncode else "survived", output, time.monotonic() - began


def _kill_group(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with the servers that its tests started
    process.wait()


def _limit_resources() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _environment(copy: Path) -> dict[str, str]:
    local = {name: value for name, value in os.environ.items() if name != "CI"}  # where it is set, tests take longer
    own = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COVERAGE_FILE": str(copy / ".coverage")}
    return local | own


def _table(results: Sequence[PackageResult]) -> list[str]:
    lines = [f"{'package':<12} {'mutants':>8} {'sampled':>8} {'killed':>7} {'timeout':>8} {'survived':>9} {'time':>7}"]
    for result in results:
        survived = f"{result.count('survived')} ({result.survival:.0f} %)"
        lines.append(
            f"{result.package:<12} {result.mutants:>8} {len(result.verdicts):>8} {result.count('killed'):>7} "
            f"{result.count('timeout'):>8} {survived:>9} {result.seconds:>5.0f} s"
        )
    for result in results:
        survivors = [verdict.mutant for verdict in result.verdicts if verdict.result == "survived"]
        lines += ["", f"survivors in {result.package}:", *(f"  {mutant}" for mutant in survivors)] if survivors else []
    return lines


def _document(results: Sequence[PackageResult], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "seed": options.seed,
        "python": sys.version.split()[0],
        "packages": {
            result.package: {
                "mutants": result.mutants,
                "sampled": len(result.verdicts),
                "survival_percent": round(result.survival, 1),
                "seconds": round(result.seconds, 1),
                "results": [
                    {
                        "path": verdict.mutant.path,
                        "line": verdict.mutant.line,
                        "column": verdict.mutant.column,
                        "kind": verdict.mutant.kind,
                        "before": verdict.mutant.before,
                        "after": verdict.mutant.replacement,
                        "result": verdict.result,
                        "seconds": round(verdict.seconds, 2),
                    }
                    for verdict in result.verdicts
                ],
            }
            for result in results
        },
    }


if __name__ == "__main__":
    main()
