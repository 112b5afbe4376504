"""One rate limit for many clients: pass a `RedisRateLimiter` to each of them.

>>> async with (
...     RedisRateLimiter("redis://localhost") as rate_limiter,
...     StreamsClient(rate_limiter=rate_limiter) as client,
... ):  # doctest: +SKIP
...     stream = await client.conferences.start_stream(conference_sid, url="wss://rx.example.com/audio")
"""

from importlib.util import find_spec

if not find_spec("redis"):
    raise ImportError(
        "signalwire_streams.redis_rate_limit needs more packages: pip install 'signalwire-streams[redis]'"
    )

from signalwire_streams.redis_rate_limit._rate_limiter import RedisRateLimiter
from signalwire_streams.redis_rate_limit._store import RateLimiterError

__all__ = ["RateLimiterError", "RedisRateLimiter"]
