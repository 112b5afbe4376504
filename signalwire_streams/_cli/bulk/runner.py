"""Carrying out a bulk run from the command line, whatever it does: its options, its client, its end."""

import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
from attrs import define, frozen

from signalwire_streams import BulkRun, RateLimit, RetryPolicy, StreamsClient, StreamsError
from signalwire_streams.cli.account import Account
from signalwire_streams.cli.bulk.conduct import Conduct
from signalwire_streams.cli.bulk.summary import Closing, bulk_command
from signalwire_streams.cli.failures import failure_of
from signalwire_streams.cli.logs import OUTCOMES, silenced
from signalwire_streams._cli.output import noting
from signalwire_streams._cli.progress import Meter
from signalwire_streams._cli.options import Decorator, adding

_MOST = RateLimit().requests / RateLimit().window


def _number(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no number: write requests per second, such as 100")
    return value


def concurrency_option(default: int | None = None) -> Decorator:
    """Make the option that says how many may be under way at once; without a default that is found out."""
    text = "So many at once" + ("; found out while running if left out." if default is None else ".")
    return click.option(
        "--concurrency",
        type=click.IntRange(min=1),
        metavar="N",
        default=default,
        show_default=default is not None,
        help=text,
    )


def rate_option(whose: str = "") -> Decorator:
    """Make the option that says how fast to go, and who does that together."""
    return click.option(
        "--rate",
        type=click.FloatRange(min=0.1, max=_MOST),
        callback=_number,
        metavar="N",
        help=f"Requests per second at most{whose}; nine tenths of the Space's {_MOST:,.0f} if left out.",
    )


run_options: Decorator = adding((concurrency_option(), rate_option()))
"""Add the options that any run has."""

resend_option: Decorator = click.option(
    "--resend-call-starts",
    is_flag=True,
    help="Send a call's start again too when its answer was lost. It may double a stream: that a second one of "
    "its name is refused is documented for conferences only.",
)
"""Add the option that a run of starts has."""


@frozen
class Knobs:
    """How a run goes about it.

    Attributes:
        concurrency: how many at once, or None.
        rate: requests per second at most, or None.
        resend_call_starts: whether a call's start may be sent again.
    """

    concurrency: int | None
    rate: float | None
    resend_call_starts: bool = False

    @property
    def limit(self) -> RateLimit:
        """The rate as the client takes it."""
        if self.rate is None:
            return RateLimit()
        return RateLimit(requests=max(1, round(self.rate * RateLimit().window)), share=1.0)


@frozen(kw_only=True)
class Job:
    """A run that is ready to go.

    Attributes:
        run: the run.
        doing: ``start`` or ``stop``.
        planned: how many items it has.
        journal: its file.
        has_secrets: whether its requests have secrets.
    """

    run: BulkRun[Any]
    doing: str
    planned: int
    journal: Path
    has_secrets: bool = False


@define(eq=False)
class _Carrying:
    account: Account
    knobs: Knobs
    meter: Meter
    prepare: Callable[[StreamsClient], Awaitable[Job | None]]

    async def work(self, client: StreamsClient) -> tuple[int, StreamsError | None]:
        job = await self.prepare(client)
        if job is None:
            return 0, None
        conduct = Conduct(
            run=job.run,
            title="Starting" if job.doing == "start" else "Stopping",
            total=job.planned,
            meter=self.meter,
            limit=self.knobs.limit.rate,
            as_json=self.account.as_json,
            resend_call_starts=self.knobs.resend_call_starts,
        )
        with noting(f"see what became of the run: {bulk_command('status', (), job.journal)}"):
            report = await conduct.perform()
            if report.total or conduct.error is None:
                closing = Closing(
                    report=report,
                    doing=job.doing,
                    planned=job.planned,
                    early=conduct.early,
                    stuck=conduct.stuck,
                    repeats=self.meter.repeats,
                    journal=job.journal,
                    options=self.account.options,
                    interrupted=conduct.stopped_by is not None,
                    has_secrets=job.has_secrets,
                )
                (closing.write_json if self.account.as_json else closing.write)()
        return conduct.exit_code, conduct.error


def carry_out(account: Account, knobs: Knobs, prepare: Callable[[StreamsClient], Awaitable[Job | None]]) -> None:
    """Carry out a run, and end the command with what came of it.

    Args:
        account: where it goes.
        knobs: how it goes about it.
        prepare: makes the run, or says that there is nothing to do and gives None.

    Raises:
        Exit: not everything succeeded.
        Failure: the run could not be carried out.
    """
    meter = Meter()
    with silenced(OUTCOMES):
        code, error = account.perform(
            _Carrying(account, knobs, meter, prepare).work,
            on_attempt=meter.note,
            rate_limit=knobs.limit,
            retry=RetryPolicy(resend_call_starts=knobs.resend_call_starts),
        )
    if error is not None:
        raise failure_of(error, as_json=account.as_json)
    if code:
        raise click.exceptions.Exit(code)
