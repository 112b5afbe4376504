"""The pytest plugin, in test suites as users write them."""

import re
import sys
import textwrap
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import TypeAlias

import pytest
import pytest_asyncio
import trustme  # noqa: F401  (a suite within a test forgets what it imported, and this can't be imported twice)

import signalwire_streams
from signalwire_streams.simulator import _dial_session

Suite: TypeAlias = Callable[..., pytest.RunResult]

PLUGIN = "signalwire_streams.pytest_plugin"
# By its module's name, since that works as well where nothing is installed, or something older.
BY_MODULE = ("-p", "no:signalwire_streams", "-p", PLUGIN)
# Each message once: where CI is set, pytest's summary repeats it whole.
USUAL = ("-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:hypothesispytest", "-W", "error", "-rN")
CONFTEST = """
    import pytest_asyncio
    from signalwire_streams import StreamsClient

    @pytest_asyncio.fixture
    async def client(signalwire_space):
        space = signalwire_space
        async with StreamsClient(base_url=space.base_url, project=space.project, token=space.token) as client:
            yield client

    @pytest_asyncio.fixture
    async def start(signalwire_space, stream_receiver, client):
        async def start(**fields):
            return await client.conferences.start_stream(
                signalwire_space.conference_sids[0],
                url=stream_receiver.url,
                authorization_bearer_token=stream_receiver.bearer_token,
                **fields,
            )

        return start
"""
NONE = 0.05  # seconds: what these tests leave never ends by itself
LEAVES_A_STREAM = """
    async def test_it(stream_receiver, start):
        await start(name="audit-1")
        await stream_receiver.next_stream()
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Run a module of tests, with warnings as errors."""
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function")
    pytester.makeconftest(CONFTEST)

    def run(code: str, *options: str, grace: float | None = 20.0) -> pytest.RunResult:
        if grace is not None:
            monkeypatch.setattr(import_module(PLUGIN), "_GRACE_PERIOD", grace)
        pytester.makepyfile(code)
        return pytester.runpytest_inprocess(*USUAL, *BY_MODULE, *options)

    return run


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_stream_is_started_received_and_stopped(suite: Suite, mode: str) -> None:
    """By `start_stream` and by `open`; nothing is left running."""
    done = suite(
        """
        import pytest
        from signalwire_streams.receiver import EndReason, MediaEvent

        pytestmark = pytest.mark.asyncio

        async def test_plain(signalwire_space, stream_receiver, client, start):
            stream = await start(name="audit-1")
            session = await stream_receiver.next_stream()
            assert session.stream_sid == stream.sid
            assert isinstance(await anext(aiter(session)), MediaEvent)
            await client.conferences.stop_stream(signalwire_space.conference_sids[0], stream)
            assert [event async for event in session][-1].track
            assert session.end_reason is EndReason.STOPPED
            assert len(signalwire_space.streams) == 1
            assert (len(signalwire_space.conference_sids), len(signalwire_space.call_sids)) == (3, 3)

        async def test_joined(signalwire_space, stream_receiver, client):
            async with stream_receiver.open(client.calls, signalwire_space.call_sids[2]) as session:
                assert session in stream_receiver.receiver.sessions
                assert isinstance(await anext(aiter(session)), MediaEvent)
        """,
        f"--asyncio-mode={mode}",
    )
    done.assert_outcomes(passed=2)


def test_callbacks_are_signed_and_trust_the_certificates(suite: Suite) -> None:
    """The user's callback server has a certificate of the run's authority."""
    done = suite(
        """
        import asyncio
        from aiohttp import web
        from signalwire_streams.callbacks import CallbackReceiver, StreamStarted, StreamStopped

        async def test_it(signalwire_space, signalwire_certificates, client):
            told = asyncio.Queue()
            callbacks = CallbackReceiver(told.put, keys=[signalwire_space.signing_key])
            application = web.Application()
            application.router.add_post("/told", callbacks.handle)
            runner = web.AppRunner(application)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=signalwire_certificates.server).start()
            url = f"https://127.0.0.1:{runner.addresses[0][1]}/told"
            sid = signalwire_space.call_sids[0]
            stream = await client.calls.start_stream(sid, url="wss://127.0.0.1:1/", status_callback=url)
            assert (await told.get()).stream_sid == stream.sid
            await callbacks.aclose()
            await runner.cleanup()
            assert callbacks.statistics.rejected == 0
        """
    )
    done.assert_outcomes(passed=1)


