"""Which files of the package a start and a bulk item pass through: ``python -m benchmarks.trace [--path]``.

Each is traced with `sys.setprofile` on a real call to a simulated Space, after a first one that is not counted. A file
counts when one of its functions is called, and a switch when that file differs from the one of the call before. Code
that attrs and cattrs generate belongs to no file. The simulator is left out.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from attrs import define, field

import signalwire_streams
from signalwire_streams import StartConferenceStream, StreamsClient
from signalwire_streams.simulator import SimulatedSpace

FIRST_INSTRUCTIONS = 8
"""Byte code offsets at which a frame that is called, and not resumed, may stand."""

PACKAGE = Path(signalwire_streams.__file__).parent
URL = "wss://rx.example.com/audio"


@define
class Trace:
    """The calls of the package's functions, in order, by file."""

    calls: list[str] = field(factory=list)

    @property
    def visits(self) -> list[str]:
        """The files in the order in which they were entered, each once for consecutive calls."""
        return [file for file, _ in groupby(self.calls)]

    def __str__(self) -> str:
        return f"{len(set(self.calls))} files, {len(self.visits) - 1} switches, {len(self.calls)} calls"


@contextmanager
def tracing() -> Iterator[Trace]:
    """Record the calls within the block."""
    trace, files = Trace(), dict[str, str | None]()

    def file_of(name: str) -> str | None:
        path = Path(name)
        if not path.is_relative_to(PACKAGE) or path.is_relative_to(PACKAGE / "simulator"):
            return None
        return str(path.relative_to(PACKAGE))

    def profile(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_filename
        if event == "call":
            if name not in files:
                files[name] = file_of(name)
            file = files[name]
            # A coroutine that is resumed is not called anew, though it is reported so.
            if file is not None and frame.f_lasti <= FIRST_INSTRUCTIONS:
                trace.calls.append(file)

    sys.setprofile(profile)
    try:
        yield trace
    finally:
        sys.setprofile(None)


async def start(client: StreamsClient, conferences: list[str]) -> Trace:
    """Trace one start on a connection that is already open."""
    await client.conferences.start_stream(conferences.pop(), url=URL)
    with tracing() as trace:
        await client.conferences.start_stream(conferences.pop(), url=URL)
    return trace


async def bulk_item(client: StreamsClient, conferences: list[str]) -> Trace:
    """Trace the second of three items of a journaled run, from the outcome before it to its own."""
    requests = [StartConferenceStream(conference_sid=conferences.pop(), url=URL) for _ in range(3)]
    with TemporaryDirectory() as folder:
        run = aiter(client.start_streams(requests, concurrency=1, journal=Path(folder, "run.db")))
        await anext(run)
        with tracing() as trace:
            await anext(run)
        await anext(run)
        await run.aclose()
    return trace


async def shortest(trace: Callable[[StreamsClient, list[str]], Awaitable[Trace]], *arguments: Any) -> Trace:  # noqa: ANN401  (those of the trace)
    """Return the shortest of three traces: timers of a busy machine and finalizers only add calls."""
    return min([await trace(*arguments) for _ in range(3)], key=lambda found: len(found.calls))


async def traces() -> dict[str, Trace]:
    """Trace both."""
    async with (
        SimulatedSpace(conferences=15) as space,
        StreamsClient(base_url=space.base_url, project=space.project, token=space.token) as client,
    ):
        conferences = space.conference_sids
        return {
            "start_stream": await shortest(start, client, conferences),
            "bulk item with journal": await shortest(bulk_item, client, conferences),
        }


def main() -> None:
    """Print both traces."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", action="store_true", help="show the files in the order in which they are entered")
    arguments = parser.parse_args()
    for name, trace in asyncio.run(traces()).items():
        print(f"{name}: {trace}")
        if arguments.path:
            print("   ", " > ".join(trace.visits))


if __name__ == "__main__":
    main()
