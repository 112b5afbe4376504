"""The receiver of ``listen`` from its first stream to its last."""

import asyncio
import contextlib
import math
import re
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from signal import Signals
from ssl import SSLContext

import click
from attrs import define, field, frozen

from signalwire_streams._cli import ignore_interrupts
from signalwire_streams._cli.listen.display import Screen, Sight, screen
from signalwire_streams._cli.listen.recording import Hearing, Recording, Shelf
from signalwire_streams._cli.listen.tls import (
    TOKENS,
    Tls,
    check_tls_options,
    given_certificate,
    own_certificate,
    read_tokens,
)
from signalwire_streams._cli.output import FAILED, Failure, clean, write_json
from signalwire_streams._cli.progress import spell_seconds
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.receiver.audio import ByteOrder


@frozen(kw_only=True)
class Orders:
    """What the command line asks for.

    Attributes:
        host: the address to listen on.
        port: the port; 0 takes a free one.
        path: where streams are taken.
        tls: the certificate, or None.
        tokens: who may deliver a stream; None lets everybody in.
        shelf: where recordings go.
        byte_order: of L16.
        seconds: how long to listen, or None.
        streams: after how many streams to end, or None.
        authority: the file that holds the authority of a certificate of one's own, or None.
        as_json: whether stdout gets JSON.
    """

    host: str
    port: int
    path: str
    tls: SSLContext | None = field(repr=False)
    tokens: tuple[str, ...] | None = field(repr=False)
    shelf: Shelf
    byte_order: ByteOrder
    seconds: float | None
    streams: int | None
    authority: Path | None
    as_json: bool


