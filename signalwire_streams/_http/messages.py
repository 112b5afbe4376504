"""The values that pass between the layers: requests down, results up."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import TypeAlias

from attrs import define, field, frozen

from signalwire_streams._http.error_bodies import Problem
from signalwire_streams.errors import Phase, Sent
from signalwire_streams.models import AttemptResult, Operation, Priority, RetryDecision
from signalwire_streams.models._fast import fast_constructor


@define(eq=False)
class CallState:
    """The progress of a call, readable from outside while it runs and after it was cancelled.

    There is one for the whole call, even if it takes several requests.

    Attributes:
        priority: that of its requests.
        sent: whether the Space received any attempt so far.
        deadline_at: when the call gives up, on the client's clock.
        acquired_at: when the current attempt got its slot and token, or None while it waits for them.
        attempts: attempts so far, without one that never got its slot and token.
        result: how the last attempt ended.
        was_rejected_for_now: whether an attempt, also in an earlier part of a bulk run, was rejected temporarily. The
            Space may nevertheless have executed it, so if a name that no other start has is rejected as a duplicate
            later, that attempt did start the stream.
        may_have_succeeded: whether an attempt that has ended may have been carried out, including one of an earlier
            call that only a journal records.
        is_sent_once: whether the call is one attempt, however that ends.
        before_sending: called once, before the first attempt is sent; an exception from it ends the call unsent.
        mint: returns the field of a start's form with a new bearer token, for one attempt; None without `SignedTokens`.
        minted: the tokens so far, which are secrets.
    """

    priority: Priority = Priority.INTERACTIVE
    phase: Phase = Phase.QUEUED
    sent: Sent = "no"
    deadline_at: float = float("inf")
    acquired_at: float | None = None
    attempts: int = 0
    result: AttemptResult | None = None
    rejections: frozenset[AttemptResult] = frozenset()
    was_rejected_for_now: bool = False
    may_have_succeeded: bool = False
    target: str = ""
    name: str | None = None
    is_sent_once: bool = False
    before_sending: Callable[[], Awaitable[None]] | None = None
    mint: Callable[[], bytes] | None = None
    minted: tuple[str, ...] = field(default=(), repr=False)

    def record_attempt(self) -> Sent:
        """Return whether the current attempt was sent, and add it to `sent`."""
        sent = _SENT[self.phase]
        if sent == "yes" or self.sent == "no":
            self.sent = sent
        return sent


_SENT: Mapping[Phase, Sent] = {
    Phase.QUEUED: "no",
    Phase.CONNECTING: "no",
    Phase.WRITING: "maybe",
    Phase.WAITING: "maybe",
    Phase.RESPONDED: "yes",
}


@frozen(kw_only=True, eq=False)
class Request:
    """One request to the Space; each attempt sends the same bytes, apart from a signed token.

    Attributes:
        path: path and query from the host's root, percent-encoded.
        operation: what it does, which decides whether it may be repeated.
        description: what it does in words, for messages.
        target: the sid of the conference or call, or the path of a list.
        required_key: the key that a readable response has: an id, or the items of a list.
        body: the form, encoded once.
        name: the stream's Name, for a start.
        has_unique_name: True if the name was generated for this start, so no other start has it.
        priority: its priority in the queues for slots and tokens.
        deadline: seconds that the whole call may take; None for the policy's.
        headers: further headers, for middlewares to fill.
        echo: values that a response must repeat under these keys, if it has them.
        redact: secrets to remove from errors if the Space repeats them.
        state: the mutable state of the call.
    """

    method: str
    path: str
    operation: Operation
    description: str
    target: str
    required_key: str = "sid"
    body: bytes | None = field(default=None, repr=False)
    name: str | None = None
    has_unique_name: bool = False
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    echo: Mapping[str, str] = field(factory=dict, repr=False)
    redact: tuple[str, ...] = field(default=(), repr=False)
    state: CallState = field(factory=CallState, repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Secrets to remove from texts of the Space: `redact`, and the tokens that were minted meanwhile."""
        return self.redact + self.state.minted


@frozen(kw_only=True, eq=False)
class Response:
    """The Space's response.

    Attributes:
        headers: case-insensitive.
        body: the part that was read.
        complete: False if the body broke off or was too long.
        document: the decoded JSON, or None.
        problem: the error in the body, if there is one.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    complete: bool
    document: object = field(repr=False)
    problem: Problem | None = field(default=None, repr=False)


@frozen(kw_only=True, eq=False)
class Result:
    """How a request ended: below the retry middleware one attempt, above it the whole call.

    Attributes:
        attempt_result: how the last attempt ended.
        phase: how far the last attempt got; if the outcome is unknown, the attempt that made it so.
        detail: what happened, if there is no response; without secrets.
        retry_after: seconds that the Space or the circuit breaker asks to wait.
        decision: the final one: SUCCEED, SUCCEED_WITHOUT_SID, ALREADY_STARTED, ALREADY_STOPPED, FAIL or UNKNOWN.
        attempts: how many attempts the call made.
        ambiguous: True if an earlier attempt may have been carried out, or if the response does not identify its
            request.
        sent: whether the Space received the request, over all attempts.
        cause: an exception that the borrowed session's own code raised, such as a trace hook.
    """

    attempt_result: AttemptResult
    phase: Phase
    response: Response | None = None
    detail: str = ""
    retry_after: float | None = None
    decision: RetryDecision | None = None
    attempts: int = 1
    ambiguous: bool = False
    sent: Sent = "no"
    cause: Exception | None = field(default=None, repr=False)


create_request = fast_constructor(Request)
create_response = fast_constructor(Response)
create_result = fast_constructor(Result)


Handler: TypeAlias = Callable[[Request], Awaitable[Result]]
"""Sends a request and returns how it ended."""

Middleware: TypeAlias = Callable[[Request, Handler], Awaitable[Result]]
"""Takes a request and the next handler; may change the request, await the handler, and change the result."""


async def _call(middleware: Middleware, following: Handler, request: Request) -> Result:
    returned: object = middleware(request, following)
    if isinstance(returned, Awaitable):
        returned = await returned
        if isinstance(returned, Result):
            return returned
    name = getattr(middleware, "__qualname__", type(middleware).__name__)
    kind = type(returned).__name__
    raise TypeError(f"the middleware {name} returned a {kind}, not a Result: write 'return await send(request)'")


def chain(middlewares: Iterable[Middleware], send: Handler) -> Handler:
    """Return a handler with middlewares around it, the first one outermost."""
    for middleware in reversed(list(middlewares)):
        send = partial(_call, middleware, send)
    return send
