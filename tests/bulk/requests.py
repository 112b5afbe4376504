"""Requests that start a stream on each conference of a Space."""

from typing import Any

from signalwire_streams import StartConferenceStream
from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"


def on_conferences(space: SimulatedSpace, **fields: Any) -> list[Any]:
    return [StartConferenceStream(conference_sid=sid, url=URL, **fields) for sid in space.conference_sids]
