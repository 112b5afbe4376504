"""A serializer with which pipecat's WebSocket transports speak SignalWire's protocol; needs the extra ``pipecat``."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from signalwire_streams.adapters._agent_audio import AgentAudio, AgentTrack, check_track, end_call
from signalwire_streams.errors import InvalidRequestError, MalformedFrameError
from signalwire_streams.receiver import StartEvent, _protocol as protocol

try:
    from pipecat.audio.dtmf.types import KeypadEntry
    from pipecat.frames import frames
    from pipecat.serializers.base_serializer import FrameSerializer
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(f"{_error.name} is missing: pip install 'signalwire-streams[pipecat]'") from None


class SignalWireFrameSerializer(FrameSerializer):  # type: ignore[misc]
    """Converts the messages of one bidirectional stream to pipecat's frames, and back.

    Audio arrives at the pipeline's ``audio_in_sample_rate``. Where rates differ, the last 10 ms wait for more. Only
    whole frames are sent. Marks, and keys that pipecat lacks (A to D), arrive as ``InputTransportMessageFrame``.

    An interruption clears the audio that was not played. Handlers of the event ``on_interrupted`` get the serializer
    and the milliseconds that were heard of the last answer. An answer ends with a pause of 0.35 s.

    Args:
        start: the start event, if your code has read it from the socket.
        track: the track that the pipeline hears.
        hang_up: a function, async or not, that ends the call. It is called once: for ``EndFrame`` when all audio was
            played, for ``CancelFrame`` at once; but neither before the stream has started nor after it has ended.

    Attributes:
        start: the start event; None until it has arrived.

    Raises:
        InvalidRequestError: an argument is invalid, or the stream has several channels, or only the other track.
        UnknownEncodingError: the audio can't be decoded. `deserialize` raises both for a start event that it gets.
    """

    def __init__(
        self,
        start: StartEvent | None = None,
        *,
        track: AgentTrack = "inbound",
        hang_up: Callable[[], object] | None = None,
    ) -> None:
        super().__init__()
        check_track(track)
        if hang_up is not None and not callable(hang_up):
            raise InvalidRequestError("hang_up must be a function: write lambda: client.calls.end(call_sid)")
        self._register_event_handler("on_interrupted")
        self._track, self._hang_up = track, hang_up
        self._rate = 0  # of the pipeline
        self._audio: AgentAudio | None = None
        self.start: StartEvent | None = None
        if start is not None:
            self._begin(start)

    def _begin(self, start: StartEvent) -> None:
        self._audio, self.start = AgentAudio(start, self._track), start

    async def setup(self, setup: Any) -> None:  # noqa: ANN401  (a start frame, up to pipecat 1.7)
        """Called by the transport."""
        self._rate = setup.audio_in_sample_rate

    async def deserialize(self, data: str | bytes) -> frames.Frame | None:
        """Return the frame of a message, or None if it has none or can't be decoded."""
        try:
            event = protocol.decode_event(data)
        except MalformedFrameError:
            return None
        match event:
            case protocol.StartEvent():
                self._begin(event)
            case protocol.MediaEvent() if event.track in (None, self._track):
                return self._receive(event.payload)
            case protocol.StopEvent() if self._audio is not None:
                self._hang_up = None
                return self._receive(b"", last=True)
            case protocol.DtmfEvent() if event.digit in set(KeypadEntry):
                return frames.InputDTMFFrame(KeypadEntry(event.digit))
            case protocol.DtmfEvent() | protocol.MarkEvent():
                return frames.InputTransportMessageFrame(message=json.loads(data))
        return None

    def _receive(self, payload: bytes, *, last: bool = False) -> frames.Frame | None:
        if self._audio is None:
            raise InvalidRequestError("audio arrived before the start event: if your code has read that, pass start=")
        rate = self._rate or self._audio.rate
        pcm = self._audio.receive(payload, rate, last=last)
        return frames.InputAudioRawFrame(audio=pcm, sample_rate=rate, num_channels=1) if pcm else None

    async def serialize(self, frame: frames.Frame) -> str | None:
        """Return the message of a frame, or None if nothing is to be sent."""
        audio, now = self._audio, time.monotonic()
        match frame:
            case frames.AudioRawFrame() if audio is None:
                raise InvalidRequestError("audio was sent before the start event: read that first, and pass start=")
            case _ if audio is None:
                return None
            case frames.EndFrame() | frames.CancelFrame():
                if isinstance(frame, frames.EndFrame):
                    await asyncio.sleep(audio.waiting(now))
                hang_up, self._hang_up = self._hang_up, None
                if hang_up is not None:
                    await end_call(hang_up)
            case frames.AudioRawFrame():
                return audio.send(frame.audio, frame.sample_rate, now, channels=frame.num_channels)
            case frames.InterruptionFrame():
                await self._call_event_handler("on_interrupted", audio.interrupt(now))
                return audio.message({"event": "clear"})
            case frames.OutputTransportMessageFrame() | frames.OutputTransportMessageUrgentFrame():
                return None if self.should_ignore_frame(frame) else audio.message(frame.message)
        return None
