"""Audio formats from start events, and conversions."""

import struct
from typing import Any

import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import given, strategies as st

from signalwire_streams.errors import InvalidRequestError, StreamsError
from signalwire_streams.receiver import StartEvent, decode_event
from signalwire_streams.receiver.audio import AudioFormat, Encoding, UnknownEncodingError
from tests.receiver.audio.pcm_streams import Whole

SPELLINGS = [
    ("audio/x-mulaw", Encoding.MULAW),
    ("AUDIO/X-MULAW", Encoding.MULAW),
    ("audio/x-ulaw", Encoding.MULAW),
    ("audio/PCMU", Encoding.MULAW),
    ("audio/basic", Encoding.MULAW),
    ("mulaw", Encoding.MULAW),
    ("PCMU", Encoding.MULAW),
    ("mu-law", Encoding.MULAW),
    ("u-law", Encoding.MULAW),
    ("audio/x-alaw", Encoding.ALAW),
    ("audio/PCMA", Encoding.ALAW),
    ("pcma", Encoding.ALAW),
    ("a-law", Encoding.ALAW),
    ("audio/x-L16", Encoding.L16),
    ("audio/x-l16", Encoding.L16),
    ("audio/L16", Encoding.L16),
    (" audio/L16 ; rate=16000", Encoding.L16),
    ("L16@24000h", Encoding.L16),
    ("audio/opus", "audio/opus"),
    ("audio/pcm", "audio/pcm"),
    ("", ""),
]
KNOWN = [
    AudioFormat("audio/x-mulaw"),
    AudioFormat("audio/x-alaw"),
    AudioFormat("audio/x-L16", 8000),
    AudioFormat("audio/x-L16", 16000),
    AudioFormat("audio/x-L16", 24000, "big"),
]


def each(audio: AudioFormat) -> str:
    return f"{audio.encoding} {audio.sample_rate} {audio.byte_order}"


@pytest.mark.parametrize(("text", "encoding"), SPELLINGS)
def test_usual_names_are_converted_to_encodings(text: str, encoding: str) -> None:
    """Usual spellings are taken for what they mean; any other text stays as it came."""
    assert AudioFormat.from_start_event(text).encoding == AudioFormat(text).encoding == encoding
    assert AudioFormat(text).is_supported is isinstance(encoding, Encoding)


@pytest.mark.parametrize(
    ("told", "rate", "channels"),
    [
        (("audio/x-mulaw", 8000, 1), 8000, 1),
        (("audio/x-L16", 24000, 1), 24000, 1),
        (("audio/x-L16",), 8000, 1),
        (("L16@16000h",), 16000, 1),
        (("L16@24000h", 16000), 16000, 1),
        (("audio/L16;rate=16000;channels=1",), 16000, 1),
        (('audio/L16; rate="24000"',), 24000, 1),
        (("audio/L16;rate=0",), 8000, 1),
        (("audio/L16;rate=99999999999999999999",), 8000, 1),
        (("audio/x-L16", 0, 0), 8000, 1),
        (("audio/x-L16", -8000, -1), 8000, 1),
        (("audio/x-L16", 1 << 63, 1 << 63), 8000, 1),
        (("audio/x-L16", 48000, 2), 48000, 2),
        ((None, None, None), 8000, 1),
        (("audio/x-L16", True, True), 8000, 1),
        (("audio/x-L16", "16000", "2"), 8000, 1),
        (("audio/x-L16", b"16000", b"2"), 8000, 1),
        (("audio/x-L16", {}, []), 8000, 1),
        (("audio/x-L16", float("nan"), float("inf")), 8000, 1),
        (("L16@16000h", "24000", None), 16000, 1),
        ((123, 16000, 1), 16000, 1),
        (({"mediaFormat": {}}, None, None), 8000, 1),
        ((b"L16@16000h", 8000, 1), 8000, 1),
    ],
)
def test_invalid_rate_and_channels_get_defaults(told: tuple[Any, ...], rate: int, channels: int) -> None:
    """A start event that leaves out or spoils its numbers still makes a format."""
    audio = AudioFormat.from_start_event(*told)

    assert (audio.sample_rate, audio.channels, audio.byte_order) == (rate, channels, "little")
    assert AudioFormat.from_start_event(*told, byte_order="big").byte_order == "big"


@pytest.mark.parametrize("wrong", [{"sample_rate": True}, {"channels": True}, {"sample_rate": "8000"}])
def test_number_of_another_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="must be a whole number from 1 to"):
        AudioFormat("audio/x-mulaw", **wrong)


@pytest.mark.parametrize("wrong", [b"audio/x-mulaw", None, 5])
def test_encoding_that_is_no_text_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"as in 'audio/x-mulaw', not {type(wrong).__name__}"):
        AudioFormat(wrong)


def test_format_of_a_decoded_start_event() -> None:
    """For those who decode the frames themselves."""
    start = decode_event('{"event": "start", "start": {"mediaFormat": {"encoding": "L16@16000h", "channels": 2}}}')

    assert isinstance(start, StartEvent)
    assert AudioFormat.from_start_event(start, byte_order="big") == AudioFormat("audio/x-L16", 16000, "big", 2)
    assert AudioFormat.from_start_event(StartEvent()) == AudioFormat("")


