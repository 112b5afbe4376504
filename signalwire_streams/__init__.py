"""Start and stop SignalWire audio streams from asyncio, never twice.

>>> async with StreamsClient(space="example", project="...", token="...") as client:  # doctest: +SKIP
...     stream = await client.conferences.start_stream(conference_sid, url="wss://rx.example.com/audio")
...     await client.conferences.stop_stream(conference_sid, stream)

The names are in `signalwire_streams.names`, which is imported when the first of them is asked for. So who needs
the receiver or a callback's signature alone does not pay for the client, and a pytest run pays for nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from signalwire_streams.names import *  # noqa: F403  (all of them, and this is where they belong)
    from signalwire_streams.names import __all__ as __all__
else:

    def __getattr__(name: str) -> object:
        if name == "__version__":
            return globals().setdefault(name, import_module("importlib.metadata").version("signalwire-streams"))
        if name == "__all__" or not name.startswith("_"):  # others are what inspect and the like try everywhere
            names = import_module("signalwire_streams.names")
            if name == "__all__" or name in names.__all__:
                return globals().setdefault(name, getattr(names, name))
            if name in globals():  # a module that came along
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), "__version__", *import_module("signalwire_streams.names").__all__})
