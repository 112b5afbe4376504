"""The checks that a change must pass. `nox` runs all of them, `nox --session tests` only the tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import nox
from packaging.requirements import Requirement

PROJECT = nox.project.load_toml("pyproject.toml")
nox.needs_version = ">=2025.10.14"
nox.options.sessions = ["lint", "types", "tests", "wheel"]
nox.options.error_on_external_run = True
nox.options.download_python = "never"
EVERYTHING = ".[audio,cli,fleet,otel,pytest,redis,tokens]"
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
MATRIX = [
    *((version, "newest") for version in nox.project.python_versions(PROJECT) if version != RUNNING),
    (RUNNING, "lowest"),
]

# Each module is compiled once, and not by each worker of pytest-xdist and each process that a test starts.
COMPILED_ONCE = {"PYTHONDONTWRITEBYTECODE": None}


def dependencies(group: str) -> list[str]:
    """Return the requirements of a dependency group."""
    return list(nox.project.dependency_groups(PROJECT, group))


def lowest(requirements: list[str]) -> list[str]:
    """Pin each requirement to its lowest allowed version."""
    parsed = [Requirement(requirement) for requirement in requirements]
    return [f"{one.name}=={bound.version}" for one in parsed for bound in one.specifier if bound.operator == ">="]


def offer_pyenv() -> None:
    """Make every interpreter of pyenv visible to nox, not only the selected ones."""
    pyenv = shutil.which("pyenv")
    if pyenv is None or "PYENV_VERSION" in os.environ:
        return
    commands = (["version-name"], ["versions", "--bare"])
    outputs = [subprocess.run([pyenv, *one], capture_output=True, text=True, check=False).stdout for one in commands]  # noqa: S603
    os.environ["PYENV_VERSION"] = ":".join(dict.fromkeys(" ".join(outputs).replace(":", " ").split()))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on all cores. If CI is set, also require complete branch coverage, and repeat some otherwise."""
    session.install("--editable", EVERYTHING, *dependencies("test"))
    if session.posargs:
        session.run("pytest", *session.posargs, env=COMPILED_ONCE)
        return
    at_least = "100"
    if shutil.which("redis-server") is None:
        session.warn(
            "redis-server is not installed, so the tests that need it are skipped (on Debian: package redis-server)"
        )
        at_least = "0"
    covered = ["--cov", "--cov-report", "term:skip-covered", "--cov-fail-under", at_least]
    session.run("pytest", "--numprocesses", "auto", *(covered if os.environ.get("CI") else ()), env=COMPILED_ONCE)
    if os.environ.get("CI"):
        options = ("--numprocesses", "auto", "--receiver-tls", "--every-server")
        session.run("pytest", *options, "tests/receiver", env=COMPILED_ONCE)


@nox.session
@nox.parametrize("python,versions", MATRIX)
def matrix(session: nox.Session, versions: str) -> None:
    """Run the tests on the other installed Pythons, and with the lowest supported versions of the dependencies."""
    pinned = lowest(PROJECT["project"]["dependencies"]) if versions == "lowest" else []
    session.install("--editable", EVERYTHING, *dependencies("test"), *pinned)
    session.run(
        "pytest", "--numprocesses", "auto", "--hypothesis-profile", "short", *session.posargs, env=COMPILED_ONCE
    )


@nox.session
@nox.parametrize("release", ["oldest", "newest"])
def aiohttp(session: nox.Session, release: str) -> None:
    """Run the tests of connections and of the receiver with the oldest and the newest aiohttp that is allowed."""
    [requirement] = [one for one in PROJECT["project"]["dependencies"] if Requirement(one).name == "aiohttp"]
    session.install("--editable", EVERYTHING, *dependencies("test"))
    if release == "oldest":
        session.install(*lowest([requirement]))
    else:  # also in an environment that is used again
        session.install("--upgrade", requirement)
    session.run("python", "-c", "import aiohttp; print('aiohttp', aiohttp.__version__)")
    options = ("--numprocesses", "auto", *session.posargs)
    session.run("pytest", *options, "tests/transport", "tests/receiver", env=COMPILED_ONCE)