@given(st.none() | st.text(), st.none() | st.integers(), st.none() | st.integers())
def test_any_start_event_creates_a_format(encoding: str | None, rate: int | None, channels: int | None) -> None:
    """Nothing that a start event says raises."""
    audio = AudioFormat.from_start_event(encoding, rate, channels)

    assert audio == AudioFormat.from_start_event(encoding, rate, channels)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"sample_rate": 0}, "sample_rate"),
        ({"sample_rate": -1}, "sample_rate"),
        ({"sample_rate": 8000.0}, "sample_rate"),
        ({"sample_rate": 1 << 20}, "sample_rate"),
        ({"channels": 0}, "channels"),
        ({"channels": 17}, "channels"),
        ({"byte_order": "network"}, "byte_order"),
        ({"byte_order": None}, "byte_order"),
    ],
)
def test_invalid_argument_is_refused(wrong: dict[str, Any], name: str) -> None:
    """A format that somebody writes must be right."""
    with pytest.raises(InvalidRequestError, match=rf"^{name} (must be|.* is unknown)"):
        AudioFormat("audio/x-L16", **wrong)


def test_formats_compare_by_value() -> None:
    """Equal formats are equal, and stay as they are."""
    audio = AudioFormat("PCMU")

    assert audio == AudioFormat(Encoding.MULAW, 8000)
    assert {audio: 1}[AudioFormat("audio/x-mulaw")] == 1
    with pytest.raises(FrozenInstanceError):
        audio.channels = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("audio", "size", "silence", "bytes_of_20_ms"),
    [
        (AudioFormat("audio/x-mulaw"), 1, b"\xff", 160),
        (AudioFormat("audio/x-alaw"), 1, b"\xd5", 160),
        (AudioFormat("audio/x-L16", 8000), 2, b"\0\0", 320),
        (AudioFormat("audio/x-L16", 16000), 2, b"\0\0", 640),
        (AudioFormat("audio/x-L16", 24000), 2, b"\0\0", 960),
        (AudioFormat("audio/x-L16", 11025), 2, b"\0\0", 442),
        (AudioFormat("audio/x-L16", 16000, channels=2), 4, b"\0\0\0\0", 1280),
        (AudioFormat("audio/x-mulaw", channels=2), 2, b"\xff\xff", 320),
    ],
)
def test_sample_size_silence_and_bytes(audio: AudioFormat, size: int, silence: bytes, bytes_of_20_ms: int) -> None:
    """Sizes follow from the encoding, the rate and the channels."""
    assert audio.sample_size == size
    assert audio.silence == silence
    assert audio.bytes_in(20) == audio.samples_in(20) * size == bytes_of_20_ms


def test_samples_are_counted_to_the_nearest_one() -> None:
    """Also where a millisecond is no whole number of them."""
    audio = AudioFormat("audio/x-L16", 11025)

    assert [audio.samples_in(milliseconds) for milliseconds in (0, 1, 2, 40, -1)] == [0, 11, 22, 441, -11]


def test_silence_decodes_to_zero() -> None:
    """µ-law has a zero, and A-law's silence is the least that it has."""
    assert AudioFormat("audio/x-mulaw").to_pcm(b"\xff" * 3) == bytes(6)
    assert AudioFormat("audio/x-alaw").to_pcm(b"\xd5") == struct.pack("<h", 8)


def test_byte_order_swaps_l16() -> None:
    """Linear PCM is little-endian, however L16 comes."""
    assert AudioFormat("audio/x-L16", 16000).to_pcm(b"\x01\x02\x03\x04") == b"\x01\x02\x03\x04"
    assert AudioFormat("audio/x-L16", 16000, "big").to_pcm(b"\x01\x02\x03\x04") == b"\x02\x01\x04\x03"


@pytest.mark.parametrize("audio", KNOWN, ids=each)
@given(payload=st.binary(max_size=200).map(lambda payload: payload.replace(b"\x7f", b"\xff")))
def test_audio_survives_decoding_and_encoding(audio: AudioFormat, payload: bytes) -> None:
    """All but µ-law's negative zero comes back, and only whole samples do."""
    pcm = audio.to_pcm(payload)
    whole = audio.trim(payload)

    assert len(pcm) == 2 * (len(payload) // audio.sample_size)
    assert audio.from_pcm(pcm) == whole == payload[: len(whole)]
    assert audio.to_pcm(whole) == pcm
    assert audio.from_pcm(pcm + b"\x01") == whole


def test_only_whole_samples_of_all_channels_are_decoded() -> None:
    """A partial sample is dropped."""
    audio = AudioFormat("audio/x-L16", 16000, channels=2)

    assert audio.to_pcm(b"abcdefg") == audio.from_pcm(b"abcdefg") == audio.trim(b"abcdefg") == b"abcd"


@pytest.mark.parametrize(
    "use",
    [
        lambda audio: audio.sample_size,
        lambda audio: audio.silence,
        lambda audio: audio.bytes_in(20),
        lambda audio: audio.trim(b"12"),
        lambda audio: audio.to_pcm(b"12"),
        lambda audio: audio.from_pcm(b"12"),
    ],
)
def test_unknown_encoding_raises(use: Any) -> None:
    """Everything that depends on the encoding raises; the payloads can still be passed on."""
    audio = AudioFormat.from_start_event("audio/opus\n", 48000)

    assert audio.samples_in(20) == 960
    with pytest.raises(UnknownEncodingError) as caught:
        use(audio)
    assert isinstance(caught.value, StreamsError)
    assert caught.value.encoding == "audio/opus\n"
    assert str(caught.value) == (
        r"audio encoded as 'audio/opus\n' can't be decoded: use the raw payloads, "
        "or have the stream encoded as PCMU or L16"
    )


def test_whole_numbers_of_any_type_are_taken() -> None:
    rate, channels = Whole(16_000), Whole(2)
    found = AudioFormat("audio/x-L16", rate, channels=channels)  # type: ignore[arg-type]
    assert found == AudioFormat("audio/x-L16", 16_000, channels=2)
    assert (type(found.sample_rate), type(found.channels)) == (int, int)
    assert AudioFormat.from_start_event("audio/x-L16", rate, channels) == found  # type: ignore[arg-type]
