"""Start and stop SignalWire audio streams from asyncio, and never start one twice.

>>> async with StreamsClient(space="example", project="...", token="...") as client:  # doctest: +SKIP
...     stream = await client.conferences.start_stream(conference_sid, url="wss://rx.example.com/audio")
...     await client.conferences.stop_stream(conference_sid, stream)

The modules below are imported when one of their names is first used, so importing only the receiver or the
callbacks alone does not pay for the client.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_MODULES = "_client _http.session bulk clock errors middleware._policies middleware._rate_limit models resources"
"""Each of them lists its public names in ``__all__``."""

if TYPE_CHECKING:
    __version__: str
    from signalwire_streams._client import *  # noqa: F403  (all of its __all__; likewise below)
    from signalwire_streams._http.session import *  # noqa: F403
    from signalwire_streams.bulk import *  # noqa: F403
    from signalwire_streams.clock import *  # noqa: F403
    from signalwire_streams.errors import *  # noqa: F403
    from signalwire_streams.middleware._policies import *  # noqa: F403
    from signalwire_streams.middleware._rate_limit import *  # noqa: F403
    from signalwire_streams.models import *  # noqa: F403
    from signalwire_streams.resources import *  # noqa: F403

    __all__: list[str]
else:

    def __getattr__(name: str) -> object:
        if name == "__version__":
            globals()[name] = import_module("importlib.metadata").version("signalwire-streams")
        elif name == "__all__" or not name.startswith("_"):  # others are what inspect and the like look for everywhere
            modules = [import_module(f"{__name__}.{module}") for module in _MODULES.split()]
            public = {each: getattr(module, each) for module in modules for each in module.__all__}
            globals().update(public, __all__=sorted(public, key=lambda each: (each.islower(), each)))
        if name in globals():
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), "__version__", *__getattr__("__all__")})
