"""A server that records its streams in this process, and reports what becomes of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from signal import SIGTERM
from ssl import SSLContext
from typing import Any, TypeAlias

from attrs import field, frozen

from signalwire_streams._cli.listen_recording import RecordingOptions, StreamRecorder, StreamState
from signalwire_streams._cli.output import listening_errors, logging_to
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.receiver.audio import ByteOrder


@frozen(kw_only=True)
class ServerOptions:
    host: str
    port: int
    path: str
    ssl_context: SSLContext | None
    tokens: tuple[str, ...] | None = field(repr=False)
    byte_order: ByteOrder
    recording: RecordingOptions


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
    """The end of a process that was not asked to end; *sids* are of the streams that it was recording."""

    number: int
    pid: int
    reason: str
    sids: Sequence[str]
    others: int  # processes that are left


Report: TypeAlias = Warned | Started | Ended | ProcessLost


class RecordingServer:
    pids: Sequence[int] = ()  # of the processes that record, if this one does not

    def __init__(self, options: ServerOptions, report: Callable[[Report], None]) -> None:
        self._options = options
        self._report = report
        self._receiver = MediaReceiver(self._record, bearer_tokens=options.tokens, byte_order=options.byte_order)
        self._live: dict[StreamSession, StreamRecorder] = {}

    @asynccontextmanager
    async def serve(self, *, reuse_port: bool = False) -> AsyncIterator[str]:
        """Accept streams while the block runs, and finish their recordings at its end."""
        async with AsyncExitStack() as stack:
            warn = logging_to(lambda line: self._report(Warned(f"error: {line}")), name="signalwire_streams.receiver")
            stack.enter_context(warn)
            yield await enter_server(stack, self._receiver, self._options, reuse_port=reuse_port)

    def abort(self) -> None:
        self._receiver.abort()
        with suppress(NotImplementedError):
            asyncio.get_running_loop().remove_signal_handler(SIGTERM)  # so that it ends the process in any case

    @property
    def rejected(self) -> int:
        return self._receiver.rejected_upgrades

    def streams(self) -> Sequence[StreamState]:
        return [recorder.state for recorder in self._live.values()]

    async def _record(self, session: StreamSession) -> None:
        recorder = StreamRecorder(session, self._options.recording, self._receiver.free_descriptor)
        self._live[session] = recorder
        try:
            self._report(Started(recorder.sid, recorder.started_line, session.audio_format.is_supported))
            await recorder.run()
        finally:
            del self._live[session]
            self._report(Ended(recorder.sid, recorder.ended_line, recorder.facts, recorder.lost))


async def enter_server(
    stack: AsyncExitStack, receiver: MediaReceiver, options: ServerOptions, *, reuse_port: bool = False
) -> str:
    serving = receiver.serve(
        host=options.host,
        port=options.port,
        path=options.path,
        ssl_context=options.ssl_context,
        shutdown_timeout=0,  # live streams could continue for hours, and the user asked to end now
        reuse_port=reuse_port,
    )
    with listening_errors(options.host, options.port):
        return await stack.enter_async_context(serving)
