"""The frames of the audio socket, spelled as the Space does (pure).

https://signalwire.com/docs/compatibility-api/rest/streams. The second dialect is Twilio's, which some SignalWire
setups were seen to be written for: ``streamSid`` on every frame, version 1.0.0, a body in ``stop``.
"""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, zip_longest
from typing import Final, Literal, TypeAlias

from attrs import define, field, frozen

from signalwire_streams.simulator._audio.sources import Codec, Sound, codec_of
from signalwire_streams.simulator._state import Stream

__all__ = ["Dialect", "Speech", "Spelling", "tracks_of"]

Dialect = Literal["signalwire", "twilio"]
_TRACKS: Final[Mapping[str, tuple[str, ...]]] = {
    "inbound_track": ("inbound",),
    "outbound_track": ("outbound",),
    "both_tracks": ("inbound", "outbound"),
}


def tracks_of(stream: Stream) -> tuple[str, ...]:
    """Give the names of a stream's tracks, as its frames have them."""
    return _TRACKS[stream.track]


Heard: TypeAlias = tuple[str, str]
"""A track, and what is heard on it in one frame."""


@frozen
class _Loop:
    frames: Sequence[Heard]
    repeats: bool

    def __iter__(self) -> Iterator[Heard]:
        return cycle(self.frames) if self.repeats else iter(self.frames)


@define(eq=False)
class Speech:
    """What is heard, cut into frames and encoded; once for all streams that hear the same.

    Attributes:
        sound: what is heard.
    """

    sound: Sound
    _encoded: dict[tuple[str, str | None], _Loop] = field(init=False, factory=dict)

    def payloads(self, stream: Stream) -> Iterator[tuple[Heard, ...]]:
        """Return, for every frame, track and payload of each track that still has something to say."""
        for slot in zip_longest(*(self._of(track, stream.codec) for track in tracks_of(stream))):
            yield tuple(filter(None, slot)) if None in slot else slot

    def _of(self, track: str, codec: str | None) -> _Loop:
        key = track, codec
        if key not in self._encoded:
            self._encoded[key] = self._encode(track, codec_of(codec))
        return self._encoded[key]

    def _encode(self, track: str, codec: Codec) -> _Loop:
        clip = self.sound.clip(track, codec.rate)
        step = codec.rate * codec.packet_time // 1_000
        frames = (clip.samples[start : start + step] for start in range(0, len(clip.samples), step))
        return _Loop([(track, b64encode(codec.encode(frame)).decode("ascii")) for frame in frames], clip.repeats)


@define(eq=False)
class Spelling:
    """Spells the frames of one stream, and counts them.

    Attributes:
        stream: the stream.
        project: the Project ID.
        call_sid: the call that the frames name; None leaves it out.
        dialect: whose way.
        bidirectional: whether the stream plays what it is sent; its frames name it then.
    """

    stream: Stream
    project: str
    call_sid: str | None
    dialect: Dialect = "signalwire"
    bidirectional: bool = False
    _sequence: int = field(init=False, default=0)
    _chunks: dict[str, int] = field(init=False, factory=dict)
    _sid: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._sid = f'"streamSid": "{self.stream.sid}", ' if self.dialect == "twilio" else ""

    def connected(self) -> str:
        """Spell the first frame."""
        version = "0.2.0" if self.dialect == "signalwire" else "1.0.0"
        return json.dumps({"event": "connected", "protocol": "Call", "version": version})

    def start(self) -> str:
        """Spell the start."""
        codec = codec_of(self.stream.codec)
        body: dict[str, object] = {
            "streamSid": self.stream.sid,
            "accountSid": self.project,
            "tracks": list(tracks_of(self.stream)),
            "mediaFormat": {"encoding": codec.encoding, "sampleRate": codec.rate, "channels": 1},
        }
        if self.call_sid is not None:
            body["callSid"] = self.call_sid
        if self.stream.parameters:
            body["customParameters"] = dict(self.stream.parameters)
        return self._spell("start", start=body)

    def media(self, timestamp: int, heard: Sequence[Heard]) -> list[str]:
        """Spell some audio. By hand, since it is spelled fifty times a second for each track."""
        spelled = []
        for track, payload in heard:
            self._sequence += 1
            chunk = self._chunks[track] = self._chunks.get(track, 0) + 1
            spelled.append(
                f'{{"event": "media", "sequenceNumber": "{self._sequence}", {self._sid}"media": {{"track": "{track}", '
                f'"chunk": "{chunk}", "timestamp": "{timestamp}", "payload": "{payload}"}}}}'
            )
        return spelled

    def dtmf(self, digit: str, milliseconds: int) -> str:
        """Spell a key that a caller pressed."""
        body: dict[str, object] = {"digit": digit, "duration": milliseconds}
        if self.dialect == "twilio":
            body["track"] = "inbound_track"
        return self._spell("dtmf", **self._name_if_bidirectional(), dtmf=body)

    def mark(self, name: str) -> str:
        """Spell that a mark was reached; only Twilio numbers these."""
        body = {"mark": {"name": name}}
        if self.dialect == "twilio":
            return self._spell("mark", **body)
        return json.dumps({"event": "mark", **self._name_if_bidirectional(), **body})

    def stop(self) -> str:
        """Spell the end."""
        if self.dialect == "signalwire":
            return self._spell("stop")
        return self._spell("stop", stop={"accountSid": self.project, "callSid": self.call_sid})

    def _name_if_bidirectional(self) -> Mapping[str, str]:
        return {"streamSid": self.stream.sid} if self.bidirectional else {}

    def _spell(self, event: str, **body: object) -> str:
        self._sequence += 1
        sid = {"streamSid": self.stream.sid} if self.dialect == "twilio" else {}
        return json.dumps({"event": event, "sequenceNumber": str(self._sequence), **sid, **body})
