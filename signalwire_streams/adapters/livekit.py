"""Audio input and output of livekit's agents for the session of a stream; needs the extra ``livekit``."""

import time

from signalwire_streams.adapters._agent_audio import check_format
from signalwire_streams.adapters._agent_speech import AgentSpeech
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver import StreamSession
from signalwire_streams.receiver.audio._pcm_frames import PcmTracks

try:
    from livekit import rtc
    from livekit.agents.voice.io import AudioInput, AudioOutput, AudioOutputCapabilities
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(f"{_error.name} is missing: pip install 'signalwire-streams[livekit]'") from None

_SAMPLE = 2  # bytes


class SignalWireAudioInput(AudioInput):  # type: ignore[misc]
    """The audio of a session as it arrives, until the stream ends. Audio that is late is dropped.

    Args:
        session: the session of the stream.
        rate: samples per second.
        tracks: ``inbound``, ``outbound``, ``mixed`` or ``stereo``.

    Raises:
        InvalidRequestError, UnknownEncodingError, ModuleNotFoundError: as `StreamSession.pcm`.
    """

    def __init__(self, session: StreamSession, *, rate: int = 16_000, tracks: PcmTracks = "inbound") -> None:
        super().__init__(label=f"stream {session.label}")
        self._pcm = session.pcm(rate, tracks=tracks, late="drop")
        self._is_enabled = True

    async def __anext__(self) -> rtc.AudioFrame:
        async for frame in self._pcm:
            if self._is_enabled:
                samples = len(frame.data) // (_SAMPLE * frame.channels)
                return rtc.AudioFrame(frame.data, frame.rate, frame.channels, samples)
        raise StopAsyncIteration

    def on_attached(self) -> None:
        """Called when the agent's input is enabled."""
        self._is_enabled = True

    def on_detached(self) -> None:
        """Called when the agent's input is disabled: audio is dropped until it is enabled."""
        self._is_enabled = False


class SignalWireAudioOutput(AudioOutput):  # type: ignore[misc]
    """Plays an agent's speech over a bidirectional stream, in real time.

    The ``playback_position`` of a segment is what was heard of it, as `Playback` estimates it. When the stream ends,
    what is left is reported as interrupted.

    Args:
        session: the session of the stream.

    Raises:
        InvalidRequestError: the stream is one-way, or has several channels.
        TransportError: the stream has ended.
        UnknownEncodingError: the encoding is unknown.
    """

    def __init__(self, session: StreamSession) -> None:
        session.playback._check_open()  # noqa: SLF001  (what is private to users is not to this package)
        check_format(session.audio_format)
        super().__init__(
            label=f"stream {session.label}",
            capabilities=AudioOutputCapabilities(pause=True),
            sample_rate=session.audio_format.sample_rate,
        )
        self._speech = AgentSpeech(session.playback, on_started=self._on_started, on_finished=self._on_finished)

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        """Add a frame to the segment that is played, or begin the next one; return at once."""
        if frame.num_channels != 1:
            raise InvalidRequestError(f"the frame has {frame.num_channels} channels, and the stream takes one")
        self._speech.check_rate(frame.sample_rate)
        await super().capture_frame(frame)
        self._speech.add(bytes(frame.data), frame.sample_rate)

    def flush(self) -> None:
        """End the segment."""
        super().flush()
        self._speech.end_segment()

    def clear_buffer(self) -> None:
        """Drop what was not played, and report what was heard."""
        super().flush()
        self._speech.interrupt()

    def pause(self) -> None:
        """Send nothing until `resume`; what was sent is still played, about 100 ms of it."""
        self._speech.pause()

    def resume(self) -> None:
        """Resume after `pause`."""
        self._speech.resume()

    def _on_started(self) -> None:
        self.on_playback_started(created_at=time.time())

    def _on_finished(self, seconds: float, interrupted: bool) -> None:  # noqa: FBT001  (of a callback)
        self.on_playback_finished(playback_position=seconds, interrupted=interrupted)
