"""Servers that record streams and report on them: in this process, or in several processes on one port.

With several processes, each has its own event loop and its own socket on the port, and Linux spreads the connections
over the sockets. The processes are forked into sessions of their own, so Ctrl-C on the terminal reaches only the
parent, which then stops them. If the parent is killed, they see that its command channel was closed, and stop as well.
"""

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from ssl import SSLContext
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import click
from attrs import evolve, field, frozen

from signalwire_streams import SignedTokens
from signalwire_streams._cli.listen_recording import RecordingOptions, StreamRecorder, StreamState
from signalwire_streams._cli.output import Failure, listening_errors, logging_to
from signalwire_streams._cli.progress import live_page
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.receiver.audio import ByteOrder

CAN_SPREAD = sys.platform == "linux"  # others can't share a port, or give all of its connections to one process
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW, _END, _ABORT = b"?", b".", b"!"  # the commands of the parent
_LENGTH = 4  # bytes of the length before each message of a process
_COALESCE = 0.1  # seconds that audio may wait to be read, which does not hurt a recording


@frozen(kw_only=True)
class ServerOptions:
    host: str
    port: int
    path: str
    ssl_context: SSLContext | None
    tokens: SignedTokens | tuple[str, ...] | None = field(repr=False)
    byte_order: ByteOrder
    recording: RecordingOptions
    ca_file: Path | None = None  # that clients have to trust
    health_host: str = "127.0.0.1"
    health_port: int | None = None
    page: int | None = None  # its port


@frozen
class Warned:
    text: str


@frozen
class Started:
    sid: str
    line: str
    is_supported: bool


@frozen
class Ended:
    sid: str
    line: str
    facts: Mapping[str, Any]
    lost: int


@frozen(kw_only=True)
class ProcessLost:
    """The end of a process that was not asked to stop; *sids* are those of the streams that it was recording."""

    number: int
    pid: int
    reason: str
    sids: Sequence[str]
    others: int  # processes that are still running


Report: TypeAlias = Warned | Started | Ended | ProcessLost


def error_in(report: Report) -> str | None:
    """Return the line that reports a failure, unless it depends on what else has ended."""
    match report:
        case Warned():
            return report.text
        case Started(is_supported=False):
            return f"error: {report.line}"
        case Ended() if report.facts["error"] is not None:
            return f"error: {report.sid} is not fully recorded: {report.facts['error']}"
    return None


class RecordingServer:
    pids: Sequence[int] = ()  # of the processes that record, if this one does not

    def __init__(self, options: ServerOptions, report: Callable[[Report], None]) -> None:
        self._options = options
        self._report = report
        self.receiver = MediaReceiver(
            self._record, bearer_tokens=options.tokens, byte_order=options.byte_order, coalesce=_COALESCE
        )
        self._live: dict[StreamSession, StreamRecorder] = {}

    @contextlib.asynccontextmanager
    async def serve(self, *, reuse_port: bool = False) -> AsyncIterator[str]:
        """Accept streams while the block runs, and finish their recordings when it ends."""
        async with contextlib.AsyncExitStack() as stack:
            warn = logging_to(lambda line: self._report(Warned(f"error: {line}")), name="signalwire_streams.receiver")
            stack.enter_context(warn)
            await stack.enter_async_context(
                live_page(self._options.page, lambda text: self._report(Warned(text)), receivers=[self.receiver])
            )
            yield await enter_server(stack, self.receiver, self._options, reuse_port=reuse_port)

    def abort(self) -> None:
        self.receiver.abort()
        with contextlib.suppress(NotImplementedError):  # Windows' loops have no handlers to remove
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)  # so that it ends the process in any case

    @property
    def rejected(self) -> int:
        return self.receiver.rejected_upgrades

    def streams(self) -> Sequence[StreamState]:
        return [recorder.state for recorder in self._live.values()]

    async def _record(self, session: StreamSession) -> None:
        recorder = StreamRecorder(session, self._options.recording, self.receiver.free_descriptor)
        self._live[session] = recorder
        try:
            self._report(Started(recorder.sid, recorder.started_line, session.audio_format.is_supported))
            await recorder.run()
        finally:
            del self._live[session]
            self._report(Ended(recorder.sid, recorder.ended_line, recorder.facts, recorder.lost))


async def enter_server(
    stack: contextlib.AsyncExitStack, receiver: MediaReceiver, options: ServerOptions, *, reuse_port: bool = False
) -> str:
    serving = receiver.serve(
        host=options.host,
        port=options.port,
        path=options.path,
        ssl_context=options.ssl_context,
        shutdown_timeout=0,  # live streams could continue for hours, and the user asked to end now
        reuse_port=reuse_port,
        health_host=options.health_host,
        health_port=options.health_port,
    )
    with listening_errors(options.host, options.port):
        return await stack.enter_async_context(serving)


@frozen
class _Ready:
    url: str


@frozen
class _Failed:
    """The only message of a process that can't listen."""

    message: str


@frozen
class _Live:
    streams: Sequence[StreamState]


@frozen
class _Closed:
    """The last message of a process that was asked to end."""

    rejected: int


