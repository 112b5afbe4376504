"""The README's programs run."""

import asyncio
import signal
import ssl
import wave
from typing import Any

import aiohttp
import pytest

from signalwire_streams import Clock
from tests.cli.shell import end_of
from tests.guides.documents import code_of, run_code
from tests.waiting import until


async def test_start_starts_a_stream_and_stops_it(user: Any) -> None:
    someone = await user(audio=None)
    ran = await someone.run("README/start.py", someone.space.conference_sids[0])
    assert (ran.code, ran.err) == (0, "")
    [stream] = someone.space.streams
    assert ran.out.split()[0] == stream.name
    assert not stream.alive


@pytest.mark.parametrize(
    ("fault", "settings", "printed"),
    [
        ("reset", {"executed": True}, "a stream named {} may be running: "),
        ("status", {"status": 422}, "no stream was started: "),
    ],
)
async def test_start_prints_what_went_wrong(user: Any, fault: str, settings: dict[str, Any], printed: str) -> None:
    someone = await user(audio=None)
    someone.space.faults.add(fault, on="start", **settings)
    ran = await someone.run("README/start.py", someone.space.conference_sids[0])
    assert (ran.code, ran.out) == (1, "")
    name = someone.space.streams[0].name if someone.space.streams else ""
    assert ran.err.splitlines()[-1].startswith(printed.format(name))


async def test_record_records_a_conference(user: Any) -> None:
    someone = await user()
    [sid, *_] = someone.space.conference_sids
    url = f"wss://localhost:{someone.port}/"
    ran = await someone.run("README/record.py", sid, url, replaced={"8443": str(someone.port)})
    assert ran == type(ran)(0, "", "")
    with wave.open(f"{sid}.wav") as recording:
        assert (recording.getnchannels(), recording.getframerate(), recording.getnframes()) == (2, 8000, 4000)


async def test_start_many_starts_one_stream_on_each_conference(
    user: Any, client_for: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    someone = await user(audio=None)
    sids = someone.space.conference_sids
    await run_code("README/start_many.py")["start_many"](client_for(someone.space), sids)
    assert {stream.target_sid for stream in someone.space.streams.active()} == set(sids)
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(f"{sid} started " for sid in sids)
    assert (someone.folder / "run.db").exists()


async def test_keep_starts_a_stream_on_each_conference(user: Any, client_for: Any, idle_clock: Clock) -> None:
    """And on one that begins later; it leaves them when it is cancelled."""
    someone = await user(audio=None)
    space = someone.space
    keep_all = run_code("README/keep.py")["keep_all"]
    keeping = asyncio.create_task(keep_all(client_for(space, clock=idle_clock)))
    await until(lambda: len(space.streams.active()) == 3, timeout=110.0, interval=0.5)
    space.add_conference()
    await until(lambda: len(space.streams.active()) == 4, timeout=110.0, interval=0.5)
    keeping.cancel()
    await asyncio.wait([keeping])
    assert {stream.name for stream in space.streams.active()} == {f"audit-{sid}" for sid in space.conference_sids}


async def test_service_starts_a_stream_and_receives_it(user: Any) -> None:
    someone = await user()
    someone.save("README/service.py")
    tls = ("--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key")
    here = {"STREAM_URL": f"wss://localhost:{someone.port}/audio/", "STREAM_TOKEN": "t0ken", "PYTHONUNBUFFERED": "1"}
    [sid, *_] = someone.space.conference_sids
    trust = ssl.create_default_context(cafile="client.pem")
    async with (
        someone.python("-m", "uvicorn", "service:app", "--port", str(someone.port), *tls, **here) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as http,
    ):
        while b"running on" not in (line := await server.stderr.readline()):
            assert line
        async with http.post(f"https://localhost:{someone.port}/conferences/{sid}/stream") as response:
            name = await response.json()
        lines = [(await server.stdout.readline()).decode() for _ in range(25)]
        ran = await end_of(server, signal.SIGTERM)
    [stream] = someone.space.streams
    assert stream.name == name
    assert [line for line in lines if "POST" not in line][:20] == [f"{stream.sid} 320\n"] * 20
    assert "Exception in ASGI" not in ran.err


def test_service_test_passes_for_a_service_that_stops_what_it_starts(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(
        code_of("README/test_service.py"),
        my_service="""
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def streaming(client):
            streams = []
            async for conference in client.conferences.list():
                streams.append(await client.conferences.start_stream(conference.sid, url="wss://rx.example.com/a"))
            yield
            for stream in streams:
                await client.conferences.stop_stream(stream)
        """,
    )
    done = pytester.runpytest_inprocess("-pno:signalwire_streams", "-psignalwire_streams.pytest_plugin", "-Werror")
    done.assert_outcomes(passed=1)
