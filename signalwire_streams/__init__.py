"""Start and stop SignalWire audio streams from asyncio, and never start one twice.

>>> async with StreamsClient(space="example", project="...", token="...") as client:  # doctest: +SKIP
...     stream = await client.conferences.start_stream(conference_sid, url="wss://rx.example.com/audio")
...     await client.conferences.stop_stream(conference_sid, stream)

The guides are in `signalwire_streams.guides`. The modules:

- this one has the client, requests and responses, settings, bulk runs and errors;
- `signalwire_streams.receiver` receives streams, and `signalwire_streams.receiver.audio` records them;
- `signalwire_streams.callbacks` verifies and parses status callbacks;
- `signalwire_streams.keep_streaming` keeps one stream on each live conference or call;
- `signalwire_streams.redis_rate_limit` and `signalwire_streams.fleet` are for several hosts;
- `signalwire_streams.telemetry` has spans and metrics, and `signalwire_streams.page` shows streams in a browser;
- `signalwire_streams.middleware` is for middlewares of your own;
- `signalwire_streams.adapters` is for agents in pipecat and livekit;
- `signalwire_streams.simulator` is a Space for tests, and `signalwire_streams.pytest_plugin` has fixtures.
"""

from importlib import import_module
from typing import TYPE_CHECKING

# Each is imported when one of its names, or a name of a later module, is first used. So code that only catches an error
# does not pay for the client, and a client does not pay for bulk runs.
_MODULES = "errors clock models _http.session middleware._policies middleware._rate_limit resources _client bulk"
"""Each of them lists its public names in ``__all__``, and imports none of the modules after it."""

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
        elif name == "__all__" or not name.startswith("_"):  # inspect, for one, looks up private names everywhere
            public: list[str] = []
            for module in _MODULES.split():
                found = import_module(f"{__name__}.{module}")
                if name in found.__all__:
                    globals()[name] = getattr(found, name)
                if name in globals():  # one of its names, or the module itself
                    break
                public += found.__all__
            else:
                globals()["__all__"] = sorted(public, key=lambda each: (each.islower(), each))
        if name in globals():
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), "__version__", *__getattr__("__all__")} - {"TYPE_CHECKING", "import_module"})
