"""``signalwire-streams callbacks``: for who sets up the server that gets status callbacks."""

import os
import re
import sys
from collections.abc import ItemsView, Iterator, Mapping, Sequence
from pathlib import Path

import click
from attrs import field, frozen

from signalwire_streams import InvalidRequestError
from signalwire_streams._cli.options import STANDARD_INPUT
from signalwire_streams._cli.output import FAILED, clean, failure_of, write_json
from signalwire_streams.callbacks import SignatureDiagnosis, diagnose_signature

_KEYS = "SIGNALWIRE_SIGNING_KEY"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_REQUEST_LINE = re.compile(r"([A-Za-z]+) (\S+)(?: HTTP/[0-9.]+)?")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CHUNK = re.compile(rb"[0-9A-Fa-f]{1,8}(;[^\r\n]*)?\r\n")


class _Pairs(ItemsView[str, str]):
    _mapping: "Headers"

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._mapping.pairs)


@frozen
class Headers(Mapping[str, str]):
    """Headers as they came. One that came twice is there twice, since that is a reason to refuse a request.

    Attributes:
        pairs: names and values.
    """

    pairs: tuple[tuple[str, str], ...] = field(repr=False)

    def __getitem__(self, name: str) -> str:
        return dict(self.pairs)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self.pairs))

    def __len__(self) -> int:
        return len(dict(self.pairs))

    def items(self) -> ItemsView[str, str]:
        """Give all names and values."""
        return _Pairs(self)


@frozen(kw_only=True)
class Captured:
    """A request as it was captured.

    Attributes:
        url: the address that a server sees.
        method: as it came.
        headers: the headers.
        body: the raw body.
    """

    url: str = field(repr=False)
    method: str
    headers: Headers
    body: bytes = field(repr=False)


def read_captured(raw: bytes, url: str | None) -> Captured:
    """Read a request as it goes over the wire; lines may end with LF only, as an editor leaves them.

    Args:
        raw: the request.
        url: the address, where it is known.

    Raises:
        UsageError: it is no request, or does not say where it goes to.
    """
    head, _, body = _split(raw.removeprefix(_BYTE_ORDER_MARK).lstrip(b"\r\n"))
    first, *lines = head.decode("utf-8", "surrogateescape").replace("\r\n", "\n").split("\n")
    request_line = _REQUEST_LINE.fullmatch(first.strip())
    if request_line is None:
        raise click.UsageError("--request does not begin as a request does: its first line is POST /path HTTP/1.1")
    headers = Headers(tuple(map(_header, lines)))
    method, target = request_line.groups()
    said = {name.lower(): value for name, value in headers.pairs}
    if "chunked" in said.get("transfer-encoding", "").lower() and _CHUNK.match(body):
        raise click.UsageError("the body in --request is still in chunks: give it alone, with --body and --header")
    length = said.get("content-length", "")
    if re.fullmatch("[0-9]{1,15}", length):
        body = body[: int(length)]  # what an editor put behind it was never sent
    if url is None:
        if not _ABSOLUTE.match(target) and "host" not in said:
            raise click.UsageError("--request has no Host header: give the address with --url")
        url = target if _ABSOLUTE.match(target) else f"http://{said['host']}{target}"
    return Captured(url=url, method=method, headers=headers, body=body)


def _split(raw: bytes) -> tuple[bytes, bytes, bytes]:
    end = _END_OF_HEAD.search(raw)
    return (raw, b"", b"") if end is None else (raw[: end.start()], end[0], raw[end.end() :])


def _header(line: str) -> tuple[str, str]:
    """Take a header apart. What is refused is not repeated: it may be a secret in the wrong place."""
    name, colon, value = line.partition(":")
    if not colon or not name or name != name.strip():
        raise click.UsageError("a header has no name or no ':': write it as 'Name: value'")
    return name, value.strip(" \t")


