"""How many streams ``listen --processes`` records on two processors, which the sender shares."""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, cast
from urllib.parse import urlsplit

from benchmarks.families.capacity import TRACKS
from benchmarks.figures import NotMeasuredError, Plan, Section
from benchmarks.processes import PINNED_HEAP, Child, ChildError, child
from benchmarks.search import Searches
from benchmarks.sender import FRAME_SECONDS

_PROCESSES = (1, 2)
_LATEST = 0.15  # seconds until a ping after the last frame is answered, and so everything before it has been read
_TIMEOUT = 60.0
_HEAD_START = 0.5
_COMMAND = ("-m", "signalwire_streams", "listen", "--json", "--allow-anonymous", "--passthrough", "--port", "0")


def measure(plan: Plan) -> list[Section]:
    """Search for the highest number of streams that one process records completely, and that two do.

    Raises:
        NotMeasuredError: there is one processor, or another system than Linux.
    """
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) < max(_PROCESSES):
        raise NotMeasuredError("it needs Linux and two processors")
    searches = Searches(plan)
    for number in range(plan.pick(full=3, quick=1)):
        for processes in plan.shuffled(_PROCESSES, number):
            with child("sender:serve") as sender, _listening(processes) as listening:
                searches.search(_name(processes), _Trials(searches.seconds, sender, listening).failure)
    about = (
        f"both tracks, 100 frames a second, written to WAV files; {searches.seconds:.0f} s a trial, of which one that "
        f"fails is repeated once; every frame recorded, and all of them read {_LATEST * 1e3:.0f} ms after the last was "
        "sent (99 of 100 streams); the sender takes its part of the two processors"
    )
    return [
        Section(
            title="Streams with both tracks that listen records on two processors",
            unit="streams",
            series=searches.found.series(map(_name, _PROCESSES)),
            baseline=_name(1),
            aims={_name(2): "≥ 2"},
            plotted=True,
            notes=(about, *searches.limits(map(_name, _PROCESSES))),
        )
    ]


def _name(processes: int) -> str:
    return f"--processes {processes}"


class _Listening:
    """A running command, whose output is read all the time, since it would wait for that."""

    def __init__(self, output: IO[str], directory: Path) -> None:
        self.directory = directory
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(output,), daemon=True).start()
        self.port = urlsplit(self.line()["url"]).port

    def _read(self, output: IO[str]) -> None:
        for line in output:
            self._lines.put(line)
        self._lines.put("")

    def line(self) -> dict[str, Any]:
        """Return the next object that it writes."""
        line = self._lines.get(timeout=_TIMEOUT)
        if not line:
            raise ChildError("listen ended, and said why on standard error")
        return cast("dict[str, Any]", json.loads(line))


@contextmanager
def _listening(processes: int) -> Iterator[_Listening]:
    with TemporaryDirectory() as directory:
        command = [sys.executable, *_COMMAND, "--directory", directory, "--processes", str(processes)]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **PINNED_HEAP})  # noqa: S603
        assert running.stdout is not None
        try:
            yield _Listening(running.stdout, Path(directory))
        finally:
            running.terminate()
            try:
                running.wait(timeout=20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
            running.stdout.close()


class _Trials:
    """Tries numbers of streams with one command."""

    def __init__(self, seconds: float, sender: Child, listening: _Listening) -> None:
        self._frames = int(seconds / FRAME_SECONDS) * TRACKS
        self._sender, self._listening = sender, listening

    def failure(self, streams: int) -> str:
        """Try a number once; return what it failed by, or nothing."""
        sender = self._sender
        sender.ask(connect=self._listening.port, sockets=streams, tls=False, tracks=TRACKS)
        sent = sender.ask(send=self._frames, epoch=time.monotonic() + _HEAD_START, tracks=TRACKS)
        answered = sender.ask(ping=True)["p99"]
        sender.ask()
        ended = [self._listening.line() for _ in range(streams)]
        for entry in self._listening.directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        recorded = sum(track["frames"] for stream in ended for track in stream["tracks"].values())
        lost = streams * self._frames - recorded
        if not lost and answered < _LATEST and sent["p99"] < _LATEST:
            return ""
        by = f"{lost:,} frames were not recorded" if lost else f"the pings took {answered * 1e3:.0f} ms"
        return f"{by}; the sender's own delay was {sent['p99'] * 1e3:.1f} ms"
