"""The demo's second job: the audio of 20 conferences, over wss into WAV files. It is meant to be read, and copied."""

import asyncio
import wave
from array import array
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from attrs import define, field

from signalwire_streams import Codec, StartConferenceStream, StreamsClient
from signalwire_streams._cli.progress import Progress, shown
from signalwire_streams.receiver import MediaEvent, MediaReceiver, StreamSession, TrackStatistics
from signalwire_streams.receiver.audio import WavRecorder
from signalwire_streams.simulator import Certificates, SimulatedSpace, Tone

CONFERENCES = 20
SECONDS = 2.0
_FRAMES_PER_SECOND, _TRACKS, _RATE = 50, ("inbound", "outbound"), 16_000
_TONE = Tone()


@define(eq=False)
class Listening:
    """What was heard.

    Attributes:
        directory: where the recordings go.
        as_json: whether the result will be written as JSON.
        tracks: what the receiver says of each track.
        faithful: the tracks whose recording is what was said, to the sample.
        failures: what went wrong, in sentences.
        alive: the streams that still ran at the end, by the Space's own count.
        doubled: the conferences that ever had two.
        open_sockets: the sockets that were still open at the end.
    """

    directory: Path
    as_json: bool = False
    tracks: list[TrackStatistics] = field(init=False, factory=list)
    faithful: int = field(init=False, default=0)
    failures: list[str] = field(init=False, factory=list)
    alive: int = field(init=False, default=0)
    doubled: int = field(init=False, default=0)
    open_sockets: int = field(init=False, default=0)
    _done: int = field(init=False, default=0)

    async def run(self, seed: int) -> None:
        """Make a Space that speaks and a receiver that it trusts, and record every conference."""
        certificates = Certificates.make()
        receiver = MediaReceiver()
        async with SimulatedSpace(conferences=CONFERENCES, seed=seed, audio=_TONE, trust=certificates.trust) as space:
            space.faults.add("reset", on="start", created=True, one_in=5, per_target=1)
            client = StreamsClient(space=space.base_url, project=space.project, token=space.token)
            async with client, receiver.serve(ssl_context=certificates.server) as url, self._shown():
                await self.record_all(client, receiver, url, space.conference_sids)
            self.alive, self.doubled = len(space.streams.alive()), len(space.streams.doubled())
            self.open_sockets = len(receiver.sessions)

    async def record_all(
        self, client: StreamsClient, receiver: MediaReceiver, url: str, conference_sids: list[str]
    ) -> None:
        """Start a stream on each conference, record it for a while, and stop them all."""
        requests = [StartConferenceStream(conference_sid=sid, url=url, codec=Codec.L16_16K) for sid in conference_sids]
        async with receiver.open_many(client, requests) as outcomes, asyncio.TaskGroup() as recordings:
            async for outcome in outcomes:
                if outcome.session is None:
                    self.failures.append(str(outcome.error))
                else:
                    recordings.create_task(self.record(outcome.session, outcome.request.target))

    async def record(self, session: StreamSession, conference_sid: str) -> None:
        """Record a stream for a while, both tracks side by side."""
        wanted = len(_TRACKS) * round(SECONDS * _FRAMES_PER_SECOND)
        path = self.directory / f"{conference_sid}.wav"
        with WavRecorder(path, session.audio_format, layout="stereo") as recording:
            async for event in session:
                if isinstance(event, MediaEvent):
                    recording.write_event(event)
                    wanted -= 1
                    if wanted == 0:
                        break
        self.tracks += session.statistics.tracks.values()
        self.faithful += _faithful_tracks(path)
        self._done += 1

    @property
    def is_good(self) -> bool:
        """Whether each conference was heard on both tracks without a loss, and nothing is left."""
        all_tracks = CONFERENCES * len(_TRACKS)
        whole = len(self.tracks) == self.faithful == all_tracks and not (self.missing or self.dropped)
        return whole and not (self.failures or self.alive or self.doubled or self.open_sockets)

    @property
    def frames(self) -> int:
        """Media frames that came."""
        return sum(track.frames for track in self.tracks)

    @property
    def jitter(self) -> float:
        """The unevenest track's jitter, in milliseconds."""
        return max((track.jitter for track in self.tracks), default=0.0)

    @property
    def missing(self) -> int:
        """Media frames that never came."""
        return sum(track.missing for track in self.tracks)

    @property
    def dropped(self) -> int:
        """Media frames that the receiver dropped."""
        return sum(track.dropped for track in self.tracks)

    def facts(self) -> Mapping[str, object]:
        """Give everything for JSON; times are in seconds."""
        return {
            "conferences": CONFERENCES,
            "tracks": len(self.tracks),
            "tracks_recorded_to_the_sample": self.faithful,
            "frames": self.frames,
            "frames_missing": self.missing,
            "frames_dropped": self.dropped,
            "jitter_seconds": round(self.jitter / 1_000, 5),
            "streams_alive": self.alive,
            "streams_doubled": self.doubled,
            "sockets_open": self.open_sockets,
            "failures": self.failures,
        }

    def _shown(self) -> AbstractAsyncContextManager[object]:
        def look() -> Progress:
            return Progress(title="Listening", done=self._done, total=CONFERENCES, facts=())

        return shown(look, as_json=self.as_json)


def _faithful_tracks(path: Path) -> int:
    """Count the tracks of a recording that are what was said, to the sample."""
    with wave.open(str(path)) as file:
        length = file.getnframes()
        samples = array("h", file.readframes(length))
    return sum(
        bool(length) and samples[channel :: len(_TRACKS)] == _said(track, length)
        for channel, track in enumerate(_TRACKS)
    )


def _said(track: str, length: int) -> "array[int]":
    clip = _TONE.clip(track, _RATE).samples
    return (clip * (length // len(clip) + 1))[:length]
