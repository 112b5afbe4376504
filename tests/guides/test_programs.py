"""The programs of the guides run."""

import asyncio
import re
import shutil
import signal
import ssl
import wave
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from signalwire_streams import SignedTokens, StreamsClient
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.simulator import Certificates, SimulatedSpace, Tone, dial_media
from tests.cli.shell import end_of, line_of, process
from tests.guides.documents import BLOCKS, code_of, run_code
from tests.ports import free_port
from tests.redis_server import RedisServer, redis_servers
from tests.waiting import until

URL = "wss://rx.example.com/audio"
TOKEN = "t0ken"
NGINX = shutil.which("nginx")


async def accepted(port: int) -> None:
    """Wait until something listens on a port."""

    async def is_open() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await until(is_open, timeout=20.0, interval=0.05)


@asynccontextmanager
async def ended_by(child: Process, number: signal.Signals = signal.SIGINT) -> AsyncIterator[None]:
    """End a program by a signal at the end of the block."""
    yield
    ran = await end_of(child, number)
    assert "Error" not in ran.err.replace("CancelledError", "")


async def test_attempts_prints_each_attempt(user: Any) -> None:
    someone = await user(audio=None, duplicate_names="http-error")
    someone.space.faults.add("reset", on="start", executed=True, times=1)
    ran = await someone.run("reliability/attempts.py", someone.space.conference_sids[0])
    assert ran.out.splitlines() == [
        "attempt 1: no_response (waiting), resend",
        "attempt 2: duplicate_name (responded), already_started",
        "audit is running (it was already)",
    ]


async def test_traced_prints_each_call_and_sends_its_header(user: Any) -> None:
    someone = await user(audio=None)
    [sid, *_] = someone.space.call_sids
    ran = await someone.run("reliability/traced.py", sid)
    assert ran.out.splitlines() == [f"call_start {sid}: succeed after 1", f"stop_returned {sid}: succeed after 1"]


async def test_bulk_run_continues_and_is_undone(user: Any) -> None:
    someone = await user(audio=None)
    space = someone.space
    space.faults.add("status", on="start", target=space.conference_sids[0], status=422, times=1)
    ran = await someone.run("bulk/start_live.py")
    assert ran.code == 1
    assert sorted(ran.out.splitlines()[1:]) == ["  1 rejected", "  2 started"]
    ran = await someone.run("bulk/start_live.py")
    assert ran.code == 0
    assert len(space.streams.active()) == 3
    assert space.streams.duplicates() == []
    ran = await someone.run("bulk/stop_started.py")
    assert (ran.code, ran.err) == (0, "")
    assert space.streams.active() == []


async def test_keep_all_starts_a_stream_on_each_conference(user: Any) -> None:
    someone = await user(audio=None)
    async with someone.start("keep-streaming/keep_all.py", PYTHONUNBUFFERED="1") as child:
        await until(lambda: len(someone.space.streams.active()) == 3, timeout=20.0, interval=0.05)
        assert "appeared" in (await line_of(child)).lower()
        async with ended_by(child):
            pass
    assert len(someone.space.streams.active()) == 3


async def test_keep_and_record_replaces_a_lost_stream(user: Any) -> None:
    someone = await user(audio=Tone(), real_time=True, conferences=2)
    space = someone.space
    title, port = "keep-streaming/keep_and_record.py", str(someone.port)
    async with someone.start(title, f"wss://localhost:{port}/", replaced={"8443": port}) as child:
        await until(lambda: len(list(someone.folder.glob("*.wav"))) == 2, timeout=30.0, interval=0.05)
        lost = space.streams[0]
        space.lose_socket(lost)
        await until(lambda: len(list(someone.folder.glob("*.wav"))) == 3, timeout=30.0, interval=0.05)
        async with ended_by(child):
            pass
    recordings = [path.stem for path in someone.folder.glob("*.wav")]
    assert sorted(recordings) == sorted(f"{stream.target_sid}-{stream.sid}" for stream in space.streams)
    assert space.streams.duplicates() == []
    assert space.streams.active() == []


