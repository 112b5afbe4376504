"""Headers, and files that grow: what is on disk at any moment, and what happens when the disk is no help."""

import errno
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver.audio import AudioFormat, RecordingError, RecordingFullError, UnknownEncodingError
from signalwire_streams.receiver.audio._wav_file import WavFile, WavShape, padding

from .wavs import read_wav

MULAW, ALAW, L16 = AudioFormat("audio/x-mulaw"), AudioFormat("audio/x-alaw"), AudioFormat("audio/x-L16", 16000)
PCM = WavShape.from_format(MULAW, channels=1, decoded=True)
STEREO = WavShape.from_format(MULAW, channels=2, decoded=True)
CODES = WavShape.from_format(MULAW, channels=1, decoded=False)
SECOND = 16_000  # bytes of PCM


class Faulty:
    """A file whose disk is full."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def write(self, _: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def break_disk(file: Any) -> None:
    file._file = Faulty(file._file)


@pytest.mark.parametrize(
    ("audio", "decoded", "tag", "rate", "bits", "silence"),
    [
        (MULAW, True, 1, 8000, 16, b"\0\0"),
        (MULAW, False, 7, 8000, 8, b"\xff"),
        (ALAW, True, 1, 8000, 16, b"\0\0"),
        (ALAW, False, 6, 8000, 8, b"\xd5"),
        (L16, True, 1, 16000, 16, b"\0\0"),
        (L16, False, 1, 16000, 16, b"\0\0"),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_header_has_the_shape(
    tmp_path: Path,
    audio: AudioFormat,
    decoded: bool,
    tag: int,
    rate: int,
    bits: int,
    silence: bytes,
    channels: int,
) -> None:
    """A header says what the audio is and how much of it there is; what is not PCM has its length in samples, too."""
    shape = WavShape.from_format(audio, channels=channels, decoded=decoded)
    content = bytes(range(3 * shape.block))
    path = tmp_path / "a.wav"
    path.write_bytes(shape.header(len(content)) + content + bytes(padding(len(content))))

    wav = read_wav(path)
    assert (wav.tag, wav.channels, wav.sample_rate, wav.bits) == (tag, channels, rate, bits)
    assert wav.audio == content
    assert wav.samples == (None if tag == 1 else 3)
    assert shape.silence == silence
    assert len(shape.header(0)) == len(shape.header(shape.max_bytes))


def test_shape_limits_bytes_to_its_header() -> None:
    """The whole file's size has 32 bits, the padding and most of the header included."""
    for shape in (PCM, STEREO, CODES, WavShape.from_format(ALAW, channels=2, decoded=False)):
        assert shape.max_bytes % shape.block == 0
        size = int.from_bytes(shape.header(shape.max_bytes)[4:8], "little")
        assert (1 << 32) - 16 < size < 1 << 32


def test_unknown_encoding_has_no_shape() -> None:
    with pytest.raises(UnknownEncodingError):
        WavShape.from_format(AudioFormat("audio/opus"), channels=1, decoded=False)


def test_file_is_well_formed_from_the_start(tmp_path: Path) -> None:
    """And after each flush, and closed, also where its audio ends on an odd byte."""
    path = tmp_path / "a.wav"
    file = WavFile.create(path, CODES)
    assert read_wav(path).audio == b""
    file.write(0, b"abc")
    assert read_wav(path).audio == b""
    file.flush()
    assert read_wav(path).audio == b"abc"
    assert path.stat().st_size % 2 == 0
    file.write(3, b"defg")
    file.close()
    file.close()

    assert read_wav(path).audio == b"abcdefg"
    assert read_wav(path).samples == file.size == 7


def test_audio_goes_to_disk_every_two_seconds(tmp_path: Path) -> None:
    """And the file is well-formed all the time."""
    path = tmp_path / "a.wav"
    file = WavFile.create(path, PCM)
    for sample in range(0, 80_000, 160):
        file.write(sample, sample.to_bytes(4, "little") * 80)
        with wave.open(str(path)) as reader:
            assert reader.getnframes() >= sample - 2 * 8000
        assert len(file._tail) <= 3 * SECOND
    file.close()

    assert read_wav(path).audio == b"".join(sample.to_bytes(4, "little") * 80 for sample in range(0, 80_000, 160))


@pytest.mark.parametrize("gap", [1, 7_999, 16_000, 16_001, 100_000])
@pytest.mark.parametrize("shape", [PCM, STEREO, CODES], ids=["pcm", "stereo", "codes"])
def test_gaps_are_silence(tmp_path: Path, shape: WavShape, gap: int) -> None:
    """Short ones and long ones, before the first audio and between."""
    file = WavFile.create(tmp_path / "a.wav", shape)
    audio = b"ab" * shape.block
    length = len(audio) // shape.block
    file.write(gap, audio)
    file.write(gap + length + gap, audio)
    file.close()

    silence = shape.silence * shape.channels * gap
    assert read_wav(file.path).audio == silence + audio + silence + audio


