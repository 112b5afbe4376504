"""Audio in is audio out: from a WAV file through the Space, over wss, through the receiver, to a WAV file."""

import asyncio
import random
import ssl
import sys
import wave
from array import array
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams.receiver import MediaEvent, MediaReceiver, StreamSession
from signalwire_streams.receiver.audio import WavRecorder
from signalwire_streams.simulator import SimulatedSpace, WavFile
from signalwire_streams.simulator._sources import codec_of

SECONDS = 1.51  # the last frame is a short one


def speech(path: Path, rate: int) -> tuple["array[int]", "array[int]"]:
    """Write noise of two sides, and give them."""
    source = random.Random(rate)  # noqa: S311  (nothing is guarded here)
    length = round(SECONDS * rate)
    left, right = (array("h", (source.randrange(-32768, 32768) for _ in range(length))) for _ in range(2))
    both = array("h", (sample for pair in zip(left, right, strict=True) for sample in pair))
    if sys.byteorder == "big":
        both.byteswap()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(both.tobytes())
    return left, right


@pytest.mark.parametrize("dialect", ["signalwire", "twilio"])
@pytest.mark.parametrize(
    "codec", [None, "PCMU", "PCMA", "L16", "L16@16000h", "L16@24000h", "PCMU@40i", "L16@8000h@30i"]
)
async def test_recorded_audio_equals_sent_audio(
    codec: str | None,
    dialect: Any,
    tmp_path: Path,
    client_for: Any,
    serve: Any,
    certificate: ssl.SSLContext,
    trust: ssl.SSLContext,
) -> None:
    """Sample for sample in L16, code for code in the companded codecs, both tracks, at every rate."""
    spelled = codec_of(codec)
    sides = speech(tmp_path / "in.wav", spelled.rate)
    ended = asyncio.Queue[StreamSession]()

    async def record(session: StreamSession) -> None:
        with WavRecorder(
            tmp_path / "out.wav", session.audio_format, layout="mono", encoding="passthrough"
        ) as recording:
            async for event in session:
                assert isinstance(event, MediaEvent)
                recording.write(event)
        ended.put_nowait(session)

    url = await serve(MediaReceiver(record, bearer_tokens="t", max_queue=10_000), ssl_context=certificate)
    async with SimulatedSpace(
        conferences=1, audio=WavFile(tmp_path / "in.wav"), real_time=False, ssl_context=trust, dialect=dialect
    ) as space:
        await client_for(space).conferences.start_stream(
            space.conference_sids[0], url=url, codec=codec, authorization_bearer_token="t"
        )
        session = await ended.get()

    assert session.audio_format.encoding == spelled.encoding
    for track, samples in zip(("inbound", "outbound"), sides, strict=True):
        assert data_of(tmp_path / f"out-{track}.wav") == spelled.encode(samples)
        assert session.statistics.tracks[track].missing == 0


def data_of(path: Path) -> bytes:
    """Take the audio out of a WAV file, whatever its encoding."""
    content = path.read_bytes()
    begin = content.index(b"data") + 8
    return content[begin : begin + int.from_bytes(content[begin - 4 : begin], "little")]