@define(eq=False)
class Listening:
    """Listens until it is told to end.

    Attributes:
        orders: what was asked for.
    """

    orders: Orders
    _receiver: MediaReceiver = field(init=False)
    _live: dict[StreamSession, Hearing] = field(init=False, factory=dict)
    _ended: int = field(init=False, default=0)
    _failed: int = field(init=False, default=0)
    _lost: int = field(init=False, default=0)
    _seconds: float = field(init=False, default=0.0)
    _files: int = field(init=False, default=0)
    _over: asyncio.Event = field(init=False, factory=asyncio.Event)
    _pipe: BrokenPipeError | None = field(init=False, default=None)
    _screen: Screen = field(init=False, factory=Screen)

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return FAILED if self._failed else 0

    async def perform(self) -> None:
        """Listen until it is time to end, and finish what comes in then.

        Raises:
            Failure: the address can't be listened on.
            BrokenPipeError: nobody reads any more.
        """
        orders = self.orders
        receiver = self._receiver = MediaReceiver(self._hear, bearer_tokens=orders.tokens, byte_order=orders.byte_order)
        with self._signals():
            async with self._served(receiver) as url, screen(self._sight, as_json=orders.as_json) as self._screen:
                try:
                    self._announce(url)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(orders.seconds):
                            await self._over.wait()
                finally:
                    # Streams that still come in would go on for hours: nobody who ends this waits for them.
                    await receiver.aclose(0)
        if self._pipe is not None:
            raise self._pipe
        if not orders.as_json:
            self._take_leave()

    @contextlib.asynccontextmanager
    async def _served(self, receiver: MediaReceiver) -> AsyncIterator[str]:
        orders, stack = self.orders, contextlib.AsyncExitStack()
        serving = receiver.serve(host=orders.host, port=orders.port, path=orders.path, ssl_context=orders.tls)
        try:
            url = await stack.enter_async_context(serving)
        except (OSError, UnicodeError) as error:
            why = clean(getattr(error, "strerror", None) or error)
            raise Failure(f"can't listen on {orders.host} port {orders.port}: {why}") from None
        try:
            yield url
        finally:
            await stack.aclose()

    async def _hear(self, session: StreamSession) -> None:
        hearing = self._live[session] = Hearing(session, Recording(self.orders.shelf, session))
        try:
            self._begin(hearing)
            await hearing.go_on()
        finally:
            del self._live[session]
            self._end(hearing)

    def _begin(self, hearing: Hearing) -> None:
        if not hearing.session.audio_format.is_supported:
            self._screen.warn(hearing.beginning)
        elif not self.orders.as_json and not self._screen.has_table:
            self._say(hearing.beginning)

    def _end(self, hearing: Hearing) -> None:
        self._ended += 1
        self._lost += hearing.lost
        self._seconds += hearing.seconds or 0.0
        self._files += len(set(hearing.recording.files.values()))
        if hearing.error is not None:
            self._failed += 1
            self._screen.warn(f"{hearing.sid} is not recorded any further: {hearing.error}")
        self._say(hearing.facts if self.orders.as_json else hearing.ending)
        if self._ended == self.orders.streams:
            self._over.set()

    def _say(self, what: str | Mapping[str, object]) -> None:
        """Say something. Where nobody reads any more, as in ``| head``, it is time to end."""
        try:
            if isinstance(what, str):
                self._screen.say(what)
            else:
                write_json(what)
        except BrokenPipeError as error:
            self._pipe = error
            self._over.set()

    def _sight(self) -> Sight:
        going = list(self._live.values())
        return Sight(
            title="Ending" if self._over.is_set() else "Listening",
            rows=[hearing.row for hearing in going],
            ended=self._ended,
            seconds=self._seconds + sum(hearing.seconds or 0.0 for hearing in going),
        )

    def _announce(self, url: str) -> None:
        orders = self.orders
        directory, authority = str(orders.shelf.directory), orders.authority and str(orders.authority)
        if orders.as_json:
            self._say({"url": url, "directory": directory, "authority": authority})
            return
        self._say(f"Listening on {url}")
        self._say(f"Recordings go to {clean(directory)}")
        if orders.tls is None:
            self._say("It speaks no TLS, and SignalWire dials wss:// only: put a proxy or a tunnel in front of it.")
        if authority is not None:
            self._say(f"Who dials must trust {clean(authority)}, as 'simulate --trust' does.")
        if orders.tokens is None:
            self._say("Whoever finds this address may deliver streams.")
        self._say("Ctrl-C ends it.")

    def _take_leave(self) -> None:
        failed = f", not recorded to their end: {self._failed:,}" if self._failed else ""
        rejected_upgrades = self._receiver.rejected_upgrades
        refused = f", turned away for their token: {rejected_upgrades:,}" if rejected_upgrades else ""
        self._say(
            f"Ended. Streams: {self._ended:,}, files: {self._files:,}, audio: {spell_seconds(self._seconds)}, "
            f"lost frames: {self._lost:,}{failed}{refused}."
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (Signals.SIGINT, Signals.SIGTERM)

        def end() -> None:
            if self._over.is_set():  # a second Ctrl-C; recordings are whole by then
                self._receiver.abort()
                loop.remove_signal_handler(Signals.SIGTERM)  # so that it ends the process whatever holds it up
            self._over.set()

        try:
            for number in numbers:
                loop.add_signal_handler(number, end)
        except (NotImplementedError, RuntimeError):  # Windows' loops, and other threads', take no signals
            yield
            return
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
            ignore_interrupts()


_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")


def _path(_: click.Context, __: click.Parameter, text: str) -> str:
    if not _PATH.fullmatch(text):
        raise click.BadParameter(
            f"{text!r} is no path: write it as /audio, with letters, digits, '/', '.', '_', '~', '-'"
        )
    return text


def _number(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("that is no number of seconds: write one such as 60")
    return value


@click.command(
    short_help="Receive streams, and write a WAV file of each.",
    epilog=f"""\b
Environment:
  {TOKENS}   the bearer token that streams must carry, or several
                             with blanks between them; there is no option for it,
                             since others on this machine can read a command line
  SIGNALWIRE_SPACE, SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN are not read: it starts no streams.

\b
Files are named after the streams: SID.wav, and SID-2.wav where that is there already.
With --mono, and for further tracks: SID-TRACK.wav. Payloads of an encoding that is not
known are written to SID-TRACK.raw, one after the other. Keys that are pressed and custom
parameters are written nowhere.

\b
Examples:
  signalwire-streams listen --self-signed --directory recordings
  signalwire-streams listen --port 8443 --cert fullchain.pem --key privkey.pem --host 0.0.0.0
  signalwire-streams listen --no-token --self-signed --streams 1 --json
""",
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default=True, metavar="N", help="0 takes a free one."
)
@click.option("--path", default="/", show_default=True, callback=_path, help="Where streams are taken.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default=True,
    metavar="DIR",
    help="Where recordings go; made if it is not there.",
)
@click.option("--mono", is_flag=True, help="A file for each track, instead of one with inbound left, outbound right.")
@click.option("--as-sent", is_flag=True, help="Keep µ-law and A-law, half as long, instead of 16-bit linear PCM.")
@click.option(
    "--byte-order",
    type=click.Choice(["little", "big"]),
    default="little",
    show_default=True,
    help="Of L16, for which it is not documented.",
)
@click.option("--cert", type=click.Path(path_type=Path), metavar="FILE", help="The certificate chain, in PEM.")
@click.option(
    "--key", type=click.Path(path_type=Path), metavar="FILE", help="Its key, unless that is in the same file."
)
@click.option(
    "--self-signed",
    is_flag=True,
    help="Make a certificate for this run, and put what must be trusted for it into DIR/authority.pem.",
)
@click.option(
    "--bearer-token-file",
    metavar="FILE",
    help=f"Holds the tokens, instead of {TOKENS}; - reads them from standard input.",
)
@click.option("--no-token", is_flag=True, help="Let everybody in who finds the address.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    callback=_number,
    metavar="N",
    help="End after so many seconds.",
)
@click.option("--streams", type=click.IntRange(min=1), metavar="N", help="End when so many streams have ended.")
@click.option(
    "--json", "as_json", is_flag=True, help="Write one JSON object when it listens, and one for each stream that ended."
)
def listen(
    *,
    host: str,
    port: int,
    path: str,
    directory: Path,
    mono: bool,
    as_sent: bool,
    byte_order: ByteOrder,
    cert: Path | None,
    key: Path | None,
    self_signed: bool,
    bearer_token_file: str | None,
    no_token: bool,
    seconds: float | None,
    streams: int | None,
    as_json: bool,
) -> None:
    """Receive streams, and write a WAV file of each.

    It runs until Ctrl-C or SIGTERM, which finish the recordings. A terminal shows the streams that come in, how
    loud they are and what is lost; a pipe gets a line when one begins and when it ends. The exit code is 0 unless
    something could not be recorded.
    """
    check_tls_options(cert, key, self_signed=self_signed)
    tokens = read_tokens(bearer_token_file, everybody=no_token)
    tls = Tls() if cert is None else given_certificate(cert, key)
    _prepare(directory)
    if self_signed:
        tls = own_certificate(directory, host)
    orders = Orders(
        host=host,
        port=port,
        path=path,
        tls=tls.context,
        tokens=tokens,
        shelf=Shelf(
            directory=directory, layout="mono" if mono else "stereo", encoding="passthrough" if as_sent else "pcm"
        ),
        byte_order=byte_order,
        seconds=seconds,
        streams=streams,
        authority=tls.authority,
        as_json=as_json,
    )
    # Where signals can't be given to the loop (Windows), Ctrl-C comes as an exception and is as good an end.
    listening = Listening(orders)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(listening.perform())
    if listening.exit_code:
        raise click.exceptions.Exit(listening.exit_code)


def _prepare(directory: Path) -> None:
    """Make the directory, and find out at once whether it takes files."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise Failure(f"can't write to {directory}: {error.strerror}: name another --directory") from None
