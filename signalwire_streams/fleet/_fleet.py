"""`Fleet`: submits runs, follows them, and ends them, from any process that reaches the fleet's Redis."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

from attrs import define, field
from docket import Docket
from redis.exceptions import RedisError

from signalwire_streams._client import StreamsClient
from signalwire_streams._http.account import find_account
from signalwire_streams.bulk._results import BulkOutcome
from signalwire_streams.bulk._runner import BulkRun
from signalwire_streams.bulk._serialization import Start
from signalwire_streams.errors import ClientStateError, FleetError, InvalidRequestError
from signalwire_streams.fleet._ledger import Planned, StopLedger
from signalwire_streams.fleet._redis import (
    END,
    NOTE,
    TAKE_BACK,
    Command,
    Connection,
    Keys,
    Writer,
    check_run,
    check_url,
    command,
    connected,
    engine_url,
    make_sure,
    next_run,
    reply_of,
    script,
)
from signalwire_streams.fleet._status import (
    RESUMED,
    STOPPING,
    Ending,
    FleetStatus,
    Reading,
    RunFacts,
    WorkerStatus,
    text_of,
)
from signalwire_streams.fleet._submission import TASK, Submission, fitted, start_batch
from signalwire_streams.models import CallStream, ConferenceStream
from signalwire_streams.models._validation import check_seconds

_PATIENCE, _AT_FIRST = 30.0, 3.0
_WEEK = 7 * 24 * 3600.0
_LOOKS_AGAIN = 1.0


def _kept(value: float) -> float:
    return max(1.0, check_seconds(value, "retention"))


@define(eq=False)
class Fleet:
    """The runs of one project, shared by any number of hosts over one Redis.

    Use it as ``async with Fleet("redis://...", space="example", project="...") as fleet``. It needs no API token:
    the workers have it.

    Attributes:
        url: the Redis, such as ``redis://host:6379/0``.
        space: the Space's name, host, or address.
        project: the Project ID.
        retention: seconds that Redis keeps a run, from its submit.

    Raises:
        InvalidRequestError: something can't be right.
    """

    url: str = field(converter=check_url, repr=False)
    space: str = field(kw_only=True)
    project: str = field(kw_only=True)
    retention: float = field(default=_WEEK, kw_only=True, converter=_kept)
    _keys: Keys = field(init=False)
    _stack: AsyncExitStack = field(init=False, factory=AsyncExitStack)
    _connection: Connection | None = field(init=False, default=None)
    _docket: Docket = field(init=False)
    _writer: Writer = field(init=False)

    def __attrs_post_init__(self) -> None:
        # The token is not used, but an account is checked as a whole.
        account = find_account(space=self.space, base_url=None, project=self.project, token="none")  # noqa: S106
        self._keys = Keys(account.origin, account.sid)

    async def __aenter__(self) -> Self:
        await make_sure(self.url, _AT_FIRST)
        docket = Docket(name=self._keys.prefix, url=engine_url(self.url))
        self._docket = await self._stack.enter_async_context(docket)
        docket.register(start_batch, names=[TASK])
        self._connection = await self._stack.enter_async_context(connected(self.url, docket, _PATIENCE))
        self._writer = Writer(self._connection)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection = None
        await self._writer.idle()
        await self._stack.aclose()

    async def submit(
        self,
        requests: Iterable[Start] | AsyncIterable[Start],
        *,
        name: str | None = None,
        redact_secrets: bool = False,
    ) -> str:
        """Give a run to the workers. All of it is read and checked before any of it is started.

        A submit that was killed, or that failed, can be repeated under the same name, with the same requests:
        nothing is started twice. Requests without a name get one that follows from the run and the target.

        Args:
            requests: what to start, conferences and calls mixed as they come; any number of them.
            name: what the run is called; a new one by default.
            redact_secrets: True to leave bearer tokens, parameter values and callbacks with a query or password
                out of what Redis keeps; the workers' ``secrets=`` then puts them back. Else they are refused.

        Returns:
            The run's name.

        Raises:
            InvalidRequestError: an item can't be submitted, or another run has that name; nothing was started.
            FleetError: Redis can't be used; submit it again under the same name.
        """
        run = check_run(token_hex(4) if name is None else name)
        return await self._submit(run, fitted(requests, run, redact_secrets=redact_secrets))

    async def resume(self, run: str, *, name: str | None = None) -> str | None:
        """Give the workers what a run that is over left: what was not attempted, and what nobody knows the end of.

        It becomes a run of its own, with the streams' names of the first: a conference's stream that runs already is
        told as `already_started`, and not started again. A start on a call, or without a name, that nobody knows the
        end of stays `unknown` (calls: unless the workers' ``RetryPolicy.resend_call_starts``). It can be repeated.

        Args:
            run: the run that is over.
            name: what the new one is called; by default the same and a number, as in ``nightly-r2``.

        Returns:
            The new run's name, or None where nothing is left.

        Raises:
            InvalidRequestError: there is no such run, or it goes on, or its streams were stopped since, or it was
                resumed under another name.
            FleetError: Redis can't be used; resume it again.
        """
        facts = await self._facts(run)
        status = facts.status(())
        status._check_finished()
        if not status.unfinished:
            return None
        new = check_run((status.resumed_as or next_run(run)) if name is None else name)
        claim = script(NOTE, (self._keys.run(run),), RESUMED, new, STOPPING)
        known = reply_of(await self._open().one(claim))
        if known == "refused":
            raise InvalidRequestError(f"streams of the run {run!r} were stopped since: submit a new one")
        if known != new:
            raise InvalidRequestError(f"the run {run!r} was resumed as {known!r}: go on with that one")
        try:
            return await self._submit(new, self._ending(facts).unfinished())
        except InvalidRequestError:  # that name is taken
            if status.resumed_as is None:
                await self._open().one(script(TAKE_BACK, (self._keys.run(run),), RESUMED, new))
            raise

    async def _submit(self, run: str, requests: AsyncIterable[Planned]) -> str:
        submission = Submission(self._open(), self._docket, self._keys, run, round(self.retention))
        try:
            await submission.submit(requests)
        except (RedisError, OSError) as error:  # the engine's own
            raise FleetError(f"Redis can't be used: {error}; repeat it for {run!r}") from None
        return run

    def results(self, run: str) -> AsyncGenerator[BulkOutcome[Start], None]:
        """Give the outcome of each start of a run, in the order of their ends, until the run is over.

        It can be asked again, later and elsewhere, and then begins anew. The items are as Redis keeps them, without
        their secrets; what a stream's answer had that this version does not know is left out.

        Raises:
            InvalidRequestError: there is no such run, or not any more.
            FleetError: Redis can't be used.
        """
        return Reading(self._open(), self._keys, partial(self._facts, run)).outcomes()

    async def runs(self) -> tuple[FleetStatus, ...]:
        """Tell of all runs that Redis knows, in the order of their submits; without the workers.

        Raises:
            FleetError: Redis can't be used.
        """
        names = await self._members(command("zrange", self._keys.runs, 0, -1))
        found = (RunFacts.of(name, facts) for name, facts in await self._told(names, self._keys.run))
        return tuple(sorted((facts.status(()) for facts in found if facts is not None), key=lambda run: run.started_at))

    async def status(self, run: str) -> FleetStatus:
        """Tell how far a run is, and who works.

        Raises:
            InvalidRequestError: there is no such run, or not any more.
            FleetError: Redis can't be used.
        """
        facts = await self._facts(run)
        return facts.status(await self.workers())

    async def workers(self) -> tuple[WorkerStatus, ...]:
        """Tell who works for this project now.

        Raises:
            FleetError: Redis can't be used.
        """
        names = sorted(await self._members(command("smembers", self._keys.workers)))
        told = await self._told(names, self._keys.worker)
        gone = [name for name, facts in told if not facts]
        if gone:
            await self._open().one(command("srem", self._keys.workers, *gone))  # one that lives adds itself again
        return tuple(WorkerStatus.of(name, text_of(facts)) for name, facts in told if facts)

    async def cancel(self, run: str) -> FleetStatus:
        """Take no further starts of a run. What was not begun is told to be not attempted; no worker is needed.

        What a worker has marked as begun goes on to its end.

        Raises:
            InvalidRequestError: there is no such run, or not any more.
            FleetError: Redis can't be used; cancel it again.
        """
        facts = await self._facts(run)
        connection = self._open()
        why = "the run was cancelled before its turn"
        if not facts.status(()).is_finished:
            await connection.one(script(END, (self._keys.run(run),), "cancelled", why))
            await self._ending(facts).settle(facts.ended or why)
        return await self.status(run)

    def stop_streams(
        self, run: str, client: StreamsClient, *, concurrency: int | None = None
    ) -> BulkRun[ConferenceStream | CallStream]:
        """Stop what a run started, or may have started: ``async for outcome in fleet.stop_streams(run, client)``.

        The run is cancelled first, and what workers have under way is waited for as long as they live. Streams are
        stopped by their sid, or by their name where only that is known. Those that have ended meanwhile count as
        stopped. It can be repeated until nothing is left.

        Args:
            run: the run.
            client: stops the streams, with its own token.
            concurrency: how many stops may be under way at once; found out while running when left out.

        Raises:
            InvalidRequestError: the client is another project's; or, on going through the run, there is none.
            FleetError: on going through the run, when Redis can't be used.
        """
        if (client.origin, client.project) != (self._keys.origin, self._keys.project):
            raise InvalidRequestError("the client is of another Space or project than the fleet: pass one of its own")
        self._open()
        ledger = StopLedger(run, self._writer)
        return client.stop_streams(self._streams(run, ledger), journal=ledger, concurrency=concurrency)

    async def _streams(self, run: str, ledger: StopLedger) -> AsyncGenerator[ConferenceStream | CallStream, None]:
        await self._writer.idle()  # what was stopped a moment ago, too
        await self._facts(run)
        await self._open().one(script(NOTE, (self._keys.run(run),), STOPPING, "1"))
        await self.cancel(run)
        facts = await self._facts(run)
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE
        while facts.in_doubt and loop.time() < until and await self.workers():
            await asyncio.sleep(_LOOKS_AGAIN)
            facts = await self._facts(run)
        ledger.keys, ledger.keep = self._keys.of(run, facts.plan), facts.keep
        async for index, stream in self._ending(facts).streams():
            ledger.expect(index, stream)
            yield stream

    async def _members(self, listing: Command) -> list[str]:
        return [reply_of(name) for name in await self._open().one(listing)]

    async def _told(self, names: Sequence[str], key: Callable[[str], str]) -> list[tuple[str, Any]]:
        if not names:
            return []
        told = await self._open().all([command("hgetall", key(name)) for name in names])
        return list(zip(names, told, strict=True))

    def _ending(self, facts: RunFacts) -> Ending:
        return Ending(self._open(), self._keys.of(facts.run, facts.plan), facts)

    async def _facts(self, run: str) -> RunFacts:
        answer = await self._open().one(command("hgetall", self._keys.run(check_run(run))))
        facts = RunFacts.of(run, answer)
        if facts is None:
            raise InvalidRequestError(f"there is no run {run!r} of this project: name one that was submitted")
        return facts

    def _open(self) -> Connection:
        if self._connection is None:
            raise ClientStateError("the fleet is not open: write 'async with Fleet(...) as fleet:'")
        return self._connection
