"""``signalwire-streams demo``: the main job on an embedded Space, and what came of it."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from signalwire_streams import StreamsClient
from signalwire_streams.cli.demo_audio import CONFERENCES, SECONDS, Listening
from signalwire_streams._cli.demo import Report
from signalwire_streams.cli.demo_run import Job, simulated_space
from signalwire_streams.cli.failures import FAILED, Failure
from signalwire_streams.cli.logs import OUTCOMES, RATE_LIMIT, silenced
from signalwire_streams._cli.output import clean, write_json

_SHOWN_FAILURES = 5


@click.command(
    short_help="Start and stop 1,000 streams on a simulated Space.",
    epilog="""\b
Examples:
  signalwire-streams demo
  signalwire-streams demo --conferences 5000 --seed 7 --json
  signalwire-streams demo --recordings heard

SIGNALWIRE_SPACE, SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN are not needed: nothing leaves this machine.
""",
)
@click.option(
    "--conferences",
    type=click.IntRange(min=1),
    default=1_000,
    show_default=True,
    metavar="N",
    help="Live conferences to find.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Decides every id and what is spoiled."
)
@click.option(
    "--recordings",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the WAV files of what was heard there.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as one JSON object.")
def demo(*, conferences: int, seed: int, recordings: Path | None, as_json: bool) -> None:
    """Start and stop a stream on 1,000 conferences of a simulated Space that misbehaves, and listen to 20.

    No account is needed. The exit code is 0 only if every stream was started and stopped, what was heard is
    what was said, and by the Space's own count none was doubled and none is left.
    """
    # Faults are the demo's purpose, and its report counts what they led to.
    with _directory(recordings) as directory, silenced(OUTCOMES, RATE_LIMIT):
        report = asyncio.run(_report(Job(as_json), Listening(directory, as_json), conferences, seed))
    if as_json:
        write_json(report.facts())
    else:
        report.write()
    for failure in [*report.job.failures, *report.listening.failures][:_SHOWN_FAILURES]:
        click.echo(f"error: {clean(failure)}", err=True)
    if not report.is_good:
        raise click.exceptions.Exit(FAILED)


def _directory(wanted: Path | None) -> AbstractContextManager[Path]:
    """Give the directory that recordings are kept in, or one that is gone afterwards."""
    if wanted is None:
        return _passing_directory()
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"can't make {wanted}: {error.strerror}") from None
    return nullcontext(wanted)


@contextmanager
def _passing_directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="signalwire-streams-") as name:
        yield Path(name)


async def _report(job: Job, listening: Listening, conferences: int, seed: int) -> Report:
    # From here on the loop hears of Ctrl-C; before that, its making would be cut in two.
    if not job.as_json:
        click.echo(
            f"Simulating a Space with {conferences:,} live conferences; nothing leaves this machine.\n"
            "Its faults: resets that lose the answer after a stream was started or stopped,\n"
            "503s, one 'too many requests', and every other answer is 10 ms late.\n"
            f"Then {CONFERENCES} conferences are recorded for {SECONDS:g} s, over wss, in real time."
        )
    async with simulated_space(conferences, seed) as space:
        client = StreamsClient(space=space.base_url, project=space.project, token=space.token, on_attempt=job.note)
        async with client:
            await job.run(client)
        report = Report.of(job, listening, space, conferences, seed)
    await listening.run(seed)
    return report
