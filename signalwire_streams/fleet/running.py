"""A worker as a process: its client from the environment, its end from a signal."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from signal import Signals

from signalwire_streams._client import StreamsClient
from signalwire_streams.fleet._batches import Secrets
from signalwire_streams.fleet._worker import FleetWorker
from signalwire_streams.redis_rate_limit import RedisPacer
from signalwire_streams.middleware._rate_limit import Pacer


async def run_worker(
    url: str,
    *,
    pacer: Pacer | None = None,
    concurrency: int = 200,
    lease: float = 15.0,
    drain: float = 25.0,
    secrets: Secrets | None = None,
) -> None:
    """Be a worker of the fleet until SIGTERM or SIGINT comes; a second one hands back at once what is in hand.

    Its client is made from ``SIGNALWIRE_SPACE``, ``SIGNALWIRE_PROJECT_ID`` and ``SIGNALWIRE_API_TOKEN``.

    Args:
        url: the Redis that the fleet shares.
        pacer: what the workers share the Space's limit by; a `RedisPacer` on the fleet's Redis by default.
        concurrency: see `FleetWorker`.
        lease: see `FleetWorker`.
        drain: see `FleetWorker`.
        secrets: see `FleetWorker`.

    Raises:
        InvalidRequestError: something can't be right, or the environment lacks something.
        SharedPacerError: Redis can't be reached at the start, or refuses the user or password.
        FleetError: the same, with a pacer of the caller's own.
    """
    async with AsyncExitStack() as stack:
        if pacer is None:
            pacer = await stack.enter_async_context(RedisPacer(url))
        client = await stack.enter_async_context(StreamsClient.from_env(pacer=pacer))
        worker = FleetWorker(url, client, concurrency=concurrency, lease=lease, drain=drain, secrets=secrets)
        with stopped_by_signals(worker):
            await worker.run()


@contextmanager
def stopped_by_signals(worker: FleetWorker, on_signal: Callable[[Signals], object] | None = None) -> Iterator[None]:
    """Stop a worker when SIGTERM or SIGINT comes.

    Args:
        worker: the worker.
        on_signal: called with each signal, after the worker was told to stop.
    """

    def stop(number: Signals) -> None:
        worker.stop()
        if on_signal is not None:
            on_signal(number)

    loop = asyncio.get_running_loop()
    numbers = (Signals.SIGINT, Signals.SIGTERM)
    try:
        for number in numbers:
            loop.add_signal_handler(number, stop, number)
    except (NotImplementedError, RuntimeError):  # Windows' loops, and other threads', take no signals
        yield
        return
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