def frames_of(path: Path) -> tuple[int, int, int]:
    with wave.open(str(path)) as recording:
        return recording.getnchannels(), recording.getframerate(), recording.getnframes()


async def test_recorder_records_every_stream(user: Any, client_for: Any) -> None:
    someone = await user()
    own = {"8443": str(someone.port)}
    async with someone.start("receiving/recorder.py", replaced=own, STREAM_TOKEN=TOKEN, PYTHONUNBUFFERED="1") as child:
        assert await line_of(child) == f"listening on wss://0.0.0.0:{someone.port}/\n"
        client = client_for(someone.space)
        for sid in someone.space.conference_sids:
            await client.conferences.start_stream(
                sid, url=f"wss://localhost:{someone.port}/", authorization_bearer_token=TOKEN
            )
        lines = [await line_of(child) for _ in range(3)]
        async with ended_by(child):
            pass
    for stream in someone.space.streams:
        assert f"{stream.sid} stopped\n" in lines
        assert frames_of(someone.folder / f"{stream.sid}.wav") == (2, 8000, 4000)


async def test_record_all_records_every_conference(user: Any) -> None:
    someone = await user()
    own = {"8443": str(someone.port)}
    ran = await someone.run("receiving/record_all.py", f"wss://localhost:{someone.port}/", replaced=own)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert {stream.target_sid for stream in someone.space.streams} == set(someone.space.conference_sids)
    for stream in someone.space.streams:
        assert frames_of(someone.folder / f"{stream.sid}.wav") == (2, 8000, 4000)


async def test_starter_starts_what_a_replica_records(user: Any) -> None:
    """The replica ends when its streams are over. The starter's next run stops what the first one left."""
    someone = await user(audio=Tone(seconds=0.5), real_time=True)
    keys = {"STREAM_TOKEN_KEYS": token_urlsafe(32)}
    [sid, other] = someone.space.call_sids
    async with someone.start(
        "deploying/replica.py", PORT=str(someone.port), HEALTH_PORT=str(free_port()), **keys
    ) as replica:
        await accepted(someone.port)
        async with proxy(someone, someone.port) as url:
            ran = await someone.run("deploying/starter.py", sid, STREAM_URL=url, **keys)
            assert (ran.code, ran.out, ran.err) == (0, "", "")
            await until(lambda: list(someone.folder.glob("*.wav")), timeout=20.0)
            ran = await end_of(replica, signal.SIGTERM)
            assert (ran.code, ran.err) == (0, "")
            assert frames_of(someone.folder / f"{someone.space.streams[0].sid}.wav") == (2, 8000, 4000)
            ran = await someone.run("deploying/starter.py", other, STREAM_URL=url, **keys)
    assert (ran.code, ran.err) == (0, "")
    assert someone.space.requests.count("stop-call-stream") == 1


async def status_of(method: str, url: str) -> int:
    async with aiohttp.ClientSession() as http, http.request(method, url) as response:
        return response.status


@asynccontextmanager
async def fastapi_program(someone: Any) -> AsyncIterator[tuple[Process, str]]:
    """Run the guide's program of FastAPI behind TLS; yield it and the URL of its routes."""
    async with proxy(someone, someone.port) as url:
        own = {"STREAM_URL": f"{url}/", "STREAM_TOKEN_KEYS": token_urlsafe(32), "PORT": str(someone.port)}
        async with someone.start("deploying/app.py", **own) as child:
            await accepted(someone.port)
            yield child, f"http://127.0.0.1:{someone.port}"


async def until_draining(probe: str) -> None:
    async def is_draining() -> bool:
        return await status_of("GET", probe) == 503

    await until(is_draining, timeout=20.0)


async def until_recorded(someone: Any, count: int) -> None:
    await until(lambda: len(list(someone.folder.glob("*.wav"))) == count, timeout=20.0)


