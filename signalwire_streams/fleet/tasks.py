"""The one task that the engine carries: which batch of which run. All else is read from Redis by whoever has it."""

from signalwire_streams.errors import ClientStateError

TASK = "start_batch"
"""What the engine calls it."""


async def start_batch(run: str, batch: int) -> None:
    """Stand for the task where it is only submitted; a worker puts its own in this place."""
    raise ClientStateError(f"batch {batch} of {run} came to a process that is no worker")
