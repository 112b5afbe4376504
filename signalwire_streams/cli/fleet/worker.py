"""``signalwire-streams fleet worker``."""

import asyncio
from contextlib import AsyncExitStack
from signal import Signals
from typing import Any

import click
from attrs import define, field

from signalwire_streams import PlannedRequest, RetryPolicy, StartCallStream, StartConferenceStream, StreamsError
from signalwire_streams.cli.account import ENVIRONMENT, Account, account_options
from signalwire_streams._cli.bulk.runner import Knobs, concurrency_option, resend_option
from signalwire_streams.cli.bulk.withheld import Secrets
from signalwire_streams.cli.failures import failure_of
from signalwire_streams._cli.fleet.render import (
    FLEET_ENVIRONMENT,
    check_redis,
    paced_client,
    redis_option,
    shared_rate_option,
    the_fleet_room,
)
from signalwire_streams._cli.output import clean, write_note
from signalwire_streams._cli.options import secret_options

_AT_ONCE = 200


@click.command(
    short_help="Carry out what is submitted.",
    epilog=f"""{ENVIRONMENT}{FLEET_ENVIRONMENT}
\b
Example:
  signalwire-streams fleet worker --bearer-token-file token.txt
""",
)
@click.option(
    "--lease", type=float, default=15.0, show_default=True, help="Seconds after which a dead one is replaced."
)
@click.option("--drain", type=float, default=25.0, show_default=True, help="Seconds for what is in hand at SIGTERM.")
@concurrency_option(_AT_ONCE)
@shared_rate_option
@resend_option
@secret_options
@redis_option
@account_options
def worker(
    account: Account,
    *,
    url_of_redis: str | None,
    lease: float,
    drain: float,
    concurrency: int,
    rate: float | None,
    resend_call_starts: bool,
    parameters: dict[str, str],
    authorization_bearer_token: str | None,
    status_callback: str | None,
) -> None:
    """Carry out what is submitted, together with all other workers, until SIGTERM or Ctrl-C.

    Then it takes nothing new, finishes what it has in hand, and hands back what takes too long; a second signal
    hands it all back at once. The workers share the Space's limit, or the --rate, through Redis.
    """
    room = the_fleet_room()
    secrets = Secrets(parameters, authorization_bearer_token, status_callback)

    async def work() -> None:
        redis = check_redis(url_of_redis)
        knobs = Knobs(concurrency, rate, resend_call_starts)
        retry = RetryPolicy(resend_call_starts=resend_call_starts)
        async with AsyncExitStack() as stack:
            client = await paced_client(stack, account, redis, knobs, retry=retry)
            one = room.FleetWorker(
                redis, client, concurrency=concurrency, lease=lease, drain=drain, secrets=_giving(secrets)
            )
            write_note(f"Worker {clean(one.name)} serves project {client.project} on {client.origin}.")
            with room.stopped_by_signals(one, _DrainNotes(clean(one.name), drain)):
                await one.run()
            write_note(f"Worker {clean(one.name)} ended.")

    try:
        asyncio.run(work())
    except StreamsError as error:
        raise failure_of(error, as_json=account.as_json) from None


@define(eq=False)
class _DrainNotes:
    """Prints what each signal makes a worker do.

    Attributes:
        worker: the worker's name.
        drain: seconds that its work in progress gets.
    """

    worker: str
    drain: float
    _signals: int = field(init=False, default=0)

    def __call__(self, number: Signals) -> None:
        self._signals += 1
        if self._signals == 1:
            write_note(
                f"Worker {self.worker} is draining ({number.name}): it takes no new work and finishes what it has "
                f"within {self.drain:g} s; the rest goes to other workers. Signal again to hand it over at once."
            )
        elif self._signals == 2:  # noqa: PLR2004  (the second signal)
            write_note(f"Worker {self.worker} hands over its work at once ({number.name}).")


def _giving(secrets: Secrets) -> Any:  # noqa: ANN401  (what a worker takes)
    def give(planned: PlannedRequest) -> StartConferenceStream | StartCallStream:
        return secrets.given_to(planned)

    return give
