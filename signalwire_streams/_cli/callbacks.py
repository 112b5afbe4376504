"""``signalwire-streams callbacks``: diagnose the signature of a status callback."""

import os
import re
from collections.abc import Sequence
from email.parser import HeaderParser
from typing import Any

import click
from attrs import asdict
from multidict import CIMultiDict

from signalwire_streams._cli.options import STANDARD_INPUT, json_option, read_input, read_secret_file
from signalwire_streams._cli.output import FAILED, clean, write_json
from signalwire_streams.callbacks import diagnose_signature
from signalwire_streams.models._validation import Secret

_KEYS = "SIGNALWIRE_SIGNING_KEY"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_REQUEST_LINE = re.compile(r"([A-Za-z]+) (\S+)(?: HTTP/[0-9.]+)?")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CHUNK = re.compile(rb"[0-9A-Fa-f]{1,8}(;[^\r\n]*)?\r\n")


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def read_captured(raw: bytes, url: str | None) -> dict[str, Any]:
    """Return the arguments of `diagnose_signature` for a captured request, whose lines may end with LF alone."""
    head, *rest = _END_OF_HEAD.split(raw.removeprefix(_BYTE_ORDER_MARK).lstrip(b"\r\n"), maxsplit=1)
    first, _, lines = head.partition(b"\n")
    request_line = _REQUEST_LINE.fullmatch(_decode(first).strip())
    if request_line is None:
        raise click.UsageError("--request does not start with a request line such as POST /path HTTP/1.1")
    method, target = request_line.groups()
    headers, body = parse_headers(lines), b"".join(rest)
    if "chunked" in headers.get("Transfer-Encoding", "").lower() and _CHUNK.match(body):
        raise click.UsageError("the body in --request is still chunked: pass it separately, with --body and --header")
    length = headers.get("Content-Length", "")
    if re.fullmatch("[0-9]{1,15}", length):
        body = body[: int(length)]  # an editor may have appended a line break
    if url is None:
        if not _ABSOLUTE.match(target) and "Host" not in headers:
            raise click.UsageError("--request has no Host header: pass the URL with --url")
        url = target if _ABSOLUTE.match(target) else f"http://{headers['Host']}{target}"
    return {"url": url, "method": method, "headers": headers, "body": body}


def parse_headers(lines: bytes) -> CIMultiDict[str]:
    """Return the headers, duplicates included, since a duplicate header is a reason to reject a request."""
    parsed = HeaderParser().parsestr(lines.decode("latin-1"))
    headers = CIMultiDict((name, _decode(value.encode("latin-1")).strip(" \t")) for name, value in parsed.items())
    if parsed.defects or parsed.get_payload() or any("\n" in value for value in headers.values()):
        # The line is not repeated: it may be a secret in the wrong place.
        raise click.UsageError("a header has no name or no ':': write it as 'Name: value'")
    return headers


def _headers(_: click.Context, __: click.Parameter, lines: Sequence[str]) -> CIMultiDict[str]:
    return parse_headers("\n".join(lines).encode("utf-8", "surrogateescape"))


def _candidates(_: click.Context, __: click.Parameter, urls: Sequence[str]) -> Sequence[str]:
    if not all(map(_ABSOLUTE.match, urls)):
        raise click.UsageError("a --candidate is not an absolute URL: write it as https://host/path")
    return urls


def _signing_keys(source: str | None) -> list[Secret]:
    text = os.environ.get(_KEYS, "") if source is None else read_secret_file(source, "--key-file")
    keys = [Secret(key) for key in re.split(r"[\s,]+", text) if key]
    if keys:
        return keys
    if source is not None:
        raise click.UsageError("--key-file contains no key: write the project's Signing Key (PSK_...) into it")
    raise click.UsageError(f"set {_KEYS} to the project's Signing Key (PSK_...), or name a --key-file that contains it")


@click.group()
def callbacks() -> None:
    """Diagnose the signatures of status callbacks."""


@callbacks.command(
    short_help="Diagnose why a signature is rejected.",
    epilog=f"""\b
Environment:
  {_KEYS}   the project's Signing Key, or several with commas or spaces
                           between them; there is no option for it, since others on
                           this machine can read a command line
  SIGNALWIRE_SPACE, SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN are not read.

\b
Capture a request behind the proxy, in place of your server:
  nc -l 8080 > captured.txt
Or copy the raw request from the inspector of a tunnel such as ngrok.

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
  0 the signature is valid    1 it is not    2 usage error
""",
)
@click.option(
    "--request", metavar="FILE", help="File with the whole raw request: line, headers, body; - for standard input."
)
@click.option(
    "--url",
    metavar="URL",
    help="URL that your server checks the signature against. Default for a --request: http:// and its Host header.",
)
@click.option("--method", metavar="METHOD", help="HTTP method, if there is no --request; POST by default.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    callback=_headers,
    metavar="'NAME: VALUE'",
    help="Header, if there is no --request; repeatable.",
)
@click.option("--body", metavar="FILE", help="File with the raw body, if there is no --request; - for standard input.")
@click.option("--key-file", metavar="FILE", help=f"File with the keys, instead of {_KEYS}; - for standard input.")
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    callback=_candidates,
    metavar="URL",
    help="URL that may have been signed, such as the StatusCallback of the start; repeatable.",
)
@json_option("Write the diagnosis as one JSON object.")
def explain(
    *,
    request: str | None,
    url: str | None,
    method: str | None,
    headers: CIMultiDict[str],
    body: str | None,
    key_file: str | None,
    candidates: Sequence[str],
    as_json: bool,
) -> None:
    """Diagnose why the signature of a captured callback is rejected, and how to fix it.

    It tries the changes that proxies and frameworks usually make: to scheme, host, port, path, query, body. The output
    contains no key, no signature and no query values.
    """
    if [request, body, key_file].count(STANDARD_INPUT) > 1:
        raise click.UsageError("standard input can be read once: name files for all but one of them")
    if request is not None and (method is not None or headers or body is not None):
        raise click.UsageError("--request includes these: omit it, or --method, --header and --body")
    if request is None and url is None:
        raise click.UsageError("nothing to diagnose: pass a --request, or --url with --header and --body")
    keys = _signing_keys(key_file)
    if request is not None:
        captured = read_captured(read_input(request, "--request"), url)
    else:
        content = b"" if body is None else read_input(body, "--body")
        captured = {"url": url, "method": method or "POST", "headers": headers, "body": content}
    found = diagnose_signature(**captured, keys=keys, candidates=candidates)
    if as_json:
        write_json(asdict(found, filter=lambda attribute, _: attribute.name != "url"))  # its query may hold secrets
    else:
        click.echo("\n".join(clean(line) for line in str(found).splitlines()))
    if not found.valid:
        raise click.exceptions.Exit(FAILED)
