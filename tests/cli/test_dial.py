"""``dial``: its report, its exit codes, and what it says of wrong use."""

import asyncio
import json
import re
import signal
import sys
import wave
from pathlib import Path

import pytest

from signalwire_streams.simulator import Certificates, _dial_session
from tests.ports import free_port
from tests.simulator.endpoints import FRAME, Endpoint, serving

from .shell import Shell, end_of, process


async def greet(there: Endpoint) -> None:
    await there.until_start()
    await there.play(FRAME, FRAME)
    await there.mark()
    await there.until("stop")


async def play_parts_of_frames(there: Endpoint) -> None:
    await there.until_start()
    await there.play(FRAME[:50])
    await there.until("stop")
    await there.socket.close(code=1008)


@pytest.fixture
def hurried(bare_shell: Shell) -> Shell:
    """A shell whose calls last a tenth of a second."""
    bare_shell.environment.delenv("SIGNALWIRE_STREAMS_TOKEN", raising=False)
    for name, seconds in (("_QUIET", 0.1), ("_START_DELAY", 0.02)):  # a busy machine may pause an endpoint
        bare_shell.environment.setattr(_dial_session, name, seconds)
    return bare_shell


async def test_report_of_a_good_endpoint(hurried: Shell) -> None:
    async with serving(greet) as (url, _):
        ran = await hurried("dial", url, "--audio", "silence", "--require-mark")
    assert (ran.code, ran.err) == (0, "")
    [title, *rows, verdict] = ran.rows
    assert title == f"Dialled {url}"
    assert verdict == "The endpoint follows the protocol."
    labels = [re.split(r"\s{2,}", row.strip()) for row in rows]
    shown = dict(labels)
    assert list(shown) == ["accepted after", "first audio", "payloads", "audio", "marks", "closed"]
    assert re.fullmatch(r"[\d,]+ ms after the start event", shown["first audio"])
    assert shown["payloads"] == "2 of 160 bytes"
    assert shown["audio"] == "40 ms, heard: 40 ms"
    assert shown["marks"] == "1, returned: 1"
    assert re.fullmatch(r"code 1000, [\d,]+ ms after the stop event", shown["closed"])


async def test_each_broken_rule_is_an_error(hurried: Shell) -> None:
    async with serving(play_parts_of_frames) as (url, _):
        ran = await hurried("dial", url, "--audio", "silence")
        as_json = await hurried("dial", url, "--audio", "silence", "--json")
    assert ran.code == as_json.code == 1
    assert ran.err.splitlines() == [
        "error: 1 of the endpoint's 1 payloads are not whole frames of 20 ms (160 bytes): 50 bytes",
        "error: the endpoint closed the socket with code 1008 instead of 1000",
    ]
    assert "follows the protocol" not in ran.out
    assert as_json.err == ran.err
    facts = as_json.json
    assert facts["ok"] is False
    assert [broken["rule"] for broken in facts["broken_rules"]] == ["partial_frames", "wrong_close_code"]
    assert (facts["url"], facts["payload_sizes"], facts["close_code"]) == (url, {"50": 1}, 1008)
    assert "recording" not in facts


async def test_options_reach_the_endpoint(hurried: Shell, tmp_path: Path) -> None:
    """Over TLS with a certificate of its own; no secret is shown."""
    certificates = Certificates.make()
    (tmp_path / "authority.pem").write_bytes(certificates.authority)
    (tmp_path / "token").write_text("t0ken\n")
    arguments = ["--ca-file", str(tmp_path / "authority.pem"), "--parameter", "key=hush", "--both-tracks"]
    arguments += ("--audio", "silence", "--codec", "L16@16000h", "--dialect", "twilio", "--one-way")
    async with serving(lambda there: there.until("stop"), certificates.server) as (url, sockets):
        untrusted = await hurried("dial", url, "--audio", "silence")
        from_file = await hurried("dial", url, *arguments, "--bearer-token-file", str(tmp_path / "token"), "--json")
        hurried.set({"SIGNALWIRE_STREAMS_TOKEN": "one two"})
        from_environment = await hurried("dial", url, *arguments)
    assert (from_file.code, from_environment.code, untrusted.code) == (0, 0, 1)
    assert [there.headers["Authorization"] for there in sockets] == ["Bearer t0ken", "Bearer one"]
    start = sockets[0].messages[1]["start"]
    assert (start["customParameters"], start["mediaFormat"]["sampleRate"]) == ({"key": "hush"}, 16_000)
    assert "a certificate that is not trusted" in untrusted.err
    assert not re.search(
        "hush|t0ken|one two", from_file.out + from_file.err + from_environment.out + from_environment.err
    )