@pytest.mark.parametrize("shape", [STEREO, WavShape.from_format(ALAW, channels=2, decoded=False)], ids=["pcm", "codes"])
@pytest.mark.parametrize("behind", [0, 500, 8_000, 20_000, 60_000])
def test_channels_meet_however_far_apart_they_are(tmp_path: Path, shape: WavShape, behind: int) -> None:
    """In memory or on disk, and what is there of the other channel stays."""
    file = WavFile.create(tmp_path / "a.wav", shape)
    width = shape.width
    left = bytes(number % 251 for number in range(64_000 * width))
    right = bytes(number % 241 for number in range(64_000 * width))
    for sample in range(0, 64_000 + behind, 500):
        file.write(sample, left[sample * width : (sample + 500) * width] or bytes(width), 0)
        if (late := sample - behind) >= 0:
            file.write(late, right[late * width : (late + 500) * width], 1)
        assert len(file._tail) <= 3 * 8000 * shape.block
    file.close()

    wav = read_wav(file.path)
    assert wav.channel(0)[: len(left)] == left
    assert wav.channel(1)[: len(right)] == right


def test_audio_may_come_for_a_place_that_is_partly_on_disk(tmp_path: Path) -> None:
    """Each part goes where it belongs, of one channel or of all."""
    mono, stereo = WavFile.create(tmp_path / "a.wav", PCM), WavFile.create(tmp_path / "b.wav", STEREO)
    mono.write(0, bytes(4 * SECOND))
    stereo.write(0, bytes(4 * SECOND), 0)
    mono.write(10, b"ab" * 30_000)
    stereo.write(10, b"ab" * 30_000, 1)
    mono.write(5, b"cd")
    mono.close()
    stereo.close()

    written = bytes(20) + b"ab" * 30_000 + bytes(4 * SECOND - 60_020)
    assert read_wav(stereo.path).channel(0) == bytes(4 * SECOND)
    assert read_wav(stereo.path).channel(1) == written
    assert read_wav(mono.path).audio == bytes(10) + b"cd" + written[12:]


@pytest.mark.parametrize("most", [10_000, 10_001])
def test_file_that_is_full_says_so_and_keeps_what_it_has(tmp_path: Path, most: int) -> None:
    """A frame is written as a whole or not at all, and late ones still fit in."""
    file = WavFile.create(tmp_path / "a.wav", PCM, max_bytes=most)
    file.write(1, b"ab" * 4000)
    for _ in range(2):
        with pytest.raises(RecordingFullError, match=rf"a.wav is full: its limit is {most} bytes$") as caught:
            file.write(4001, b"cd" * 1000)
        assert caught.value.path == file.path
    file.write(4001, b"cd" * 999)
    file.write(0, b"ef")
    file.close()

    assert read_wav(file.path).audio == b"ef" + b"ab" * 4000 + b"cd" * 999


def test_file_holds_what_its_header_can_tell_and_no_more(tmp_path: Path) -> None:
    """Whatever one asks for."""
    file = WavFile.create(tmp_path / "a.wav", PCM, max_bytes=1 << 40)
    with pytest.raises(RecordingFullError):
        file.write(1 << 31, b"ab")
    with pytest.raises(RecordingFullError):
        file.write(1 << 63, b"ab")
    file.close()

    assert read_wav(file.path).audio == b""


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"precious")

    with pytest.raises(InvalidRequestError, match=r"a\.wav already exists: choose another file$"):
        WavFile.create(path, PCM)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["missing/a.wav", "a\0.wav"])
def test_file_that_cannot_be_created_raises(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecordingError, match=r"can't be created: ") as caught:
        WavFile.create(tmp_path / name, PCM)
    assert caught.value.path == tmp_path / name


def test_file_whose_header_cant_be_written_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda path, mode: Faulty(open(path, mode)))  # noqa: PTH123, SIM115

    with pytest.raises(RecordingError, match=r"can't be written: .*No space left"):
        WavFile.create(tmp_path / "a.wav", PCM)
    assert list(tmp_path.iterdir()) == []


def fill(file: WavFile) -> None:
    for sample in range(40_000, 100_000, 1000):
        file.write(sample, bytes(2000))


