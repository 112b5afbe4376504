"""Options of a server that records streams: its address, its certificate, and the files."""

import ipaddress
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
from attrs import field, frozen

from signalwire_streams import SignedTokens
from signalwire_streams._cli.listen_recording import RecordingOptions
from signalwire_streams._cli.listen_server import ServerOptions
from signalwire_streams._cli.options import Decorator, adding, address_options, create_directory, passing
from signalwire_streams._cli.output import Failure, clean
from signalwire_streams.receiver.audio import ByteOrder, Layout, WavEncoding
from signalwire_streams.simulator import Certificates

_CA_FILE = "authority.pem"
_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")


def _load_certificate(certificate: Path | None, key: Path | None, *, self_signed: bool) -> ssl.SSLContext | None:
    if self_signed and (certificate is not None or key is not None):
        raise click.UsageError("--self-signed creates a certificate: omit it, or --cert and --key")
    if key is not None and certificate is None:
        raise click.UsageError("--key has no --cert: name the certificate that the key belongs to")
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password here, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError:
        raise click.UsageError(
            "--cert and --key are not a certificate and its key: name the chain and the key, both in PEM and without "
            "a password"
        ) from None
    except OSError as error:
        raise click.UsageError(f"--cert or --key can't be read: {error.strerror}") from None
    return context


def _create_certificate(host: str, ca_file: Path) -> ssl.SSLContext:
    try:
        hosts = () if ipaddress.ip_address(host).is_unspecified else (host,)
    except ValueError:
        hosts = (host,)
    try:
        made = Certificates.make(*dict.fromkeys(("localhost", "127.0.0.1", "::1", *hosts)))
    except ValueError:
        raise click.UsageError(f"--host {host!r} is neither a name nor an address") from None
    try:
        ca_file.write_bytes(made.authority)
    except OSError as error:
        raise Failure(f"can't write {ca_file}: {error.strerror}") from None
    return made.server


def _path(_: click.Context, __: click.Parameter, text: str) -> str:
    if not _PATH.fullmatch(text):
        raise click.BadParameter(
            f"{text!r} is not a path: write it as /audio, with letters, digits, '/', '.', '_', '~', '-'"
        )
    return text


@frozen(kw_only=True)
class RecordingSettings:
    """The options of a server that records, except its directory and its tokens."""

    host: str
    port: int
    path: str
    certificate: ssl.SSLContext | None = field(repr=False)
    is_self_signed: bool
    layout: Layout
    encoding: WavEncoding
    byte_order: ByteOrder
    health_host: str
    health_port: int | None
    target_parameter: str | None = None

    def in_directory(
        self, directory: Path, option: str, tokens: SignedTokens | tuple[str, ...] | None
    ) -> ServerOptions:
        """Create the directory of an option and the certificate, and return the options of the server."""
        create_directory(directory, option)
        ca_file = directory / _CA_FILE if self.is_self_signed else None
        return ServerOptions(
            host=self.host,
            port=self.port,
            path=self.path,
            ssl_context=self.certificate if ca_file is None else _create_certificate(self.host, ca_file),
            ca_file=ca_file,
            tokens=tokens,
            byte_order=self.byte_order,
            health_host=self.health_host,
            health_port=self.health_port,
            recording=RecordingOptions(
                directory=directory,
                layout=self.layout,
                encoding=self.encoding,
                target_parameter=self.target_parameter,
            ),
        )


def _make_settings(
    *,
    mono: bool,
    passthrough: bool,
    cert: Path | None,
    key: Path | None,
    host: str,
    port: int,
    path: str,
    byte_order: ByteOrder,
    health_host: str,
    health_port: int | None,
    self_signed: bool = False,
) -> RecordingSettings:
    return RecordingSettings(
        certificate=_load_certificate(cert, key, self_signed=self_signed),
        is_self_signed=self_signed,
        layout="mono" if mono else "stereo",
        encoding="passthrough" if passthrough else "pcm",
        host=host,
        port=port,
        path=path,
        byte_order=byte_order,
        health_host=health_host,
        health_port=health_port,
    )


_OPTIONS: Decorator = adding(
    address_options,
    click.option("--path", default="/", callback=_path, metavar="PATH", help="The URL path that streams connect to."),
    click.option(
        "--mono", is_flag=True, help="One file per track, instead of one with inbound left and outbound right."
    ),
    click.option("--passthrough", is_flag=True, help="Keep µ-law and A-law, at half the size of 16-bit linear PCM."),
    click.option(
        "--byte-order",
        type=click.Choice(get_args(ByteOrder)),
        default="little",
        help="Byte order of L16 audio; SignalWire does not document it.",
    ),
    click.option("--cert", type=click.Path(path_type=Path), metavar="FILE", help="The certificate chain, in PEM."),
    click.option(
        "--key",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The certificate's key, if it is in another file.",
    ),
    click.option(
        "--health-port",
        type=click.IntRange(1, 65_535),
        metavar="PORT",
        help="Serve /healthz and /readyz on this port.",
    ),
    click.option(
        "--health-host",
        default="127.0.0.1",
        metavar="HOST",
        help="Address of that port; 0.0.0.0 for probes from other machines.",
    ),
)
recording_options = passing("recording", _make_settings, _OPTIONS)
self_signed_recording_options = passing(
    "recording",
    _make_settings,
    _OPTIONS,
    click.option(
        "--self-signed", is_flag=True, help=f"Create a certificate for this run, and write its CA to DIR/{_CA_FILE}."
    ),
)


def notes_on(url: str, options: ServerOptions) -> Iterator[str]:
    """Yield the notes for those who configure the server's clients."""
    if url.startswith("ws:"):
        yield "No TLS, but SignalWire connects to wss:// only: put a proxy or a tunnel in front of it."
    if options.ca_file is not None:
        yield f"Clients must trust the CA in {clean(options.ca_file)}, as 'simulate --ca-file' does."
