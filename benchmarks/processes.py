"""Child processes: each contender has its own, and answers a line of JSON with a line of JSON."""

import argparse
import asyncio
import json
import os
import select
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from importlib import import_module
from typing import IO, Any, TextIO, TypeAlias

from attrs import frozen

from benchmarks.figures import NotMeasuredError

Respond: TypeAlias = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Executes a command, and returns the answer."""

Target: TypeAlias = Callable[[dict[str, Any]], AbstractAsyncContextManager[Respond]]
"""The workload of a child process, created with the parent's settings."""

PINNED_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
"""The environment in which glibc gives no memory back while a child is measured.

Otherwise it depends on the layout of the heap whether a read of 256 KiB costs two page faults, or none.
"""

_TIMEOUT = 600.0  # seconds for an answer; the largest run takes about one minute


class MissingPackageError(NotMeasuredError):
    """A package that a contender needs is not installed."""


class ChildError(NotMeasuredError):
    """A child failed, or did not answer in time; its output is on standard error."""


class Child:
    """A child process."""

    def __init__(self, target: str, stdin: IO[str], stdout: IO[str]) -> None:
        self._target = target
        self._stdin = stdin
        self._stdout = stdout

    def ask(self, **command: Any) -> dict[str, Any]:  # noqa: ANN401  (any JSON)
        """Send a command and wait for the answer."""
        self._stdin.write(json.dumps(command) + "\n")
        self._stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """Wait for an answer."""
        ready, _, _ = select.select([self._stdout], [], [], _TIMEOUT)
        line = self._stdout.readline() if ready else ""
        if not line:
            raise ChildError(f"{self._target} gave no answer")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise MissingPackageError(f"{answer['missing']} is not installed")
        if "failed" in answer:
            raise ChildError(f"{self._target} failed with {answer['failed']}")
        return answer


@contextmanager
def child(
    target: str,
    loop: str = "asyncio",
    *,
    under: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    cpu: int | None = None,
    **settings: Any,  # noqa: ANN401  (any JSON)
) -> Iterator[Child]:
    """Run a child for the length of a block.

    Args:
        target: what it runs, as ``module:name`` below ``benchmarks``.
        loop: its event loop.
        under: the command that runs it, such as valgrind's.
        environment: additional environment variables.
        cpu: the only processor that it may use; on Linux.
        settings: the target's settings.

    Raises:
        MissingPackageError: a package that it needs is not installed.
    """
    own = [target, loop, json.dumps(settings), *(() if cpu is None else ["--cpu", str(cpu)])]
    command = [*under, sys.executable, "-m", "benchmarks.processes", *own]
    process = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        running = Child(target, process.stdin, process.stdout)
        running.read()
        yield running
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@frozen
class Contender:
    """A row of a table, and the child that it measures."""

    name: str
    target: str
    loop: str = "asyncio"


def on_loop(name: str, loop: str) -> str:
    """Return the name of a contender on an event loop."""
    return name if loop == "asyncio" else f"{name}, {loop}"


def start_all(
    stack: ExitStack,
    contenders: Sequence[Contender],
    *,
    environment: dict[str, str] | None = None,
    **settings: Any,  # noqa: ANN401  (any JSON)
) -> tuple[dict[str, Child], list[str]]:
    """Start the contenders' children; return them, and notes on those whose packages are missing."""
    children, notes = {}, []
    for contender in contenders:
        try:
            started = child(contender.target, contender.loop, environment=environment, **settings)
            children[contender.name] = stack.enter_context(started)
        except MissingPackageError as error:
            notes.append(f"left out: {contender.name}, since {error}")
    return children, notes


async def _serve(target: Target, settings: dict[str, Any], answers: TextIO) -> None:
    async with target(settings) as respond:
        _answer(answers, {"ready": True})
        # A thread waits for the parent, and costs nothing while it does.
        while line := await asyncio.to_thread(sys.stdin.readline):
            _answer(answers, await respond(json.loads(line)))


def _answer(answers: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="module:name")
    parser.add_argument("loop")
    parser.add_argument("settings")
    parser.add_argument("--cpu", type=int)
    options = parser.parse_args()
    if options.cpu is not None and sys.platform == "linux":
        os.sched_setaffinity(0, {options.cpu})
    # The parent reads standard output, so whatever else prints there goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    module, _, name = options.target.partition(":")
    try:
        target: Target = getattr(import_module(f"benchmarks.{module}"), name)
        factory = None if options.loop == "asyncio" else import_module(options.loop).new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_serve(target, json.loads(options.settings), answers))
    except ModuleNotFoundError as error:
        _answer(answers, {"missing": error.name})
    except Exception as error:
        _answer(answers, {"failed": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    _main()