async def test_fastapi_program_starts_records_and_drains(user: Any) -> None:
    """A stream that runs at SIGTERM is recorded to its end, and no other one is admitted."""
    someone = await user(audio=Tone(seconds=1.5), real_time=True)
    [first, second] = someone.space.call_sids
    async with fastapi_program(someone) as (child, url):
        assert await status_of("GET", f"{url}/audio/readyz") == 200
        assert await status_of("POST", f"{url}/recordings/{first}") == 204
        await until_recorded(someone, 1)
        child.send_signal(signal.SIGTERM)
        await until_draining(f"{url}/audio/readyz")
        assert await status_of("POST", f"{url}/recordings/{second}") == 204
        ran = await end_of(child)
    assert "Traceback" not in ran.err
    stream = someone.space.streams[0]
    assert frames_of(someone.folder / f"{stream.sid}.wav") == (2, 8000, 12_000)
    assert [path.stem for path in someone.folder.glob("*.wav")] == [stream.sid]


async def test_fastapi_program_ends_at_the_second_ctrl_c(user: Any) -> None:
    """The first one waits for the streams, and there is no traceback."""
    someone = await user(audio=Tone(), real_time=True)
    [sid, _] = someone.space.call_sids
    async with fastapi_program(someone) as (child, url):
        for method, streams in (("POST", 1), ("DELETE", 0), ("POST", 1)):
            assert await status_of(method, f"{url}/recordings/{sid}") == 204
            await until(lambda: len(someone.space.streams.active()) == streams, timeout=20.0)  # noqa: B023
        await until_recorded(someone, 2)
        child.send_signal(signal.SIGINT)
        await until_draining(f"{url}/audio/readyz")
        assert someone.space.streams.active()
        ran = await end_of(child, signal.SIGINT)
    assert ran.code == 0
    assert "Traceback" not in ran.err
    assert frames_of(someone.folder / f"{someone.space.streams[1].sid}.wav")[:2] == (2, 8000)


async def test_replica_without_streams_ends_at_ctrl_c(user: Any) -> None:
    someone = await user(audio=None)
    own = {"PORT": str(someone.port), "HEALTH_PORT": str(free_port()), "STREAM_TOKEN_KEYS": token_urlsafe(32)}
    async with someone.start("deploying/replica.py", **own) as replica:
        await accepted(someone.port)
        ran = await end_of(replica, signal.SIGINT)
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.skipif(NGINX is None, reason="there is no nginx on this machine: install Debian's package nginx")
async def test_redeploy_behind_nginx_cuts_no_stream(user: Any, client_for: Any) -> None:
    """A replica that gets SIGTERM keeps its streams, and nginx sends new ones to the other."""
    someone = await user(calls=6, audio=Tone(seconds=1.5), real_time=True)
    keys = token_urlsafe(32)
    ports = {name: str(free_port()) for name in ("9001", "9002", "443")}
    [block] = [block for block in BLOCKS if block.language == "nginx"]
    site = block.text.replace("/etc/nginx/fullchain.pem", "server.pem").replace("/etc/nginx/privkey.pem", "server.key")
    for name, port in ports.items():
        assert re.search(rf"\b{name}\b", site)
        site = re.sub(rf"\b{name}\b", port, site)
    settings = "daemon off; error_log stderr; pid nginx.pid; events {} http { access_log off;"
    places = "".join(f"{name}_temp_path temp;" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (someone.folder / "nginx.conf").write_text(f"{settings}{places}{site}}}")
    nginx = ("-p", str(someone.folder), "-c", "nginx.conf", "-e", "stderr")
    url = f"wss://localhost:{ports['443']}/audio"

    async def start(sid: str) -> None:
        await calls.start_stream(sid, url=url, authorization_bearer_token=SignedTokens(keys))

    def recordings() -> int:
        return len(list(someone.folder.glob("*.wav")))

    async with AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(
                someone.start(
                    "deploying/replica.py", PORT=ports[name], HEALTH_PORT=str(free_port()), STREAM_TOKEN_KEYS=keys
                )
            )
            for name in ("9001", "9002")
        ]
        proxy = await stack.enter_async_context(process(*nginx, program=str(NGINX), python=(), new=True))
        for port in ports.values():
            await accepted(int(port))
        calls = client_for(someone.space).calls
        first, second, *others = someone.space.call_sids
        await start(first)
        await start(second)
        await until(lambda: recordings() == 2, timeout=20.0)
        replicas[0].send_signal(signal.SIGTERM)
        for sid in others:
            await start(sid)
        await until(lambda: not someone.space.streams.active(), timeout=30.0, interval=0.05)
        ran = await end_of(replicas[0])
        assert (ran.code, ran.err) == (0, "")
        ran = await end_of(replicas[1], signal.SIGTERM)
        assert (ran.code, ran.err) == (0, "")
        await end_of(proxy, signal.SIGTERM)
    for stream in someone.space.streams:
        assert stream.error is None
        assert frames_of(someone.folder / f"{stream.sid}.wav") == (2, 8000, 12_000)


