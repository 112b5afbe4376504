"""The interface of an upgraded WebSocket to the receiver, for any framework that serves it."""

from collections.abc import Callable
from enum import IntEnum
from typing import Protocol, TypeAlias

OnMessage: TypeAlias = Callable[[str | bytes], None]
"""Called with the data of each text or binary message. It must not raise: compiled code that calls it swallows that."""


class CloseCode(IntEnum):
    """Why the receiver closes a socket: RFC 6455, 7.4.1, and the IANA registry."""

    OK = 1000
    GOING_AWAY = 1001
    POLICY_VIOLATION = 1008
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013


class TextSender(Protocol):
    async def send_str(self, data: str) -> None:
        """Send a text message. If the sender is cancelled, it is still sent as a whole.

        Raises:
            ConnectionError: the connection is closed.
        """


class Socket(TextSender, Protocol):
    """One open WebSocket.

    Attributes:
        on_message: called with each message as it arrives, while `read` runs.
        on_read: called after the messages of each read. It may run tasks, so it must not be called by compiled code.
        on_control: called by `read` when a ping or a pong arrives. An exception from it ends `read`.
    """

    on_message: OnMessage
    on_read: Callable[[], None]
    on_control: Callable[[], None]

    async def read(self) -> None:
        """Read until the other end has closed the socket. Only one task may read.

        Raises:
            ConnectionError: the connection broke.
            MalformedFrameError: the other end sent an invalid WebSocket frame, or too long a message.
        """

    async def ping(self) -> None:
        """Send a ping.

        Raises:
            ConnectionError: the connection is closed.
        """

    async def close(self, *, code: int) -> object:
        """Send a close frame, and wait a few seconds at most until the connection is closed."""

    def abort(self) -> None:
        """Reset the connection; pending sends fail."""
