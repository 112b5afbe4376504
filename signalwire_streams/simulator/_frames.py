"""The frames of the audio socket as the Space encodes them (pure).

https://signalwire.com/docs/compatibility-api/rest/streams. The second dialect is Twilio's, which some SignalWire
setups were seen to be written for: ``streamSid`` on every frame, version 1.0.0, a body in ``stop``.
"""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, zip_longest
from math import gcd
from typing import TypeAlias

from signalwire_streams.simulator._settings import SpaceSettings
from signalwire_streams.simulator._sources import Codec, Sound, codec_of
from signalwire_streams.simulator._state import Stream

TRACKS: Mapping[str, tuple[str, ...]] = {
    "inbound_track": ("inbound",),
    "outbound_track": ("outbound",),
    "both_tracks": ("inbound", "outbound"),
}

TrackPayload: TypeAlias = tuple[str, str]
"""A track, and its audio in one frame."""

_CACHED_BYTES = 1 << 25  # of one track; frames beyond are encoded each time


class _EncodedTrack:
    """Encodes frames when they are first needed, so that a long file does not hold up the event loop."""

    def __init__(self, sound: Sound, track: str, codec: Codec) -> None:
        self._track = track
        self._codec = codec
        self._clip = sound.clip(track, codec.rate)
        # A loop of the clip need not be a whole number of frames: after this many, both begin together.
        loop, step = self._clip.length * 1_000, codec.rate * codec.packet_time
        self._period = loop // gcd(loop, step) if self._clip.repeats else None
        self._frames: list[TrackPayload] = []
        self._cacheable = _CACHED_BYTES // (codec.frame_start(1) * codec.width)

    def __iter__(self) -> Iterator[TrackPayload]:
        for number in count():
            index = number if self._period is None else number % self._period
            if index < len(self._frames):
                yield self._frames[index]
                continue
            frame = self._encode(index)
            if frame is None:
                return
            if index == len(self._frames) < self._cacheable:
                self._frames.append(frame)
            yield frame

    def _encode(self, index: int) -> TrackPayload | None:
        samples = self._clip.samples(self._codec.frame_start(index), self._codec.frame_start(index + 1))
        return (self._track, b64encode(self._codec.encode(samples)).decode("ascii")) if samples else None


class EncodedAudio:
    """A sound cut into encoded frames, once for all streams of the same codec."""

    def __init__(self, sound: Sound) -> None:
        self._sound = sound
        self._tracks: dict[tuple[str, str | None], _EncodedTrack] = {}

    def slots(self, stream: Stream) -> Iterator[tuple[TrackPayload, ...]]:
        """Yield the frames of each packet time, one for each track that has not ended.

        Raises:
            OSError: the sound is a file that can't be read any more.
            ValueError: it is not a WAV file any more.
        """
        for slot in zip_longest(*(self._track(track, stream.codec) for track in TRACKS[stream.track])):
            yield tuple(filter(None, slot)) if None in slot else slot

    def _track(self, track: str, codec: str | None) -> _EncodedTrack:
        key = track, codec
        if key not in self._tracks:
            self._tracks[key] = _EncodedTrack(self._sound, track, codec_of(codec))
        return self._tracks[key]


class FrameEncoder:
    """Encodes the frames of one stream, and numbers them."""

    def __init__(self, stream: Stream, settings: SpaceSettings) -> None:
        self._stream = stream
        self._project = settings.project
        self._call_sid = stream.target_sid if stream.target_kind == "call" else None
        self._is_twilio = settings.dialect == "twilio"
        self._names_replies = {"streamSid": stream.sid} if settings.bidirectional else {}
        self._sequence = 0
        self._chunks: dict[str, int] = {}
        self._media_sid = f'"streamSid": "{stream.sid}", ' if self._is_twilio else ""

    def connected(self) -> str:
        version = "1.0.0" if self._is_twilio else "0.2.0"
        return json.dumps({"event": "connected", "protocol": "Call", "version": version})

    def start(self) -> str:
        codec = codec_of(self._stream.codec)
        body: dict[str, object] = {
            "streamSid": self._stream.sid,
            "accountSid": self._project,
            "tracks": list(TRACKS[self._stream.track]),
            "mediaFormat": {"encoding": codec.encoding, "sampleRate": codec.rate, "channels": 1},
        }
        if self._call_sid is not None:
            body["callSid"] = self._call_sid
        if self._stream.parameters:
            body["customParameters"] = dict(self._stream.parameters)
        return self._numbered("start", start=body)

    def media(self, timestamp: int, slot: Sequence[TrackPayload]) -> list[str]:
        # Without json, since each track needs fifty a second.
        frames = []
        for track, payload in slot:
            self._sequence += 1
            chunk = self._chunks[track] = self._chunks.get(track, 0) + 1
            frames.append(
                f'{{"event": "media", "sequenceNumber": "{self._sequence}", {self._media_sid}"media": '
                f'{{"track": "{track}", "chunk": "{chunk}", "timestamp": "{timestamp}", "payload": "{payload}"}}}}'
            )
        return frames

    def dtmf(self, digit: str, milliseconds: int) -> str:
        body: dict[str, object] = {"digit": digit, "duration": milliseconds}
        if self._is_twilio:
            body["track"] = "inbound_track"
        return self._numbered("dtmf", **self._names_replies, dtmf=body)

    def mark(self, name: str) -> str:
        body = {"mark": {"name": name}}
        if self._is_twilio:  # which alone numbers these
            return self._numbered("mark", **body)
        return json.dumps({"event": "mark", **self._names_replies, **body})

    def stop(self) -> str:
        if self._is_twilio:
            return self._numbered("stop", stop={"accountSid": self._project, "callSid": self._call_sid})
        return self._numbered("stop")

    def _numbered(self, event: str, **body: object) -> str:
        self._sequence += 1
        sid = {"streamSid": self._stream.sid} if self._is_twilio else {}
        return json.dumps({"event": event, "sequenceNumber": str(self._sequence), **sid, **body})
