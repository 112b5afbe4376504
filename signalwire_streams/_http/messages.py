"""The values that pass between the floors: an exchange goes down, an outcome comes up.

They are as frozen as ``attrs.frozen`` makes them, in the way that costs less when they are made.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeAlias

from attrs import define, field, frozen, setters

from signalwire_streams._http.error_bodies import Problem
from signalwire_streams.errors import Phase, Sent
from signalwire_streams.models import AttemptResult, Operation, Priority, RetryDecision


@define(eq=False)
class CallState:
    """How far a call is, readable from outside while it runs and after it was cancelled.

    Attributes:
        phase: how far the attempt under way got.
        sent: whether the Space received any attempt so far.
        deadline_at: when the call gives up, on the client's clock.
        turn_at: when the attempt under way had its turn, or None while it waits for one.
        attempts: attempts so far, without one that never had its turn.
        refusals: the results of attempts that were refused for now.
        was_refused_for_now: whether an attempt was refused for now, be it one of an earlier part of a bulk run. The
            Space may have carried it out all the same, so if a name that no other start has is refused as a duplicate
            later, that attempt did start the stream.
        target: the sid that the call is about.
        name: the stream's Name, for a start.
        may_be_done: whether an attempt that has ended may have carried it out, be it one of an earlier call of which
            only a journal tells.
        before_sending: what is done once, when the first attempt has its turn, before it goes out; whatever that raises
            ends the call, and nothing is sent.
    """

    phase: Phase = Phase.QUEUED
    sent: Sent = "no"
    deadline_at: float = float("inf")
    acquired_at: float | None = None
    attempts: int = 0
    refusals: frozenset[AttemptResult] = frozenset()
    was_refused_for_now: bool = False
    may_have_succeeded: bool = False
    target: str = ""
    name: str | None = None
    before_sending: Callable[[], Awaitable[None]] | None = None

    def record_attempt(self) -> Sent:
        """Add the attempt under way to what was sent, and say what was sent of it."""
        sent = _SENT[self.phase]
        if sent == "yes" or self.sent == "no":
            self.sent = sent
        return sent


@frozen(eq=False)
class CallContext:
    """How a call goes about it, apart from what it asks for.

    Attributes:
        lane: who goes first where requests wait.
        progress: how far the call is; one for the whole errand, however many exchanges it takes.
    """

    priority: Priority = Priority.INTERACTIVE
    state: CallState = field(factory=CallState)


_SENT: Mapping[Phase, Sent] = {
    Phase.QUEUED: "no",
    Phase.CONNECTING: "no",
    Phase.WRITING: "maybe",
    Phase.WAITING: "maybe",
    Phase.ANSWERED: "yes",
}


@define(kw_only=True, eq=False, on_setattr=setters.frozen)
class Request:
    """One request to the Space, spelled out: the same bytes go out on each attempt.

    Attributes:
        method: the HTTP method.
        path: path and query from the host's root, percent-encoded.
        expects: the key that a readable answer has: an id, or the items of a list.
        body: the form, encoded once.
        kind: what it does, which decides what may be repeated.
        verb: what it does in words, for messages.
        target: the sid of the conference or call, or the path of a list.
        name: the stream's Name, for a start.
        has_unique_name: True if the name was generated for this start, so no other start has it.
        lane: who goes first where requests wait.
        deadline: seconds that the whole call may take; None for the policy's own.
        headers: further headers, for middlewares to fill.
        echo: what an answer must repeat under these keys, where it has them.
        secrets: what must not show up in an error, should the Space repeat it.
        progress: how far the call is.
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


@define(kw_only=True, eq=False, on_setattr=setters.frozen)
class Response:
    """What the Space answered.

    Attributes:
        status: the HTTP status.
        headers: case-insensitive.
        body: as far as it was read.
        complete: False when the body broke off or was too long.
        document: the JSON in the body, or None where there is none.
        problem: what the body says went wrong, for an answer that is not a 2xx.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    complete: bool
    document: object = field(repr=False)
    problem: Problem | None = field(default=None, repr=False)


@define(kw_only=True, eq=False, on_setattr=setters.frozen)
class Result:
    """How an exchange ended: first one attempt, then, above the retry, the whole call.

    Attributes:
        event: how the last attempt ended.
        phase: how far the last attempt got; where the outcome is unknown, the attempt that made it so.
        reply: the Space's answer, if one came.
        detail: the evidence in words where there is no answer, without secrets.
        retry_after: seconds that the Space, or the client's own guard, asks to wait.
        action: what came of the call: FINISH, ALREADY_STARTED, ALREADY_STOPPED, BY_NAME, FAIL or UNKNOWN.
        attempts: how many attempts the call made.
        ambiguous: whether an attempt before the last may have done it.
        sent: whether the Space received the request, over all attempts.
        cause: what code of the borrowed session raised, such as a trace hook.
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

    def as_attempt_of(
        self, action: RetryDecision, *, phase: Phase, attempts: int, ambiguous: bool, sent: Sent
    ) -> "Result":
        """Make the whole call's outcome of that of its last attempt."""
        return Result(
            attempt_result=self.attempt_result,
            phase=phase,
            response=self.response,
            detail=self.detail,
            retry_after=self.retry_after,
            decision=action,
            attempts=attempts,
            ambiguous=ambiguous,
            sent=sent,
            cause=self.cause,
        )


Handler: TypeAlias = Callable[[Request], Awaitable[Result]]
"""Sends an exchange and says how it ended."""

Middleware: TypeAlias = Callable[[Request, Handler], Awaitable[Result]]
"""Gets an exchange and the way onward; may change the one, await the other, and change what comes back."""


@frozen(eq=False)
class _Link:
    middleware: Middleware
    onward: Handler

    def __call__(self, exchange: Request) -> Awaitable[Result]:
        return self.middleware(exchange, self.onward)


def chain(middlewares: Iterable[Middleware], send: Handler) -> Handler:
    """Put middlewares around a sender, the first one outermost."""
    for middleware in reversed(list(middlewares)):
        send = _Link(middleware, send)
    return send
