"""The file that names what is to be started, as text."""

import codecs
import sys
from pathlib import Path

import click

from signalwire_streams._cli.output import clean
from signalwire_streams._cli.options import STANDARD_INPUT, token_is_on_standard_input

_ENCODINGS = (  # by their byte order marks; that of UTF-32-LE begins with that of UTF-16-LE
    ("UTF-32", codecs.BOM_UTF32_LE),
    ("UTF-32", codecs.BOM_UTF32_BE),
    ("UTF-16", codecs.BOM_UTF16_LE),
    ("UTF-16", codecs.BOM_UTF16_BE),
)
_OTHER_FILES = {
    b"PK\x03\x04": "is a spreadsheet, not CSV: export it as 'CSV UTF-8'",  # .xlsx, .ods
    b"\xd0\xcf\x11\xe0": "is a spreadsheet, not CSV: export it as 'CSV UTF-8'",  # .xls
    b"\x1f\x8b": "is compressed: unpack it with gunzip",
}
_SAVE_AS = "save it as UTF-8 (in Excel: 'CSV UTF-8')"


def read_source(file: str) -> str:
    """Read a file, or standard input for ``-``: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Excel writes UTF-16 as "Unicode text".

    Raises:
        UsageError: it can't be read.
    """
    if file == STANDARD_INPUT and token_is_on_standard_input():
        raise click.UsageError("standard input can't be the FILE and the bearer token: name a file for one of them")
    try:
        content = _content(file)
    except OSError as error:
        raise click.UsageError(f"{clean(file)} can't be read: {error.strerror}") from None
    except ValueError:  # a name that no file can have
        raise click.UsageError(f"{clean(file)} can't be read: write the name of a text file in UTF-8, or -") from None
    return _decoded(content, clean(file))


def _content(file: str) -> bytes:
    if file != STANDARD_INPUT:
        return Path(file).read_bytes()
    if sys.stdin is None:  # the shell closed it
        return b""
    buffer = getattr(sys.stdin, "buffer", None)
    return buffer.read() if buffer is not None else sys.stdin.read().encode()


def _decoded(content: bytes, file: str) -> str:
    encoding = next((encoding for encoding, mark in _ENCODINGS if content.startswith(mark)), None)
    if encoding is not None:
        try:
            return _with_line_feeds(content.decode(encoding))
        except UnicodeDecodeError:
            raise click.UsageError(
                f"{file} can't be read, since its {encoding} is damaged: write the name of a text file in UTF-8, or -"
            ) from None
    for signature, why in _OTHER_FILES.items():
        if content.startswith(signature):
            raise click.UsageError(f"{file} {why}")
    if content[1:2] == b"\0" or content[:1] == b"\0":
        raise click.UsageError(
            f"{file} can't be read: it is no text, or UTF-16 or UTF-32 without a byte order mark; {_SAVE_AS}"
        )
    try:
        return _with_line_feeds(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise click.UsageError(f"{file}:{line}: can't be read: this line is not UTF-8; {_SAVE_AS}") from None


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
