"""pytest plugin: fixtures with a simulated Space and a receiver for its streams.

pytest finds it once ``signalwire-streams[pytest]`` is installed. It does nothing until a test requests a fixture:

```python
async def test_stream_is_received(signalwire_space, stream_receiver, client):
    async with stream_receiver.open(client.conferences, signalwire_space.conference_sids[0]) as session:
        async for event in session:
            break
```

The fixtures run in asyncio, under pytest-asyncio or, if that is not installed, under anyio's plugin.

PYTEST_DONT_REWRITE: there is nothing to rewrite, and pytest would warn if the module is already imported.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

import pytest
from attrs import define, field

try:
    from pytest_asyncio import fixture as _async_fixture  # as its strict mode requires
except ImportError:
    _async_fixture = pytest.fixture  # type: ignore[assignment]  # it is only applied to functions

if TYPE_CHECKING:  # a run that does not use the fixtures imports none of these
    from signalwire_streams.models import OpenOptions
    from signalwire_streams.receiver import MediaReceiver, StreamSession
    from signalwire_streams.receiver._pending_stream import Starts
    from signalwire_streams.simulator import Certificates, DialReport, SimulatedSpace

__all__ = ["StreamReceiver", "dial_media", "signalwire_certificates", "signalwire_space", "stream_receiver"]

_GRACE_PERIOD, _POLL_INTERVAL = 5.0, 0.01  # seconds for streams and sockets that are just ending, on a busy machine too
_FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line(
        "markers",
        "signalwire_space(conferences=3, calls=3, allow_leaks=False, ...): what the fixture signalwire_space passes to"
        " SimulatedSpace, and whether streams and sockets may be left running",
    )
    config.addinivalue_line(
        "markers", "stream_receiver(bidirectional=False, ...): what the fixture stream_receiver passes to MediaReceiver"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Record whether the test passed; the report itself is made by others."""
    if call.when != "teardown":
        item.stash[_FAILED] = call.excinfo is not None


def _fail(sentence: str) -> NoReturn:
    pytest.fail(sentence, pytrace=False)


@define(eq=False)
class _LeakCheck:
    """Finds what a test left running, before the first of the fixtures closes anything."""

    allow_leaks: bool
    space_arguments: dict[str, Any]
    space: "SimulatedSpace | None" = None
    receiver: "MediaReceiver | None" = None
    leaks: list[str] | None = None

    async def run(self) -> None:
        """Wait for streams and sockets that are ending, then record those left; once for all fixtures."""
        if self.allow_leaks or self.leaks is not None:
            return
        clock = asyncio.get_running_loop().time
        until = clock() + _GRACE_PERIOD
        while (leaks := list(self._running())) and clock() < until:  # noqa: ASYNC110  (no event covers all of it)
            await asyncio.sleep(_POLL_INTERVAL)
        self.leaks = leaks

    def missing_stream_reason(self) -> str:
        """Return the Space's explanation for streams that did not arrive."""
        if self.space is None:
            return ""
        if self.space.audio is None:
            return ". This Space opens no sockets, since it has audio=None"
        failed = [
            f"{stream.error} (stream {stream.sid} of {stream.target_kind} {stream.target_sid})"
            for stream in self.space.streams
            if stream.error is not None
        ]
        return f". The Space reports: {', '.join(failed)}" if failed else ""

    def _running(self) -> Iterator[str]:
        targets = {}
        for stream in self.space.streams if self.space is not None else ():
            targets[stream.sid] = f"{stream.target_kind} {stream.target_sid}"
            if stream.alive:
                name = "without a name" if stream.name is None else f"named {stream.name!r}"
                yield f"a stream is still running: {stream.sid}, {name}, on {targets[stream.sid]}"
        for session in self.receiver.sessions if self.receiver is not None else ():
            sid = session.stream_sid or "without a sid"
            yield f"a socket is still open: of stream {sid}, on {targets.get(sid, 'an unknown target')}"
        if self.receiver is not None and self.receiver.pending_sockets:
            yield f"a socket is still open: {self.receiver.pending_sockets} without a started stream"
        if self.space is not None:
            from signalwire_streams._http.session import idle_in_lent_sessions  # noqa: PLC0415

            # A session that the client borrowed keeps its idle connections.
            connections = len(self.space.connections) - idle_in_lent_sessions(self.space.port)
            if connections > 0:
                yield f"a client is not closed: it has {connections} connections to the Space open"


