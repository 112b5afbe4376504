"""Streams that a receiver starts by itself: one, or many."""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Unpack

from signalwire_streams.errors import ClientStateError, InvalidRequestError
from signalwire_streams.models import StartOptions
from signalwire_streams.models.masking import masks_secrets
from signalwire_streams.receiver._start_and_receive import JoinedStart, Starts
from signalwire_streams.receiver._start_and_receive_bulk import OWN_TOKEN, JoinedOutcome, JoinedRun, Start, StartsMany
from signalwire_streams.receiver.joinings import Callback, Joinings
from signalwire_streams.receiver.session import StreamSession

_LOG = logging.getLogger("signalwire_streams.receiver")


class Opener:
    """The part of a `MediaReceiver` that starts what it receives."""

    def __init__(self) -> None:
        """Begin without a stream."""
        self._joinings = Joinings()
        self._closing = asyncio.Event()

    @masks_secrets
    @asynccontextmanager
    async def open(
        self,
        streams: Starts[Any],
        sid: str,
        *,
        url: str,
        name: str | None = None,
        socket_timeout: float = 15.0,
        **fields: Unpack[StartOptions],
    ) -> AsyncIterator[StreamSession]:
        """Start a stream, and receive it: ``async with receiver.open(client.conferences, sid, url=...) as session``.

        A token of its own is made for the stream's socket. The session is there as soon as the socket has begun,
        whether or not the start was answered by then. At the end of the block the stream is stopped.

        Args:
            streams: ``client.conferences`` or ``client.calls``.
            sid: the conference or call.
            url: where this receiver is reached from outside, as `serve` gives it or as your proxy has it.
            name: the stream's Name; one is made up if left out.
            socket_timeout: seconds from the answer to the socket.
            fields: further fields of ``start_stream``; ``codec`` and ``realtime`` are for conferences only.

        Raises:
            JoinError: the stream was not started, nobody dialled, or the Space told that it failed; whatever may
                run was stopped.
            StreamsError: at the end, when the stream could not be stopped, so that it may still be running.
        """
        self._check_open()
        if "authorization_bearer_token" in fields:
            raise InvalidRequestError(OWN_TOKEN)
        if fields.keys() & {"unnamed", "may_be_running"}:
            raise InvalidRequestError("open starts a new stream with a name: leave unnamed and may_be_running out")
        joining = self._joinings.add(sid, name)
        try:
            start: Callable[..., Awaitable[Any]] = streams.start_stream  # which fields it takes, it checks itself
            starting = start(sid, url=url, name=joining.name, authorization_bearer_token=joining.token, **fields)
            joined = JoinedStart(joining, asyncio.ensure_future(starting), partial(streams.stop_stream, sid))
        except BaseException:  # most likely a TypeError over a field that no start has; whatever it is, it goes on
            self._joinings.remove(joining)
            raise
        async with self._ending(self._end(joined)):
            yield await joined.session(socket_timeout)

    async def _end(self, joined: JoinedStart) -> None:
        self._joinings.close(joined.joining)
        try:
            await joined.end()
        finally:
            self._joinings.remove(joined.joining)

    @asynccontextmanager
    async def _ending(self, end: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Leave nothing that runs behind, also when somebody does not want to wait for it."""
        try:
            yield
        except BaseException as error:  # a cancellation too leaves nothing behind
            try:
                await asyncio.shield(asyncio.create_task(end))
            except Exception as failure:  # noqa: BLE001  (what went wrong in the block goes first, whatever else does)
                told = f"{type(failure).__name__}: {failure}"
                _LOG.error("%s", told)
                error.add_note(told)
            raise
        await asyncio.shield(asyncio.create_task(end))

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ClientStateError("this receiver is closed: make a new MediaReceiver")

    @asynccontextmanager
    async def open_many(
        self,
        client: StartsMany,
        requests: Iterable[Start] | AsyncIterable[Start],
        *,
        concurrency: int | None = None,
        socket_timeout: float = 15.0,
    ) -> AsyncIterator[AsyncIterable[JoinedOutcome]]:
        """Start many streams, and receive them: ``async with receiver.open_many(client, requests) as outcomes``.

        Then ``async for outcome in outcomes`` gives each as its stream begins to come in, or fails to. The starts
        are a run of ``client.start_streams``; at the end of the block all that may run is stopped the same way.

        Args:
            client: a `StreamsClient`.
            requests: what to start, conferences and calls mixed as they come; each ``url`` leads to this receiver.
            concurrency: as in ``client.start_streams``.
            socket_timeout: seconds from an answer to its socket.

        Raises:
            ExceptionGroup: at the end, when some could not be stopped, so that they may still be running.
        """
        self._check_open()
        run = JoinedRun(client, self._joinings, socket_timeout)
        run.begin(requests, concurrency)
        async with self._ending(run.end()):
            yield run

    async def hear(self, callback: Callback) -> None:
        """Hear a status callback, so that an `open` ends at once where the Space says that its stream failed.

        It is a handler for a `CallbackReceiver`, or to be called from yours.

        Args:
            callback: a callback of `signalwire_streams.callbacks`, which was verified.
        """
        self._joinings.told(callback)