async def test_recording_is_a_wav_file(hurried: Shell, tmp_path: Path) -> None:
    """The caller is on the left, what he heard on the right; an existing file is kept."""
    path = tmp_path / "call.wav"
    with wave.open(str(tmp_path / "hello.wav"), "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
        file.writeframes(b"\x00\x10" * 800)
    arguments = ("--audio", str(tmp_path / "hello.wav"), "--record", str(path), "--codec", "L16")

    async def answer(there: Endpoint) -> None:
        await there.until_start()
        await there.play(FRAME * 4)
        await there.until("stop")

    async with serving(answer) as (url, _):
        ran = await hurried("dial", url, *arguments)
        again = await hurried("dial", url, *arguments)
    assert (ran.code, again.code) == (0, 2)
    assert "call.wav' exists already: name a new file" in again.err
    with wave.open(str(path)) as recording:
        assert (recording.getnchannels(), recording.getframerate()) == (2, 8_000)
        frames = recording.readframes(recording.getnframes())
    samples = [frames[index : index + 2] for index in range(0, len(frames), 2)]
    assert samples[0::2].count(b"\x00\x10") == 800
    assert samples[1::2].count(b"\x55\x55") == 320


@pytest.mark.parametrize(("audio", "is_heard"), [("tone", True), ("silence", False)])
async def test_caller_sends_the_audio_that_is_named(
    hurried: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audio: str, is_heard: bool
) -> None:
    monkeypatch.chdir(tmp_path)

    async def listen(there: Endpoint) -> None:
        await there.until_start()
        await there.until("stop")

    async with serving(listen) as (url, _):
        arguments = ("--one-way", "--record", "call.wav", "--codec", "L16", "--seconds", "1")
        ran = await hurried("dial", url, "--audio", audio, *arguments)
    assert ran.code == 0
    with wave.open("call.wav") as recording:
        samples = memoryview(recording.readframes(recording.getnframes())).cast("h")
    assert any(samples[0::2]) is is_heard


async def test_file_that_disappears_fails(hurried: Shell, tmp_path: Path) -> None:
    """And the socket is closed."""
    path = tmp_path / "hello.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
        file.writeframes(bytes(16_000))

    async def behave(there: Endpoint) -> None:
        path.unlink()
        await there.until("stop")

    async with serving(behave) as (url, sockets):
        ran = await hurried("dial", url, "--audio", str(path))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "error: --audio can't be read any more: No such file or directory\n"
    assert sockets[0].socket.close_code == 1000


async def test_report_is_written_although_the_recording_cannot_be(hurried: Shell, tmp_path: Path) -> None:
    (directory := tmp_path / "gone").mkdir()

    async def answer(there: Endpoint) -> None:
        await there.until_start()
        directory.rmdir()
        await there.play(FRAME)
        await there.until("stop")

    async with serving(answer) as (url, _):
        ran = await hurried("dial", url, "--record", str(directory / "call.wav"), "--json")
    assert (ran.code, ran.json["ok"]) == (1, True)
    assert f"error: the recording {directory / 'call.wav'} can't be" in ran.err


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def test_port_without_listener_fails(hurried: Shell, tmp_path: Path) -> None:
    """No recording is left of a call that was not accepted."""
    port = free_port()
    ran = await hurried("dial", f"ws://127.0.0.1:{port}/audio", "--record", str(tmp_path / "call.wav"))
    assert (ran.code, ran.out) == (1, f"Dialled ws://127.0.0.1:{port}/audio\n")
    assert ran.err == "error: the endpoint can't be reached: Connection refused\n"
    assert names_in(tmp_path) == []


URL = "wss://rx.example.com/audio"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Missing argument 'wss://...'"),
        (("http://rx.example.com/audio",), "SignalWire accepts wss only: write 'wss://rx.example.com/audio'"),
        (("ws://rx.example.com/audio",), "SignalWire accepts wss only: write 'wss://rx.example.com/audio'"),
        (("rx.example.com/audio",), "write 'wss://rx.example.com/audio'"),
        (("/audio",), "Url must be absolute, as in wss://example.com/audio"),
        ((f"{URL}?key=hush",), "has a query string, which SignalWire rejects: pass each value as --parameter"),
        (("wss://u:hush@rx.example.com/",), "pass the token with --bearer-token-file instead"),
        ((URL, "--audio", __file__), "is not a WAV file"),
        ((URL, "--audio", "hallo.wav"), "No such file or directory; write tone, silence or a WAV file"),
        ((URL, "--codec", "OPUS"), "codec 'OPUS' is unknown: write one of 'PCMU'"),
        ((URL, "--record", "/nowhere/call.wav"), "'/nowhere/call.wav' is in no directory that exists: name a new file"),
        ((URL, "--codec", "G722", "--record", "call.wav"), "StreamCodec must be one of PCMU, PCMA, L16"),
        ((URL, "--parameter", "hush"), "write it as NAME=VALUE"),
        ((URL, "--bearer-token-file", "none"), "--bearer-token-file can't be read: No such file"),
        ((URL, "--fault", "503"), "'503' does not apply to a dialled stream: write one of socket-refused"),
        ((URL, "--fault", "frames-lost:often"), "frames-lost:often: 'often' is not an option: write it as key=value"),
        ((URL, "--fault", "no-stop", "--fault", "no-stop"), "no-stop is given twice"),
        ((URL, "--seconds", "0"), "0.0 is not in the range x>0"),
        ((URL, "--max-first-audio-ms", "nan"), "nan is not a finite number"),
        ((URL, "--max-clear-ms", "500"), "--max-clear-ms is a limit for --barge-in: write that too, or omit it"),
        ((URL, "--one-way", "--barge-in"), "--one-way plays no audio: omit it, or --barge-in, --require-mark"),
        ((URL, "--ca-file", "none.pem"), "'none.pem' can't be read: No such file"),
    ],
)
async def test_wrong_use_dials_nothing(hurried: Shell, arguments: tuple[str, ...], sentence: str) -> None:
    ran = await hurried("dial", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert sentence in ran.err
    assert len(ran.err.splitlines()) == 1
    assert "hush" not in ran.err.replace("--parameter hush", "")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("as_json", [True, False])
async def test_interrupted_call_closes_its_socket(as_json: bool) -> None:
    closed = asyncio.get_running_loop().create_future()
    started = asyncio.Event()

    async def behave(there: Endpoint) -> None:
        await there.until("media")
        started.set()
        await there.until("stop")
        closed.set_result(there.socket.close_code)

    async with serving(behave) as (url, _), process("dial", url, *(["--json"] if as_json else [])) as child:
        await started.wait()
        ran = await end_of(child, signal.SIGINT)
        assert await closed == 1000
    assert (ran.code, ran.err) == (130, "")
    assert (json.loads(ran.out)["error"] == "Interrupted") if as_json else (ran.out == "")
