"""The README's examples and claims hold."""

import asyncio
import re
import wave
from pathlib import Path
from secrets import token_urlsafe
from types import SimpleNamespace
from typing import Any

import pytest
import trustme  # noqa: F401  (a suite within a test forgets what it imported, and this can't be imported twice)

from signalwire_streams import Clock, StreamsClient
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.simulator import Certificates, FaultKind, SimulatedSpace, Tone, dial_media
from tests.waiting import until

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]


def test_the_first_two_blocks_are_the_two_commands() -> None:
    """The two commands stand first, each the only line of its block."""
    assert [language for language, _ in BLOCKS[:2]] == ["sh", "sh"]
    for _, command in BLOCKS[:2]:
        assert len(command.splitlines()) == 1
    assert "demo" in BLOCKS[0][1]
    assert "tests" in BLOCKS[1][1]


async def test_the_first_program_runs(
    space: SimulatedSpace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first program starts and stops a stream on each conference."""
    monkeypatch.setenv("SIGNALWIRE_SPACE", space.base_url)
    monkeypatch.setenv("SIGNALWIRE_PROJECT_ID", space.project)
    monkeypatch.setenv("SIGNALWIRE_API_TOKEN", space.token)
    code = PYTHON[0].replace('StreamsClient(space="example", project="…", token="…")', "StreamsClient.from_env()")
    code = code.replace("asyncio.run(main())", "").replace('"…"', '"token"')
    scope: dict[str, Any] = {}
    exec(compile(code, "<README>", "exec"), scope)  # noqa: S102

    await scope["main"]()

    assert len(space.streams) == 3
    assert space.streams.active() == []
    assert len(capsys.readouterr().out.splitlines()) == 3


async def test_the_example_test_passes() -> None:
    """The example of a user's own test holds for a service that starts a stream on each conference."""

    async def record_everything(client: StreamsClient) -> None:
        async for conference in client.conferences.list(status="in-progress"):
            await client.conferences.start_stream(conference.sid, url="wss://rx.example.com/a")

    [code] = [code for code in PYTHON if "SimulatedSpace" in code]
    scope: dict[str, Any] = {"my_service": SimpleNamespace(record_everything=record_everything)}
    exec(compile(code, "<README>", "exec"), scope)  # noqa: S102

    await scope["test_my_service_records_each_conference_once"]()


async def test_the_bulk_example_runs(space: SimulatedSpace, client: StreamsClient) -> None:
    """The bulk example starts a stream on every live conference."""
    [code] = [code for code in PYTHON if "start_streams" in code]
    scope: dict[str, Any] = {}
    exec(compile(code, "<README>", "exec"), scope)  # noqa: S102

    await scope["record_every_live_conference"](client)

    assert len(space.streams.active()) == 3


async def test_the_example_of_telemetry_starts_a_stream(space: SimulatedSpace, client: StreamsClient) -> None:
    """By the global providers, which record nothing unless an application sets others."""
    [code] = [code for code in PYTHON if "instrument(" in code]
    scope: dict[str, Any] = {}
    exec(compile(code, "<README>", "exec"), scope)  # noqa: S102
    await scope["start_traced"](client, MediaReceiver(), space.conference_sids[0], "wss://rx.example.com/audio")
    assert len(space.streams.active()) == 1


async def test_the_keeper_of_the_example_starts_a_stream_on_each_conference(
    space: SimulatedSpace, client_for: Any, idle_clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And on one that begins later; it leaves them when it is cancelled."""
    monkeypatch.chdir(tmp_path)
    [code] = [code for code in PYTHON if "keep_streaming" in code]
    scope: dict[str, Any] = {}
    exec(compile(code, "<README>", "exec"), scope)  # noqa: S102

    keeping = asyncio.create_task(scope["keep_all"](client_for(space, clock=idle_clock)))
    await until(lambda: len(space.streams.active()) == 3, timeout=110.0, interval=0.5)
    new = space.add_conference()
    await until(lambda: len(space.streams.active()) == 4, timeout=110.0, interval=0.5)
    keeping.cancel()
    await asyncio.wait([keeping])

    assert keeping.cancelled()
    assert {stream.name for stream in space.streams.active()} == {f"audit-{sid}" for sid in space.conference_sids}
    assert new in {stream.parameters["keep_target"] for stream in space.streams.active()}


async def test_the_audio_examples_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of the other end record what the Space says, on one conference and on many."""
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for code in PYTHON:
        if "MediaReceiver" in code and "uvicorn" not in code and "SignedTokens" not in code:
            exec(compile(code, "<README>", "exec"), scope)  # noqa: S102
    certificates = Certificates.make()
    receiver = MediaReceiver()
    async with (
        SimulatedSpace(
            conferences=4, audio=Tone(seconds=0.5), real_time=False, ssl_context=certificates.trust
        ) as space,
        StreamsClient(base_url=space.base_url, project=space.project, token=space.token) as client,
        receiver.serve(ssl_context=certificates.server) as url,
    ):
        first, *others = space.conference_sids
        await scope["record_one"](client, receiver, url, first)
        await scope["record_all"](client, receiver, url, others)
        assert {stream.target_sid for stream in space.streams} == {first, *others}
        sids = [stream.sid for stream in space.streams]
    for sid in sids:
        with wave.open(str(tmp_path / f"{sid}.wav")) as recording:
            assert (recording.getnchannels(), recording.getframerate(), recording.getnframes()) == (2, 8000, 4000)


async def test_the_example_of_signed_tokens_admits_a_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start in one service is admitted by a receiver that was made in another."""
    monkeypatch.setenv("STREAM_TOKEN_KEYS", f"{token_urlsafe(32)} {token_urlsafe(32)}")
    [code] = [code for code in PYTHON if "SignedTokens" in code]
    scope: dict[str, Any] = {}
    exec(compile(code, "<README>", "exec"), scope)  # noqa: S102
    certificates = Certificates.make()
    async with (
        SimulatedSpace(calls=1, audio=Tone(seconds=0.1), real_time=False, ssl_context=certificates.trust) as space,
        StreamsClient(base_url=space.base_url, project=space.project, token=space.token) as client,
        scope["make_receiver"]().serve(ssl_context=certificates.server) as url,
    ):
        [sid] = space.call_sids
        await scope["start"](client, sid, url, "acme")
        printed = ""

        def has_printed() -> bool:
            nonlocal printed
            printed += capsys.readouterr().out
            return "\n" in printed

        await until(has_printed)
    assert printed == f"{sid} acme\n"


@pytest.mark.usefixtures("idle_clock")
async def test_the_example_of_an_own_endpoint_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that answers passes; one that answers too late fails."""
    monkeypatch.chdir(tmp_path)
    with wave.open("hello.wav", "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\x10\x20" * 1600)
    [code] = [code for code in PYTHON if "await dial_media" in code]
    scope: dict[str, Any] = {}
    exec(compile(code, "<README>", "exec"), scope)  # noqa: S102

    async def answer(session: StreamSession) -> None:
        await asyncio.sleep(delay)
        await session.playback.play(bytes(800))
        await session.wait_closed()

    receiver = MediaReceiver(answer, bearer_tokens=None, bidirectional=True)
    async with receiver.serve() as url:
        delay = 0.5
        await scope["test_agent_answers"](dial_media, url)
        delay = 2.0
        with pytest.raises(AssertionError):
            await scope["test_agent_answers"](dial_media, url)


def test_the_example_with_fixtures_passes(pytester: pytest.Pytester) -> None:
    """The example of the fixtures holds for a service that stops what it starts."""
    [code] = [code for code in PYTHON if "stream_receiver" in code]
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(
        code,
        my_service="""
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def streaming(client, *, url, bearer_token):
            async for conference in client.conferences.list():
                sid = conference.sid
                stream = await client.conferences.start_stream(sid, url=url, authorization_bearer_token=bearer_token)
            yield
            await client.conferences.stop_stream(sid, stream)
        """,
    )
    done = pytester.runpytest_inprocess("-pno:signalwire_streams", "-psignalwire_streams.pytest_plugin", "-Werror")
    done.assert_outcomes(passed=1)


def test_all_examples_compile() -> None:
    """Every example in Python is Python."""
    for code in PYTHON:
        compile(code, "<README>", "exec")


def test_every_fault_is_named() -> None:
    """The README lists every kind of fault that the Space knows."""
    text = README.read_text()

    assert [kind.value for kind in FaultKind if f"`{kind.value}`" not in text] == []