@asynccontextmanager
async def proxy(someone: Any, port: int) -> AsyncIterator[str]:
    """Speak TLS in front of a port, as the proxy of the guide does."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain("server.pem", "server.key")
    writers: list[asyncio.StreamWriter] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        finally:  # the other end may have reset the connection
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            there = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        writers.append(there[1])
        await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer), return_exceptions=True)

    async with await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context) as server:
        yield f"wss://localhost:{server.sockets[0].getsockname()[1]}/audio"
    for writer in writers:
        writer.transport.abort()  # else one that still says goodbye by TLS outlives the loop
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_signed_token_admits_a_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start in one service is admitted by a receiver that was made in another."""
    monkeypatch.setenv("STREAM_TOKEN_KEYS", f"{token_urlsafe(32)} {token_urlsafe(32)}")
    scope = run_code("deploying/signed.py")
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


@asynccontextmanager
async def serving(handle: Callable[[web.WebSocketResponse, web.Request], Awaitable[None]]) -> AsyncIterator[str]:
    """Serve a WebSocket, in place of a transcriber's or a model's."""

    async def respond(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await handle(socket, request)
        return socket

    app = web.Application()
    app.router.add_get("/", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


class Transcriber:
    """Says hello when the audio has ended."""

    def __init__(self) -> None:
        self.audio = bytearray()

    async def __call__(self, socket: web.WebSocketResponse, _: web.Request) -> None:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                await socket.send_str("hello")
                await socket.close()
            else:
                self.audio += message.data


async def test_transcriber_prints_what_the_service_says(user: Any, client_for: Any) -> None:
    """The whole program; tests/receiver/test_guides.py has the rest."""
    someone = await user()
    async with serving(transcriber := Transcriber()) as url:
        own = {"STREAM_TOKEN": TOKEN, "TRANSCRIBER_URL": url, "PYTHONUNBUFFERED": "1"}
        title = "agents-and-transcription/transcriber.py"
        async with someone.start(title, replaced={"8443": str(someone.port)}, **own) as child:
            await accepted(someone.port)
            await client_for(someone.space).calls.start_stream(
                someone.space.call_sids[0],
                url=f"wss://localhost:{someone.port}/",
                authorization_bearer_token=TOKEN,
            )
            assert await line_of(child) == f"{someone.space.streams[0].sid} hello\n"
            async with ended_by(child):
                pass
    assert len(transcriber.audio) == pytest.approx(16_000, abs=640)


async def test_conference_is_recorded_and_transcribed(user: Any) -> None:
    someone = await user()
    port, [sid, *_] = str(someone.port), someone.space.conference_sids
    someone.save("agents-and-transcription/transcriber.py")
    someone.save("agents-and-transcription/record_and_transcribe.py", **{"8443": port})
    async with serving(transcriber := Transcriber()) as url:
        arguments = ("record_and_transcribe.py", sid, f"wss://localhost:{port}/")
        async with someone.python(*arguments, TRANSCRIBER_URL=url) as child:
            ran = await end_of(child)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{someone.space.streams[0].sid} hello\n"
    assert frames_of(someone.folder / f"{sid}.wav") == (2, 8000, 4000)
    assert len(transcriber.audio) == pytest.approx(16_000, abs=640)


async def test_stand_in_for_a_transcriber_says_how_much_it_heard(user: Any) -> None:
    someone = await user()
    port, [sid, *_] = str(someone.port), someone.space.conference_sids
    own = str(free_port())
    async with someone.start("agents-and-transcription/stand_in.py", replaced={"9000": own}):
        await accepted(int(own))
        someone.save("agents-and-transcription/transcriber.py")
        someone.save("agents-and-transcription/record_and_transcribe.py", **{"8443": port})
        arguments = ("record_and_transcribe.py", sid, f"wss://localhost:{port}/")
        async with someone.python(*arguments, TRANSCRIBER_URL=f"ws://127.0.0.1:{own}/") as child:
            ran = await end_of(child)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{someone.space.streams[0].sid} heard 0.5 s in all\n"


async def test_agent_answers_a_call(user: Any) -> None:
    """The whole program; tests/receiver/test_guides.py has the rest."""
    someone = await user(audio=None)

    async def speak(socket: web.WebSocketResponse, request: web.Request) -> None:
        assert request.headers["Authorization"] == "Bearer key"
        audio = "A" * 6400  # 0.1 s of silence
        for _ in range(3):
            await socket.send_json({"type": "response.output_audio.delta", "item_id": "one", "delta": audio})
        await socket.send_json({"type": "response.output_audio.done", "item_id": "one"})
        async for _ in socket:
            pass

    async with serving(speak) as model:
        own = {"STREAM_TOKEN": TOKEN, "MODEL_URL": model, "MODEL_KEY": "key"}
        title = "agents-and-transcription/agent.py"
        async with someone.start(title, replaced={"8080": str(someone.port)}, **own) as child:
            await accepted(someone.port)
            url = f"ws://127.0.0.1:{someone.port}/"
            report = await dial_media(url, authorization_bearer_token=TOKEN, seconds=2)
            async with ended_by(child):
                pass
    assert report.broken_rules == ()
    assert report.payload_sizes


async def test_callbacks_are_verified_and_printed(user: Any, client_for: Any) -> None:
    someone = await user(audio=None, callbacks=True)
    port = someone.port
    own = {"SIGNALWIRE_SIGNING_KEY": someone.space.signing_key, "CALLBACK_URL": f"http://localhost:{port}/callbacks"}
    async with someone.start(
        "callbacks/callbacks.py", replaced={"port=8000": f"port={port}, print=None"}, **own
    ) as child:
        await accepted(port)
        [sid, *_] = someone.space.conference_sids
        conferences = client_for(someone.space).conferences
        stream = await conferences.start_stream(sid, url=URL, status_callback=own["CALLBACK_URL"])
        assert await line_of(child) == f"StreamStarted {sid} {stream.name} \n"
        await conferences.stop_stream(stream)
        assert await line_of(child) == f"StreamStopped {sid} {stream.name} \n"
        async with ended_by(child):
            pass


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_servers() as start:
        yield start()


async def test_shared_limit_starts_streams(user: Any, redis: RedisServer) -> None:
    someone = await user(audio=None)
    ran = await someone.run("fleet/shared_limit.py", *someone.space.call_sids, REDIS_URL=redis.url)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [f"{stream.target_sid} {stream.name}" for stream in someone.space.streams]


async def test_nightly_run_is_done_by_a_worker(user: Any, redis: RedisServer) -> None:
    someone = await user(audio=None)
    own = {"SIGNALWIRE_FLEET_REDIS": redis.url}
    worker = "import sys\nfrom signalwire_streams._cli.main import run\nsys.exit(run(['fleet', 'worker']))\n"
    async with process(code=worker, environment=someone.environment | own) as child:
        ran = await someone.run("fleet/nightly.py", *someone.space.call_sids, **own)
        assert (ran.code, ran.err) == (0, "")
        assert sorted(ran.out.splitlines()) == sorted(f"{sid} started" for sid in someone.space.call_sids)
        await end_of(child, signal.SIGTERM)


async def test_traced_start_prints_spans_and_logs(user: Any) -> None:
    someone = await user(audio=None)
    someone.space.faults.add("503-api", on="start", times=1)
    ran = await someone.run("telemetry/traced_start.py", someone.space.conference_sids[0])
    assert ran.code == 0
    assert ran.out.count('"name": "attempt"') == 2
    assert "DEBUG:signalwire_streams.retry:" in ran.err


async def test_show_page_shows_streams_in_a_browser(user: Any) -> None:
    someone = await user(audio=None)
    title = "telemetry/show_page.py"
    async with someone.start(title, replaced={"8080": str(someone.port)}, STREAM_TOKEN=TOKEN) as child:
        link = (await line_of(child)).strip()
        async with aiohttp.ClientSession() as http, http.get(link) as response:
            assert response.status == 200
            assert "<html" in await response.text()
        async with ended_by(child):
            pass


def test_recording_test_passes(pytester: pytest.Pytester) -> None:
    passes(pytester, "testing/test_recording.py")


def test_fixture_test_passes(pytester: pytest.Pytester) -> None:
    passes(pytester, "testing/test_stream.py")


def passes(pytester: pytest.Pytester, title: str) -> None:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(code_of(title))
    done = pytester.runpytest_inprocess("-pno:signalwire_streams", "-psignalwire_streams.pytest_plugin", "-Werror")
    done.assert_outcomes(passed=1)


@pytest.mark.usefixtures("idle_clock")
async def test_test_of_an_own_endpoint_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that answers passes; one that answers too late fails."""
    monkeypatch.chdir(tmp_path)
    with wave.open("hello.wav", "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\x10\x20" * 1600)
    scope = run_code("testing/test_agent.py")

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


async def test_probe_reports_what_the_space_does(user: Any) -> None:
    someone = await user(audio=None, duplicate_names="http-error")
    ran = await someone.run("api-facts/probe.py", someone.space.call_sids[0], URL)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0].startswith("a second start of the same name: HTTP 422")
    assert ran.out.splitlines()[1] == "a stop by name: accepted"


async def test_before_and_after_do_the_same(user: Any) -> None:
    someone = await user(audio=None)
    for title in ("migrating/before.py", "migrating/after.py"):
        ran = await someone.run(title, someone.space.conference_sids[0])
        assert (ran.code, ran.err) == (0, "")
        assert ran.out == f"{someone.space.streams[-1].sid}\n"


async def test_redacted_prints_no_secret(user: Any) -> None:
    ran = await (await user(audio=None)).run("security/redacted.py")
    assert (ran.code, ran.err) == (0, "")
    assert "parameters={'card': ***}" in ran.out
    assert "4111" not in ran.out
    assert "hunter2" not in ran.out


async def test_version_prints_the_version(user: Any) -> None:
    ran = await (await user(audio=None)).run("versions/version.py")
    assert ran.code == 0
    assert ran.out.count(".") >= 2


async def test_example_for_agents_starts_and_stops_a_stream(user: Any) -> None:
    someone = await user(audio=None)
    someone.space.faults.add("reset", on="start", executed=True, times=3)
    ran = await someone.run("AGENTS/agents_example.py", someone.space.conference_sids[0])
    assert ran.code == 0
    assert someone.space.streams.active() == []
