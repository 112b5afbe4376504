"""The audio of one stream as an agent hears and answers it."""

import asyncio
import json
from base64 import b64decode

import pytest

from signalwire_streams import InvalidRequestError
from signalwire_streams.adapters._agent_audio import AgentAudio, check_track, end_call
from signalwire_streams.receiver import MediaFormat, StartEvent
from signalwire_streams.receiver.audio import UnknownEncodingError, mulaw_to_pcm, pcm_to_mulaw

SECOND = b"\x00\x10" * 8000


def start(encoding: str = "audio/x-mulaw", rate: int = 8000, channels: int = 1, *tracks: str) -> StartEvent:
    media_format = MediaFormat(encoding=encoding, sample_rate=rate, channels=channels)
    return StartEvent(stream_sid="s", tracks=tracks, media_format=media_format)


def payload(message: str | None) -> bytes:
    assert message is not None
    document = json.loads(message)
    assert (document["event"], document["streamSid"]) == ("media", "s")
    return b64decode(document["media"]["payload"])


@pytest.mark.parametrize(
    ("encoding", "rate", "size"), [("audio/x-L16", 16_000, 2), ("audio/x-mulaw", 8000, 1), ("audio/x-alaw", 8000, 1)]
)
@pytest.mark.parametrize("wanted", [8000, 16_000, 24_000])
def test_one_second_is_one_second_at_any_rate(encoding: str, rate: int, size: int, wanted: int) -> None:
    audio = AgentAudio(start(encoding, rate), "inbound")
    frames = [audio.receive(bytes(rate * size // 50), wanted) for _ in range(50)]
    assert all(frames) or rate != wanted
    assert len(b"".join([*frames, audio.receive(b"", wanted, last=True)])) == 2 * wanted


def test_audio_at_the_rate_of_the_stream_is_only_decoded_and_encoded() -> None:
    audio = AgentAudio(start(), "inbound")
    codes = bytes(range(256))
    assert audio.rate == 8000
    assert payload(audio.send(SECOND, 8000, 0.0)) == pcm_to_mulaw(SECOND)
    assert audio.receive(codes, 8000) == mulaw_to_pcm(codes)


def test_audio_of_any_rate_is_sent_at_the_rate_of_the_stream() -> None:
    audio = AgentAudio(start("audio/x-L16", 16_000), "inbound")
    assert len(payload(audio.send(bytes(48_000), 24_000, 0.0))) == 32_000 - 640
    assert audio.send(b"\0\0", 24_000, 1.0) is None
    assert len(payload(audio.send(bytes(16_000), 8000, 1.0))) == 32_000


def test_whole_frames_are_sent_as_long_as_those_that_arrive() -> None:
    audio = AgentAudio(start(), "inbound")
    assert [audio.send(bytes(160), 8000, 0.0), len(payload(audio.send(bytes(200), 8000, 0.0)))] == [None, 160]
    audio.interrupt(0.0)
    assert audio.send(bytes(300), 8000, 0.0) is None
    audio.receive(bytes(80), 8000)
    assert len(payload(audio.send(bytes(20), 8000, 0.0))) == 160


def test_interruption_tells_what_was_heard_of_the_last_answer() -> None:
    """An answer ends with a pause; a short one, while a voice waits for more text, is part of it."""
    audio = AgentAudio(start(), "inbound")
    assert audio.interrupt(0.0) == 0
    audio.send(SECOND, 8000, 10.0)
    audio.send(SECOND, 8000, 10.1)
    assert audio.waiting(10.5) == pytest.approx(1.5)
    assert audio.interrupt(10.5) == 500
    assert (audio.waiting(10.5), audio.interrupt(10.6)) == (0.0, 0)
    audio.send(SECOND, 8000, 20.0)
    audio.send(SECOND, 8000, 21.3)
    assert audio.interrupt(21.8) == 1500
    audio.send(SECOND, 8000, 30.0)
    audio.send(SECOND, 8000, 31.4)
    assert audio.interrupt(31.65) == 250


def test_interruption_drops_what_the_resampler_holds_back() -> None:
    audio = AgentAudio(start(), "inbound")
    audio.send(b"\x00\x40" * 16_000, 16_000, 0.0)
    audio.interrupt(0.5)
    assert set(payload(audio.send(bytes(3200), 16_000, 1.0))) <= {0xFF, 0x7F}


def test_messages_are_sent_with_the_id_of_the_stream() -> None:
    audio = AgentAudio(start(), "inbound")
    assert json.loads(audio.message({"event": "clear"})) == {"event": "clear", "streamSid": "s"}
    assert json.loads(audio.message({"streamSid": "another"})) == {"streamSid": "s"}


@pytest.mark.parametrize("tracks", [(), ("inbound",), ("inbound", "outbound"), ("inbound_track",), ("left",)])
def test_track_that_the_stream_may_have_is_accepted(tracks: tuple[str, ...]) -> None:
    AgentAudio(start("audio/x-mulaw", 8000, 1, *tracks), "inbound")


def test_track_that_the_stream_lacks_is_rejected() -> None:
    with pytest.raises(InvalidRequestError, match="has only its outbound track: write track='outbound', or start it"):
        AgentAudio(start("audio/x-mulaw", 8000, 1, "outbound"), "inbound")
    check_track("outbound")
    with pytest.raises(InvalidRequestError, match="track must be 'inbound' or 'outbound', not 'both_tracks'"):
        check_track("both_tracks")  # type: ignore[arg-type]


def test_format_that_an_agent_cannot_use_is_rejected() -> None:
    with pytest.raises(UnknownEncodingError, match=r"encoded as 'audio/G722' can't be decoded: .* as PCMU or L16"):
        AgentAudio(start("audio/G722"), "inbound")
    with pytest.raises(UnknownEncodingError, match="encoded as ''"):
        AgentAudio(StartEvent(), "inbound")
    with pytest.raises(InvalidRequestError, match="has 2 channels in each track, and an agent takes one"):
        AgentAudio(start(channels=2), "inbound")
    with pytest.raises(InvalidRequestError, match="start must be the StartEvent that decode_event returns"):
        AgentAudio("start", "inbound")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="audio with 2 channels was sent, and the stream takes one"):
        AgentAudio(start(), "inbound").send(SECOND, 8000, 0.0, channels=2)


async def test_hang_up_that_is_cancelled_is_an_error_of_its_own() -> None:
    """As that of a client that is closed meanwhile: the task that waits for it was not cancelled."""

    async def hang_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="hang_up was cancelled, so the call may go on"):
        await end_call(hang_up)


async def test_cancelled_task_cancels_its_hang_up() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hang_up() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(end_call(hang_up))
    await begun.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert cancelled.is_set()


async def test_hang_up_need_not_be_async() -> None:
    calls: list[str] = []
    await end_call(lambda: calls.append("ended"))
    assert calls == ["ended"]