@define(eq=False)
class StreamReceiver:
    """A receiver for the streams of a test.

    Attributes:
        url: its URL, for a start's ``url``.
        bearer_token: the token it accepts, for a start's ``authorization_bearer_token``.
        receiver: the receiver itself.
    """

    url: str
    bearer_token: str = field(repr=False)
    receiver: "MediaReceiver"
    _arrived: "asyncio.Queue[StreamSession]" = field(repr=False)
    _leak_check: _LeakCheck = field(repr=False)

    def open(
        self, streams: "Starts[Any]", sid: str, **fields: "Unpack[OpenOptions]"
    ) -> "AbstractAsyncContextManager[StreamSession]":
        """Start a stream and receive it, with the arguments of `MediaReceiver.open`, but with this receiver's URL."""
        given: OpenOptions = {"url": self.url, **fields}
        return self.receiver.open(streams, sid, **given)

    async def next_stream(self, *, timeout: float = 15.0) -> "StreamSession":  # noqa: ASYNC109  (as in asyncio)
        """Wait for the next stream that was started with this URL and token.

        Raises:
            TimeoutError: none arrived within that many seconds.
        """
        __tracebackhide__ = True
        try:
            async with asyncio.timeout(timeout):
                return await self._arrived.get()
        except TimeoutError:
            raise TimeoutError(
                f"no stream arrived within {timeout:g} s: start it with url=stream_receiver.url and "
                f"authorization_bearer_token=stream_receiver.bearer_token{self._leak_check.missing_stream_reason()}"
            ) from None


def _arguments(request: pytest.FixtureRequest, marker: str, allowed: Iterable[str]) -> dict[str, Any]:
    """Collect the arguments of a marker; the one closest to the test wins."""
    given: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers(marker))):
        if mark.args:
            _fail(f"@pytest.mark.{marker} takes no positional arguments: write name=value")
        given |= mark.kwargs
    known = sorted(allowed)
    for name in given:
        if name not in known:
            _fail(f"@pytest.mark.{marker} has no argument {name!r}: write one of {', '.join(known)}")
    return given


def _check_test(request: pytest.FixtureRequest) -> None:
    """Reject a test that is not a coroutine: it blocks the event loop, so the Space would not respond."""
    function = request.function
    inner = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    if not inspect.iscoroutinefunction(inner):
        _fail(f"{request.node.name} uses a Space, which runs in an event loop: write 'async def {function.__name__}'")


def _check_loops(request: pytest.FixtureRequest) -> None:
    """Reject a Space in another event loop than its test's: nothing would respond, and the test would hang."""
    if not request.config.pluginmanager.has_plugin("asyncio"):
        return
    if "anyio_backend" in request.fixturenames:
        # Which of the two sets up a fixture depends on the order in which they were loaded.
        _fail(
            "pytest-asyncio and anyio can't share these fixtures: for tests that anyio runs, pass -p "
            "no:asyncio to pytest"
        )
    marker = request.node.get_closest_marker("asyncio")
    test = (marker and marker.kwargs.get("loop_scope")) or request.config.getini("asyncio_default_test_loop_scope")
    fixtures = request.config.getini("asyncio_default_fixture_loop_scope") or "fixture-scope"
    fixtures = "function" if fixtures == "fixture-scope" else fixtures
    if test != fixtures:
        _fail(
            f"the test runs in the event loop of its {test}, and the Space would run in that of its {fixtures}: "
            f'give the test loop_scope="{fixtures}", or set asyncio_default_fixture_loop_scope = "{test}"'
        )


