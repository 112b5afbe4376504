"""Resampling of linear PCM with soxr, from the extra ``audio``.

soxr's own streaming mode works in blocks: from 8 to 16 kHz it holds back 12 to 115 ms, and then releases them at once.
So each piece is resampled as a whole here, with the audio around it as context, and only its middle is used. That
holds back 10 ms, always. Since resampling is linear, the usual rates need soxr only once, to make a matrix: multiplying
each block of 5 ms by it takes a tenth of the time.
"""

from functools import cache
from importlib.util import find_spec
from math import gcd
from typing import Any

from signalwire_streams.receiver.audio._formats import PCM_SIZE, whole_number

_MAX_RATE, _MAX_CHANNELS = 768_000, 16
_CONTEXT = 100  # per second: the filter's reach at each side is 10 ms of the lower rate's telephony bandwidth
_MAX_MATRIX = 48_000 * 16_000  # product of the rates: 5 MB
_MAX_MATRICES = 8
_LEAST = 200  # per second: less than 5 ms of new audio waits for more, since a call costs the same for any length

_matrices: dict[tuple[int, int], Any] = {}  # of `_Blocks`, by their rates


class Resampler:
    """Converts the sample rate of one track, piece by piece: 16-bit linear PCM, little-endian, channels interleaved.

    How the audio is cut into pieces changes what it returns by rounding at most, and its whole length is that of the
    input, to the sample. At the same rate it needs no library.

    Attributes:
        delay: samples of input that are held back until more audio, or the end, follows; 0 at the same rate.

    Raises:
        InvalidRequestError: a rate or the number of channels is invalid.
        ModuleNotFoundError: the rates differ, and the extra ``audio`` is not installed.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int = 1) -> None:
        from_rate = whole_number("from_rate", from_rate, 1, _MAX_RATE)
        to_rate = whole_number("to_rate", to_rate, 1, _MAX_RATE)
        channels = whole_number("channels", channels, 1, _MAX_CHANNELS)
        self._block = PCM_SIZE * channels
        self._partial = b""  # less than a sample, until its rest comes
        self._soxr: _Blocks | _Pieces | None = None
        if from_rate != to_rate:
            check_packages(from_rate, to_rate)
            self._soxr = (_Blocks if _has_matrix(from_rate, to_rate) else _Pieces)(from_rate, to_rate, channels)
        self.delay: int = self._soxr.context if self._soxr is not None else 0

    def process(self, pcm: bytes, *, last: bool = False) -> bytes:
        """Return the audio that *pcm* completes, at the new rate.

        Args:
            pcm: the next audio, of any length; a sample may be divided between two calls.
            last: True for the last audio: what was held back is returned too, and the next call starts over.
        """
        if self._partial:
            pcm = self._partial + pcm
        partial = len(pcm) % self._block
        self._partial = bytes(pcm[-partial:]) if partial and not last else b""
        pcm = pcm[:-partial] if partial else pcm
        return bytes(pcm) if self._soxr is None else self._soxr.process(pcm, last=last)


def check_packages(from_rate: int, to_rate: int) -> None:
    """Check that a resampler of these rates can be created, without the imports that the first one makes.

    Raises:
        ModuleNotFoundError: the rates differ, and the extra ``audio`` is not installed.
    """
    if from_rate != to_rate and None in map(find_spec, ("numpy", "soxr")):
        raise ModuleNotFoundError(
            f"converting audio from {from_rate} to {to_rate} Hz needs more packages: "
            "pip install 'signalwire-streams[audio]'",
            name="soxr",
        )


def is_prepared(from_rate: int, to_rate: int) -> bool:
    """Whether a resampler of these rates takes no time to create.

    The first one of all imports for 150 ms, and the first one of its rates computes for up to 65 ms.
    """
    if from_rate == to_rate:
        return True
    is_imported = _packages.cache_info().currsize > 0
    return is_imported and ((from_rate, to_rate) in _matrices or not _has_matrix(from_rate, to_rate))


def _has_matrix(from_rate: int, to_rate: int) -> bool:
    return from_rate % _LEAST == to_rate % _LEAST == 0 and from_rate * to_rate <= _MAX_MATRIX


@cache
def _packages() -> tuple[Any, Any]:
    import numpy as np  # noqa: PLC0415  (of an extra)
    import soxr  # noqa: PLC0415

    return np, soxr


class _Sample:
    """The type of 16-bit samples. To convert an object of Python in each call would take as long as the sums do."""

    def __init__(self, np: Any) -> None:  # noqa: ANN401  (numpy's module)
        self.dtype = np.dtype("<i2")
        self._round, self._minimum, self._maximum = np.rint, np.minimum, np.maximum
        self._least, self._most = np.array(-32768, np.float32), np.array(32767, np.float32)

    def pack(self, samples: Any) -> bytes:  # noqa: ANN401  (an array, which changes)
        """Round and saturate samples."""
        self._round(samples, out=samples)
        self._minimum(samples, self._most, out=samples)
        self._maximum(samples, self._least, out=samples)
        return bytes(samples.astype(self.dtype).tobytes())


class _Blocks:
    """Resamples blocks of 5 ms, which are whole samples at both rates."""

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        self._np, _ = _packages()
        self._sample, self._channels = _Sample(self._np), channels
        self._from_rate, self._to_rate = from_rate, to_rate
        self._block, self.context = from_rate // _LEAST, 2 * from_rate // _LEAST
        self._matrix = _matrix(from_rate, to_rate)
        self._silence = bytes(PCM_SIZE * channels * self.context)
        self._kept = self._silence
        self._added = self._returned = 0  # samples

    def process(self, pcm: bytes, *, last: bool) -> bytes:
        np, channels, matrix = self._np, self._channels, self._matrix
        size = PCM_SIZE * channels
        self._added += len(pcm) // size
        kept = self._kept + pcm
        if last:
            kept += self._silence + self._silence[: self._block * size]
        blocks = (len(kept) // size - 2 * self.context) // self._block
        resampled = b""
        if blocks > 0:
            strides = PCM_SIZE, self._block * size, size
            windows = np.ndarray((channels, blocks, len(matrix)), self._sample.dtype, kept, strides=strides)
            sums = windows.astype(np.float32) @ matrix
            resampled = self._sample.pack(sums.reshape(channels, -1).T)
            kept = kept[blocks * self._block * size :]
        if not last:
            self._kept = kept
            self._returned += len(resampled) // size
            return resampled
        whole = (2 * self._added * self._to_rate + self._from_rate) // (2 * self._from_rate)
        resampled = resampled[: (whole - self._returned) * size]
        self._kept, self._added, self._returned = self._silence, 0, 0
        return resampled


def _matrix(from_rate: int, to_rate: int) -> Any:  # noqa: ANN401  (an array: soxr's output for each sample of a block)
    if (found := _matrices.get((from_rate, to_rate))) is not None:
        return found
    np, soxr = _packages()
    block, context = from_rate // _LEAST, 2 * from_rate // _LEAST
    begin, size = 2 * to_rate // _LEAST, to_rate // _LEAST
    outputs = soxr.resample(np.eye(block + 2 * context, dtype=np.float32), from_rate, to_rate)
    matrix = np.ascontiguousarray(outputs[begin : begin + size].T)
    if len(_matrices) >= _MAX_MATRICES:
        _matrices.clear()
    _matrices[from_rate, to_rate] = matrix
    return matrix


class _Pieces:
    """Resamples pieces of any length, of whole samples.

    The audio that is kept begins at a sample of the input which coincides with one of the output.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        np, soxr = self._np, _ = _packages()
        self._sample = _Sample(np)
        common = gcd(from_rate, to_rate)
        self._step_in, self._step_out = from_rate // common, to_rate // common
        self.context = -(-from_rate // _CONTEXT)
        self._least = to_rate // _LEAST
        self._stream: Any = soxr.ResampleStream(from_rate, to_rate, channels, dtype="float32")
        self._none = self._kept = np.empty((0, channels), np.float32)
        self._returned = 0  # samples of output, from the beginning of what is kept

    def process(self, pcm: bytes, *, last: bool) -> bytes:
        np, kept, begin = self._np, self._kept, self._returned
        if pcm:
            kept = np.concatenate(
                (kept, np.frombuffer(pcm, self._sample.dtype).reshape(-1, kept.shape[1]).astype(np.float32))
            )
        if last:
            end = (2 * len(kept) * self._step_out + self._step_in) // (2 * self._step_in)
            self._kept, self._returned = self._none, 0
        else:
            end = (len(kept) - self.context) * self._step_out // self._step_in
            if end - begin < self._least:
                self._kept = kept
                return b""
            # What is kept is the context of later audio.
            steps = max(0, (end * self._step_in // self._step_out - self.context) // self._step_in)
            self._kept, self._returned = kept[steps * self._step_in :], end - steps * self._step_out
        if not len(kept):
            return b""
        whole = self._stream.resample_chunk(kept, last=True)
        self._stream.clear()
        # Not soxr's own 16 bits, whose dither makes noise of silence.
        return self._sample.pack(whole[begin:end].copy())
