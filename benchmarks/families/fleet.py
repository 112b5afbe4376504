"""Use of a Space's whole limit by three workers of a fleet, and the worst window that they cause together."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.families.starts import LIMIT, WINDOW, StartsNotConfirmedError
from benchmarks.figures import NotMeasuredError, Plan, Rounds, Section
from benchmarks.processes import child

_WORKERS = 3
_USED = "starts, of what the rate limiter allows"
_REDIS_STARTS = 10.0  # seconds that it gets for that
_TIMEOUT = 120.0


def measure(plan: Plan) -> list[Section]:
    """Submit runs that take a little longer than one window, and have three workers start them.

    Raises:
        NotMeasuredError: redis-server is not installed.
    """
    redis = shutil.which("redis-server")
    if redis is None:
        raise NotMeasuredError("redis-server is not installed (on Debian: package redis-server)")
    found = Rounds()
    begins, window = plan.pick(full=(3.0, WINDOW), quick=(2.0, 3.0))
    notes = (
        (
            f"from {begins:.0f} s after the first start, for {window:.0f} s, at utilization=1.0; the server, Redis, "
            f"the {_WORKERS} workers and who submits share this machine"
        ),
        f"the fullest window is any {window:.0f} s on the server: above 100, the Space would reject starts",
    )
    for _ in range(plan.pick(full=3, quick=1)):
        answer = _run(redis, int(LIMIT / WINDOW * (begins + window + 2.0)), begins=begins, window=window)
        found.add(_USED, answer["steady"] / (answer["rate"] * window) * 100)
        found.add("starts, of the Space's limit", answer["steady"] / (LIMIT / WINDOW * window) * 100)
        found.add("the fullest window, of the Space's limit", answer["busiest"] / (LIMIT / WINDOW * window) * 100)
        found.add("CPU of the three workers, of one core", answer["cpu"] * 100)
    return [
        Section(
            title="Three fleet workers at the whole limit of a Space",
            unit="%",
            series=found.series(),
            aims={_USED: "≥ 95"},
            plotted=True,
            notes=notes,
        )
    ]


def _run(redis: str, starts: int, *, begins: float, window: float) -> dict[str, float]:
    with _redis_server(redis) as url, ExitStack() as stack:
        space = stack.enter_context(child("servers:serve"))
        settings: dict[str, Any] = {"redis": url, "base_url": f"http://127.0.0.1:{space.ask()['port']}"}
        submitter = stack.enter_context(child("workers:submit", **settings))
        submitter.ask(starts=starts)
        workers = [stack.enter_context(child("workers:work", **settings)) for _ in range(_WORKERS)]
        while not space.ask()["served"]:
            time.sleep(0.05)
        time.sleep(begins)
        used, began = [worker.ask()["cpu"] for worker in workers], time.monotonic()
        time.sleep(window)
        spent = sum(worker.ask()["cpu"] for worker in workers) - sum(used)
        cores, rate = spent / (time.monotonic() - began), workers[0].ask()["rate"]
        confirmed = submitter.ask(timeout=_TIMEOUT)["confirmed"]
        seen = space.ask(window=window, after=begins)
    if not confirmed == seen["served"] == starts:
        raise StartsNotConfirmedError(f"{confirmed} confirmed, {seen['served']} served, {starts} submitted")
    return {"cpu": cores, "rate": rate, "busiest": seen["busiest"], "steady": seen["steady"]}


@contextmanager
def _redis_server(program: str) -> Iterator[str]:
    """Run a Redis that keeps nothing, on a socket of its own, and yield its URL."""
    with TemporaryDirectory() as directory:
        address = Path(directory) / "redis.sock"
        options = ("--port", "0", "--unixsocket", str(address), "--save", "", "--appendonly", "no", "--dir", directory)
        process = subprocess.Popen([program, *options, "--logfile", "redis.log"])  # noqa: S603
        try:
            until = time.monotonic() + _REDIS_STARTS
            while not address.exists():
                assert time.monotonic() < until, "redis-server did not start"
                time.sleep(0.02)
            yield f"unix://{address}"
        finally:
            process.terminate()
            process.wait(timeout=10)
