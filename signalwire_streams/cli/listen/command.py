"""The command ``signalwire-streams listen``."""

import asyncio
import contextlib
import math
import re
import tempfile
from pathlib import Path

import click

from signalwire_streams.cli.failures import Failure
from signalwire_streams._cli.listen.tls import (
    TOKENS,
    Tls,
    check_tls_options,
    given_certificate,
    own_certificate,
    read_tokens,
)
from signalwire_streams._cli.listen.app import Listening, Orders
from signalwire_streams.cli.listen.recording import Shelf
from signalwire_streams.receiver.audio import ByteOrder

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
        shelf=Shelf(directory=directory, layout="mono" if mono else "stereo", encoding="as sent" if as_sent else "pcm"),
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