def _headers(_: click.Context, __: click.Parameter, lines: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple(map(_header, lines))


def _candidates(_: click.Context, __: click.Parameter, urls: Sequence[str]) -> Sequence[str]:
    if not all(map(_ABSOLUTE.match, urls)):
        raise click.UsageError("a --candidate is no whole address: write it as https://host/path")
    return urls


def _read(option: str, source: str | None) -> bytes:
    if source is None:
        return b""
    try:
        if source != STANDARD_INPUT:
            return Path(source).read_bytes()
        # Standard input is None where the shell closed it.
        return b"" if sys.stdin is None else sys.stdin.buffer.read()
    except OSError as error:
        raise click.UsageError(f"{option} can't be read: {error.strerror}") from None
    except ValueError:  # a name that no file can have
        raise click.UsageError(f"{option} can't be read: write the name of a file, or -") from None


def _signing_keys(source: str | None) -> list[str]:
    """Give the keys, from a file or from the environment."""
    if source is None:
        text = os.environ.get(_KEYS, "")
    else:
        text = _read("--key-file", source).removeprefix(_BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")
    keys = [key for key in re.split(r"[\s,]+", text) if key]
    if keys:
        return keys
    if source is not None:
        raise click.UsageError("--key-file holds no key: write the project's Signing Key (PSK_...) into it")
    raise click.UsageError(f"set {_KEYS} to the project's Signing Key (PSK_...), or name a --key-file that holds it")


@click.group()
def callbacks() -> None:
    """Find out why a status callback's signature does not fit."""


@callbacks.command(
    short_help="Say why a signature does not fit.",
    epilog=f"""\b
Environment:
  {_KEYS}   the project's Signing Key, or several with commas or blanks
                           between them; there is no option for it, since others on
                           this machine can read a command line
  SIGNALWIRE_SPACE, SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN are not read.

\b
Capture a request behind the proxy, where your server would get it, and ask about it:
  nc -l 8080 > captured.txt
Or copy it, raw, out of the inspector of a tunnel such as ngrok.

\b
Examples:
  signalwire-streams callbacks explain --request captured.txt
  signalwire-streams callbacks explain --request captured.txt \\
      --url http://10.0.0.7:8080/callbacks --candidate https://example.com/callbacks
  signalwire-streams callbacks explain --url https://example.com/callbacks --body body.txt \\
      --header 'Content-Type: application/x-www-form-urlencoded' \\
      --header 'X-SignalWire-Signature: RSOYDt4T1cUTdK1PDd93/VVr8B8='

\b
Exit codes:
  0 the signature fits    1 it does not    2 misuse
""",
)
@click.option(
    "--request", metavar="FILE", help="The whole request as it came: line, headers, body; - for standard input."
)
@click.option(
    "--url",
    metavar="URL",
    help="The address that your server verifies with. Of a --request it is http:// and the Host header if left out.",
)
@click.option("--method", metavar="METHOD", help="Without --request; POST by default.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    callback=_headers,
    metavar="'NAME: VALUE'",
    help="Without --request; repeat it for all of them.",
)
@click.option("--body", metavar="FILE", help="Without --request: the raw body; - for standard input.")
@click.option("--key-file", metavar="FILE", help=f"Holds the keys, instead of {_KEYS}; - for standard input.")
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    callback=_candidates,
    metavar="URL",
    help="An address that may have been signed, such as the StatusCallback of the start; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Write what was found as one JSON object.")
def explain(
    *,
    request: str | None,
    url: str | None,
    method: str | None,
    headers: tuple[tuple[str, str], ...],
    body: str | None,
    key_file: str | None,
    candidates: Sequence[str],
    as_json: bool,
) -> None:
    """Say why the signature of a captured callback does not fit, and what to change.

    It tries what proxies and frameworks usually change: scheme, host, port, path, query, body. No key and no
    signature is shown, and of queries only the names.
    """
    if [request, body, key_file].count(STANDARD_INPUT) > 1:
        raise click.UsageError("standard input can be read once: name files for all but one of them")
    if request is not None and (method is not None or headers or body is not None):
        raise click.UsageError("--request has it all: leave it out, or --method, --header and --body")
    if request is None and url is None:
        raise click.UsageError("there is nothing to explain: give a --request, or --url with --header and --body")
    keys = _signing_keys(key_file)
    if request is not None:
        captured = read_captured(_read("--request", request), url)
    else:
        captured = Captured(
            url=url or "", method=method or "POST", headers=Headers(headers), body=_read("--body", body)
        )
    try:
        found = diagnose_signature(
            url=captured.url,
            headers=captured.headers,
            body=captured.body,
            keys=keys,
            method=captured.method,
            candidates=candidates,
        )
    except InvalidRequestError as error:
        raise failure_of(error, as_json=as_json) from None
    _write(found, as_json=as_json)
    if not found.valid:
        raise click.exceptions.Exit(FAILED)


def _write(found: SignatureDiagnosis, *, as_json: bool) -> None:
    if not as_json:
        click.echo("\n".join(clean(line) for line in str(found).splitlines()))
        return
    write_json(
        {
            "fits": found.valid,
            "finding": found.summary,
            "advice": found.suggestions,
            "tried": found.candidate_urls,
            "guesses": found.attempts,
        }
    )
