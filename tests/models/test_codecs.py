"""Which codecs a start takes, from the model to the wire."""

from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import Codec, InvalidRequestError, StartConferenceStream, StreamsClient
from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"
TAKEN = [
    *("PCMU@40i", "PCMU@8000h", "PCMA@30i", "G722", "G722@16000h@20i", "L16@24000h@40i", "L16@8000h", "L16@48000h"),
    *("L16@192000h", "PCMU@5i", "PCMU@500i", "L16@8000h@500i"),
]
REFUSED: list[Any] = [
    *("", " ", "MP3", "opus", "OPUS", "pcmu", "PCMU ", " PCMU", "PCMU\n", "PCMU@", "@40i", "PCMU@40", "PCMU@8000"),
    *(
        "PCMU@40ms",
        "PCMU@40i@8000h",
        "PCMU@40i@40i",
        "PCMU@8000h@8000h",
        "PCMU@0i",
        "PCMU@4i",
        "PCMU@501i",
        "PCMU@040i",
    ),
    *("L16@0h", "L16@08000h", "L16@7999h", "L16@192001h", "L16@24000H", "L16@24000h@", "L16@-8000h", "L16@24e3h"),
    *("PCMU@040i", "L16@24000h40i", "L16,PCMU", "PCMU@\u0664\u0660i", "L16@99999999999h", 7, True, b"PCMU", ["PCMU"]),
]


@pytest.mark.parametrize("codec", [*Codec, *TAKEN])
def test_codec_with_modifiers_is_accepted(codec: str) -> None:
    """A name of the enumeration is that member, and what has modifiers stays the text."""
    request = StartConferenceStream(conference_sid="a", url=URL, codec=codec)
    assert request.codec == codec
    assert isinstance(request.codec, Codec) is (codec in set(Codec))
    assert StartConferenceStream(conference_sid="a", url=URL, codec=str(codec)) == request


@pytest.mark.parametrize("codec", REFUSED, ids=repr)
def test_unknown_codec_is_rejected_with_choices(codec: Any) -> None:
    """The order of the modifiers, their units and their ranges count, and so does the case."""
    with pytest.raises(InvalidRequestError) as caught:
        StartConferenceStream(conference_sid="a", url=URL, codec=codec)
    message = str(caught.value)
    assert message.startswith(f"codec {codec!r} is unknown: write one of 'PCMU', 'PCMA', 'L16', 'L16@16000h', ")
    assert message.endswith("as in 'PCMU@40i' or 'L16@24000h@40i'")
    assert message.isprintable()


@pytest.mark.parametrize("codec", ["PCMU@40i", "L16@24000h@40i", "G722"])
async def test_codec_with_modifiers_is_sent_unchanged(space: SimulatedSpace, client: StreamsClient, codec: str) -> None:
    """By a single start and in a run."""
    await client.conferences.start_stream(space.conference_sids[0], url=URL, codec=codec)
    request = StartConferenceStream(conference_sid=space.conference_sids[1], url=URL, codec=codec)
    assert (await client.start_streams([request]).report()).ok
    assert [stream.codec for stream in space.streams] == [codec, codec]
    assert space.requests[-1].fields["StreamCodec"] == codec


async def test_planned_run_keeps_codec(space: SimulatedSpace, client: StreamsClient, tmp_path: Path) -> None:
    """A journal holds the text."""
    request = StartConferenceStream(conference_sid=space.conference_sids[0], url=URL, codec="L16@24000h@40i")
    journal = client.create_journal([request], journal=tmp_path / "run.db")
    assert [planned.request.codec for planned in journal.requests()] == ["L16@24000h@40i"]
