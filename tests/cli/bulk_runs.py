"""Helpers of the tests of ``bulk``: files of targets, a Space that holds responses back, files of a run."""

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define, field

from signalwire_streams.simulator import SimulatedSpace
from tests import waiting

from .shell import PATIENCE, Ran


def ids_file(path: Path, ids: Iterable[str]) -> str:
    """Write a file with one sid per line, and return its name."""
    path.write_text("".join(f"{sid}\n" for sid in ids), encoding="utf-8")
    return str(path)


def json_file(path: Path, lines: Iterable[Mapping[str, Any]]) -> str:
    """Write a file with one JSON object per line, and return its name."""
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return str(path)


def files_in(folder: Path, suffix: str = "") -> list[Path]:
    """Return the files of a folder with this suffix."""
    return sorted(folder.glob(f"*{suffix}"))


def bytes_in(folder: Path) -> bytes:
    """Return the contents of all files of a folder, including a journal's side files."""
    return b"".join(path.read_bytes() for path in files_in(folder))


def offered(ran: Ran, verb: str) -> list[str]:
    """Return the arguments of the one command of this verb that the output suggests."""
    [line] = [line for line in ran.rows if line.startswith(f"  signalwire-streams bulk {verb} ")]
    return shlex.split(line)[1:]


def table(ran: Ran) -> dict[str, str]:
    """Return the indented rows of a summary by label."""
    found = {}
    for row in ran.rows:
        name, gap, value = row.strip().partition("  ")
        if row.startswith("  ") and gap:
            found[name] = value.strip()
    return found


@define(eq=False)
class Held:
    """Holds responses back until they are released.

    Attributes:
        most: how many were held at once, at most.
    """

    most: int = 0
    _now: int = 0
    _free: asyncio.Event = field(init=False, factory=asyncio.Event)

    async def __call__(self, seconds: float) -> None:
        """Wait instead of these seconds."""
        self._now += 1
        self.most = max(self.most, self._now)
        await self._free.wait()
        self._now -= 1

    def let_go(self) -> None:
        """Release all responses."""
        self._free.set()


@asynccontextmanager
async def held_space(**settings: Any) -> AsyncIterator[tuple[SimulatedSpace, Held]]:
    """A Space that executes starts at once, and holds its responses back."""
    held = Held()
    async with SimulatedSpace(participants=0, sleep=held, **settings) as space:
        space.faults.add("latency", on="start", seconds=1)
        yield space, held


until = partial(waiting.until, timeout=PATIENCE)