DIALLED = """
    import asyncio, json
    from base64 import b64encode
    import pytest_asyncio, uvicorn
    from fastapi import FastAPI, WebSocket

    app = FastAPI()

    @app.websocket("/audio/{size}")
    async def audio(websocket: WebSocket, size: int):
        await websocket.accept()
        async for message in websocket.iter_json():
            if message["event"] == "start":
                media = {"payload": b64encode(bytes(size)).decode()}
                await websocket.send_json(
                    {"event": "media", "streamSid": message["start"]["streamSid"], "media": media}
                )
            elif message["event"] == "stop":
                break
        await websocket.close()

    @pytest_asyncio.fixture
    async def url():
        server = uvicorn.Server(uvicorn.Config(app, port=0, ws="websockets-sansio"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"ws://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/audio"
        server.should_exit = True
        await serving

    async def test_good(dial_media, url):
        report = await dial_media(f"{url}/320", audio=Silence(seconds=0.02), max_first_audio_ms=60_000)
        assert not report.broken_rules

    async def test_broken(dial_media, url):
        report = await dial_media(f"{url}/100", audio=Silence(seconds=0.02))
        assert not report.broken_rules

    async def test_over_tls(dial_media, signalwire_certificates):
        async def handler(session):
            await session.wait_closed()

        receiver = MediaReceiver(handler, bearer_tokens="t")
        async with receiver.serve(ssl_context=signalwire_certificates.server) as url:
            sound = Silence(seconds=0.02)
            report = await dial_media(url, audio=sound, one_way=True, authorization_bearer_token="t")
        assert not report.broken_rules
"""


def test_endpoints_are_dialled(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint of FastAPI in three lines; a broken one fails with the sentence that names the rule."""
    for name in ("_QUIET", "_START_DELAY"):
        monkeypatch.setattr(_dial_session, name, 0.02)
    done = suite(
        "from signalwire_streams.receiver import MediaReceiver\n"
        "from signalwire_streams.simulator import Silence\n" + textwrap.dedent(DIALLED)
    )
    done.assert_outcomes(passed=2, failed=1)
    done.stdout.fnmatch_lines(["E *'partial_frames'*not whole frames of 20 ms (160 bytes): 100 bytes*"])


def test_closest_marker_wins(suite: Suite) -> None:
    """Markers of module, class and function are merged."""
    done = suite(
        """
        import pytest
        from signalwire_streams.simulator import Silence

        pytestmark = pytest.mark.signalwire_space(conferences=10, audio=Silence(), seed=7)

        @pytest.mark.signalwire_space(conferences=1, calls=0)
        class TestIt:
            @pytest.mark.signalwire_space(audio=None)
            async def test_space(self, signalwire_space):
                space = signalwire_space
                assert (len(space.conference_sids), space.call_sids, space.audio, space.seed) == (1, [], None, 7)
                assert space.callbacks

        @pytest.mark.signalwire_space(bidirectional=True)
        @pytest.mark.stream_receiver(bidirectional=True, max_queue=5)
        async def test_receiver(signalwire_space, stream_receiver, client):
            async with stream_receiver.open(client.conferences, signalwire_space.conference_sids[9]) as session:
                await session.playback.play(bytes(160))
        """
    )
    done.assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("marker", "sentence"),
    [
        (
            "signalwire_space(conferance=1)",
            "*signalwire_space has no argument 'conferance': write one of advertised_limit, allow_leaks, *",
        ),
        ("signalwire_space(10)", "*signalwire_space takes no positional arguments: write name=value"),
        (
            "stream_receiver(handler=print)",
            "*stream_receiver has no argument 'handler': write one of bidirectional, *",
        ),
        ("stream_receiver(bearer_tokens=None)", "*stream_receiver has no argument 'bearer_tokens': *"),
    ],
)
def test_wrong_marker_argument_fails_in_one_sentence(suite: Suite, marker: str, sentence: str) -> None:
    """Before anything runs."""
    done = suite(f"import pytest\n@pytest.mark.{marker}\nasync def test_it(stream_receiver): ...")

    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines([f"@pytest.mark.{sentence}"])
    done.stdout.no_fnmatch_line("*Traceback*")


def test_running_stream_and_socket_are_reported_once(suite: Suite, pytester: pytest.Pytester) -> None:
    """Each on its own line, in one error of the teardown, without secrets."""
    done = suite(
        LEAVES_A_STREAM
        + """
        with open("token", "w") as file:
            file.write(stream_receiver.bearer_token)
    """,
        grace=NONE,
    )
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_it*",
            "after the test ended:",
            "  a stream is still running: ????????-*, named 'audit-1', on conference ????????-*",
            "  a socket is still open: of stream ????????-*, on conference ????????-*",
            "Stop it in the test, or allow it with @pytest.mark.signalwire_space(allow_leaks=True).",
        ],
        consecutive=False,
    )
    assert str(done.stdout).count("is still running") == 1
    token = (pytester.path / "token").read_text()
    assert token not in str(done.stdout)
    assert re.fullmatch("[0-9A-Za-z_-]{43}", token), "32 random bytes"


def test_running_stream_without_receiver_is_reported(suite: Suite) -> None:
    """Also a call's stream, and one without a name."""
    done = suite(
        """
        import pytest

        @pytest.mark.signalwire_space(audio=None)
        async def test_it(signalwire_space, client):
            await client.calls.start_stream(signalwire_space.call_sids[0], url="wss://rx.example.com/a", unnamed=True)
        """,
        grace=NONE,
    )
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["  a stream is still running: *, without a name, on call *"])
    done.stdout.no_fnmatch_line("*socket*")


