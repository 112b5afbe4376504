"""A worker as a process: its client from the environment, its end from a signal."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals

from signalwire_streams.client import StreamsClient
from signalwire_streams.fleet.batches import Secrets
from signalwire_streams.fleet.worker import FleetWorker


async def run_worker(
    url: str,
    *,
    client: StreamsClient | None = None,
    concurrency: int = 200,
    lease: float = 15.0,
    drain: float = 25.0,
    secrets: Secrets | None = None,
) -> None:
    """Be a worker of the fleet until SIGTERM or SIGINT comes; a second one hands back at once what is in hand.

    Args:
        url: the Redis that the fleet shares.
        client: starts the streams, and is closed at the end; one made from the environment by default. Workers that
            run at once have to share the Space's limit: pass a client with a pacer that does.
        concurrency: see `FleetWorker`.
        lease: see `FleetWorker`.
        drain: see `FleetWorker`.
        secrets: see `FleetWorker`.

    Raises:
        InvalidRequestError: something can't be right, or the environment lacks something.
        FleetError: Redis refuses the user or password.
    """
    async with client or StreamsClient.from_env() as ours:
        worker = FleetWorker(url, ours, concurrency=concurrency, lease=lease, drain=drain, secrets=secrets)
        with stopped_by_signals(worker):
            await worker.run()


@contextmanager
def stopped_by_signals(worker: FleetWorker) -> Iterator[None]:
    """Stop a worker when SIGTERM or SIGINT comes."""
    loop = asyncio.get_running_loop()
    numbers = (Signals.SIGINT, Signals.SIGTERM)
    try:
        for number in numbers:
            loop.add_signal_handler(number, worker.stop)
    except (NotImplementedError, RuntimeError):  # Windows' loops, and other threads', take no signals
        yield
        return
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
