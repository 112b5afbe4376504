"""What the Space does of its own accord when a stream starts or ends: it dials and speaks, and calls back."""

from attrs import define, field

from signalwire_streams.simulator._audio.dialer import Dialer, Dialling
from signalwire_streams.simulator._status_callbacks import Notices
from signalwire_streams.simulator._state import SpaceState
from signalwire_streams.simulator.streams import Stream

__all__ = ["Outside"]


@define(eq=False)
class Outside:
    """Follows the streams of a Space.

    Attributes:
        state: what the Space holds.
        dialling: how it dials; None for not at all.
        notices: how it calls back; None for not at all.
    """

    state: SpaceState
    dialling: Dialling | None
    notices: Notices | None
    _dialer: Dialer | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        if self.dialling is not None:
            self._dialer = Dialer(self.dialling, began=self._began, ended=self._ended)
        if self.dialling is not None or self.notices is not None:
            self.state.streams.observer = self._follow

    async def close(self) -> None:
        """Hang up everywhere."""
        if self._dialer is not None:
            await self._dialer.close()
        if self.notices is not None:
            await self.notices.close()

    async def spoke(self, stream_sid: str) -> None:
        """Wait until a stream's first audio went out, or it ended without any; at once where nobody is dialled."""
        if self._dialer is not None:
            await self._dialer.spoke(stream_sid)

    async def press(self, target_sid: str, digits: str, milliseconds: int) -> None:
        """Let a caller press keys."""
        if self._dialer is not None:
            await self._dialer.press(target_sid, digits, milliseconds)

    def _follow(self, stream: Stream) -> None:
        if stream.alive:
            if self._dialer is None:
                self._began(stream)
            else:
                self._dialer.start(stream)
            return
        self._tell(stream, "stream-stopped" if stream.error is None else "stream-error")
        if self._dialer is not None:
            self._dialer.stop(stream)

    def _began(self, stream: Stream) -> None:
        self._tell(stream, "stream-started")

    def _ended(self, stream: Stream, error: str | None) -> None:
        if stream.alive:
            stream.error = error
            self.state.stop_stream(stream)

    def _tell(self, stream: Stream, event: str) -> None:
        if self.notices is not None:
            self.notices.tell(stream, event)