USES: dict[str, Callable[[WavFile], None]] = {
    "more audio": fill,
    "audio further back": lambda file: file.write(0, b"ab"),
    "audio further on": lambda file: file.write(80_000, b"ab"),
    "less audio": lambda file: file.shorten(39_000),
    "flush": WavFile.flush,
    "close": WavFile.close,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_full_disk_ends_the_file(tmp_path: Path, use: Callable[[WavFile], None]) -> None:
    """From then on everything says so at once, memory does not grow, and what is on disk can be played."""
    file = WavFile.create(tmp_path / "a.wav", PCM)
    file.write(0, b"ab" * 40_000)
    file.write(40_000, b"ab")
    break_disk(file)

    with pytest.raises(RecordingError, match=r"a\.wav can't be written: .*No space left") as caught:
        use(file)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.path == file.path
    for again in (file.flush, lambda: file.write(90_000, b"ab")):
        with pytest.raises(RecordingError):
            again()
    file.close()

    with wave.open(str(file.path)) as reader:
        assert reader.readframes(40_000) == b"ab" * 40_000


def test_closed_file_rejects_audio(tmp_path: Path) -> None:
    file = WavFile.create(tmp_path / "a.wav", PCM)
    file.close()

    for use in (file.flush, lambda: file.write(0, b"ab")):
        with pytest.raises(RecordingError, match=r"a\.wav is closed$"):
            use()


def test_file_that_was_shortened_by_others_does_no_harm(tmp_path: Path) -> None:
    """Missing bytes are read as zeros."""
    file = WavFile.create(tmp_path / "a.wav", STEREO)
    file.write(0, b"ab" * 40_000, 0)
    with file.path.open("r+b") as other:
        other.truncate(100)
    file.write(1000, b"cd", 1)
    file.close()

    at = len(STEREO.header(0)) + 1000 * STEREO.block
    assert file.path.read_bytes()[at : at + STEREO.block] == b"\0\0cd"


@pytest.mark.skipif(sys.platform == "win32", reason="an open file can't be removed there")
@pytest.mark.parametrize("replaced", [False, True])
def test_file_that_was_removed_or_replaced_ends_in_an_error(tmp_path: Path, replaced: bool) -> None:
    """With the next audio that goes to disk, at the latest after two seconds; the other file is left alone."""
    file = WavFile.create(tmp_path / "a.wav", PCM)
    file.write(0, b"ab" * 2 * 8_000)
    if replaced:
        (tmp_path / "other").write_bytes(b"other")
        (tmp_path / "other").rename(file.path)
    else:
        file.path.unlink()
    with pytest.raises(RecordingError, match=r"a\.wav can't be written: the file was removed or replaced$"):
        file.write(16_000, b"ab")
    with pytest.raises(RecordingError, match=r"removed or replaced$"):
        file.write(32_000, b"ab")
    file.close()

    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"other"] * replaced


@pytest.mark.skipif(sys.platform == "win32", reason="an open file can't be removed there")
def test_closing_a_file_that_was_removed_ends_in_an_error(tmp_path: Path) -> None:
    file = WavFile.create(tmp_path / "a.wav", PCM)
    file.path.unlink()
    with pytest.raises(RecordingError, match=r"removed or replaced$"):
        file.close()


def test_file_that_was_renamed_is_written_under_its_new_name(tmp_path: Path) -> None:
    file = WavFile.create(tmp_path / "a.wav", PCM)
    moved = file.path.rename(tmp_path / "b.wav")
    file.write(0, b"ab" * 40_000)
    file.close()

    assert read_wav(moved).audio == b"ab" * 40_000


def test_file_that_is_discarded_is_gone(tmp_path: Path) -> None:
    """Even if somebody was faster."""
    file = WavFile.create(tmp_path / "a.wav", PCM)
    file.discard()
    file.discard()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [PCM, STEREO, CODES], ids=["pcm", "stereo", "codes"])
@pytest.mark.parametrize("left", [0, 1, 7_999, 40_000, 79_999, 80_000, 90_000])
def test_file_may_be_shortened(tmp_path: Path, shape: WavShape, left: int) -> None:
    """In memory or on disk; it is well-formed at once, and audio may follow."""
    file = WavFile.create(tmp_path / "a.wav", shape)
    audio = bytes(number % 251 for number in range(80_000 * shape.block))
    for sample in range(0, 80_000, 1000):
        file.write(sample, audio[sample * shape.block : (sample + 1000) * shape.block])
    file.shorten(left)
    file.flush()
    rest = audio[: left * shape.block]
    assert read_wav(file.path).audio == rest
    file.write(len(rest) // shape.block, b"ab" * shape.block)
    file.close()

    assert read_wav(file.path).audio == rest + b"ab" * shape.block


def test_long_gap_takes_no_space(tmp_path: Path) -> None:
    """Where silence is zeros; in other encodings it has to be written."""
    for shape, most in ((PCM, 16_384), (STEREO, 16_384), (CODES, 700_000)):
        file = WavFile.create(tmp_path / f"{shape.channels}-{shape.tag}.wav", shape)
        file.write(600_000, b"ab" * shape.block)
        file.flush()
        assert file.path.stat().st_blocks * 512 <= most
        file.close()
        assert read_wav(file.path).audio == shape.silence * shape.channels * 600_000 + b"ab" * shape.block
