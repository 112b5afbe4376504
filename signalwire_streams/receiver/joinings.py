"""The starts that a receiver waits for now, each with the token that its socket will carry."""

import asyncio
from secrets import token_hex, token_urlsafe
from typing import Protocol

from attrs import define, field

from signalwire_streams.errors import InvalidRequestError, JoinError
from signalwire_streams.models import GENERATED_NAME
from signalwire_streams.models.masking import Secret
from signalwire_streams.receiver.session import StreamSession
from signalwire_streams.receiver.tokens import token_hash


class Callback(Protocol):
    """What a status callback tells: one of `signalwire_streams.callbacks`."""

    @property
    def target(self) -> str | None:
        """The sid of the conference or call."""
        ...

    @property
    def stream_sid(self) -> str | None:
        """The stream."""
        ...

    @property
    def stream_name(self) -> str | None:
        """Its ``Name``."""
        ...

    @property
    def ending(self) -> str | None:
        """How it ended, or None where it did not."""
        ...

    @property
    def is_duplicate(self) -> bool:
        """Whether it tells that a second stream was refused; whose sid it then has is not documented."""
        ...


@define(eq=False)
class Joining:
    """One start that is waited for.

    Attributes:
        target: the sid of its conference or call.
        name: the stream's Name, unique on that.
        token: what its socket will carry; nobody else knows it.
        arrived: the session, once the socket has begun; or what keeps it from that.
        left: set when its owner has no use for it any more.
        closed: set when its socket is closed.
    """

    target: str
    name: str
    token: str = field(factory=lambda: Secret(token_urlsafe(32)), repr=False)
    arrived: "asyncio.Future[StreamSession]" = field(factory=lambda: asyncio.get_running_loop().create_future())
    left: asyncio.Event = field(factory=asyncio.Event)
    closed: asyncio.Event = field(factory=asyncio.Event)
    _stream_sid: str | None = field(init=False, default=None)
    _endings: dict[str | None, str] = field(init=False, factory=dict)
    _last_ending: str | None = field(init=False, default=None)

    async def hold(self, session: StreamSession) -> None:
        """Be the session's handler: hand it to the owner, until that leaves or the stream ends."""
        if self.arrived.done():  # a callback was faster, and told that the stream had ended
            return
        self.arrived.set_result(session)
        waiting = [asyncio.create_task(self.left.wait()), asyncio.create_task(session.ended())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    def answered(self, stream_sid: str) -> None:
        """Hear which stream the start made; callbacks of others of that name say nothing of it."""
        self._stream_sid = stream_sid
        self._check()

    def told(self, callback: Callback) -> None:
        """Hear what the Space tells of a stream of that name."""
        if callback.ending is None:
            return
        self._last_ending = callback.ending
        if not callback.is_duplicate:
            self._endings[callback.stream_sid] = callback.ending
            self._check()

    def broke(self, why: str) -> None:
        """Hear that its socket came, and that no stream began on it; there will be no other."""
        self._fail(JoinError(f"its socket came, and no stream began on it: {why}", leg="socket"))

    @property
    def last_ending(self) -> str | None:
        """What the Space told last of a stream of that name, be it this one or another."""
        return self._last_ending

    def _check(self) -> None:
        ending = self._endings.get(self._stream_sid) if self._stream_sid is not None else None
        if ending is not None:
            told = f"the Space says that the stream ended before it came in: {ending}"
            self._fail(JoinError(told, leg="callback"))

    def _fail(self, error: JoinError) -> None:
        if not self.arrived.done():
            self.arrived.set_exception(error)
            self.arrived.exception()  # so that nothing is said of it where nobody waits any more


@define(eq=False)
class Joinings:
    """The starts that are waited for now."""

    _by_token: dict[bytes, Joining] = field(init=False, factory=dict, repr=False)
    _by_name: dict[tuple[str, str], Joining] = field(init=False, factory=dict, repr=False)

    def add(self, target: str, name: str | None) -> Joining:
        """Wait for one more.

        Raises:
            InvalidRequestError: a stream of that name is held there already.
        """
        if name is not None and (target, name) in self._by_name:
            raise InvalidRequestError(f"{target} has an open stream of the name {name!r} here: give each its own name")
        joining = Joining(target, name or f"{GENERATED_NAME}{token_hex(8)}")
        self._by_token[token_hash(joining.token)] = self._by_name[target, joining.name] = joining
        return joining

    def close(self, joining: Joining) -> None:
        """Let no socket in for it any more."""
        self._by_token.pop(token_hash(joining.token), None)

    def remove(self, joining: Joining) -> None:
        """Forget it, now that its stream has ended."""
        self.close(joining)
        self._by_name.pop((joining.target, joining.name), None)

    def claim(self, token: str | None) -> Joining | None:
        """Give the start that a socket with this token belongs to; a token opens one socket."""
        return None if token is None else self._by_token.pop(token_hash(token), None)

    def told(self, callback: Callback) -> None:
        """Hand a status callback to the start that it is about."""
        joining = self._by_name.get((callback.target or "", callback.stream_name or ""))
        if joining is not None:
            joining.told(callback)
