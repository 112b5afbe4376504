"""What starting and stopping a stream have in common on conferences and on calls."""

import shlex
import sys
from collections.abc import Awaitable, Callable
from typing import Literal

import click
from attrs import asdict, define, field

from signalwire_streams import Attempt, CallStream, ConferenceStream, StreamsClient
from signalwire_streams.cli.account import Account
from signalwire_streams.cli.failures import Interruption
from signalwire_streams.cli.logs import OUTCOMES, silenced
from signalwire_streams._cli.output import clean, noting, write_aligned, write_json, write_note

Noun = Literal["conference", "call"]
Stream = ConferenceStream | CallStream


@define(eq=False)
class Start:
    """One start from the command line.

    Attributes:
        account: where it goes.
        noun: what the stream is started on.
        target: the sid of that.
        send: calls the client.
    """

    account: Account
    noun: Noun
    target: str
    send: Callable[[StreamsClient], Awaitable[Stream]]
    _attempts: list[Attempt] = field(factory=list, init=False)

    def run(self) -> None:
        """Start the stream and say how it is stopped."""
        with silenced(OUTCOMES):
            try:
                self.account.perform(self._work, on_attempt=self._attempts.append)
            except Interruption:
                raise self._interruption() from None

    async def _work(self, client: StreamsClient) -> None:
        stream = await self.send(client)
        # A sid that came after a repeated attempt may be that of the refused second stream; the name is sure.
        handle = stream.name if stream.ambiguous and stream.name else stream.sid or stream.name
        stop = self._stop_command(handle) if handle else None
        way = "" if stop is None else f"; stop it with: {stop}"
        handle_note = f"the stream was started: sid {stream.sid or '-'}, name {stream.name or '-'}{way}"
        if sys.stdout is None:  # the shell closed it
            write_note(handle_note)
        with noting(handle_note, also_for_pipes=True):
            if self.account.as_json:
                write_json({**_facts(stream), "stop_command": stop})
                return
            click.echo(f"Started a stream on {self.noun} {clean(self.target)}.")
            _write(stream)
            if stream.ambiguous:
                click.echo("An earlier attempt may have started it. Its name is the handle; the sid may be wrong.")
            if stop is not None:
                click.echo(f"Stop it with:\n  {stop}")

    def _interruption(self) -> Interruption:
        """Return what an interrupted start may have left behind."""
        name = self._attempts[-1].name if self._attempts else None
        was_sent = any(attempt.sent != "no" for attempt in self._attempts)
        stop = self._stop_command(name) if was_sent and name else None
        way = f"stop it with: {stop}" if stop else f"end the {self.noun} to stop it"
        return Interruption(
            f"interrupted: the stream may be running; {way}" if was_sent else "interrupted: nothing was sent",
            {
                "sent": "maybe" if was_sent else "no",
                "attempts": len(self._attempts),
                "target": self.target,
                "name": name,
                "stop_command": stop,
            },
            as_json=self.account.as_json,
        )

    def _stop_command(self, handle: str) -> str:
        words = ["signalwire-streams", f"{self.noun}s", "stop-stream", *self.account.options]
        if self.target.startswith("-") or handle.startswith("-"):
            words.append("--")
        return shlex.join([*words, self.target, handle])


def stop(account: Account, noun: Noun, target: str, send: Callable[[StreamsClient], Awaitable[Stream]]) -> None:
    """Stop a stream and say so."""

    async def work(client: StreamsClient) -> None:
        stream = await send(client)
        with noting("the stream was stopped"):
            if account.as_json:
                write_json(_facts(stream))
                return
            ended = " It had already ended." if stream.already_ended else ""
            click.echo(f"Stopped a stream on {noun} {clean(target)}.{ended}")
            _write(stream)

    try:
        account.perform(work)
    except Interruption:
        message = "interrupted: the stream may still be running; stop it again"
        raise Interruption(message, as_json=account.as_json) from None


def _write(stream: Stream) -> None:
    facts = (("sid", stream.sid), ("name", stream.name), ("status", stream.status))
    write_aligned([(label, clean(value or "-")) for label, value in facts], indent="  ")


def _facts(stream: Stream) -> dict[str, object]:
    """Give the fields that the client knows; others could repeat a secret of the start."""
    facts = asdict(stream, filter=lambda attribute, _: attribute.name != "extra")
    moment = stream.date_updated
    return {**facts, "date_updated": moment.isoformat() if moment is not None else None}
