"""``simulate``: a Space of its own, in a process of its own."""

import json
import signal
import socket
import sys
import wave
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from signalwire_streams import StreamsClient
from signalwire_streams.receiver import EndReason, MediaEvent, MediaReceiver
from signalwire_streams.simulator import Certificates, SimulatedSpace

from .shell import URL, Shell, end_of, line_of, process

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")


def _environment(facts: dict[str, str]) -> dict[str, str]:
    return {
        "SIGNALWIRE_SPACE": facts["base_url"],
        "SIGNALWIRE_PROJECT_ID": facts["project"],
        "SIGNALWIRE_API_TOKEN": facts["token"],
    }


@posix_only
async def test_simulate_announces_serves_and_ends(bare_shell: Shell) -> None:
    arguments = ("--json", "--conferences", "4", "--fault", "503-api:on=start", "--rate-limit", "none", "--seed", "5")
    async with process("simulate", *arguments, "--no-request-log") as child:
        facts = json.loads(await line_of(child))
        assert sorted(facts) == ["base_url", "project", "signing_key", "token"]
        bare_shell.set(_environment(facts))
        listed = await bare_shell("conferences", "list", "--json")
        refused = await bare_shell(
            "calls", "start-stream", "no-such-call", "--url", URL, "--deadline", "0.001", "--json"
        )
        ran = await end_of(child, signal.SIGTERM)
    assert len(listed.lines) == 4
    assert refused.code == 1
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert facts["project"] == SimulatedSpace(conferences=4, calls=5, seed=5).project


@posix_only
async def test_simulate_sends_audio(tmp_path: Path) -> None:
    """With --audio it is the other end of a receiver: faults and all."""
    certificates = Certificates.make()
    (tmp_path / "authority.pem").write_bytes(certificates.authority)
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
        file.writeframes(bytes(range(160)) * 40)
    receiver = MediaReceiver()
    arguments = (
        "--audio",
        str(tmp_path / "speech.wav"),
        "--ca-file",
        str(tmp_path / "authority.pem"),
        "--no-real-time",
    )
    faults = ("--fault", "frames-duplicated:every=4", "--fault", "no-stop")
    async with process("simulate", "--json", *arguments, *faults) as child, AsyncExitStack() as stack:
        facts = json.loads(await line_of(child))
        url = await stack.enter_async_context(receiver.serve(ssl_context=certificates.server))
        client = await stack.enter_async_context(
            StreamsClient(space=facts["base_url"], project=facts["project"], token=facts["token"])
        )
        [sid, *_] = [conference.sid async for conference in client.conferences.list()]
        async with receiver.open(client.conferences, sid, url=url, codec="L16", track="inbound_track") as session:
            heard = [event async for event in session if isinstance(event, MediaEvent)]
        assert b"".join(event.payload for event in heard[:4]) == bytes(range(160)) * 8
        assert (len(heard), session.statistics.of("inbound").duplicates) == (25, 5)
        assert session.end_reason is EndReason.CLOSED
        ran = await end_of(child, signal.SIGINT)
    assert (ran.code, ran.out, ran.err) == (0, "", "")


@posix_only
async def test_simulate_prints_exports(bare_shell: Shell) -> None:
    async with process("simulate", "--calls", "1") as child:
        text = ""
        while "Ctrl-C" not in text:
            text += await line_of(child)
        exports = dict(
            line.strip().removeprefix("export ").split("=", 1) for line in text.splitlines() if "export " in line
        )
        bare_shell.set(exports)
        listed = await bare_shell("calls", "list", "--json")
        assert (await bare_shell("calls", "start-stream", listed.json["sid"], "--url", URL)).code == 0
        ran = await end_of(child, signal.SIGINT)
    assert "(live conferences: 10, live calls: 1)" in text
    assert list(exports) == ["SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN"]
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "\nEnded. Requests: 2, streams: 1, still running: 1, duplicate streams: 0.\n"


async def test_simulate_reports_a_port_in_use(bare_shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with process("simulate", "--json", "--port", str(port)) as child:
            ran = await end_of(child)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"error: can't listen on 127.0.0.1 port {port}: ")
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--fault", "boom"), "'boom' is not a kind of fault"),
        (("--fault", "503:times"), "write it as key=value"),
        (("--fault", "garbage", "--fault", "503:times=0"), "--fault 503:times=0: times must be at least 1, not 0"),
        (("--fault", "503:times=-1"), "times must be at least 1, not -1"),
        (("--fault", "latency:seconds=-1"), "seconds must be a number of seconds, not -1.0"),
        (("--fault", "latency:seconds=inf"), "seconds must be a number of seconds, not inf"),
        (("--fault", "503:seconds=1"), "seconds is not a setting of '503'"),
        (("--fault", "latency"), "'latency' needs seconds=..., which has no default"),
        (("--rate-limit", "0"), "write a number above 0, or none"),
        (("--rate-limit", "9" * 5000), "write a number above 0, or none"),
        (("--host", ""), "empty: write an address such as 127.0.0.1, or 0.0.0.0 for all"),
        (("--port", "70000"), "70000 is not in the range"),
        (("--conferences", "-1"), "-1 is not in the range"),
        (("--duplicate-names", "maybe"), "'maybe' is not one of 'stream-error'"),
        (("--audio", __file__), "is not a WAV file"),
        (("--audio", "speach.wav"), "No such file or directory; write tone, silence or a WAV file"),
        (("--ca-file", __file__), "contains no PEM certificate: name the file of a CA (see"),
        (("--ca-file", "no.pem"), "'no.pem' can't be read: No such file"),
        (("--fault", "frames-lost:every=0", "--audio", "tone"), "every must be a whole number from 1"),
        (("--fault", "frames-lost"), "there are no audio sockets, so write --audio too"),
        (("--fault", "socket-first"), "there are no audio sockets, so write --audio too"),
        (("--fault", "callback-lost"), "there are no callbacks, so write --callbacks too"),
    ],
)
async def test_simulate_rejects_invalid_arguments(bare_shell: Shell, arguments: tuple[str, ...], sentence: str) -> None:
    ran = await bare_shell("simulate", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert sentence in ran.err
    assert len(ran.err.splitlines()) == 1
