"""The fields of a start as keyword arguments that are passed on, so that a type checker knows their names."""

from collections.abc import Mapping
from typing import TypedDict

from signalwire_streams.models._enums import CallbackMethod, Codec, Track


class StartOptions(TypedDict, total=False):
    """The fields of a start besides its target, ``url``, ``name`` and token; see `StartConferenceStream` for each."""

    track: Track | str | None
    codec: Codec | str | None
    realtime: bool | None
    status_callback: str | None
    status_callback_method: CallbackMethod | str | None
    parameters: Mapping[str, str] | None
    deadline: float | None


class OpenOptions(StartOptions, total=False):
    """What starting and receiving a stream takes besides its target and token; see `MediaReceiver.open`."""

    url: str
    name: str | None
    socket_timeout: float
