"""``callbacks explain``: why the signature of a captured request is rejected."""

import io
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest

from signalwire_streams.callbacks import sign

from .shell import Ran, Shell

KEY = "PSK_0123456789abcdef"
PUBLIC = "https://example.com/callbacks"
FIELDS = {"AccountSid": "p-1", "StreamSid": "s-1", "StreamEvent": "stream-started"}
BODY = urlencode(FIELDS)
FORM = "Content-Type: application/x-www-form-urlencoded"
SIGNATURE = f"X-SignalWire-Signature: {sign(url=PUBLIC, fields=FIELDS, key=KEY)}"


def captured(*headers: str, host: str = "example.com", body: str = BODY, line: str = "POST /callbacks HTTP/1.1") -> str:
    """Return a request as it is sent."""
    head = [line, *([f"Host: {host}"] if host else []), FORM, f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", body])


@pytest.fixture
def keyed_shell(bare_shell: Shell) -> Shell:
    """A shell with the key in its environment."""
    bare_shell.set({"SIGNALWIRE_SIGNING_KEY": KEY})
    return bare_shell


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "captured.txt"


def put(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogateescape"))


async def explained(shell: Shell, file: Path, text: str, *arguments: str) -> Ran:
    """Run the command on a request in a file."""
    put(file, text)
    ran = await shell("callbacks", "explain", "--request", str(file), *arguments)
    assert KEY not in ran.out + ran.err
    assert SIGNATURE.rpartition(" ")[2] not in ran.out + ran.err
    return ran


async def test_valid_signature_exits_0(keyed_shell: Shell, file: Path) -> None:
    ran = await explained(keyed_shell, file, captured(SIGNATURE), "--url", PUBLIC)
    assert (ran.code, ran.out, ran.err) == (0, f"The signature matches '{PUBLIC}'.\n", "")


async def test_invalid_signature_exits_1_with_suggestions(keyed_shell: Shell, file: Path) -> None:
    """Without --url it is the URL that a server behind a TLS proxy sees."""
    ran = await explained(keyed_shell, file, captured(SIGNATURE))
    assert (ran.code, ran.err) == (1, "")
    assert f"It would match as '{PUBLIC}'" in ran.out
    assert "- The signed URL begins with https://, not with http://: set public_url" in ran.out
    assert "- 'http://example.com/callbacks'" in ran.out


async def test_json_option_writes_the_diagnosis(keyed_shell: Shell, file: Path) -> None:
    ran = await explained(keyed_shell, file, captured(SIGNATURE), "--json")
    assert ran.code == 1
    assert ran.json["valid"] is False
    assert ran.json["summary"].startswith("Rejected: the signature does not match.")
    assert len(ran.json["suggestions"]) == 1
    assert ran.json["candidate_urls"][0] == "'http://example.com/callbacks'"
    assert sorted(ran.json) == ["attempts", "candidate_urls", "suggestions", "summary", "valid"]


async def test_candidate_url_is_tried(keyed_shell: Shell, file: Path) -> None:
    text = captured(SIGNATURE, host="10.0.0.7:8080", line="POST /inner HTTP/1.1")
    assert PUBLIC not in (await explained(keyed_shell, file, text)).out
    ran = await explained(
        keyed_shell,
        file,
        text,
        "--candidate",
        "https://other.example.com",
        "--candidate",
        "https://example.com/callbacks",
    )
    assert ran.code == 1
    assert f"It would match as '{PUBLIC}'" in ran.out


@pytest.mark.parametrize(
    "text",
    [
        captured(SIGNATURE).replace("\r\n", "\n"),
        f"{captured(SIGNATURE)}\n",
        f"\r\n{captured(SIGNATURE)}\r\n\r\n",
        f"\ufeff{captured(SIGNATURE)}",
        captured(SIGNATURE, line="post /callbacks"),
        captured(SIGNATURE, line=f"POST {PUBLIC} HTTP/1.1", host=""),
        captured("X-Note: a\x85b\u2028c\udcff", SIGNATURE),
        captured(SIGNATURE, "Transfer-Encoding: chunked"),
    ],
    ids=["LF", "line break", "blank lines", "mark", "lower case", "absolute", "odd blanks", "chunks taken off"],
)
async def test_request_edited_by_tools_is_read(keyed_shell: Shell, file: Path, text: str) -> None:
    assert (await explained(keyed_shell, file, text, "--url", PUBLIC)).code == 0


async def test_request_with_absolute_target_needs_no_url(keyed_shell: Shell, file: Path) -> None:
    ran = await explained(keyed_shell, file, captured(SIGNATURE, line=f"POST {PUBLIC} HTTP/1.1", host=""))
    assert ran.code == 0


async def test_repeated_header_is_reported(keyed_shell: Shell, file: Path) -> None:
    ran = await explained(keyed_shell, file, captured(SIGNATURE, SIGNATURE), "--url", PUBLIC)
    assert ran.code == 1
    assert "X-SignalWire-Signature appears more than once" in ran.out


async def test_truncated_body_is_reported(keyed_shell: Shell, file: Path) -> None:
    ran = await explained(keyed_shell, file, captured(SIGNATURE)[:-5], "--url", PUBLIC)
    assert ran.code == 1
    assert f"Content-Length says {len(BODY)} bytes, and the body has {len(BODY) - 5}" in ran.out


async def test_request_can_be_given_in_parts(keyed_shell: Shell, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body from a file or from standard input; a GET has none."""
    parts = ("callbacks", "explain", "--url", PUBLIC, "--header", FORM, "--header", SIGNATURE)
    put(file, BODY)
    assert (await keyed_shell(*parts, "--body", str(file))).code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BODY.encode())))
    assert (await keyed_shell(*parts, "--body", "-")).code == 0
    assert (await keyed_shell(*parts)).code == 1
    address = f"{PUBLIC}?{BODY}"
    signed = f"X-Twilio-Signature: {sign(url=address, key=KEY)}"
    ran = await keyed_shell("callbacks", "explain", "--url", address, "--method", "get", "--header", signed)
    assert (ran.code, ran.out) == (
        0,
        f"The signature matches '{PUBLIC}?AccountSid=***&StreamSid=***&StreamEvent=***'.\n",
    )


@pytest.mark.parametrize("keys", [f"PSK_old,{KEY}", f" PSK_old\n {KEY}\n", f"{KEY}, PSK_old"])
async def test_several_keys_are_read_from_each_source(
    bare_shell: Shell, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    """From the environment, a file or standard input."""
    arguments = (captured(SIGNATURE), "--url", PUBLIC)
    bare_shell.set({"SIGNALWIRE_SIGNING_KEY": keys})
    assert (await explained(bare_shell, file, *arguments)).code == 0
    bare_shell.set({"SIGNALWIRE_SIGNING_KEY": "PSK_wrong"})
    (tmp_path / "keys").write_text(f"\ufeff{keys}")
    assert (await explained(bare_shell, file, *arguments, "--key-file", str(tmp_path / "keys"))).code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(keys.encode())))
    assert (await explained(bare_shell, file, *arguments, "--key-file", "-")).code == 0


async def test_escape_sequences_and_query_values_are_not_shown(keyed_shell: Shell, file: Path) -> None:
    text = captured(
        SIGNATURE, "X-Forwarded-Host: \x1b[2J", host="evil\x1b[31m", line="POST /\x1b]0;x\x07?pin=1234 HTTP/1.1"
    )
    ran = await explained(keyed_shell, file, text)
    assert ran.code == 1
    assert "\x1b" not in ran.out
    assert "\x07" not in ran.out
    assert "1234" not in ran.out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "--request does not start with a request line"),
        ("HTTP/1.1 200 OK\r\n\r\n", "--request does not start with a request line"),
        ("POST /x HTTP/1.1\r\nsecret\r\n\r\n", "a header has no name or no ':': write it as 'Name: value'"),
        ("POST /x HTTP/1.1\r\nA: b\r\n folded: c\r\n\r\n", "a header has no name or no ':'"),
        ("POST /x HTTP/1.1\r\n: secret\r\n\r\n", "a header has no name or no ':'"),
        ("POST /x HTTP/1.1\r\nA : secret\r\n\r\n", "a header has no name or no ':'"),
        ("POST /x HTTP/1.1\r\nA: b\r\n\r\n", "--request has no Host header: pass the URL with --url"),
        ("POST /x HTTP/1.1\nTransfer-Encoding: chunked\n\n5\r\nA=B&C\r\n0\r\n\r\n", "is still chunked"),
    ],
)
async def test_malformed_request_is_a_usage_error(keyed_shell: Shell, file: Path, text: str, sentence: str) -> None:
    ran = await explained(keyed_shell, file, text)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert sentence in ran.err
    assert "secret" not in ran.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "nothing to diagnose: pass a --request, or --url"),
        (("--body", "-"), "nothing to diagnose"),
        (("--request", "-", "--key-file", "-"), "standard input can be read once"),
        (("--request", "x", "--body", "y"), "--request includes these: omit it"),
        (("--request", "x", "--header", "A: secret"), "--request includes these: omit it"),
        (("--request", "x", "--method", "GET"), "--request includes these: omit it"),
        (("--request", "no-such-file"), "--request can't be read: No such file"),
        (("--request", "\0"), "--request can't be read: write the name of a file"),
        (("--url", PUBLIC, "--body", "no-such-file"), "--body can't be read: No such file"),
        (("--url", PUBLIC, "--header", "secret"), "a header has no name or no ':'"),
        (("--url", PUBLIC, "--candidate", "example.com/secret"), "a --candidate is not an absolute URL"),
        (("--url", PUBLIC, "--key-file", "no-such-file"), "--key-file can't be read"),
    ],
)
async def test_wrong_options_are_usage_errors(keyed_shell: Shell, arguments: tuple[str, ...], sentence: str) -> None:
    ran = await keyed_shell("callbacks", "explain", *arguments)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert sentence in ran.err
    assert "secret" not in ran.err


@pytest.mark.parametrize("keys", [None, "", " , \n"])
async def test_missing_key_is_a_usage_error(
    bare_shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str | None
) -> None:
    monkeypatch.delenv("SIGNALWIRE_SIGNING_KEY", raising=False)
    if keys is not None:
        bare_shell.set({"SIGNALWIRE_SIGNING_KEY": keys})
    ran = await bare_shell("callbacks", "explain", "--url", PUBLIC)
    assert (ran.code, ran.out) == (2, "")
    assert "set SIGNALWIRE_SIGNING_KEY to the project's Signing Key (PSK_...), or name a --key-file" in ran.err
    (tmp_path / "keys").write_text(keys or "")
    ran = await bare_shell("callbacks", "explain", "--url", PUBLIC, "--key-file", str(tmp_path / "keys"))
    assert (ran.code, ran.out) == (2, "")
    assert "--key-file contains no key" in ran.err


async def test_help_has_an_example_and_names_the_environment(bare_shell: Shell) -> None:
    ran = await bare_shell("callbacks", "explain", "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "  signalwire-streams callbacks explain --request captured.txt" in ran.out.partition("Example")[2]
    for name in ("SIGNALWIRE_SIGNING_KEY", "SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN"):
        assert name in ran.out


async def test_group_without_command_is_a_usage_error(bare_shell: Shell) -> None:
    ran = await bare_shell("callbacks")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: ")
