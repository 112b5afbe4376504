"""Recordings of streams: what was heard is in the file, each track where it belongs."""

import subprocess
import sys
import wave
from itertools import accumulate, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

import pytest
from attrs import frozen
from hypothesis import given, settings, strategies as st

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver import DtmfEvent, MediaEvent
from signalwire_streams.receiver.audio import (
    AudioFormat,
    RecordingError,
    RecordingFullError,
    UnknownEncodingError,
    WavRecorder,
)

from .wavs import Wav, read_wav

MULAW = AudioFormat("audio/x-mulaw")
FORMATS = [
    MULAW,
    AudioFormat("audio/x-alaw"),
    AudioFormat("audio/x-L16", 8000),
    AudioFormat("audio/x-L16", 16000, "big"),
    AudioFormat("audio/x-L16", 24000),
]
LAYOUTS: list[Any] = ["mono", "stereo"]
ENCODINGS: list[Any] = ["pcm", "passthrough"]

Frame: TypeAlias = tuple[str, int, int, int]
"""A track, a timestamp, a number, and a length in milliseconds."""


def each(audio: AudioFormat) -> str:
    return f"{audio.encoding} {audio.sample_rate} {audio.byte_order}"


@frozen
class Sound:
    """Audio of which no two moments are alike, for each track."""

    audio: AudioFormat

    def of(self, track: str, begin: int, length: int) -> bytes:
        """Return a payload of some milliseconds."""
        seed = 7 if track == "inbound" else 11
        first, last = self.audio.bytes_in(begin), self.audio.bytes_in(begin + length)
        return bytes((seed * at + at // 251) % 256 for at in range(first, last))


def kept(audio: AudioFormat, encoding: str, payload: bytes) -> bytes:
    """Return a payload as a recording stores it."""
    if encoding == "pcm" or "L16" in audio.encoding:
        return audio.to_pcm(payload)
    return payload


def heard(recorder: WavRecorder, track: str) -> tuple[Wav, bytes]:
    wav = read_wav(recorder.files[track])
    return wav, wav.channel(recorder.tracks.index(track)) if recorder.layout == "stereo" else wav.audio


@pytest.mark.parametrize("audio", FORMATS, ids=each)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_recording_holds_the_received_audio(
    tmp_path: Path, audio: AudioFormat, encoding: Literal["pcm", "passthrough"], layout: Literal["mono", "stereo"]
) -> None:
    """Both tracks, in their places, and silence where nothing came."""
    sound = Sound(audio)
    with WavRecorder(tmp_path / "call.wav", audio, layout=layout, encoding=encoding) as recorder:
        recorder.write(MediaEvent("inbound", sound.of("inbound", 0, 20), 1, 0))
        recorder.write(MediaEvent("outbound", sound.of("outbound", 40, 20), 1, 40))
        recorder.write(MediaEvent("inbound", sound.of("inbound", 20, 20), 2, 20))
        recorder.write(MediaEvent("inbound", sound.of("inbound", 80, 20), 4, 80))

    is_law = encoding == "passthrough" and "law" in audio.encoding
    silent = audio.silence if is_law else b"\0\0"
    for track, parts in {"inbound": [(0, 40), (80, 20)], "outbound": [(40, 20)]}.items():
        wav, recorded = heard(recorder, track)
        end = 100 if layout == "stereo" or track == "inbound" else 60
        expected = bytearray(silent * audio.samples_in(end))
        for begin, length in parts:
            at = audio.samples_in(begin) * len(silent)
            part = kept(audio, encoding, sound.of(track, begin, length))
            expected[at : at + len(part)] = part
        assert recorded == bytes(expected)
        assert wav.tag == ({"audio/x-mulaw": 7, "audio/x-alaw": 6}[audio.encoding] if is_law else 1)
        assert (wav.channels, wav.sample_rate) == (2 if layout == "stereo" else 1, audio.sample_rate)


def test_pcm_recording_is_readable_by_wave_module(tmp_path: Path) -> None:
    """Also while the recording goes on."""
    with WavRecorder(tmp_path / "call.wav", MULAW) as recorder:
        for read in (0, 1):
            recorder.write(MediaEvent("inbound", b"\x80" * 160, read, 0))
            recorder.flush()
            with wave.open(str(recorder.path)) as reader:
                assert reader.getparams()[:3] == (2, 2, 8000)
                assert reader.getnframes() == 160 * (read + 1)


@pytest.mark.parametrize(
    ("path", "tracks", "files"),
    [
        ("call.wav", ("inbound", "outbound"), ["call-inbound.wav", "call-outbound.wav"]),
        ("call", ("inbound", "outbound"), ["call-inbound", "call-outbound"]),
        ("call.wav", ("outbound",), ["call.wav"]),
        ("a.b.wav", ("x", "y", "z"), ["a.b-x.wav", "a.b-y.wav", "a.b-z.wav"]),
    ],
)
def test_mono_has_a_file_for_each_track(tmp_path: Path, path: str, tracks: tuple[str, ...], files: list[str]) -> None:
    """Named after the track, where there are several; all of them are there from the start."""
    recorder = WavRecorder(tmp_path / path, MULAW, tracks, "mono")
    with recorder:
        assert sorted(file.name for file in tmp_path.iterdir()) == files
        assert [file.name for file in recorder.files.values()] == files

    assert all(read_wav(file).audio == b"" for file in recorder.files.values())


def test_single_track_takes_frames_without_track(tmp_path: Path) -> None:
    """With several, or of another track, they are ignored and counted."""
    one = WavRecorder(tmp_path / "one.wav", MULAW, ("inbound",), "mono", "passthrough")
    two = WavRecorder(tmp_path / "two.wav", MULAW, encoding="passthrough")
    for recorder in (one, two):
        with recorder:
            recorder.write(MediaEvent(None, b"ab", 1, 0))
            recorder.write(MediaEvent("sideband", b"cd", 1, 0))
            recorder.write(MediaEvent("inbound", b"ef", 2, 0))

    assert (read_wav(one.path).audio, one.ignored_frames) == (b"abef", 1)
    assert (read_wav(two.path).channel(0), two.ignored_frames) == (b"ef", 2)


def test_track_that_begins_much_later_is_beside_the_other(tmp_path: Path) -> None:
    """In one file or in two, though it is more than the longest gap."""
    for layout in LAYOUTS:
        recorder = WavRecorder(
            tmp_path / f"{layout}.wav", MULAW, layout=layout, encoding="passthrough", max_gap=10, tolerance=5
        )
        with recorder:
            for second in range(30):
                recorder.write(MediaEvent("inbound", b"i" * 8000, second + 1, 1000 * second))
            recorder.write(MediaEvent("outbound", b"o" * 160, 1, 29_500))
        assert heard(recorder, "outbound")[1].strip(b"\xff") == b"o" * 160
        assert heard(recorder, "outbound")[1].index(b"o") == 29_500 * 8
        assert heard(recorder, "inbound")[1] == b"i" * 240_000


def test_several_channels_are_kept_together(tmp_path: Path) -> None:
    """The platform sends one, and mono files could hold more."""
    audio = AudioFormat("audio/x-L16", 16000, channels=2)
    with WavRecorder(tmp_path / "call.wav", audio, ("inbound",), "mono") as recorder:
        recorder.write(MediaEvent("inbound", b"abcdABCD" * 160 + b"xyz", 1, 0))
        recorder.write(MediaEvent("inbound", b"efghEFGH" * 160, 2, 20))

    wav = read_wav(recorder.path)
    assert wav.channels == 2
    assert wav.audio == b"abcdABCD" * 160 + b"efghEFGH" * 160
    assert recorder.statistics["inbound"].partial_samples == 1


def test_statistics_count_frames(tmp_path: Path) -> None:
    """For each track, and it is there after the recording as well."""
    recorder = WavRecorder(tmp_path / "call.wav", AudioFormat("audio/x-L16", 16000))
    with recorder:
        for timestamp, chunk, payload in [(0, 1, bytes(640)), (0, 1, bytes(640)), (40, 3, bytes(641)), (60, 4, b"")]:
            recorder.write(MediaEvent("inbound", payload, chunk, timestamp))

    inbound, outbound = recorder.statistics["inbound"], recorder.statistics["outbound"]
    assert (inbound.frames, inbound.duplicates, inbound.gaps, inbound.partial_samples) == (2, 1, 1, 1)
    assert outbound.frames == 0


def test_recorder_is_used_between_its_beginning_and_its_end(tmp_path: Path) -> None:
    """Before and after, it says so."""
    recorder = WavRecorder(tmp_path / "call.wav", MULAW)

    def check_closed() -> None:
        for use in (
            recorder.flush,
            lambda: recorder.write(MediaEvent("inbound", b"ab", 1, 0)),
            lambda: recorder.write(MediaEvent("sideband", b"ab", 1, 0)),
        ):
            with pytest.raises(RecordingError, match=r"call\.wav is not open: enter it in a with statement first$"):
                use()

    check_closed()
    recorder.close()
    assert list(tmp_path.iterdir()) == []
    with recorder, pytest.raises(RecordingError, match=r"call\.wav is already open$"):
        recorder.open()
    check_closed()
    recorder.close()
    with pytest.raises(InvalidRequestError, match="already exists"):
        recorder.open()


def test_no_file_is_left_when_another_cant_be_made(tmp_path: Path) -> None:
    """All of a recording's files, or none."""
    (tmp_path / "call-outbound.wav").write_bytes(b"precious")
    recorder = WavRecorder(tmp_path / "call.wav", MULAW, layout="mono")

    with pytest.raises(InvalidRequestError, match=r"call-outbound\.wav already exists"):
        recorder.open()
    assert [file.name for file in tmp_path.iterdir()] == ["call-outbound.wav"]
    (tmp_path / "call-outbound.wav").unlink()
    with recorder:
        assert len(list(tmp_path.iterdir())) == 2


def test_full_recording_says_so_and_can_be_played(tmp_path: Path) -> None:
    """Frames beyond the end are rejected one by one."""
    with WavRecorder(tmp_path / "call.wav", MULAW, encoding="passthrough", max_bytes=400) as recorder:
        recorder.write(MediaEvent("inbound", b"i" * 160, 1, 0))
        for timestamp in (20, 40, 1 << 62):
            with pytest.raises(RecordingFullError, match="is full: its limit is 400 bytes"):
                recorder.write(MediaEvent("inbound", b"i" * 160, None, timestamp))
        recorder.write(MediaEvent("outbound", b"o" * 160, 1, 0))

    assert heard(recorder, "inbound")[1] == b"i" * 160
    assert heard(recorder, "outbound")[1] == b"o" * 160


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"path": ""}, "invalid path"),
        ({"path": "/"}, "invalid path"),
        ({"path": None}, "invalid path 'None': name a file"),
        ({"tracks": ()}, "invalid tracks"),
        ({"tracks": None}, "invalid tracks None: name each track once"),
        ({"tracks": "ab"}, "invalid tracks 'ab': name each track once"),
        ({"tracks": ("inbound", "inbound")}, "invalid tracks"),
        ({"tracks": ("inbound", "../../etc/passwd")}, "invalid track name"),
        ({"tracks": ("inbound", "")}, "invalid track name"),
        ({"tracks": ("inbound", 2)}, "invalid track name"),
        ({"tracks": ("a", "b", "c")}, "layout='stereo' takes two tracks"),
        ({"tracks": ("inbound",)}, "layout='stereo' takes two tracks"),
        ({"format": AudioFormat("audio/x-L16", channels=2)}, "layout='stereo' takes two tracks of one channel each"),
        ({"format": "audio/x-mulaw"}, "format must be an AudioFormat, not str: pass session.audio_format"),
        ({"layout": "quadro"}, "layout must be one of 'mono', 'stereo', not 'quadro'"),
        ({"encoding": "mp3"}, "encoding must be one of 'pcm', 'passthrough', not 'mp3'"),
        ({"max_gap": 0}, "max_gap must be"),
        ({"max_gap": "60"}, "max_gap must be a number of seconds"),
        ({"tolerance": -1}, "tolerance must be"),
        ({"tolerance": "8"}, "tolerance must be a number of milliseconds"),
        ({"max_bytes": 0}, "max_bytes must be"),
        ({"max_bytes": "1 GB"}, "max_bytes must be a number of bytes above 0, not '1 GB'"),
    ],
)
def test_invalid_argument_is_rejected(wrong: dict[str, Any], told: str) -> None:
    """Before any file is made."""
    with pytest.raises(InvalidRequestError, match=told):
        WavRecorder(**{"path": "call.wav", "format": MULAW, **wrong})


