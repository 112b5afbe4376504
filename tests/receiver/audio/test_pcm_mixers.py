"""PCM frames: each sample in its place, nothing lost, and nobody waits. In virtual time."""

import random
from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import product
from math import pi, sin
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings, strategies as st

from signalwire_streams.receiver import MediaEvent
from signalwire_streams.receiver.audio import AudioFormat, Encoding, PcmFrame
from signalwire_streams.receiver.audio._mixers import mixer_for
from signalwire_streams.receiver.audio._track_buffer import TrackBuffer
from tests.receiver.audio.pcm_streams import Arrival, Sound, Timeline, check_in_place, longest_wait, options, play

FORMATS = [
    AudioFormat(Encoding.MULAW),
    AudioFormat(Encoding.ALAW),
    AudioFormat(Encoding.L16, 16_000),
    AudioFormat(Encoding.L16, 24_000, byte_order="big"),
]
TRACKS = ["inbound", "outbound", "mixed", "stereo"]
BOTH = ("inbound", "outbound")
SEEDS = st.integers(0, 1 << 32)
PATIENCE = 0.2  # seconds that a consumer waits for a frame


def each(audio: AudioFormat) -> str:
    return f"{audio.encoding}-{audio.sample_rate}".removeprefix("audio/x-")


def steady(sound: Sound, seconds: float, *, ms: float = 20, tracks: tuple[str, ...] = BOTH) -> list[Arrival]:
    """Each frame when it ends; the outbound one 3 ms later."""
    return [
        ((number + 1) * ms / 1000 + (0.003 if track == "outbound" else 0.0), sound.event(track, number, ms))
        for number in range(round(seconds * 1000 / ms))
        for track in tracks
    ]


def stalled(arrivals: list[Arrival], at: float, seconds: float) -> list[Arrival]:
    """What would arrive during a stall arrives at its end."""
    return [(at + seconds if at <= when < at + seconds else when, event) for when, event in arrivals]


def reference(audio: AudioFormat, tracks: str, arrivals: list[Arrival]) -> Timeline:
    timeline = Timeline(audio, tracks)
    for _, event in arrivals:
        if event.track in timeline.tracks:
            timeline.add(event)
    return timeline


@pytest.mark.parametrize("audio", FORMATS, ids=each)
@pytest.mark.parametrize("tracks", TRACKS)
@pytest.mark.parametrize("late", ["keep", "drop"])
def test_undisturbed_audio_is_whole(audio: AudioFormat, tracks: str, late: str) -> None:
    arrivals = steady(Sound(audio), 1)
    timeline = reference(audio, tracks, arrivals)
    frames = list(play(options(audio, tracks=tracks, late=late), arrivals, until=1.02))
    size = audio.sample_rate // 50
    assert check_in_place(frames, timeline) == set(range(0, timeline.end, size))
    assert {len(frame.data) for _, frame in frames} == {size * 2 * (1 + (tracks == "stereo"))}
    assert longest_wait(frames) < PATIENCE
    assert len(frames) == 50 if late == "keep" else 50 <= len(frames) <= 55


def test_frame_is_due_at_the_time_that_the_mixer_names() -> None:
    """A timer sleeps exactly until then, and rounding must not make it wake in vain."""
    mixer, named = mixer_for(options(FORMATS[0], late="drop", delay_ms=50), 0.0, ["inbound"]), 0

    mixer.frames(0.0)
    for at, event in steady(Sound(FORMATS[0]), 2, tracks=("inbound",)):
        while mixer.next_at < at:
            assert mixer.frames(mixer.next_at)
            named += 1
        mixer.add(event, at)
        mixer.frames(at)
    assert named > 90


@pytest.mark.parametrize("audio", FORMATS, ids=each)
@pytest.mark.parametrize("tracks", ["outbound", "mixed", "stereo"])
@pytest.mark.parametrize("stall", [0.2, 1.0, 5.0])
def test_keep_loses_nothing_in_a_stall(audio: AudioFormat, tracks: str, stall: float) -> None:
    """Silence goes out meanwhile, and the burst after it has every sample in its place."""
    arrivals = stalled(steady(Sound(audio), stall + 1), 0.5, stall)
    timeline = reference(audio, tracks, arrivals)
    frames = list(play(options(audio, tracks=tracks), arrivals))
    size = audio.sample_rate // 50
    assert check_in_place(frames, timeline) == set(range(0, timeline.end, size))
    assert longest_wait(frames) < PATIENCE
    silent = sum(not any(frame.data) for _, frame in frames)
    assert stall / 0.02 - 6 <= silent <= stall / 0.02


