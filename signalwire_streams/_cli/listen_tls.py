"""Who may deliver streams, and how they know that they have come to the right place: tokens and certificates."""

import ipaddress
import os
import ssl
from pathlib import Path

import click
from attrs import field, frozen

from signalwire_streams._cli.options import read_text
from signalwire_streams._cli.output import Failure
from signalwire_streams.simulator import Certificates

TOKENS = "SIGNALWIRE_STREAMS_TOKEN"
_AUTHORITY = "authority.pem"


@frozen
class Tls:
    """What the server shows.

    Attributes:
        context: the certificate, or None to speak no TLS.
        authority: the file that holds the authority of a certificate that was made for this run, or None.
    """

    context: ssl.SSLContext | None = field(default=None, repr=False)
    authority: Path | None = None


def read_tokens(source: str | None, *, everybody: bool) -> tuple[str, ...] | None:
    """Give the bearer tokens, from a file or from the environment; None lets everybody in.

    Raises:
        UsageError: there is none, and nobody said that none is needed. What a file is called is not repeated: it
            may be the token itself, put there by mistake.
    """
    if everybody:
        if source is not None:
            raise click.UsageError("--no-token lets everybody in: leave it out, or --bearer-token-file")
        return None
    text = os.environ.get(TOKENS, "") if source is None else _text_of(source)
    tokens = tuple(dict.fromkeys(text.split()))
    if tokens:
        return tokens
    if source is not None:
        raise click.UsageError("--bearer-token-file holds no token: write the one that the starts pass into it")
    raise click.UsageError(
        f"set {TOKENS}, or name a --bearer-token-file, so that only your streams come in; "
        "--no-token lets everybody in who finds the address"
    )


def _text_of(source: str) -> str:
    try:
        return read_text(source)
    except OSError as error:
        raise click.UsageError(f"--bearer-token-file can't be read: {error.strerror}") from None
    except ValueError:  # not UTF-8, or a name that no file can have
        raise click.UsageError("--bearer-token-file can't be read: write the name of a text file, or -") from None


def check_tls_options(certificate: Path | None, key: Path | None, *, self_signed: bool) -> None:
    """Check that the options go together.

    Raises:
        UsageError: they don't.
    """
    if self_signed and (certificate is not None or key is not None):
        raise click.UsageError("--self-signed makes a certificate: leave it out, or --cert and --key")
    if key is not None and certificate is None:
        raise click.UsageError("--key has no --cert: name the certificate that the key belongs to")


def given_certificate(certificate: Path, key: Path | None) -> Tls:
    """Read a certificate and its key.

    Raises:
        UsageError: they can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # OpenSSL would ask for a password on the terminal.
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError:
        raise click.UsageError(
            "--cert and --key are no certificate and its key: name the chain and the key, both in PEM, and no password"
        ) from None
    except OSError as error:
        raise click.UsageError(f"--cert or --key can't be read: {error.strerror}") from None
    return Tls(context)


def _no_password() -> str:
    return ""


def own_certificate(directory: Path, host: str) -> Tls:
    """Make a certificate for this run, and put its authority into the directory, in place of the last run's.

    Raises:
        Failure: the file can't be written.
    """
    try:
        hosts = () if ipaddress.ip_address(host).is_unspecified else (host,)
    except ValueError:
        hosts = (host,)
    made = Certificates.make(*dict.fromkeys(("localhost", "127.0.0.1", "::1", *hosts)))
    file = directory / _AUTHORITY
    try:
        file.write_bytes(made.authority)
    except OSError as error:
        raise Failure(f"can't write {file}: {error.strerror}") from None
    return Tls(made.server, file)
