"""What a start costs, against the loop one would have written by hand: CPU time as a ratio taken in one run.

Both sides start named streams on the same Space, which runs in a process of its own. They take turns, so that
whatever else the machine does hits both; the figure is the median of the rounds' ratios.
"""

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import aiohttp

from signalwire_streams import RateLimit, StreamsClient

URL = "wss://rx.example.com/audio"
SPACE = """
import asyncio, json, sys
from signalwire_streams.simulator import SimulatedSpace

async def main():
    async with SimulatedSpace(conferences=200, participants=0, rate_limit=None, keep_requests=False) as space:
        print(json.dumps([space.base_url, space.project, space.token, space.conference_sids]), flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@asynccontextmanager
async def space_in_its_own_process() -> AsyncIterator[tuple[str, str, str, list[str]]]:
    """Run a Space until the block ends."""
    process = subprocess.Popen(  # noqa: ASYNC220, S603  (once, before anything is measured)
        [sys.executable, "-c", SPACE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        base_url, project, token, sids = json.loads(process.stdout.readline())
        yield base_url, project, token, sids
    finally:
        process.stdin.close()
        process.wait(timeout=10)


async def many(
    start: Callable[[str, str], Awaitable[object]], names: Iterator[str], sids: list[str], workers: int
) -> None:
    """Start a stream under each name, from a few workers over one iterator."""

    async def work() -> None:
        for number, name in enumerate(names):
            await start(sids[number % len(sids)], name)

    await asyncio.gather(*(work() for _ in range(workers)))


def cpu() -> float:
    """Give the CPU seconds that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(rounds: int, starts: int, workers: int) -> list[float]:
    """Give each round's ratio: this client's CPU over the hand-written loop's."""
    async with space_in_its_own_process() as (base_url, project, token, sids), aiohttp.ClientSession() as session:
        root = f"{base_url}/api/laml/2010-04-01/Accounts/{project}/Conferences"
        headers = {"Authorization": aiohttp.encode_basic_auth(project, token)}

        async def by_hand(sid: str, name: str) -> object:
            form = {"Url": URL, "Name": name}
            async with session.post(f"{root}/{sid}/Streams", data=form, headers=headers) as response:
                response.raise_for_status()
                return await response.json()

        async with StreamsClient(
            base_url=base_url, project=project, token=token, rate_limit=RateLimit(requests=10_000_000)
        ) as client:

            async def ours(sid: str, name: str) -> object:
                return await client.conferences.start_stream(sid, url=URL, name=name)

            ratios = []
            for number in range(-1, rounds):  # the first round warms both up
                spent = []
                for side, start in (("hand", by_hand), ("ours", ours)):
                    before = cpu()
                    await many(start, iter([f"{side}-{number}-{n}" for n in range(starts)]), sids, workers)
                    spent.append(cpu() - before)
                if number >= 0:
                    ratios.append(spent[1] / spent[0])
            return ratios


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--starts", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=16)
    options = parser.parse_args()
    ratios = asyncio.run(measure(options.rounds, options.starts, options.workers))
    print(
        f"CPU of a start, this client over hand-written aiohttp: median {statistics.median(ratios):.2f} "
        f"(from {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds of {options.starts})"
    )


if __name__ == "__main__":
    main()