@settings(max_examples=30)
@given(SEEDS)
def test_stall_at_any_moment_moves_nothing(seed: int) -> None:
    """Also between the frames of two tracks, and one stall soon after another."""
    chance = random.Random(seed)  # noqa: S311
    audio, tracks = chance.choice(FORMATS), chance.choice(TRACKS)
    arrivals, at = steady(Sound(audio), 8), 0.0
    for _ in range(3):
        seconds = chance.choice([0.2, 0.5, 1.0, chance.uniform(0.2, 5)])
        at += chance.uniform(0.0, 0.5)
        arrivals = stalled(arrivals, at, seconds)
        at += seconds
    frames = list(play(options(audio, tracks=tracks), arrivals))
    timeline = reference(audio, tracks, arrivals)
    assert check_in_place(frames, timeline) == set(range(0, timeline.end, audio.sample_rate // 50))
    assert longest_wait(frames) < PATIENCE


def test_keep_repays_the_silence_of_a_stall() -> None:
    """Out of later silence, whether it is a gap or audio that is silent: then the length is that of the timestamps."""
    audio = FORMATS[0]
    sound = Sound(audio)
    arrivals = stalled(steady(sound, 4, tracks=("inbound",)), 0.5, 1.0)
    for _, event in arrivals:
        assert event.timestamp is not None
        if 2000 <= event.timestamp < 3400:
            event.payload = audio.silence * 160
    timeline = reference(audio, "inbound", arrivals)
    frames = list(play(options(audio), arrivals, announced=["inbound"]))
    assert check_in_place(frames, timeline) == {*range(0, 16_000, 160), *range(27_200, 32_000, 160)}
    assert len(frames) == 200
    gap = [(at, event) for at, event in arrivals if any(audio.to_pcm(event.payload))]
    frames = list(play(options(audio), gap, announced=["inbound"]))
    assert check_in_place(frames, timeline) == {*range(0, 16_000, 160), *range(27_200, 32_000, 160)}
    assert 200 <= len(frames) <= 201


def script(seed: int, most_ms: int) -> tuple[AudioFormat, str, list[Arrival]]:
    """Two seconds of a stream: frames lost, repeated or delayed, and if they may be very late, sometimes a stall."""
    chance = random.Random(seed)  # noqa: S311
    audio, tracks = chance.choice(FORMATS), chance.choice(TRACKS)
    arrivals = []
    for at, event in steady(Sound(audio), 2):
        fate = chance.choice(["", "", "", "", "lost", "doubled", "delayed"]) if event.timestamp else ""
        if fate == "lost":
            continue
        if fate == "doubled":
            arrivals.append((at + chance.randrange(100) / 1000, event))
        arrivals.append((at + (chance.randrange(most_ms) / 1000 if fate == "delayed" else 0), event))
    arrivals.sort(key=lambda arrival: arrival[0])
    return (
        audio,
        tracks,
        stalled(arrivals, chance.randrange(100, 1900) / 1000, chance.choice([0, 0, 0.2, 1]) if most_ms > 60 else 0),
    )


def samples(frames: Iterable[tuple[float, PcmFrame]]) -> Counter[bytes]:
    """Count the samples that are not silent."""
    found = Counter[bytes]()
    for _, frame in frames:
        found.update(frame.data[at : at + 2] for at in range(0, len(frame.data), 2))
    del found[b"\0\0"]
    return found


@settings(max_examples=15)
@given(SEEDS)
def test_keep_puts_what_arrives_out_of_order_in_place(seed: int) -> None:
    """As long as it is not later than ``delay_ms``."""
    audio, tracks, arrivals = script(seed, 30)
    timeline = reference(audio, tracks, arrivals)
    frames = list(play(options(audio, tracks=tracks), arrivals))
    size = audio.sample_rate // 50
    heard = check_in_place(frames, timeline)
    assert heard == {at for at in range(0, timeline.end, size) if any(timeline.slice(at, at + size))}
    assert longest_wait(frames) < PATIENCE


@settings(max_examples=15)
@given(SEEDS, st.sampled_from([5, 20, 30]))
def test_keep_loses_no_sample_however_late(seed: int, frame_ms: int) -> None:
    audio, tracks, arrivals = script(seed, 400)
    tracks = tracks.replace("mixed", "stereo")
    timeline = Timeline(audio, tracks)
    arrived = {(event.track, event.timestamp): event for _, event in arrivals if event.track in timeline.tracks}
    expected = Counter[bytes]()
    for event in arrived.values():
        pcm = audio.to_pcm(event.payload)
        expected.update(pcm[at : at + 2] for at in range(0, len(pcm), 2))
    frames = list(play(options(audio, tracks=tracks, frame_ms=frame_ms), arrivals))
    assert samples(frames) == expected
    assert longest_wait(frames) < PATIENCE


@settings(max_examples=15)
@given(SEEDS, st.sampled_from([0, 20, 60, 200]))
def test_drop_is_as_long_as_the_time(seed: int, delay_ms: int) -> None:
    """What it plays is in place, and never older than the delay and a frame."""
    audio, tracks, arrivals = script(seed, 400)
    timeline = reference(audio, tracks, arrivals)
    end = 2.1 + delay_ms / 1000
    frames = list(play(options(audio, tracks=tracks, late="drop", delay_ms=delay_ms), arrivals, until=end))
    assert all(abs(number - at / 0.02) <= 1 + 1e-6 for number, (at, _) in enumerate(frames, 1))
    assert len(frames) >= int(end / 0.02 - 1)
    size = audio.sample_rate // 1000 * 2
    # Without a delay, the outbound track is shifted, since it is 3 ms later; and mixed audio tells no track.
    for side, track in enumerate(timeline.tracks if tracks != "mixed" and delay_ms else ()):
        channels, alone = len(timeline.tracks), reference(audio, track, arrivals)
        arrived = {event.timestamp: when for when, event in reversed(arrivals) if event.track == track}
        for at, frame in frames:
            pcm = array("h", frame.data)[side::channels].tobytes()
            for ms in range(20):
                sound, place = pcm[ms * size : (ms + 1) * size], frame.timestamp_ms + ms
                if any(sound):
                    assert sound == alone.slice(place * size // 2, (place + 1) * size // 2)
                    assert at - arrived[place - place % 20] <= delay_ms / 1000 + 0.02 + 1e-6


@pytest.mark.parametrize("tracks", ["mixed", "stereo"])
@pytest.mark.parametrize("late", ["keep", "drop"])
@pytest.mark.parametrize("announced", [BOTH, ("inbound",), ()])
def test_track_that_starts_late_is_in_line(tracks: str, late: str, announced: tuple[str, ...]) -> None:
    arrivals = [(at, event) for at, event in steady(Sound(FORMATS[0]), 3) if event.track == "inbound" or at > 1.5]
    timeline = reference(FORMATS[0], tracks, arrivals)
    frames = list(play(options(FORMATS[0], tracks=tracks, late=late), arrivals, announced=announced, until=3.1))
    if announced == ("inbound",):  # nothing waits for the first outbound frame
        frames = [(at, frame) for at, frame in frames if not 1400 < frame.timestamp_ms < 1600]
    heard = check_in_place(frames, timeline)
    assert heard >= {at for at in range(0, timeline.end, 160) if at not in range(11_000, 13_000)}


@pytest.mark.parametrize("tracks", TRACKS)
@pytest.mark.parametrize("late", ["keep", "drop"])
def test_absent_track_is_silence(tracks: str, late: str) -> None:
    """Also if the start event announces it, or nothing arrives at all."""
    arrivals = steady(Sound(FORMATS[0]), 2, tracks=("inbound",))
    timeline = reference(FORMATS[0], tracks, arrivals)
    frames = list(play(options(FORMATS[0], tracks=tracks, late=late), arrivals, until=2.0))
    places = check_in_place(frames, timeline)
    assert len(places) == (0 if tracks == "outbound" else 100)
    assert longest_wait(frames) < PATIENCE
    silent = list(play(options(FORMATS[0], tracks=tracks, late=late), [], until=60.0))
    assert check_in_place(silent, timeline) == set()
    assert longest_wait([*silent, (60.0, silent[-1][1])]) < PATIENCE
    assert 2990 <= len(silent) <= 3000


@pytest.mark.parametrize("parts_per_million", [200, -200])
@pytest.mark.parametrize("late", ["keep", "drop"])
def test_mixer_stays_in_sync_over_an_hour_of_clock_drift(parts_per_million: int, late: str) -> None:
    """The sender's clock differs, for both tracks. Frames of 100 ms and of few samples make it fast."""
    audio, frames = AudioFormat(Encoding.L16, 500), 36_000
    payloads = {track: [Sound(audio).of(track, 50 * n, 50) for n in range(70)] for track in BOTH}
    place = {payload: n for track in BOTH for n, payload in enumerate(payloads[track])}
    step = 0.1 / (1 + parts_per_million / 1e6)
    arrivals = (
        (step * (number + 1), MediaEvent(track, payloads[track][number % 70], number + 1, 100 * number))
        for number in range(frames)
        for track in BOTH
    )
    loud = silent = missing = 0
    before = 0.0
    for number, (at, frame) in enumerate(
        play(options(audio, tracks="stereo", late=late, frame_ms=100, delay_ms=100), arrivals, until=step * frames), 1
    ):
        missing += frame.missing_ms
        if not any(frame.data):
            silent += 1
        else:
            samples = array("h", frame.data)
            assert place[samples[::2].tobytes()] == place[samples[1::2].tobytes()] == frame.timestamp_ms // 100 % 70
            if late == "keep":
                assert frame.timestamp_ms == 100 * loud
            loud += 1
        if late == "drop" and at < step * frames:
            assert abs(number - at / 0.1) <= 1 + 1e-6
        assert at - before < PATIENCE
        before = at
    if late == "keep":
        assert (loud, silent, missing) == (frames, 0, 0)
    else:
        assert 100 * loud + missing == 100 * frames
        assert (silent if parts_per_million < 0 else missing / 100) == pytest.approx(7.2, abs=3)


@pytest.mark.parametrize("ms", [10, 12.5, 30, 37, 100])
@pytest.mark.parametrize(
    ("audio", "frame_ms"),
    [*product([FORMATS[1], FORMATS[3]], [1, 20, 93]), (AudioFormat(Encoding.L16, 11_025), 40)],
)
@pytest.mark.parametrize("late", ["keep", "drop"])
def test_packet_times_need_not_fit(audio: AudioFormat, ms: float, frame_ms: int, late: str) -> None:
    """Neither to the frames, nor to whole milliseconds."""
    arrivals = steady(Sound(audio), 1, ms=ms, tracks=("inbound",))
    sent = b"".join(audio.to_pcm(event.payload) for _, event in arrivals)
    chosen = options(audio, late=late, frame_ms=frame_ms)
    frames = list(play(chosen, arrivals, announced=["inbound"], until=1.2 if late == "drop" else 0.0))
    heard = b"".join(frame.data for _, frame in frames)
    assert {len(frame.data) for _, frame in frames} == {audio.sample_rate * frame_ms // 1000 * 2}
    assert sent in heard
    assert not any(frame.missing_ms for _, frame in frames)
    assert longest_wait(frames) < PATIENCE
    if late == "keep":
        assert len(heard) - len(sent) < frame_ms / 1000 * audio.sample_rate * 2


def test_odd_bytes_are_left_out() -> None:
    audio = AudioFormat(Encoding.L16, 8000)
    arrivals = [(at, evolve(event, payload=event.payload + b"x")) for at, event in steady(Sound(audio), 1)]
    frames = list(play(options(audio), arrivals))
    assert len(check_in_place(frames, reference(audio, "inbound", arrivals))) == 50
    empty = [(at, evolve(event, payload=b"")) for at, event in arrivals]
    assert not any(any(frame.data) for _, frame in play(options(audio), empty))


def test_numbering_that_restarts_is_new_audio() -> None:
    audio = FORMATS[0]
    arrivals = steady(Sound(audio), 2, tracks=("inbound",))
    again = [(at, evolve(event, chunk=n % 50 + 1, timestamp=20 * (n % 50))) for n, (at, event) in enumerate(arrivals)]
    frames = list(play(options(audio), again, announced=["inbound"]))
    sent = b"".join(audio.to_pcm(event.payload) for _, event in arrivals)
    assert b"".join(frame.data for _, frame in frames if any(frame.data)) == sent


@pytest.mark.parametrize("late", ["keep", "drop"])
def test_absurd_timestamp_changes_nothing(late: str) -> None:
    arrivals = steady(Sound(FORMATS[0]), 2, tracks=("inbound",))
    wrong = [(at, evolve(event, timestamp=10**9) if event.chunk == 40 else event) for at, event in arrivals]
    frames = list(play(options(FORMATS[0], late=late), wrong, announced=["inbound"], until=2.1))
    assert len(check_in_place(frames, reference(FORMATS[0], "inbound", arrivals))) == 100


@pytest.mark.parametrize("ms", [10, 20, 30, 40, 60])
@pytest.mark.parametrize("chunk", [1, 2, 40])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("late", ["keep", "drop"])
def test_absurd_timestamps_cost_no_later_audio(ms: int, chunk: int, count: int, late: str) -> None:
    """At the stream's start, or amid it; also two that agree, which is noticed after the next two frames."""
    wrong = range(chunk, chunk + count)
    for absurd in (-5, -(10**12), 3000, 10**15):
        for is_live in (True, False):
            arrivals = steady(Sound(FORMATS[0]), 4, ms=ms, tracks=("inbound",))
            timeline = reference(FORMATS[0], "inbound", arrivals)
            for at, event in arrivals:
                assert event.chunk is not None
                if event.chunk in wrong:
                    event.timestamp = absurd + ms * (event.chunk - chunk)
                event.elapsed = at if is_live else None
            frames = list(play(options(FORMATS[0], late=late), arrivals, announced=["inbound"], until=4.1))
            settled = 0.0 if late == "keep" else (chunk + 4) * ms / 1000 + 0.1
            places = check_in_place([one for one in frames if one[0] > settled], timeline)
            assert len(places) >= (4 - settled) * 50 - 1
            assert sum(any(frame.data) for _, frame in frames) >= 195
            assert longest_wait(frames) < PATIENCE
            assert len(frames) <= 215


@pytest.mark.parametrize("late", ["keep", "drop"])
@pytest.mark.parametrize("seed", range(5))
def test_audio_goes_out_though_no_timestamp_agrees_with_another(late: str, seed: int) -> None:
    """It waits for a few frames only."""
    chance = random.Random(seed)  # noqa: S311
    arrivals = steady(Sound(FORMATS[0]), 4, tracks=("inbound",))
    for at, event in arrivals:
        event.timestamp, event.elapsed = chance.choice([chance.randrange(10**6), chance.randrange(10**12)]), at
    frames = list(play(options(FORMATS[0], late=late), arrivals, announced=["inbound"], until=4.1))
    loud = [at for at, frame in frames if any(frame.data)]
    assert loud[0] < 0.3
    assert len(loud) >= 195


def test_frame_without_track_or_timestamp_has_its_place() -> None:
    """A frame without a track belongs to the only one; of a track that is not asked for, it is ignored."""
    audio = FORMATS[0]
    arrivals = steady(Sound(audio), 1, tracks=("inbound",))
    nameless = [(at, evolve(event, track=None, timestamp=None)) for at, event in arrivals]
    timeline = reference(audio, "inbound", arrivals)
    assert len(check_in_place(list(play(options(audio), nameless, announced=())), timeline)) == 50
    other = [(at, evolve(event, track="sideband")) for at, event in arrivals]
    assert check_in_place(list(play(options(audio), other, announced=())), timeline) == set()


@pytest.mark.parametrize("late", ["keep", "drop"])
@pytest.mark.parametrize(("from_rate", "to_rate"), [(8000, 16_000), (16_000, 24_000), (11_025, 16_000)])
def test_resampled_audio_is_in_place(from_rate: int, to_rate: int, late: str) -> None:
    """Also after a stall, and both tracks mixed."""
    audio, hertz = AudioFormat(Encoding.L16, from_rate), {"inbound": 440, "outbound": 1100}

    def tone(track: str, rate: int, begin: int, end: int) -> list[float]:
        return [8000 * sin(2 * pi * hertz[track] * n / rate) for n in range(begin, end)]

    arrivals = []
    for number in range(150):
        for track in BOTH:
            begin, end = (at * from_rate // 50 for at in (number, number + 1))
            pcm = array("h", map(round, tone(track, from_rate, begin, end))).tobytes()
            arrivals.append((0.02 * (number + 1), MediaEvent(track, pcm, number + 1, 20 * number)))
    if from_rate != 11_025:  # whose frames have no whole number of samples, so that silence moves them by a part of one
        arrivals = stalled(arrivals, 1.0, 0.5 if late == "keep" else 0.04)
    frames = list(play(options(audio, rate=to_rate, tracks="mixed", late=late), arrivals, until=3.1))
    noise = 0.0
    for _, frame in frames:
        begin = frame.timestamp_ms * to_rate // 1000
        heard = array("h", frame.data)
        # Where audio was dropped, it is not band-limited.
        is_cut = late == "drop" and 900 <= frame.timestamp_ms <= 1100
        if any(heard) and not is_cut and 100 < frame.timestamp_ms < 2900:
            both = zip(*(tone(track, to_rate, begin, begin + len(heard)) for track in BOTH), strict=True)
            noise = max(noise, sum((a - sum(b)) ** 2 for a, b in zip(heard, both, strict=True)) / len(heard))
    assert 0 < noise < 2 * 8000**2 / 2 / 10**5  # 50 dB
    assert sum(any(frame.data) for _, frame in frames) >= 150


@pytest.mark.parametrize("late", ["keep", "drop"])
@pytest.mark.parametrize("begin", [1.0, 1.01])
def test_audio_after_a_pause_is_whole(late: str, begin: float) -> None:
    """Nothing is sent meanwhile, so that only the timestamps tell of it. One track pauses a little earlier."""
    arrivals = [(at, event) for at, event in steady(Sound(FORMATS[0]), 9) if not begin < at < 8.01]
    numbers = Counter[str | None]()
    for _, event in arrivals:
        numbers[event.track] += 1
        event.chunk = numbers[event.track]
    timeline = reference(FORMATS[0], "stereo", arrivals)
    frames = list(play(options(FORMATS[0], tracks="stereo", late=late), arrivals, until=9.1))
    assert len(check_in_place(frames, timeline)) == 100
    assert abs(len(frames) - 450) <= 5
    assert longest_wait(frames) < PATIENCE


@pytest.mark.parametrize("rate", [8000, 16_000])
def test_last_audio_before_a_long_pause_goes_out(rate: int) -> None:
    """Also what the resampler, or the wait for the other track, holds back."""
    arrivals = [arrival for arrival in steady(Sound(FORMATS[0]), 1) if arrival[0] < 1.003]
    frames = list(play(options(FORMATS[0], tracks="stereo", rate=rate), arrivals, until=20.0))
    loud = {frame.timestamp_ms for at, frame in frames if any(frame.data) and at < 6.5}
    assert loud == set(range(0, 1000 if rate == 8000 else 1020, 20))
    assert longest_wait(frames) < PATIENCE
    assert abs(len(frames) - 1000) <= 10


def with_silence(audio: AudioFormat, arrivals: list[Arrival], track: str, delay: float) -> list[Arrival]:
    """Delay all frames of a track, and replace a third of its audio with silence."""
    changed = []
    for at, event in arrivals:
        if event.track != track:
            changed.append((at, event))
        else:
            is_silent = 2000 <= (event.timestamp or 0) < 4000
            payload = audio.silence * 160 if is_silent else event.payload
            changed.append((at + delay, evolve(event, payload=payload)))
    return sorted(changed, key=lambda arrival: arrival[0])


@pytest.mark.parametrize("delay", [0.11, 0.3, 1.0])
def test_keep_lets_a_track_lag_that_is_always_late(delay: float) -> None:
    """Nothing is lost, and it catches up when it is silent."""
    audio = FORMATS[0]
    arrivals = with_silence(audio, steady(Sound(audio), 6), "outbound", delay)
    frames = list(play(options(audio, tracks="stereo"), arrivals))
    for track, side in ((0, "inbound"), (1, "outbound")):
        loud = [sample for _, frame in frames for sample in array("h", frame.data)[track::2] if sample]
        sent = [audio.to_pcm(event.payload) for _, event in arrivals if event.track == side]
        assert loud == [sample for sample in array("h", b"".join(sent)) if sample]
    assert longest_wait(frames) < PATIENCE
    assert len(frames) < 300 + delay / 0.02 + 10


@pytest.mark.parametrize("delay", [0.11, 0.3, 1.0])
def test_drop_shifts_a_track_that_is_always_late(delay: float) -> None:
    """It would lose all of its audio otherwise."""
    audio = FORMATS[0]
    arrivals = with_silence(audio, steady(Sound(audio), 6), "outbound", delay)
    frames = list(play(options(audio, tracks="stereo", late="drop"), arrivals, until=8.0))
    loud = sum(bool(sample) for _, frame in frames for sample in array("h", frame.data)[1::2])
    assert loud >= 0.9 * 32_000
    assert sum(bool(sample) for _, frame in frames for sample in array("h", frame.data)[::2]) == 48_000
    assert abs(len(frames) - 400) <= 1


@pytest.mark.parametrize(("delay_ms", "behind"), [(1, 0.003), (1, 0.019), (5, 0.015), (10, 0.05), (60, 0.03)])
@pytest.mark.parametrize(("frame_ms", "ms"), [(20, 20), (10, 20), (40, 10), (60, 30), (20, 60)])
def test_drop_loses_no_track_that_is_a_little_behind(delay_ms: int, behind: float, frame_ms: int, ms: int) -> None:
    """Though frames wait for less than that, or only just long enough for the last part of a packet."""
    audio = FORMATS[0]
    arrivals = [
        (round((n + 1) * ms / 1000 + (behind if track == "outbound" else 0.0), 4), Sound(audio).event(track, n, ms))
        for n in range(6000 // ms)
        for track in BOTH
    ]
    arrivals.sort(key=lambda arrival: arrival[0])
    chosen = options(audio, tracks="stereo", late="drop", frame_ms=frame_ms, delay_ms=delay_ms)
    frames = list(play(chosen, arrivals, until=6.2))
    left, right = (
        sum(bool(sample) for _, one in frames for sample in array("h", one.data)[side::2]) for side in (0, 1)
    )
    assert left >= 0.99 * 48_000
    assert right >= 0.93 * 48_000  # it is shifted after 200 ms


@pytest.mark.parametrize("starts", [0.0, 1.7])
@pytest.mark.parametrize("stalls", [[(1.5, 4.5, 4.5)], [(0.5, 1.5, 2.2), (1.5, 4.5, 4.5)]])
def test_drop_plays_nothing_stale_after_a_stall(starts: float, stalls: list[tuple[float, float, float]]) -> None:
    """A track is not always late because its first frames are, or because a stall ends only in part."""
    audio = FORMATS[0]
    arrivals = [(at, event) for at, event in steady(Sound(audio), 6) if event.track == "inbound" or at > starts]
    for begin, end, ends in stalls:
        arrivals = [(ends if begin <= at < end else at, event) for at, event in arrivals]
    timelines = [reference(audio, track, arrivals) for track in BOTH]
    frames = list(play(options(audio, tracks="stereo", late="drop"), arrivals, until=6.1))
    for _, frame in frames:
        for side, timeline in enumerate(timelines):
            heard = array("h", frame.data)[side::2]
            there = array("h", timeline.slice(frame.timestamp_ms * 8, (frame.timestamp_ms + 20) * 8))
            assert all(sample in {0, right} for sample, right in zip(heard, there, strict=True)), frame.timestamp_ms


@pytest.mark.parametrize(("rate", "ms"), [(11_025, 20), (22_050, 30), (44_100, 37), (8000, 12.5), (16_000, 20)])
@pytest.mark.parametrize("jitter", [0, 3])
@pytest.mark.parametrize("late", ["keep", "drop"])
def test_late_frame_may_be_longer_than_its_gap(rate: int, ms: float, jitter: int, late: str) -> None:
    """By a sample if its length is not whole milliseconds, or by the jitter of the timestamps around it."""
    audio = AudioFormat(Encoding.L16, rate)
    arrivals = steady(Sound(audio), 4, ms=ms, tracks=("inbound",))
    sent = array("h", b"".join(audio.to_pcm(event.payload) for _, event in arrivals))
    delayed = []
    for at, event in arrivals:
        assert event.chunk is not None
        assert event.timestamp is not None
        if event.chunk % 7 == 0:
            event.timestamp += jitter
        delayed.append((at + (0.045 if event.chunk % 7 == 6 else 0.0), event))
    delayed.sort(key=lambda arrival: arrival[0])
    chosen = options(audio, late=late, frame_ms=40, delay_ms=100)
    frames = list(play(chosen, delayed, announced=["inbound"], until=4.2))
    heard = array("h", b"".join(frame.data for _, frame in frames))
    if late == "keep":
        assert array("h", filter(None, heard)) == sent
    else:
        most = (jitter + 1) * rate / 1000 * len(arrivals) / 7
        assert sum(map(bool, heard)) >= len(sent) - most


def out_of_place() -> list[Arrival]:
    """A frame is late by so many numbers that it follows the others, and takes the place of one that is late too."""
    arrivals = steady(Sound(FORMATS[0]), 2, ms=10, tracks=("inbound",))
    delays = {5: 0.7, 100: 0.03}
    return sorted(((at + delays.get(event.chunk or 0, 0), event) for at, event in arrivals), key=lambda one: one[0])


def test_keep_loses_no_frame_whose_place_is_taken() -> None:
    audio, arrivals = FORMATS[0], out_of_place()
    sent = b"".join(audio.to_pcm(event.payload) for _, event in arrivals)
    frames = list(play(options(audio), arrivals, announced=["inbound"]))
    assert samples(frames) == Counter(sent[at : at + 2] for at in range(0, len(sent), 2))


def test_drop_counts_a_frame_whose_place_is_taken() -> None:
    frames = list(play(options(FORMATS[0], late="drop"), out_of_place(), announced=["inbound"], until=2.2))
    assert samples(frames).total() == 8 * (2000 - 10)
    assert sum(frame.missing_ms for _, frame in frames) == 10


def test_many_frames_may_wait_for_a_missing_one() -> None:
    """With a long delay, but not without end."""
    audio = FORMATS[0]
    arrivals = [(at, event) for at, event in steady(Sound(audio), 4, ms=1, tracks=("inbound",)) if event.chunk != 10]
    frames = list(play(options(audio, delay_ms=10_000, frame_ms=1), arrivals, until=4.0))
    loud = [at for at, frame in frames if any(frame.data)]
    assert loud[8] < 0.1
    assert 1.0 <= loud[9] < 1.1


@settings(max_examples=30)
@given(SEEDS, st.sampled_from(["keep", "drop"]), st.sampled_from(TRACKS))
def test_any_arrival_makes_whole_frames(seed: int, late: str, tracks: str) -> None:
    """Whatever the numbers, timestamps and lengths are: nobody waits, and the frames are of one length."""
    audio, chance = AudioFormat(Encoding.L16, 8000), random.Random(seed)  # noqa: S311
    at, arrivals, sound = 0.0, [], Sound(audio)
    for number in range(100):
        at += chance.choice([0.0, 0.001, 0.02, 0.02, 0.02, 0.3])
        event = sound.event(chance.choice(BOTH), number)
        changes: list[dict[str, Any]] = [
            {},
            {"timestamp": chance.choice([None, 0, 20 * number + 5, 20 * number + 3000, -20, 10**12])},
            {"chunk": chance.choice([None, 1, number - 2, number + 5000])},
            {"payload": chance.choice([b"", b"x", b"ab" * 1601, bytes(320)])},
            {"track": chance.choice([None, "sideband"])},
            {"elapsed": at},
        ]
        arrivals.append((at, evolve(event, **chance.choice(changes))))
    frames = list(play(options(audio, tracks=tracks, late=late, frame_ms=30), arrivals, until=at + 1))
    assert {len(frame.data) for _, frame in frames} == {480 * frames[0][1].channels}
    assert longest_wait(frames) < PATIENCE
    if late == "drop":
        assert abs(len(frames) - frames[-1][0] / 0.03) <= 1 + 1e-6


@pytest.mark.parametrize("late", ["keep", "drop"])
@pytest.mark.parametrize("rate", [8000, 16_000])
def test_memory_does_not_grow_with_the_audio(late: str, rate: int) -> None:
    """Whether both tracks come, or only one."""
    chosen = options(FORMATS[0], tracks="mixed", late=late, rate=rate)
    for tracks in (BOTH, ("inbound",)):
        arrivals = steady(Sound(FORMATS[0]), 12, tracks=tracks)
        mixer = mixer_for(chosen, 0.0, tracks)
        for at, event in arrivals:
            mixer.add(event, at)
            mixer.frames(at)
        held = [mixer._resampled, mixer._positions, getattr(mixer, "_reached", ())]
        held += [collection for track in mixer._buffers for collection in (track._pieces, track._held)]
        assert sum(map(len, held)) < 1300
        assert max(map(len, held[1:])) < 10


def test_late_audio_whose_place_is_taken_follows_unless_it_is_silent() -> None:
    audio = FORMATS[0]
    buffer, sound = TrackBuffer(audio, keeps_late=True), audio.to_pcm(Sound(audio).of("inbound", 0, 160))
    buffer._put(0, sound, 1)
    buffer._put(80, bytes(320), 2)
    assert buffer.end == 160
    buffer._put(80, sound, 3)
    assert buffer.take(320) == sound + sound


@pytest.mark.parametrize("ms", [20, 60, 80, 100, 200, 500, 1000])
@pytest.mark.parametrize(
    ("rate", "tracks"),
    [(8000, "mixed"), (16_000, "inbound"), (11_025, "inbound"), (24_000, "mixed"), (24_000, "inbound")],
)
def test_keep_adds_no_silence_to_steady_speech(ms: int, rate: int, tracks: str) -> None:
    """Also while the first frame waits in the resampler."""
    if rate * ms % 1000:
        ms = 40 * (ms // 40 + 1)
    arrivals = steady(Sound(FORMATS[0]), 6)
    frames = list(play(options(FORMATS[0], rate=rate, frame_ms=ms, tracks=tracks), arrivals, until=6.02))
    assert [frame.timestamp_ms for _, frame in frames] == list(range(0, 6000, ms))
    assert all(any(frame.data) for _, frame in frames)


@pytest.mark.parametrize(("rate", "ms"), [(1, 1000), (50, 20), (70, 20), (40, 25), (99, 20), (8000, 1)])
def test_keep_goes_on_with_frames_of_hardly_a_sample(rate: int, ms: int) -> None:
    """Silence that is owed is left out in steps of a sample at least, so none of them takes forever."""
    audio = AudioFormat(Encoding.MULAW, rate)
    arrivals = [(second + 0.9, MediaEvent("inbound", audio.silence * rate, second + 1)) for second in range(5)]
    frames = list(play(options(audio, rate=8000, frame_ms=ms), arrivals, until=6))
    assert 4 < len(frames) * ms / 1000 < 7


@pytest.mark.parametrize("rate", [8000, 16_000])
@pytest.mark.parametrize("seed", range(5))
def test_drop_reports_what_it_drops_after_the_last_frame(rate: int, seed: int) -> None:
    """In a frame of silence."""
    chance = random.Random(seed)  # noqa: S311
    arrivals = [(at + chance.expovariate(50), event) for at, event in steady(Sound(FORMATS[0]), 2, tracks=("inbound",))]
    arrivals.sort(key=lambda arrival: arrival[0])
    chosen = options(FORMATS[0], rate=rate, late="drop", delay_ms=0)
    frames = [frame for _, frame in play(chosen, arrivals, announced=["inbound"])]
    missing = sum(frame.missing_ms for frame in frames)
    heard = 20 * sum(any(frame.data) for frame in frames)
    assert missing + heard == 2000 if rate == 8000 else 2000 <= missing + heard <= 3000
