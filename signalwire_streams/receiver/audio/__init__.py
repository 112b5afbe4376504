"""The audio of a stream: decoding, positions in time, and recording.

Pure Python, without dependencies, except that another sample rate needs the extra ``audio``. Everything but
`WavRecorder` is pure.

- `AudioFormat` decodes and encodes µ-law, A-law and 16-bit linear PCM.
- `TrackTimeline` returns each frame's position in its track, to the sample.
- `PcmFrame` is what `StreamSession.pcm` yields.
- `WavRecorder` writes WAV files from frames as they come.
"""

from signalwire_streams.receiver.audio._formats import (
    AudioFormat,
    ByteOrder,
    Encoding,
    RecordingError,
    RecordingFullError,
    UnknownEncodingError,
    alaw_to_pcm,
    mulaw_to_pcm,
    pcm_to_alaw,
    pcm_to_mulaw,
)
from signalwire_streams.receiver.audio._pcm_frames import PcmFrame
from signalwire_streams.receiver.audio._timeline import Correction, TimelineStatistics, TrackTimeline
from signalwire_streams.receiver.audio._wav_recorder import Layout, WavEncoding, WavRecorder

__all__ = [
    "AudioFormat",
    "ByteOrder",
    "Correction",
    "Encoding",
    "Layout",
    "PcmFrame",
    "RecordingError",
    "RecordingFullError",
    "TimelineStatistics",
    "TrackTimeline",
    "UnknownEncodingError",
    "WavEncoding",
    "WavRecorder",
    "alaw_to_pcm",
    "mulaw_to_pcm",
    "pcm_to_alaw",
    "pcm_to_mulaw",
]
