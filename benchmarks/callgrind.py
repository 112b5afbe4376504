"""Counting of instructions with valgrind's callgrind: unlike time, it hardly depends on what else the machine does."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks.figures import NotMeasuredError
from benchmarks.processes import Child, child

_LIBRARY = "BENCHMARKS_CALLGRIND"  # the environment variable that tells a child where the helper is
_HELPER = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_ZERO_STATS; CALLGRIND_START_INSTRUMENTATION; }
void stop(void) { CALLGRIND_DUMP_STATS; CALLGRIND_STOP_INSTRUMENTATION; }
"""
_INSTALL = "instructions are counted with valgrind and gcc: install both (Debian: apt install valgrind gcc libc6-dev)"


class CallgrindMissingError(NotMeasuredError):
    """Something that counting needs is not installed; the message says what to install."""


@contextmanager
def counting(*, enabled: bool) -> Iterator[None]:
    """Count the instructions of a block; the process must be one that `counted_child` started."""
    if not enabled:
        yield
        return
    helper = ctypes.CDLL(os.environ[_LIBRARY])
    helper.start()
    try:
        yield
    finally:
        helper.stop()


def compile_helper(directory: Path) -> Path:
    """Compile the helper that sends callgrind's client requests.

    Raises:
        CallgrindMissingError: valgrind, its header or gcc is not installed.
    """
    compiler = shutil.which("gcc")
    if compiler is None or shutil.which("valgrind") is None:
        raise CallgrindMissingError(_INSTALL)
    source, library = directory / "helper.c", directory / "helper.so"
    source.write_text(_HELPER, "utf-8")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if compiled.returncode:
        raise CallgrindMissingError(f"{_INSTALL}; gcc said: {compiled.stderr.strip().splitlines()[0]}")
    return library


def count_program(program: str, directory: Path, environment: Mapping[str, str]) -> int:
    """Count the instructions of a new interpreter that runs a program, whose modules have been compiled before."""
    output = directory / "program.out"
    command = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={output}", sys.executable, "-c", program]
    subprocess.run(command, check=True, env={**environment, "PYTHONHASHSEED": "0"})  # noqa: S603
    return _total(output)


@contextmanager
def counted_child(
    target: str,
    helper: Path,
    *,
    environment: dict[str, str] | None = None,
    **settings: Any,  # noqa: ANN401  (any JSON)
) -> Iterator[tuple[Child, Callable[[], int]]]:
    """Run a child under callgrind; yield it, and a function that returns the instructions of its last counted block."""
    output = Path(mkdtemp(dir=helper.parent)) / "child.out"
    under: Sequence[str] = (
        *("valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", "--combine-dumps=no"),
        f"--callgrind-out-file={output}",
    )
    variables = {_LIBRARY: str(helper), "PYTHONHASHSEED": "0", **(environment or {})}
    with child(target, under=under, environment=variables, **settings) as running:
        yield running, lambda: _instructions(output)


def _instructions(output: Path) -> int:
    dumps = sorted(output.parent.glob(f"{output.name}.*"), key=lambda path: int(path.suffix[1:]))
    return _total(dumps[-1])


def _total(dump: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)", dump.read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1])
