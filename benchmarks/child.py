"""The child's side of `benchmarks.children`: serves one target, a line of JSON for a line of JSON."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Any, TextIO, TypeAlias

Respond: TypeAlias = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Does what a line asks for, and gives the answer."""

Serve: TypeAlias = Callable[[dict[str, Any]], AbstractAsyncContextManager[Respond]]
"""What a target is: made with the settings that the parent passes."""


async def _hold(serve: Serve, settings: dict[str, Any], answers: TextIO) -> None:
    async with serve(settings) as respond:
        _tell(answers, {"ready": True})
        # A thread waits for the parent, and costs nothing while it does.
        while line := await asyncio.to_thread(sys.stdin.readline):
            _tell(answers, await respond(json.loads(line)))


def _tell(answers: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = import_module(name).new_event_loop
    return factory


def main() -> None:
    """Serve until the parent closes the pipe, or is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="module:name")
    parser.add_argument("loop")
    parser.add_argument("settings")
    options = parser.parse_args()
    # The parent reads what this writes to standard output, so whatever else prints there goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    module, _, name = options.target.partition(":")
    try:
        serve: Serve = getattr(import_module(module), name)
        factory = _loop_factory(options.loop)
    except ModuleNotFoundError as error:
        _tell(answers, {"missing": error.name})
        return
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_hold(serve, json.loads(options.settings), answers))
    except Exception as error:
        _tell(answers, {"failed": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()