class RecordingProcesses:
    """Records streams in processes. It forks them, so no event loop and no other thread may be running yet."""

    def __init__(self, options: ServerOptions, count: int, report: Callable[[Report], None]) -> None:
        options = evolve(options, port=asyncio.run(_claim_port(options)))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if the shell ignored it, no exit code would be kept
        self._report = report
        self._processes: list[_Process] = []
        sockets: list[socket.socket] = []
        try:
            with _signals_blocked():
                for number in range(1, count + 1):
                    self._processes.append(_Process(number, options, sockets))
        except OSError as error:
            raise Failure(f"can't start {count} processes: {error.strerror}: write a smaller --processes") from None

    @property
    def pids(self) -> Sequence[int]:
        return [process.pid for process in self._processes]

    @property
    def rejected(self) -> int:
        return sum(process.rejected for process in self._processes)

    def streams(self) -> Sequence[StreamState]:
        """Return the live streams as of the last call, and ask the processes for their present state."""
        for process in self._processes:
            process.ask()
        return [stream for process in self._processes for stream in process.streams]

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        followers: list[asyncio.Task[None]] = []
        try:
            urls = [await process.connect() for process in self._processes]
            followers += [asyncio.create_task(self._follow(process)) for process in self._processes]
            yield urls[0]
        finally:
            for process in self._processes:
                process.send(_END)
            if followers:
                await asyncio.wait(followers)

    def abort(self) -> None:
        """Reset the connections of all streams; when called again, kill the processes."""
        for process in self._processes:
            process.abort()

    async def _follow(self, process: "_Process") -> None:
        await process.follow(self._report)
        if not process.is_closed:
            self._report(process.loss(others=sum(not one.has_ended for one in self._processes)))


class _Process:
    def __init__(self, number: int, options: ServerOptions, sockets: list[socket.socket]) -> None:
        self._number = number
        self._socket, theirs = socket.socketpair()
        sockets.append(self._socket)
        self.pid = os.fork()
        if self.pid == 0:
            # A process that kept copies of the parent's sockets would not notice the parent's death.
            _run(options, theirs, unused=sockets)
        theirs.close()
        self.streams: Sequence[StreamState] = ()
        self.rejected = 0
        self.is_closed = self.has_ended = False
        self._is_asked = self._is_aborted = False
        self._sids: list[str] = []  # of the streams that are being recorded
        self._code = 0
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> str:
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket)
        first = await self._receive()
        if isinstance(first, _Ready):
            return first.url
        if isinstance(first, _Failed):
            raise Failure(first.message)
        await self._wait()
        raise Failure(f"process {self._number} {self._reason} before it accepted streams")

    async def follow(self, report: Callable[[Report], None]) -> None:
        while (message := await self._receive()) is not None:
            if isinstance(message, _Live):
                self.streams, self._is_asked = message.streams, False
            elif isinstance(message, _Closed):
                self.is_closed, self.rejected = True, message.rejected
            else:
                if isinstance(message, Started):
                    self._sids.append(message.sid)
                elif isinstance(message, Ended):
                    self._sids.remove(message.sid)
                report(message)
        self.streams = ()
        await self._wait()

    async def _receive(self) -> Any:  # noqa: ANN401  (a report, or one of the messages above)
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH), "big")
            return pickle.loads(await self._reader.readexactly(length))  # noqa: S301  (of a fork of this process)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _wait(self) -> None:
        _, status = await asyncio.to_thread(os.waitpid, self.pid, 0)
        self._code, self.has_ended = os.waitstatus_to_exitcode(status), True

    def loss(self, others: int) -> ProcessLost:
        return ProcessLost(number=self._number, pid=self.pid, reason=self._reason, sids=self._sids, others=others)

    @property
    def _reason(self) -> str:
        if self._code >= 0:
            return f"failed with exit code {self._code}"
        number = -self._code
        return f"was killed by {signal.Signals(number).name if number in list(signal.Signals) else f'signal {number}'}"

    def send(self, command: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(command)

    def ask(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            self.send(_SHOW)

    def abort(self) -> None:
        if not self._is_aborted:
            self._is_aborted = True
            self.send(_ABORT)
        elif not self.has_ended:
            os.kill(self.pid, signal.SIGKILL)


async def _claim_port(options: ServerOptions) -> int:
    """Return the port that the processes share, a free one for port 0. No other process may be listening on it.

    Otherwise, two commands with the same --port would each get some of the streams, and neither would notice.
    """
    async with contextlib.AsyncExitStack() as stack:
        return urlsplit(await enter_server(stack, MediaReceiver(), options)).port or 0


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals while processes are forked, since they must not get those that are meant for their parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(options: ServerOptions, channel: socket.socket, unused: Sequence[socket.socket]) -> None:
    code = 1
    try:
        for one in unused:
            one.close()
        os.setsid()
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        asyncio.run(_record(options, channel))
        code = 0
    except BaseException:  # noqa: BLE001  (the parent's code must not continue here)
        traceback.print_exc()
    finally:
        os._exit(code)


async def _record(options: ServerOptions, channel: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=channel)
    ending = asyncio.Event()

    def send(message: object) -> None:
        if not writer.is_closing():  # otherwise, the parent is gone
            pickled = pickle.dumps(message)
            writer.write(len(pickled).to_bytes(_LENGTH, "big") + pickled)

    server = RecordingServer(options, send)

    async def read_commands() -> None:
        with contextlib.suppress(ConnectionError):
            while command := await reader.read(1):
                if command == _SHOW:
                    send(_Live(server.streams()))
                elif command == _END:
                    ending.set()
                else:
                    server.abort()
        ending.set()

    reading = asyncio.create_task(read_commands())
    try:
        async with server.serve(reuse_port=True) as url:
            send(_Ready(url))
            await ending.wait()
        send(_Closed(server.rejected))
    except Failure as failure:
        send(_Failed(failure.message))
    reading.cancel()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def check_platform() -> None:
    if not CAN_SPREAD:
        raise click.UsageError("--processes needs Linux, which spreads the streams over the processes: omit it")
