"""The program as a whole: its help, its version, and what it says when its extra is not installed."""

import signal
import subprocess
import sys
from importlib.metadata import version

import pytest

from signalwire_streams.simulator import SimulatedSpace

from .shell import PATIENCE, Shell, credentials, end_of, process

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

COMMANDS = [
    ("conferences", "list"),
    ("conferences", "get"),
    ("conferences", "participants"),
    ("conferences", "start-stream"),
    ("conferences", "stop-stream"),
    ("conferences", "end"),
    ("calls", "list"),
    ("calls", "get"),
    ("calls", "start-stream"),
    ("calls", "stop-stream"),
    ("calls", "end"),
    ("simulate",),
    ("demo",),
]


async def test_the_version_is_the_packages(bare_shell: Shell) -> None:
    ran = await bare_shell("--version")
    assert (ran.code, ran.out) == (0, f"signalwire-streams, version {version('signalwire-streams')}\n")


@pytest.mark.parametrize("command", COMMANDS)
async def test_each_help_has_an_example_and_names_the_environment(bare_shell: Shell, command: tuple[str, ...]) -> None:
    ran = await bare_shell(*command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"  signalwire-streams {' '.join(command)}" in ran.out.partition("Example")[2]
    for name in ("SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN"):
        assert name in ran.out


async def test_a_call_is_offered_no_codec(bare_shell: Shell) -> None:
    ran = await bare_shell("calls", "start-stream", "--help")
    assert "codec" not in ran.out
    assert "realtime" not in ran.out


@pytest.mark.parametrize("group", [(), ("conferences",), ("calls",)])
async def test_no_command_prints_help_as_a_usage_error(bare_shell: Shell, group: tuple[str, ...]) -> None:
    ran = await bare_shell(*group)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: ")


async def test_an_unknown_command_is_a_usage_error(bare_shell: Shell) -> None:
    ran = await bare_shell("conference")
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)
    assert ran.err.startswith("error: No such command 'conference'. Did you mean 'conferences'? (see ")


@pytest.mark.parametrize("missing", ["click", "rich"])
async def test_command_without_the_extra_names_it(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from signalwire_streams.__main__ import main; sys.exit(main())"
    )
    async with process(python=("-c", code)) as child:
        ran = await end_of(child)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: the command line needs more packages: pip install 'signalwire-streams[cli]'\n"


INTERRUPTED_AT_EXIT = (
    "import atexit, os, signal, sys; atexit.register(os.kill, os.getpid(), signal.SIGINT);"
    "from signalwire_streams.__main__ import main; sys.exit(main())"
)


@posix_only
@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--version"], 0, ""),
        (["conferences", "list"], 2, "error: set SIGNALWIRE_SPACE (or --space)"),
        (["conference"], 2, "error: No such command 'conference'"),
    ],
)
async def test_an_interrupt_while_the_interpreter_exits_is_ignored(arguments: list[str], code: int, error: str) -> None:
    async with process(*arguments, python=("-c", INTERRUPTED_AT_EXIT)) as child:
        ran = await end_of(child)
    assert ran.code == code
    assert ran.err.startswith(error)
    assert len(ran.err.splitlines()) == bool(error)


@posix_only
async def test_a_second_interrupt_while_the_interpreter_exits_is_ignored(space: SimulatedSpace) -> None:
    space.faults.add("hang", on="list")
    python = ("-c", INTERRUPTED_AT_EXIT)
    async with process("conferences", "list", environment=credentials(space), python=python) as child:
        await space.requests.wait_for(1, "list-conferences", timeout=PATIENCE)
        ran = await end_of(child, signal.SIGINT)
    assert (ran.code, ran.out, ran.err) == (130, "", "")


def test_the_package_does_not_import_its_command_line() -> None:
    code = (
        "import sys, signalwire_streams, signalwire_streams.simulator;"
        "print(sorted({'click', 'rich', 'signalwire_streams._cli'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=20)  # noqa: S603
    assert done.stdout == "[]\n"
