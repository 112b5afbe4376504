"""The file that names what is to be started, as text."""

import click

from signalwire_streams.cli.output import clean
from signalwire_streams.cli.start_options import STANDARD_INPUT, read_text, token_is_on_standard_input


def read_source(file: str) -> str:
    """Read a file, or standard input for ``-``.

    Raises:
        UsageError: it can't be read.
    """
    if file == STANDARD_INPUT and token_is_on_standard_input():
        raise click.UsageError("standard input can't be the FILE and the bearer token: name a file for one of them")
    try:
        return read_text(file)
    except OSError as error:
        raise click.UsageError(f"{clean(file)} can't be read: {error.strerror}") from None
    except ValueError:
        raise click.UsageError(f"{clean(file)} can't be read: write the name of a text file in UTF-8, or -") from None
