"""Children: each contender runs in a process of its own, and is asked line by line."""

import json
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from attrs import frozen

_PATIENCE = 600.0  # seconds for an answer; the largest run takes about one minute


class MissingPeerError(Exception):
    """A package that a contender needs is not installed; its name is the argument."""


class ChildError(Exception):
    """A child died, or gave no answer in time; what it said is on standard error."""


@frozen
class Child:
    """A process that answers.

    Attributes:
        target: what it serves.
    """

    target: str
    _stdin: IO[str]
    _stdout: IO[str]

    def ask(self, **command: Any) -> dict[str, Any]:  # noqa: ANN401  (any JSON)
        """Ask for something and wait for the answer."""
        self._stdin.write(json.dumps(command) + "\n")
        self._stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """Wait for an answer."""
        ready, _, _ = select.select([self._stdout], [], [], _PATIENCE)
        line = self._stdout.readline() if ready else ""
        if not line:
            raise ChildError(f"{self.target} gave no answer")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise MissingPeerError(answer["missing"])
        if "failed" in answer:
            raise ChildError(f"{self.target} failed with {answer['failed']}")
        return answer


@contextmanager
def child(target: str, loop: str = "asyncio", **settings: Any) -> Iterator[Child]:  # noqa: ANN401  (any JSON)
    """Run a child until the block ends.

    Args:
        target: what it serves, as ``module:name``.
        loop: its event loop.
        settings: what the target takes.

    Raises:
        MissingPeerError: what it needs is not installed.
    """
    command = [sys.executable, "-m", "benchmarks.child", target, loop, json.dumps(settings)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        served = Child(target, process.stdin, process.stdout)
        served.hear()
        yield served
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@frozen
class Contender:
    """Who takes part.

    Attributes:
        name: as the tables have it.
        target: what its child serves.
        loop: its event loop.
    """

    name: str
    target: str
    loop: str = "asyncio"


def line_up(
    stack: ExitStack,
    contenders: Sequence[Contender],
    **settings: Any,  # noqa: ANN401  (any JSON)
) -> tuple[dict[str, Child], list[str]]:
    """Start the children of those who can take part, and say who can't and why."""
    children, notes = {}, []
    for contender in contenders:
        try:
            children[contender.name] = stack.enter_context(child(contender.target, contender.loop, **settings))
        except MissingPeerError as error:
            notes.append(f"left out: {contender.name}, since {error} is not installed")
    return children, notes
