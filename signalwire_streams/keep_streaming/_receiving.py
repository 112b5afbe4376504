"""The sockets of a keeper's attempts, which receivers of this process admit by a token of each attempt."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from secrets import token_urlsafe

from attrs import define, field

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.keep_streaming._state import SocketClosed, SocketOpened
from signalwire_streams.models._validation import Secret, a_kind_of
from signalwire_streams.receiver import MediaReceiver, StreamSession

_LOG = logging.getLogger("signalwire_streams.keep_streaming")

Observe = Callable[[SocketOpened | SocketClosed], None]


def check_receivers(receivers: object) -> tuple[MediaReceiver, ...]:
    """Return receivers as a tuple.

    Raises:
        InvalidRequestError: one of them is not a receiver, or has no handler; the message says what to write instead.
    """
    listed = tuple(receivers) if isinstance(receivers, Iterable) else (receivers,)
    for receiver in listed:
        if not isinstance(receiver, MediaReceiver):
            raise InvalidRequestError(
                f"receivers contains {a_kind_of(receiver)}: write receivers=[receiver], with a MediaReceiver"
            )
        if receiver._handler is None:  # noqa: SLF001  (what is private to its users is not to this package)
            raise InvalidRequestError("a receiver has no handler for the streams: write MediaReceiver(handler, ...)")
    return listed


@define(eq=False, kw_only=True)
class AttemptSocket:
    """The socket of one attempt at one receiver, which serves it with its own handler."""

    attempt: int
    receiver: MediaReceiver
    observe: Observe
    is_expected: Callable[[], bool]
    socket_closed: asyncio.Event = field(factory=asyncio.Event)

    def adopt(self, session: StreamSession) -> StreamSession:
        return session

    async def on_session(self, session: StreamSession) -> None:
        is_expected = self.is_expected()  # which may have changed since its upgrade
        if session.stream_sid is None or not is_expected:
            _LOG.warning(
                "a stream of attempt %d is closed, since %s",
                self.attempt,
                "its start event has no sid" if is_expected else "its start was rejected, or is forgotten",
                extra={"attempt": self.attempt},
            )
            return
        self.observe(SocketOpened(attempt=self.attempt, sid=session.stream_sid))
        ended = asyncio.create_task(session.wait_closed())
        # Its handler may outlive the socket.
        ended.add_done_callback(lambda _: self.observe(SocketClosed(attempt=self.attempt)))
        handler = self.receiver._handler  # noqa: SLF001
        assert handler is not None  # noqa: S101  (`check_receivers`)
        await handler(session)

    def on_socket_failed(self, reason: str) -> None:
        _LOG.info("the socket of attempt %d failed: %s", self.attempt, reason, extra={"attempt": self.attempt})


class AttemptTokens:
    """The tokens of the attempts that may be running."""

    def __init__(self, receivers: Sequence[MediaReceiver]) -> None:
        self._receivers = receivers
        self._tokens: dict[int, Secret] = {}

    def mint(self, attempt: int, observe: Observe) -> Secret | None:
        """Return a new token that the receivers admit; None if there are no receivers."""
        if not self._receivers:
            return None
        token = self._tokens[attempt] = Secret(token_urlsafe(32))
        for receiver in self._receivers:
            is_expected = partial(self._tokens.__contains__, attempt)
            socket = AttemptSocket(attempt=attempt, receiver=receiver, observe=observe, is_expected=is_expected)
            receiver._pending_streams.expect(token, socket)  # noqa: SLF001
        return token

    def keep_only(self, attempts: Iterable[int]) -> None:
        """Forget the tokens of all other attempts."""
        for attempt in self._tokens.keys() - set(attempts):
            token = self._tokens.pop(attempt)
            for receiver in self._receivers:
                receiver._pending_streams.forget(token)  # noqa: SLF001
