"""PCM of streams that a Space sends over wss in real time, both tracks: whole, in place, and beside other listeners."""

import asyncio
import ssl
from array import array
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import chain
from math import pi, sin
from typing import Any

import pytest

from signalwire_streams.receiver import DtmfEvent, EndReason, MediaEvent, MediaReceiver, StreamSession
from signalwire_streams.receiver.audio import AudioFormat, PcmFrame
from signalwire_streams.receiver.audio._mixers import KeepMixer
from signalwire_streams.simulator import SimulatedSpace, Tone
from signalwire_streams.simulator._sources import codec_of

pytestmark = pytest.mark.usefixtures("idle_clock")

TONE = Tone(seconds=2)
HERTZ, PEAK = {"inbound": 440, "outbound": 660}, 0.3 * 0x7FFF


@pytest.fixture
async def streaming(
    trust: ssl.SSLContext, client_for: Any, serve: Any, certificate: ssl.SSLContext
) -> AsyncIterator[Any]:
    """Start a stream with faults; return the Space and the session."""
    async with AsyncExitStack() as stack:

        async def start(codec: str, *faults: tuple[str, dict[str, Any]]) -> tuple[SimulatedSpace, StreamSession]:
            receiver = MediaReceiver()
            url = await serve(receiver, ssl_context=certificate)
            space = SimulatedSpace(conferences=1, audio=TONE, ssl_context=trust)
            await stack.enter_async_context(space)
            for kind, settings in faults:
                space.faults.add(kind, **settings)
            opened = receiver.open(
                client_for(space).conferences, space.conference_sids[0], url=url, codec=codec, track="both_tracks"
            )
            return space, await stack.enter_async_context(opened)

        yield start


def sent(audio: AudioFormat, codec: str, track: str) -> "array[int]":
    """Return the samples of a track, as the codec leaves them."""
    samples = TONE.clip(track, audio.sample_rate).samples(0, 2 * audio.sample_rate)
    return array("h", audio.to_pcm(codec_of(codec).encode(samples)))


def in_place(frames: list[PcmFrame]) -> "array[int]":
    """Put the audio of frames where their timestamps say."""
    placed = {frame.timestamp_ms: frame for frame in frames if any(frame.data)}
    samples = array("h")
    for timestamp, frame in sorted(placed.items()):
        assert timestamp * frame.rate // 1000 * frame.channels == len(samples)
        samples.frombytes(frame.data)
    return samples


@pytest.mark.parametrize("codec", ["PCMU", "PCMA@40i", "L16@16000h", "L16@24000h@30i"])
@pytest.mark.parametrize("late", ["keep", "drop"])
async def test_both_tracks_arrive_whole_and_in_line(streaming: Any, codec: str, late: Any) -> None:
    _, session = await streaming(codec)
    audio = session.audio_format
    pcm = [session.pcm(audio.sample_rate, tracks=tracks, late=late) for tracks in ("stereo", "mixed", "outbound")]
    stereo, mixed, outbound = [in_place([frame async for frame in one]) for one in pcm]
    left, right = sent(audio, codec, "inbound"), sent(audio, codec, "outbound")
    assert stereo == array("h", chain.from_iterable(zip(left, right, strict=True)))
    assert mixed == array("h", map(sum, zip(left, right, strict=True)))
    assert outbound == right


async def test_keep_loses_nothing_of_what_arrives_twice_out_of_order_or_in_bursts(streaming: Any) -> None:
    # No two frames change places between two bursts.
    faults = [
        ("frames-duplicated", {"every": 10}),
        ("frames-reordered", {"every": 9}),
        ("frames-in-bursts", {"frames": 26}),
    ]
    _, session = await streaming("PCMU", *faults)
    frames, waits, loop = [], [], asyncio.get_running_loop()
    asked = loop.time()
    async for frame in session.pcm(8000, tracks="stereo"):
        frames.append(frame)
        waits.append(loop.time() - asked)
        asked = loop.time()
    left, right = (sent(session.audio_format, "PCMU", track) for track in HERTZ)
    assert in_place(frames) == array("h", chain.from_iterable(zip(left, right, strict=True)))
    assert max(waits) < 0.2
    assert len(frames) > 100  # silence went out between the bursts


@pytest.mark.parametrize(("codec", "rate"), [("L16", 16_000), ("L16@16000h", 24_000), ("L16@24000h", 16_000)])
@pytest.mark.parametrize("late", ["keep", "drop"])
async def test_resampled_tracks_are_in_place(streaming: Any, codec: str, rate: int, late: Any) -> None:
    _, session = await streaming(codec)
    samples = in_place([frame async for frame in session.pcm(rate, tracks="stereo", late=late)])
    assert len(samples) == 4 * rate
    for channel, hertz in enumerate(HERTZ.values()):
        pairs = [
            (samples[2 * n + channel], PEAK * sin(2 * pi * hertz * n / rate))
            for n in range(rate // 10, rate * 19 // 10)
        ]
        noise = sum((found - expected) ** 2 for found, expected in pairs)
        assert 0 < noise < sum(expected**2 for _, expected in pairs) / 10**5  # 50 dB


async def test_keys_taps_and_pcm_at_once(streaming: Any) -> None:
    """One of ten taps is stuck, and harms neither the others nor the handler."""
    space, session = await streaming("PCMU")
    stuck = session.tap(max_frames=10)
    taps = [session.tap() for _ in range(9)]
    pcm = session.pcm(8000, tracks="stereo")

    async def everything(source: Any) -> list[Any]:
        return [item async for item in source]

    tasks = [asyncio.create_task(everything(source)) for source in (session, pcm, *taps)]
    for key in "42#":
        await asyncio.sleep(0.5)
        await space.send_dtmf(space.conference_sids[0], key)
    events, frames, *tapped = [await task for task in tasks]
    assert [event.digit for event in events if isinstance(event, DtmfEvent)] == ["4", "2", "#"]
    media = [event for event in events if isinstance(event, MediaEvent)]
    assert len(media) == 200
    assert all(heard == media for heard in tapped)
    assert len(in_place(frames)) == 32_000
    assert stuck.dropped == 190
    assert [event async for event in stuck] == media[-10:]
    assert {track.dropped for track in session.statistics.tracks.values()} == {0}


async def test_bug_in_pcm_ends_its_own_session(
    streaming: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, session = await streaming("PCMU")
    pcm = session.pcm(8000)
    frames, failures = KeepMixer.frames, iter(["a bug"])

    def fail_once(self: KeepMixer, now: float) -> list[PcmFrame]:
        for bug in failures:
            raise LookupError(bug)
        return frames(self, now)

    monkeypatch.setattr(KeepMixer, "frames", fail_once)
    assert all(frame.rate == 8000 for frame in [frame async for frame in pcm])
    assert session.end_reason is EndReason.FAILED
    assert "the receiver failed for stream" in caplog.text


async def test_pcm_reads_on_while_a_player_waits(streaming: Any) -> None:
    """Several pcm of one stream, each with a loop that is slow in its own way, get the same audio."""
    _, session = await streaming("PCMU")

    async def slow(seconds: float) -> bytes:
        data = b""
        async for frame in session.pcm(8000, tracks="inbound"):
            data += frame.data
            await asyncio.sleep(seconds)
        return data

    heard = await asyncio.gather(*map(slow, (0.0, 0.019, 0.05)))
    assert set(heard) == {sent(session.audio_format, "PCMU", "inbound").tobytes()}