def test_streams_have_five_seconds_to_end_after_the_test(suite: Suite) -> None:
    done = suite(
        """
        import asyncio, pytest
        from tests.idle_clock import idle_clock

        @pytest.mark.signalwire_space(audio=None)
        @pytest.mark.parametrize("seconds", [4.9, 5.1])
        async def test_it(idle_clock, signalwire_space, client, seconds):
            [sid, *_] = signalwire_space.call_sids
            await client.calls.start_stream(sid, url="wss://rx.example.com/a")
            asyncio.get_running_loop().call_later(seconds, signalwire_space.end_call, sid)
        """,
        grace=None,
    )
    done.assert_outcomes(passed=2, errors=1)
    done.stdout.fnmatch_lines(["*ERROR at teardown of test_it?5.1?*", "  a stream is still running: *"])


def test_socket_opened_by_the_user_is_reported_unless_closed(suite: Suite) -> None:
    """The user's fixtures may close it in time."""
    code = """
        import aiohttp, pytest

        opened = []

        @pytest.fixture
        async def session():  # the tests ask for it first, so it outlives the receiver
            async with aiohttp.ClientSession() as session:
                yield session
                for socket in opened:
                    await socket.close()  # or its warning would fail another test, when it is collected

        @pytest.fixture
        async def socket(session, stream_receiver, signalwire_certificates):
            socket = await session.ws_connect(
                stream_receiver.url,
                ssl=signalwire_certificates.trust,
                headers={"Authorization": f"Bearer {stream_receiver.bearer_token}"},
            )
            opened.append(socket)
            await socket.send_json({"event": "start", "start": {}})
            await stream_receiver.next_stream()
            return socket

        @pytest.fixture
        async def closed(socket):
            yield
            await socket.close()

        async def test_left(session, socket): ...

        async def test_closed(session, closed): ...
    """
    suite(code, "-k", "test_closed").assert_outcomes(passed=1)
    done = suite(code, "-k", "test_left", grace=NONE)
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(
        ["*at teardown of test_left*", "  a socket is still open: of stream without a sid, on an unknown target"]
    )
    done.stdout.no_fnmatch_line("*still runs*")


def test_pending_socket_and_open_client_are_reported(suite: Suite) -> None:
    done = suite(
        """
        import aiohttp, pytest
        from signalwire_streams import StreamsClient

        @pytest.fixture
        async def session():  # it outlives the receiver
            async with aiohttp.ClientSession() as session:
                yield session
                for socket in kept:
                    await socket.close()

        kept = []

        async def test_socket(session, stream_receiver, signalwire_certificates):
            kept.append(await session.ws_connect(
                stream_receiver.url,
                ssl=signalwire_certificates.trust,
                headers={"Authorization": f"Bearer {stream_receiver.bearer_token}"},
            ))

        async def test_client(session, signalwire_space):
            space = signalwire_space
            client = StreamsClient(
                base_url=space.base_url, project=space.project, token=space.token, session=session
            )
            await client.conferences.get(space.conference_sids[0])
        """,
        grace=NONE,
    )
    done.assert_outcomes(passed=2, errors=2)
    done.stdout.fnmatch_lines_random(
        [
            "  a socket is still open: 1 without a started stream",
            "  a client is not closed: it has 1 connections to the Space open",
        ]
    )


@pytest.mark.parametrize(
    ("ending", "outcome"), [("assert False", "failed"), ("pytest.xfail()", "xfailed"), ("pytest.skip()", "skipped")]
)
def test_failed_test_gets_no_second_error_for_leaks(suite: Suite, ending: str, outcome: str) -> None:
    """Leaks are listed below its failure."""
    done = suite("import pytest\n" + LEAVES_A_STREAM.replace("\n    ", "\n") + f"    {ending}\n", grace=NONE)

    done.assert_outcomes(**{outcome: 1})
    if outcome == "failed":
        done.stdout.fnmatch_lines(
            ["E *assert False*", "*Captured signalwire_streams teardown*", "  a stream is still running: *"]
        )


