"""One limit for many clients: `RedisRateLimiter`, where a client has its own pacer otherwise.

>>> async with (
...     RedisRateLimiter("redis://localhost") as pacer,
...     StreamsClient(rate_limiter=pacer) as client,
... ):  # doctest: +SKIP
...     stream = await client.conferences.start_stream(conference_sid, url="wss://rx.example.com/audio")
"""

from importlib.util import find_spec

if not (find_spec("redis") and find_spec("throttled")):
    raise ImportError(
        "signalwire_streams.redis_rate_limit needs more packages: pip install 'signalwire-streams[redis]'"
    )

from signalwire_streams.redis_rate_limit._rate_limiter import RedisRateLimiter
from signalwire_streams.redis_rate_limit._store import RateLimiterError

__all__ = ["RateLimiterError", "RedisRateLimiter"]
