"""WAV files that a Space can play, and files that it rejects."""

import os
import wave
from array import array
from pathlib import Path

import pytest

from signalwire_streams.simulator import SimulatedSpace, WavFile


def written(path: Path, *, channels: int = 1, width: int = 2, rate: int = 8_000, audio: bytes = bytes(320)) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(audio)
    return path


def test_missing_file_is_rejected_at_once(tmp_path: Path) -> None:
    """When it is named, not when the first stream starts."""
    with pytest.raises(FileNotFoundError, match=r"nonexistent\.wav"):
        SimulatedSpace(audio=WavFile(tmp_path / "nonexistent.wav"))


@pytest.mark.parametrize(("channels", "width"), [(1, 1), (1, 3), (3, 2)])
def test_file_of_another_format_is_rejected(tmp_path: Path, channels: int, width: int) -> None:
    path = written(tmp_path / "a.wav", channels=channels, width=width, audio=bytes(channels * width))
    with pytest.raises(ValueError, match=r"a\.wav is not a WAV file of 16-bit PCM with one or two channels$"):
        WavFile(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "it ends too soon"), (b"no audio at all", "does not start with RIFF"), (b"RIFF\xff\0\0\0WAVE", "missing")],
)
def test_file_that_is_not_wav_is_rejected(tmp_path: Path, content: bytes, sentence: str) -> None:
    """The message names the file."""
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.wav is not a WAV file: .*{sentence}"):
        WavFile(tmp_path / "a.wav")


def test_file_without_sample_rate_is_rejected(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav")
    path.write_bytes(path.read_bytes()[:24] + bytes(4) + path.read_bytes()[28:])
    with pytest.raises(ValueError, match=r"a\.wav is not a WAV file"):
        WavFile(path)


@pytest.mark.parametrize(
    ("rate", "samples"),
    [
        (8_000, [0, 100, 200, 300, 400, 500]),
        (16_000, [0, 50, 100, 150, 200, 250, 300, 350, 400, 450, 500, 500]),
        (4_000, [0, 200, 400]),
    ],
)
def test_file_is_played_at_any_rate(tmp_path: Path, rate: int, samples: list[int]) -> None:
    """In any pieces: here as a whole, and sample by sample."""
    audio = array("h", [0, 100, 200, 300, 400, 500]).tobytes()
    clip = WavFile(written(tmp_path / "a.wav", audio=audio)).clip("inbound", rate)
    assert clip.length == len(samples)
    assert list(clip.read(0, clip.length)) == samples
    assert [clip.read(at, at + 1)[0] for at in range(clip.length)] == samples


def test_truncated_file_is_played_up_to_its_end(tmp_path: Path) -> None:
    """All whole samples are played; that the rest is missing goes unnoticed."""
    path = written(tmp_path / "a.wav", audio=array("h", [7] * 100).tobytes())
    path.write_bytes(path.read_bytes()[:-11])
    assert list(WavFile(path).clip("inbound", 8_000).samples(0, 100)) == [7] * 94


def test_replaced_file_is_validated_again(tmp_path: Path) -> None:
    sound = WavFile(written(tmp_path / "a.wav"))
    written(tmp_path / "a.wav", width=1)
    with pytest.raises(ValueError, match="not a WAV file of 16-bit PCM"):
        sound.clip("inbound", 8_000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_is_rejected_without_opening_it(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to would block for ever."""
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(ValueError, match=r"pipe\.wav is not a regular file: write the path of a WAV file"):
        WavFile(tmp_path / "pipe.wav")


def test_file_replaced_by_named_pipe_is_rejected_while_playing(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", audio=bytes(3_200))
    clip = WavFile(path).clip("inbound", 8_000)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is not a regular file"):
        clip.read(0, 160)
