"""Middleware around each request: your own, the rate limiter's protocol, and the policies of the built-in ones.

A middleware is a function that is passed a `Request` and the next `Handler`, and returns a `Result`::

    async def traced(request: Request, send: Handler) -> Result:
        return await send(attrs.evolve(request, headers={"Traceparent": current_trace()}))


    client = StreamsClient(..., middlewares=[traced])

Loggers, none of which logs a token, a parameter value or a part of a response body:

- ``signalwire_streams.retry``: DEBUG for each attempt that is retried, ERROR if ``on_attempt`` raises an exception.
- ``signalwire_streams.outcome``: WARNING for a start whose outcome is unknown or ambiguous; in a bulk run one a minute.
- ``signalwire_streams.circuit_breaker``: WARNING when the circuit breaker opens, INFO when it closes again.
- ``signalwire_streams.rate_limit``: WARNING when a 429 pauses all requests, once per pause.
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