def test_event_without_audio_is_rejected(tmp_path: Path) -> None:
    """Also one that names a track."""
    event: Any = DtmfEvent(digit="5", track="inbound")
    with (
        WavRecorder(tmp_path / "call.wav", MULAW) as recorder,
        pytest.raises(InvalidRequestError, match="an object of type DtmfEvent has no audio to record: pass only"),
    ):
        recorder.write(event)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("inbound", "abc", 1, 0), "payload of type str"),
        (("inbound", None, 1, 0), "payload of type NoneType"),
        (("inbound", [1], 1, 0), "payload of type list"),
        (("inbound", b"abc", 1, "0"), "timestamp of type str"),
        (("inbound", b"abc", 1, 0.0), "timestamp of type float"),
        (("inbound", b"abc", "1", 0), "chunk of type str"),
        (("inbound", b"abc", 1.0, 0), "chunk of type float"),
    ],
)
def test_event_of_wrong_types_is_rejected(tmp_path: Path, wrong: Any, told: str) -> None:
    """Before it changes anything."""
    with WavRecorder(tmp_path / "call.wav", MULAW) as recorder:
        recorder.write(MediaEvent("inbound", b"1" * 160, 1, 0))
        with pytest.raises(InvalidRequestError, match=f"{told} can't be recorded: .* bytes"):
            recorder.write(MediaEvent(*wrong))
        recorder.write(MediaEvent("inbound", b"2" * 160, 2, 20))
        recorder.write(MediaEvent("inbound", b"2" * 160, None, None))
    assert len(read_wav(tmp_path / "call.wav").audio) == 480 * 4


