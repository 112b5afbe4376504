"""Where a pacer may be used: in one event loop of one process, and not once it is closed."""

import asyncio
import os

from attrs import define, field

from signalwire_streams.errors import ClientStateError


@define(eq=False)
class Home:
    """The event loop and the process that a pacer was first used in."""

    _closed: bool = field(init=False, default=False)
    _loop: asyncio.AbstractEventLoop | None = field(init=False, default=None)
    _process: int = field(init=False, factory=os.getpid)

    def enter(self) -> None:
        """Check that the pacer can be used here and now.

        Raises:
            ClientStateError: it is closed, or belongs to another event loop or process.
        """
        if self._closed:
            raise ClientStateError("this pacer is closed: make a new RedisPacer")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop, self._process = loop, os.getpid()
        elif self._process != os.getpid():
            raise ClientStateError("this pacer belongs to the process that forked this one: make a RedisPacer in each")
        elif self._loop is not loop:
            raise ClientStateError(
                "this pacer belongs to another event loop: make one RedisPacer inside each asyncio.run()"
            )

    def leave(self) -> bool:
        """Note that the pacer is closed; False when there is nothing to close (any more) in this loop and process."""
        was_open, self._closed = not self._closed, True
        return was_open and self._loop is asyncio.get_running_loop() and self._process == os.getpid()