@nox.session
@nox.parametrize("framework", ["pipecat", "livekit"])
def adapters(session: nox.Session, framework: str) -> None:
    """Run the tests of an adapter with its framework, which takes about half a gigabyte."""
    session.install("--editable", f".[pytest,{framework}]", *dependencies("test"))
    session.run("python", "-c", f"import signalwire_streams.adapters.{framework}")  # or its tests would be skipped
    session.run("pytest", *(session.posargs or ["tests/adapters"]), env=COMPILED_ONCE)


@nox.session
def browser(session: nox.Session) -> None:
    """Run the tests of the live page in the system's Chromium (on Debian: package chromium)."""
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        session.error("there is no Chromium: install it (on Debian: package chromium)")
    session.install("--editable", EVERYTHING, *dependencies("browser"))
    session.run("pytest", *(session.posargs or ["tests/page/test_in_browser.py"]), env=COMPILED_ONCE)


@nox.session
def picture(session: nox.Session) -> None:
    """Take the README's picture of the live page from `demo --page`, in the system's Chromium."""
    session.install("--editable", EVERYTHING, *dependencies("browser"))
    session.run("python", "-m", "tests.page.picture", "tests/page/picture.png")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(*dependencies("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check all types, and that every public name is completely typed."""
    session.install("--editable", EVERYTHING, *dependencies("types"))
    session.run("mypy")
    # pipecat and livekit are not installed; the stubs have the types of the names that the adapters use.
    frameworks = {"PYTHONPATH": str(Path("tests", "stubs").resolve())}
    session.run("pyright", "--verifytypes", "signalwire_streams", "--ignoreexternal", env=frameworks)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the reference, guides included, and check that it is complete and that its links lead somewhere."""
    session.install("--editable", EVERYTHING, *dependencies("docs"), *dependencies("test"))
    output = Path(session.create_tmp()).resolve() / "reference"
    shutil.rmtree(output, ignore_errors=True)
    session.run("python", "-W", "ignore", "-m", "tests.reference", str(output))
    session.log(f"the reference: {output / 'index.html'}")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the distributions, check what they contain, and run the wheel without the extras and then with them."""
    session.install("build", "twine")
    built = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(built, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(built))
    session.run("twine", "check", "--strict", *map(str, built.iterdir()))
    [wheel_file] = built.glob("*.whl")
    packed = {name for name in ZipFile(wheel_file).namelist() if name.startswith("signalwire_streams/")}
    files = (path for path in Path("signalwire_streams").rglob("*") if path.is_file() and path.suffix != ".pyc")
    if packed != (expected := {path.as_posix() for path in files}):
        session.error(f"the wheel's contents differ from the package: {sorted(packed ^ expected)}")
    session.install(str(wheel_file))
    session.chdir(built.parent)
    session.run("python", "-c", "import signalwire_streams, signalwire_streams.simulator")
    session.run("python", "-m", "signalwire_streams", success_codes=[2])
    session.install(f"signalwire-streams[cli] @ {wheel_file.as_uri()}")
    session.run("signalwire-streams", "demo")


@nox.session
def mutants(session: nox.Session) -> None:
    """Sample mutants and report those that no test detects; `-- fleet middleware --number 40 --seed 7 --seconds 60`."""
    session.install("--editable", EVERYTHING, *dependencies("test"))
    results = Path(session.create_tmp()).resolve() / "mutants.json"
    session.env.pop("TMPDIR", None)  # or the path of a Redis socket may become too long
    session.run("python", "-m", "tests.mutation", "--json", str(results), *session.posargs)
    session.log(f"results of all mutants: {results}")


@nox.session
def soak(session: nox.Session) -> None:
    """Check the keeper of streams after any three faults, and in two hours of a Space's life by a virtual clock.

    Those two hours are played without sockets and then with them; the latter takes about an hour on an idle machine.
    """
    session.install("--editable", ".[cli]")
    session.run("python", "-m", "tests.keep_streaming", *session.posargs)
    session.run("python", "-m", "tests.keep_streaming", "--soak", *session.posargs)
    session.run("python", "-m", "tests.keep_streaming.churned", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the cost of this package relative to others, as ratios taken in one run; `-- --quick` is a trial run."""
    session.install("--editable", ".[cli,fleet]", *dependencies("bench"))
    figures = Path(session.create_tmp()).resolve() / "figures.json"
    session.run("python", "-m", "benchmarks", "--json", str(figures), *session.posargs)
    session.log(f"all figures of all rounds: {figures}")


offer_pyenv()