def test_unknown_encoding_raises_on_creation() -> None:
    """The recorder can't be created, so no file is."""
    with pytest.raises(UnknownEncodingError):
        WavRecorder("call.wav", AudioFormat("audio/opus", 48000))


KILLED = """
import os, signal, sys
from signalwire_streams.receiver import MediaEvent
from signalwire_streams.receiver.audio import AudioFormat, WavRecorder

recorder = WavRecorder(sys.argv[1], AudioFormat("audio/x-L16", 16000))
recorder.open()
for chunk in range(500):
    recorder.write(MediaEvent("inbound", bytes([chunk % 256]) * 640, chunk + 1, 20 * chunk))
    if chunk > 100:
        recorder.write(MediaEvent("outbound", bytes([chunk % 256]) * 640, chunk - 100, 20 * (chunk - 100)))
os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
"""


def test_file_of_a_killed_process_can_be_played(tmp_path: Path) -> None:
    """It lacks two seconds at most, on either track."""
    path = tmp_path / "call.wav"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)  # noqa: S603

    assert killed.returncode != 0
    with wave.open(str(path)) as reader:
        frames = reader.getnframes()
        played = reader.readframes(frames)
    assert 8 * 16000 <= frames <= 10 * 16000
    assert len(played) == 4 * frames
    for chunk in range(frames // 320):
        assert played[chunk * 1280 : chunk * 1280 + 2] == bytes([chunk % 256]) * 2
    assert played[1 * 1280 + 2 : 1 * 1280 + 4] == bytes([101]) * 2


TRACKS = st.sampled_from(["inbound", "outbound"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Frame], list[Frame]]:
    """Return the frames of two tracks, and those that arrive: some are lost, repeated, or out of order."""
    sent: list[Frame] = []
    for track in ("inbound", "outbound"):
        lengths = draw(st.lists(st.integers(1, 60), max_size=12))
        begin = draw(st.integers(0, 3000))
        begins = accumulate(lengths, initial=begin)
        sent += [(track, at, chunk, length) for chunk, (at, length) in enumerate(zip(begins, lengths, strict=False), 1)]
    return sent, draw(st.lists(st.sampled_from(sent), max_size=30)) if sent else []


@settings(max_examples=25)
@given(streams(), st.sampled_from(FORMATS), st.sampled_from(ENCODINGS), st.sampled_from(LAYOUTS))
def test_any_arrival_is_recorded_in_place(
    frames: tuple[list[Frame], list[Frame]],
    audio: AudioFormat,
    encoding: Literal["pcm", "passthrough"],
    layout: Literal["mono", "stereo"],
) -> None:
    """Whatever is lost, repeated or out of order: each frame is where it was, once, and all else is silence."""
    _, arrived = frames
    sound = Sound(audio)
    with TemporaryDirectory() as folder:
        recorder = WavRecorder(Path(folder) / "call.wav", audio, layout=layout, encoding=encoding, tolerance=0)
        with recorder:
            for track, timestamp, chunk, length in arrived:
                recorder.write(MediaEvent(track, sound.of(track, timestamp, length), chunk, timestamp))
        recorded = {track: heard(recorder, track)[1] for track in recorder.tracks}
    silent = kept(audio, encoding, audio.silence) if encoding == "passthrough" else b"\0\0"
    ends = {track: max((at + length for of, at, _, length in arrived if of == track), default=0) for track in recorded}
    if layout == "stereo":
        ends = dict.fromkeys(ends, max(ends.values()))
    for track, found in recorded.items():
        expected = bytearray(silent * audio.samples_in(ends[track]))
        for of, timestamp, _, length in arrived:
            if of == track:
                at = audio.samples_in(timestamp) * len(silent)
                part = kept(audio, encoding, sound.of(track, timestamp, length))
                expected[at : at + len(part)] = part
        assert found == bytes(expected)


OUTLIERS = [-1, 0, 1 << 31, (1 << 63) - 1, 600 + 500, 600 + 900, 600 + 60_000]


@pytest.mark.parametrize("absurd", OUTLIERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_absurd_timestamp_leaves_the_recording_as_it_is(
    tmp_path: Path, absurd: int, layout: Literal["mono", "stereo"]
) -> None:
    """The first, any, or the last frame of one track: both tracks are recorded to the sample, and no longer."""
    sound = Sound(MULAW)
    for at in (0, 1, 30, 59):
        path = tmp_path / f"{at}.wav"
        with WavRecorder(path, MULAW, layout=layout, encoding="passthrough") as recorder:
            for slot in range(60):
                for track in recorder.tracks:
                    timestamp = absurd if (track, slot) == ("inbound", at) else 20 * slot
                    recorder.write(MediaEvent(track, sound.of(track, 20 * slot, 20), slot + 1, timestamp))
        for track in recorder.tracks:
            assert heard(recorder, track)[1] == sound.of(track, 0, 1200)


@pytest.mark.parametrize("absurd", [0, 32_000, 1 << 40])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_absurd_timestamps_that_agree_leave_the_recording_as_it_is(
    tmp_path: Path, absurd: int, layout: Literal["mono", "stereo"]
) -> None:
    """The gap that they made is taken out of the file again."""
    sound = Sound(MULAW)
    for at in (0, 30, 56):
        with WavRecorder(tmp_path / f"{at}.wav", MULAW, layout=layout, encoding="passthrough") as recorder:
            for slot in range(60):
                for track in recorder.tracks:
                    is_wrong = track == "outbound" and slot in {at, at + 1}
                    timestamp = absurd + 20 * (slot - at) if is_wrong else 20 * slot
                    recorder.write(MediaEvent(track, sound.of(track, 20 * slot, 20), slot + 1, timestamp))
        for track in recorder.tracks:
            assert heard(recorder, track)[1] == sound.of(track, 0, 1200)


@pytest.mark.parametrize(("audio", "pause"), [*product(FORMATS, [10, 500]), (FORMATS[0], 30_000)])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_frame_after_a_pause_is_moved_to_its_place(
    tmp_path: Path, audio: AudioFormat, encoding: Literal["pcm", "passthrough"], pause: int
) -> None:
    """As soon as the next one agrees with it; where it was before is silence."""
    sound = Sound(audio)
    begins = [0, 20, 40 + pause, 60 + pause, 80 + pause]
    with WavRecorder(tmp_path / "call.wav", audio, layout="stereo", encoding=encoding) as recorder:
        for chunk, begin in enumerate(begins, 1):
            recorder.write(MediaEvent("outbound", sound.of("outbound", begin, 20), chunk, begin))
            recorder.write(MediaEvent("inbound", sound.of("inbound", 20 * (chunk - 1), 20), chunk, 20 * (chunk - 1)))

    silent = audio.silence if encoding == "passthrough" else b"\0\0"
    expected = [silent * audio.samples_in(100 + pause)] * 2
    expected[0] = kept(audio, encoding, sound.of("inbound", 0, 100)) + silent * audio.samples_in(pause)
    spoken = [kept(audio, encoding, sound.of("outbound", begin, 20)) for begin in begins]
    expected[1] = b"".join(spoken[:2]) + silent * audio.samples_in(pause) + b"".join(spoken[2:])
    assert [heard(recorder, track)[1] for track in recorder.tracks] == expected


def test_several_channels_move_together(tmp_path: Path) -> None:
    audio = AudioFormat("audio/x-L16", 16000, channels=2)
    with WavRecorder(tmp_path / "call.wav", audio, ("inbound",), "mono") as recorder:
        for chunk, (timestamp, sample) in enumerate([(0, b"aabb"), (520, b"ccdd"), (540, b"eeff")], 1):
            recorder.write(MediaEvent("inbound", sample * 320, chunk, timestamp))

    expected = b"aabb" * 320 + bytes(500 * 64) + b"ccdd" * 320 + b"eeff" * 320
    assert read_wav(recorder.path).audio == expected


def test_frames_of_a_numbering_that_restarts_are_recorded(tmp_path: Path) -> None:
    """All of them, those that were taken for repeated ones at first as well."""
    sound = Sound(MULAW)
    with WavRecorder(tmp_path / "call.wav", MULAW, ("inbound",), "mono", "passthrough") as recorder:
        for slot in range(60):
            recorder.write(MediaEvent("inbound", sound.of("inbound", 20 * slot, 20), slot % 20 + 1, 20 * (slot % 20)))

    assert read_wav(recorder.path).audio == sound.of("inbound", 0, 1200)
    assert recorder.statistics["inbound"].restarts == 2


@pytest.mark.parametrize(("count", "silent"), [(1, 0), (3, 0), (3, 1), (7, 6)])
def test_numbering_that_restarts_early_is_recorded(tmp_path: Path, count: int, silent: int) -> None:
    """The payloads show that the frames are new, also if both numberings begin with silence."""
    sound = Sound(MULAW)
    payloads = [
        b"\xff" * 160 if slot % count < silent and slot < 2 * count else sound.of("inbound", 20 * slot, 20)
        for slot in range(count + 30)
    ]
    with WavRecorder(tmp_path / "call.wav", MULAW, ("inbound",), "mono", "passthrough") as recorder:
        for slot, payload in enumerate(payloads):
            number = slot if slot < count else slot - count
            recorder.write(MediaEvent("inbound", payload, number + 1, 20 * number))

    assert heard(recorder, "inbound")[1] == b"".join(payloads)
    assert recorder.statistics["inbound"].duplicates == 0


def test_recording_that_is_full_says_so_when_a_frame_is_moved(tmp_path: Path) -> None:
    """And again for each frame after it; what can be kept is kept."""
    sound = Sound(MULAW)
    with WavRecorder(tmp_path / "call.wav", MULAW, ("inbound",), "mono", "passthrough", max_bytes=4000) as recorder:
        recorder.write(MediaEvent("inbound", sound.of("inbound", 0, 20), 1, 0))
        recorder.write(MediaEvent("inbound", sound.of("inbound", 1000, 20), 2, 1000))
        for slot in range(6):
            with pytest.raises(RecordingFullError):
                recorder.write(MediaEvent("inbound", b"i" * 160, 3 + slot, 1020 + 20 * slot))

    assert read_wav(recorder.path).audio.rstrip(b"\xff") == sound.of("inbound", 0, 20).rstrip(b"\xff")


def blocks(path: Path) -> int:
    """Return the bytes that a file takes on disk."""
    return path.stat().st_blocks * 512


JUMPS = [59_000 * slot for slot in range(199)]


def test_long_gaps_take_no_space(tmp_path: Path) -> None:
    """Timestamps that jump by less than the longest gap each time make a long recording, and a small file."""
    with WavRecorder(tmp_path / "call.wav", MULAW) as recorder:
        for chunk, timestamp in enumerate(JUMPS, 1):
            recorder.write(MediaEvent("inbound", b"i" * 160, chunk, timestamp))
        recorder.flush()
        assert blocks(recorder.path) < 199 * 3 * 4096

    timeline = recorder.statistics["inbound"]
    assert (timeline.gaps, timeline.truncated_gaps) == (196, 0)
    with wave.open(str(recorder.path)) as reader:
        assert reader.getnframes() == 8 * (59_000 * 196 + 3 * 20)


@pytest.mark.parametrize("numbered", ["follow", "jump", "none"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_live_silence_is_no_longer_than_the_time_that_passed(
    tmp_path: Path, encoding: Literal["pcm", "passthrough"], numbered: str
) -> None:
    """And five seconds, whatever the timestamps and the numbers say."""
    recorder = WavRecorder(tmp_path / "call.wav", MULAW, encoding=encoding)
    with recorder:
        for slot, timestamp in enumerate(JUMPS):
            chunk = {"follow": slot + 1, "jump": 2950 * slot + 1, "none": None}[numbered]
            for track in recorder.tracks:
                event = MediaEvent(
                    track=track, payload=b"i" * 160, chunk=chunk, timestamp=timestamp, elapsed=slot * 0.01
                )
                recorder.write(event)

    wav = read_wav(recorder.path)
    assert len(wav.audio) // wav.block / 8000 <= 199 * 0.02 + 198 * 0.01 + 5
    assert recorder.statistics["inbound"].frames == 199
    assert recorder.statistics["inbound"].truncated_gaps > 0


def test_live_gaps_that_did_pass_are_kept(tmp_path: Path) -> None:
    """A recorder that is opened late, a pause, and a track that begins late are where they were."""
    sound = Sound(MULAW)
    with WavRecorder(tmp_path / "call.wav", MULAW, encoding="passthrough") as recorder:
        for track, begin in [("inbound", 20_000), ("inbound", 70_000), ("outbound", 70_000)]:
            for slot in range(3):
                at = begin + 20 * slot
                chunk = slot + 1 + 3 * (track == "inbound" and begin > 20_000)
                event = MediaEvent(
                    track=track,
                    payload=sound.of(track, at, 20),
                    chunk=chunk,
                    timestamp=at,
                    elapsed=at / 1000 - 4,  # the start event came four seconds late
                )
                recorder.write(event)

    silent = b"\xff" * 8
    one = silent * 20_000 + sound.of("inbound", 20_000, 60) + silent * 49_940 + sound.of("inbound", 70_000, 60)
    other = silent * 70_000 + sound.of("outbound", 70_000, 60)
    assert [heard(recorder, track)[1] for track in recorder.tracks] == [one, other]


def test_full_disk_leaves_a_recording_that_can_be_played(tmp_path: Path) -> None:
    """Here, a process that may write no more than 100,000 bytes into a file."""
    path = tmp_path / "call.wav"
    code = """
import resource, signal, sys
from signalwire_streams.receiver import MediaEvent
from signalwire_streams.receiver.audio import AudioFormat, RecordingError, WavRecorder

sys.dont_write_bytecode = True
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with WavRecorder(sys.argv[1], AudioFormat("audio/x-mulaw")) as recorder:
    try:
        for chunk in range(500):
            recorder.write(MediaEvent("inbound", bytes([chunk % 256]) * 160, chunk + 1, 20 * chunk))
    except RecordingError as error:
        print(type(error).__name__, "can't be written" in str(error))
"""
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True)  # noqa: S603

    assert ended.stdout.split() == [b"RecordingError", b"True"]
    with wave.open(str(path)) as reader:
        assert 2 * 8000 <= reader.getnframes() <= 25_000
        assert len(reader.readframes(25_000)) == 4 * reader.getnframes()