def test_idle_connection_of_borrowed_session_is_no_leak(suite: Suite) -> None:
    """A client that is left open beside it is reported."""
    code = """
        import aiohttp
        import pytest_asyncio
        from signalwire_streams import StreamsClient

        @pytest_asyncio.fixture
        async def session():
            async with aiohttp.ClientSession() as session:
                yield session

        @pytest_asyncio.fixture
        async def forgotten():
            clients = []
            yield clients
            for client in clients:
                await client.aclose()

        def client_of(space, **options):
            return StreamsClient(base_url=space.base_url, project=space.project, token=space.token, **options)

        async def test_lent(session, signalwire_space):
            async with client_of(signalwire_space, session=session) as client:
                await client.conferences.get(signalwire_space.conference_sids[0])
            assert len(signalwire_space.connections) == 1

        async def test_forgotten(session, forgotten, signalwire_space):
            async with client_of(signalwire_space, session=session) as client:
                await client.conferences.get(signalwire_space.conference_sids[0])
            forgotten.append(client_of(signalwire_space))
            await forgotten[0].conferences.get(signalwire_space.conference_sids[0])
            assert len(signalwire_space.connections) == 2
    """
    suite(code, "-k", "test_lent").assert_outcomes(passed=1)
    done = suite(code, "-k", "test_forgotten", grace=NONE)
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(
        ["*ERROR at teardown of test_forgotten*", "  a client is not closed: it has 1 connections*"]
    )


def test_sync_test_is_rejected_at_once(suite: Suite) -> None:
    """It would block the event loop; an async test under hypothesis is accepted."""
    done = suite(
        """
        import pytest
        from hypothesis import HealthCheck, given, settings, strategies

        def test_sync(signalwire_space): ...

        class TestAll:
            def test_receiver(self, stream_receiver): ...

        @settings(max_examples=2, suppress_health_check=list(HealthCheck), deadline=None)
        @given(number=strategies.integers())
        async def test_property(signalwire_space, number):
            assert signalwire_space.base_url
        """,
    )
    done.assert_outcomes(passed=1, errors=2)
    done.stdout.fnmatch_lines(
        [
            "test_sync uses a Space, which runs in an event loop: write 'async def test_sync'",
            "test_receiver uses a Space, which runs in an event loop: write 'async def test_receiver'",
        ]
    )


def test_marker_allows_leaks(suite: Suite) -> None:
    done = suite(
        "import pytest\npytestmark = pytest.mark.signalwire_space(allow_leaks=True)"
        + LEAVES_A_STREAM.replace("\n    ", "\n")
    )
    done.assert_outcomes(passed=1)


def test_stream_that_was_left_over_is_closed_at_once_after_the_check(suite: Suite) -> None:
    """The check has already waited for it."""
    done = suite(
        """
        import asyncio, pytest
        from tests.idle_clock import idle_clock

        @pytest.fixture
        async def ended_at(idle_clock):
            times = []
            yield times
            assert asyncio.get_running_loop().time() - times[0] < 3, "the end took long"

        @pytest.mark.signalwire_space(allow_leaks=True)
        async def test_it(ended_at, stream_receiver, start):
            await start()
            await stream_receiver.next_stream()
            ended_at.append(asyncio.get_running_loop().time())
        """,
        grace=NONE,
    )
    done.assert_outcomes(passed=1)


def test_missing_stream_error_says_how_to_start_it(suite: Suite) -> None:
    """And what the Space knows about it."""
    done = suite(
        """
        import pytest

        from tests.idle_clock import idle_clock

        async def test_nobody_asked(stream_receiver):
            await stream_receiver.next_stream(timeout=0)

        async def test_nobody_asked_for_long(idle_clock, stream_receiver):
            await stream_receiver.next_stream()

        async def test_wrong_token(signalwire_space, stream_receiver, client):
            [sid, *_] = signalwire_space.conference_sids
            await client.conferences.start_stream(sid, url=stream_receiver.url, authorization_bearer_token="wrong")
            while signalwire_space.streams.active():
                await asyncio.sleep(0)
            await stream_receiver.next_stream(timeout=0)

        @pytest.mark.signalwire_space(audio=None)
        async def test_nobody_dials(stream_receiver):
            await stream_receiver.next_stream(timeout=0)

        class TestAnotherSpace:
            @pytest.fixture
            def signalwire_space(self):
                return None

            async def test_it(self, stream_receiver):
                await stream_receiver.next_stream(timeout=0)
        """.replace("import pytest", "import asyncio, pytest")
    )
    done.assert_outcomes(failed=5)
    done.stdout.no_fnmatch_line("*stream_receiver.bearer_tokenNone*")
    done.stdout.fnmatch_lines_random(
        [
            "E *no stream arrived within 15 s: *",
            "E *no stream arrived within 0 s: start it with url=stream_receiver.url and *=stream_receiver.bearer_token",
            "E *stream_receiver.bearer_token. The Space reports: connection_refused (stream * of conference *)",
            "E *stream_receiver.bearer_token. This Space opens no sockets, since it has audio=None",
        ]
    )


