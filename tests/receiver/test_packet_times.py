"""Streams with a packet time of their own, from the Space to the receiver."""

import ssl
from typing import Any

import pytest

from signalwire_streams.receiver import MediaEvent, MediaReceiver
from signalwire_streams.simulator import SimulatedSpace, Tone

from .conftest import Heard, until


@pytest.mark.parametrize(
    ("codec", "rate", "size", "packet_time"),
    [
        (None, 8_000, 160, 20),
        ("PCMU@40i", 8_000, 320, 40),
        ("PCMA@10i", 8_000, 80, 10),
        ("PCMU@16000h", 16_000, 320, 20),
        ("L16@24000h@40i", 24_000, 1_920, 40),
    ],
)
async def test_frames_have_rate_and_packet_time_of_codec(
    client_for: Any,
    heard: Heard,
    serve: Any,
    certificate: ssl.SSLContext,
    trust: ssl.SSLContext,
    codec: str | None,
    rate: int,
    size: int,
    packet_time: int,
) -> None:
    """Nothing counts as missing or late, whatever a frame's length."""
    url = await serve(MediaReceiver(heard, bearer_tokens="t"), ssl_context=certificate)
    async with SimulatedSpace(conferences=1, audio=Tone(seconds=0.4), real_time=False, ssl_context=trust) as space:
        await client_for(space).conferences.start_stream(
            space.conference_sids[0], url=url, codec=codec, track="inbound_track", authorization_bearer_token="t"
        )
        session = await heard.end()
    media = [event for event in heard.events if isinstance(event, MediaEvent)]
    assert session.audio_format.sample_rate == rate
    assert {len(event.payload) for event in media} == {size}
    assert [event.timestamp for event in media] == [number * packet_time for number in range(400 // packet_time)]
    track = session.statistics.tracks["inbound"]
    assert (track.missing, track.duplicates) == (0, 0)


async def test_codec_that_space_cannot_encode_ends_in_codec_error(
    client_for: Any, heard: Heard, serve: Any, certificate: ssl.SSLContext, trust: ssl.SSLContext
) -> None:
    """The start is accepted, as on the platform, and the stream fails."""
    url = await serve(MediaReceiver(heard, bearer_tokens="t"), ssl_context=certificate)
    async with SimulatedSpace(conferences=1, audio=Tone(seconds=0.4), ssl_context=trust) as space:
        await client_for(space).conferences.start_stream(space.conference_sids[0], url=url, codec="G722")
        await until(lambda: not space.streams.active())
        assert space.streams[0].error == "codec_error"
    assert heard.sessions == []