@pytest.fixture
def _signalwire_leak_check(request: pytest.FixtureRequest) -> Iterator[_LeakCheck]:
    """Report what the test left running; torn down last, so that there is one report."""
    _check_test(request)
    _check_loops(request)
    from signalwire_streams.simulator import SimulatedSpace  # noqa: PLC0415

    known = {*inspect.signature(SimulatedSpace).parameters, "allow_leaks"}
    arguments = _arguments(request, "signalwire_space", known)
    check = _LeakCheck(allow_leaks=arguments.pop("allow_leaks", False), space_arguments=arguments)
    yield check
    if not check.leaks:
        return
    report = "\n  ".join(["after the test ended:", *check.leaks])
    report += "\nStop it in the test, or allow it with @pytest.mark.signalwire_space(allow_leaks=True)."
    if request.node.stash.get(_FAILED, False):
        # A test that failed seldom cleans up: its own failure comes first, and this only adds to it.
        request.node.add_report_section("teardown", "signalwire_streams", report)
    else:
        _fail(report)


@pytest.fixture(scope="session")
def signalwire_certificates() -> "Certificates":
    """A certificate authority for this run: use `.server` for your own servers, which the Space then trusts."""
    from signalwire_streams.simulator import Certificates  # noqa: PLC0415

    try:
        return Certificates.make()
    except ModuleNotFoundError as error:
        _fail(f"the fixtures of signalwire_streams need {error.name}: pip install 'signalwire-streams[pytest]'")


@_async_fixture
async def signalwire_space(
    signalwire_certificates: "Certificates", _signalwire_leak_check: _LeakCheck
) -> "AsyncIterator[SimulatedSpace]":
    """A simulated Space with three conferences and three calls that sends audio and status callbacks.

    ``@pytest.mark.signalwire_space(conferences=10, audio=None)`` passes other arguments to `SimulatedSpace`.
    """
    from signalwire_streams.simulator import SimulatedSpace, Tone  # noqa: PLC0415

    usual: dict[str, Any] = {"conferences": 3, "calls": 3, "audio": Tone(), "callbacks": True}
    usual["ssl_context"] = signalwire_certificates.trust
    async with SimulatedSpace(**usual | _signalwire_leak_check.space_arguments) as space:
        _signalwire_leak_check.space = space
        yield space
        await _signalwire_leak_check.run()


@pytest.fixture
def dial_media(signalwire_certificates: "Certificates") -> "Callable[..., Awaitable[DialReport]]":
    """`signalwire_streams.simulator.dial_media`, which trusts `signalwire_certificates` as well.

    ```python
    async def test_my_endpoint(dial_media, my_url):
        report = await dial_media(my_url, audio="hello.wav", max_first_audio_ms=800)
        assert not report.broken_rules
    ```
    """
    from signalwire_streams.simulator import dial_media  # noqa: PLC0415

    return partial(dial_media, ssl_context=signalwire_certificates.trust)


@_async_fixture
async def stream_receiver(
    request: pytest.FixtureRequest,
    signalwire_space: "SimulatedSpace",  # noqa: ARG001  (it outlives the receiver that it dials)
    signalwire_certificates: "Certificates",
    _signalwire_leak_check: _LeakCheck,
) -> AsyncIterator[StreamReceiver]:
    """A `StreamReceiver` on localhost that the Space trusts.

    ``@pytest.mark.stream_receiver(bidirectional=True)`` passes other arguments to `MediaReceiver`.
    """
    from signalwire_streams.models._validation import Secret  # noqa: PLC0415
    from signalwire_streams.receiver import MediaReceiver  # noqa: PLC0415

    fixed = {"handler", "bearer_tokens"}
    given = _arguments(request, "stream_receiver", set(inspect.signature(MediaReceiver).parameters) - fixed)
    arrived = asyncio.Queue["StreamSession"]()

    async def handler(session: "StreamSession") -> None:
        arrived.put_nowait(session)
        await session.wait_closed()

    token = Secret(token_urlsafe(32))
    receiver = _signalwire_leak_check.receiver = MediaReceiver(handler, bearer_tokens=token, **given)
    async with receiver.serve(ssl_context=signalwire_certificates.server) as url:
        yield StreamReceiver(url, token, receiver, arrived, _signalwire_leak_check)
        await _signalwire_leak_check.run()
        await receiver.aclose(deadline=0)  # the leak check has already waited
