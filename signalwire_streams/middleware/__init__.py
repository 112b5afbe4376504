"""Middleware around each request: your own, the rate limiter's protocol, and the policies of the built-in ones.

A middleware is a function that is passed a `Request` and the next `Handler`, and returns a `Result`::

    async def traced(request: Request, send: Handler) -> Result:
        return await send(attrs.evolve(request, headers={"Traceparent": current_trace()}))


    client = StreamsClient(..., middlewares=[traced])
"""

from signalwire_streams._http.messages import Handler, Middleware, Request, Response, Result
from signalwire_streams.middleware._policies import CircuitBreakerPolicy, RateLimit, RetryPolicy
from signalwire_streams.middleware._rate_limit import RateLimiter

__all__ = [
    "CircuitBreakerPolicy",
    "Handler",
    "Middleware",
    "RateLimit",
    "RateLimiter",
    "Request",
    "Response",
    "Result",
    "RetryPolicy",
]