def test_missing_trustme_fails_in_one_sentence(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    done = suite("async def test_it(signalwire_space): ...")

    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(
        ["the fixtures of signalwire_streams need trustme: pip install 'signalwire-streams?pytest?'"]
    )


def test_plugin_loads_without_pytest_asyncio(
    suite: Suite, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest itself reports that no plugin runs the async fixture."""
    monkeypatch.delattr(pytest_asyncio, "fixture")
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    monkeypatch.delattr(signalwire_streams, "pytest_plugin", raising=False)  # and it is the same module again after
    pytester.makeini("[pytest]")
    pytester.makeconftest("")
    done = suite("def test_other(): ...\nasync def test_it(signalwire_space): ...", "-p", "no:asyncio")

    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["*'test_it' requested an async fixture 'signalwire_space', with no plugin *"])


@pytest.mark.parametrize(
    ("fixtures", "tests", "marker", "outcome"),
    [
        ("session", "session", "", {"passed": 1}),
        ("fixture-scope", "function", "", {"passed": 1}),
        ("module", "function", "(loop_scope='module')", {"passed": 1}),
        ("session", "function", "", {"errors": 1}),
        ("function", "function", "(loop_scope='session')", {"errors": 1}),
    ],
)
def test_space_must_run_in_the_loop_of_the_test(
    suite: Suite, fixtures: str, tests: str, marker: str, outcome: dict[str, int]
) -> None:
    """Any scope will do; otherwise one sentence says what to set."""
    done = suite(
        f"""
        import pytest

        @pytest.mark.asyncio{marker}
        async def test_it(signalwire_space, stream_receiver, client):
            async with stream_receiver.open(client.conferences, signalwire_space.conference_sids[0]) as session:
                await anext(aiter(session))
        """,
        *("-o", f"asyncio_default_fixture_loop_scope={fixtures}", "-o", f"asyncio_default_test_loop_scope={tests}"),
    )
    done.assert_outcomes(**outcome)
    if "errors" in outcome:
        done.stdout.fnmatch_lines(["the test runs in the event loop of its *: give the test loop_scope=*"])


def test_anyio_beside_pytest_asyncio_is_rejected(suite: Suite) -> None:
    """One sentence says what to do."""
    done = suite(
        """
        import pytest

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        async def test_it(anyio_backend, signalwire_space): ...
        """
    )
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["pytest-asyncio and anyio can't share these fixtures: *-p no:asyncio*"])


def test_markers_are_registered(suite: Suite) -> None:
    """`pytest --markers` lists them."""
    suite("", "--markers").stdout.fnmatch_lines(["@pytest.mark.signalwire_space(*", "@pytest.mark.stream_receiver(*"])


def test_unused_plugin_imports_nothing(pytester: pytest.Pytester) -> None:
    """In a subprocess, which finds the plugin by its entry point if the package is installed."""
    pytester.makeini("[pytest]")
    pytester.makepyfile(
        """
        import sys

        ROOMS = {"signalwire_streams.simulator", "signalwire_streams.receiver", "trustme", "cryptography"}

        def test_nothing():
            assert "signalwire_streams.pytest_plugin" in sys.modules
            assert not ROOMS & set(sys.modules)

        def test_something(signalwire_certificates):
            assert ROOMS - set(sys.modules) == {"signalwire_streams.receiver"}
        """
    )
    others = ("xdist", "pytest_cov", "timeout", "anyio", "asyncio")  # which take longer to import than this test needs
    by_module = () if entry_points(group="pytest11", name="signalwire_streams") else BY_MODULE
    blocked = [option for name in others for option in ("-p", f"no:{name}")]
    pytester.runpytest_subprocess(*USUAL, *blocked, *by_module).assert_outcomes(passed=2)
