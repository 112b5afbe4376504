"""From the outcome of a call to the typed error that tells it: one line, with the evidence, without secrets."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import TypeVar

from attrs import frozen

from signalwire_streams._http.error_bodies import TOO_MANY_REQUESTS, Problem, redact, request_id
from signalwire_streams._http.messages import Request, Response, Result
from signalwire_streams.errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    CircuitOpenError,
    MalformedResponseError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    Sent,
    ServerError,
    StreamOutcomeUnknownError,
    StreamsError,
    TransportError,
    UnprocessableError,
)
from signalwire_streams.models import AttemptResult, Operation, RetryDecision

_Error = TypeVar("_Error", bound=StreamsError)

_BY_STATUS: Mapping[int, type[ApiError]] = {
    HTTPStatus.BAD_REQUEST: BadRequestError,
    HTTPStatus.UNAUTHORIZED: AuthenticationError,
    HTTPStatus.FORBIDDEN: PermissionDeniedError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.UNPROCESSABLE_ENTITY: UnprocessableError,
}
_HINTS = {
    HTTPStatus.UNAUTHORIZED: "check the project id, the API token and the Space",
    HTTPStatus.FORBIDDEN: "check the token's scopes",
}
_REDIRECT, _FAULT = 300, 500
_SENT_WORDS: Mapping[Sent, str] = {"no": "nothing was sent", "maybe": "the Space may have received it", "yes": ""}
_UNREADABLE = {AttemptResult.MALFORMED, AttemptResult.ACCEPTED}


def to_exception(exchange: Request, outcome: Result) -> StreamsError:
    """Build the error for a call that failed or whose outcome is unknown."""
    reply = outcome.response
    if outcome.decision is RetryDecision.UNKNOWN:
        return _unknown(exchange, outcome)
    if reply is None or outcome.attempt_result in _UNREADABLE:
        return _unanswered(exchange, outcome)
    return _refused(exchange, outcome, reply)


@frozen
class _ErrorMessage:
    """The parts of one line: who wanted what, what happened, how often it was tried."""

    exchange: Request
    outcome: Result

    def line(self, what: str) -> str:
        outcome = self.outcome
        notes = [f"{outcome.attempts} attempts"] if outcome.attempts > 1 else []
        if outcome.response is None and outcome.decision is not RetryDecision.UNKNOWN:
            notes.append(_SENT_WORDS[outcome.sent])
        if outcome.retry_after is not None:
            notes.append(f"retry after {round(outcome.retry_after, 3):g} s")
        found = self.request_id
        if found:
            notes.append(f"request id {found}")
        tail = f" ({', '.join(note for note in notes if note)})" if any(notes) else ""
        return f"{self.exchange.description} {self.exchange.target}: {what}{tail}"

    @property
    def request_id(self) -> str | None:
        reply = self.outcome.response
        found = request_id(reply.headers) if reply is not None else None
        return redact(found, self.exchange.redact) if found is not None else None


def _attach(error: _Error, story: _ErrorMessage) -> _Error:
    outcome = story.outcome
    error.sent, error.attempts = outcome.sent, outcome.attempts
    error.retry_after, error.request_id = outcome.retry_after, story.request_id
    if outcome.cause is not None:
        _remove_http_errors(outcome.cause)
    error.__cause__ = outcome.cause
    return error


def _remove_http_errors(cause: BaseException) -> None:
    """Remove from the chain of an error what aiohttp raised: its text may repeat bytes of an answer's head."""
    waiting, seen = [cause], set[int]()
    while waiting:
        error = waiting.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        suppresses = error.__suppress_context__
        if _is_http_error(error.__cause__):
            error.__cause__ = None
            error.__suppress_context__ = suppresses
        if _is_http_error(error.__context__):
            error.__context__ = None
        waiting += [linked for linked in (error.__cause__, error.__context__) if linked is not None]


def _is_http_error(error: BaseException | None) -> bool:
    return any(kind.__module__.partition(".")[0] == "aiohttp" for kind in type(error).__mro__)


def _evidence(exchange: Request, outcome: Result) -> str:
    """What can be said of an answer, or of there being none."""
    reply = outcome.response
    detail = redact(outcome.detail, exchange.redact)
    if reply is None:
        happened = outcome.attempt_result.description
        return f"{happened}: {detail}" if detail else happened
    problem = reply.problem or Problem()
    said = redact("; ".join(problem.sentences), exchange.redact)
    code = f" [code {problem.code}]" if problem.code is not None else ""
    return f"HTTP {reply.status}{code}" + (f": {said}" if said else _body_kind(exchange, reply, detail))


def _body_kind(exchange: Request, reply: Response, detail: str) -> str:
    if detail:
        return f": {detail}"
    if not reply.body:
        return ", no body"
    kind = reply.headers.get("Content-Type", "no content type")
    return f", {redact(kind, exchange.redact)} body, {len(reply.body)} bytes long"


def _unanswered(exchange: Request, outcome: Result) -> StreamsError:
    story = _ErrorMessage(exchange, outcome)
    evidence = _evidence(exchange, outcome)
    if outcome.attempt_result in _UNREADABLE:
        status = outcome.response.status if outcome.response is not None else None
        what = evidence if outcome.response is None else f"{outcome.attempt_result.description}: {evidence}"
        return _attach(MalformedResponseError(story.line(what), status=status), story)
    kind = CircuitOpenError if outcome.attempt_result is AttemptResult.BREAKER_OPEN else TransportError
    return _attach(kind(story.line(evidence), phase=outcome.phase), story)


def _refused(exchange: Request, outcome: Result, reply: Response) -> ApiError:
    story = _ErrorMessage(exchange, outcome)
    problem = reply.problem or Problem()
    # Under a 2xx, the body tells what kind of error it is.
    status = problem.status or reply.status if reply.status < _REDIRECT else reply.status
    kind = _BY_STATUS.get(status, ServerError if status >= _FAULT else ApiError)
    if reply.status == HTTPStatus.TOO_MANY_REQUESTS or problem.code == TOO_MANY_REQUESTS:
        kind = RateLimitedError
    elif outcome.attempt_result is AttemptResult.SERVER_FAULT:
        kind = ServerError
    secrets = exchange.redact
    hint = _HINTS.get(HTTPStatus(status), "") if status in _HINTS else ""
    if outcome.attempt_result is AttemptResult.REDIRECTED:
        hint = "the API does not redirect: check the Space's name or base_url"
    what = _evidence(exchange, outcome) + (f"; {hint}" if hint else "")
    return _attach(
        kind(
            story.line(what),
            status=reply.status,
            code=problem.code,
            errors=tuple(redact(text, secrets) for text in problem.sentences),
            more_info=problem.more_info and redact(problem.more_info, secrets),
        ),
        story,
    )


def _unknown(exchange: Request, outcome: Result) -> StreamOutcomeUnknownError:
    story = _ErrorMessage(exchange, outcome)
    accepted = outcome.attempt_result is AttemptResult.ACCEPTED
    state = "the stream runs, but its id is lost" if accepted else "the stream may or may not be running"
    if exchange.name is None:
        advice = "it was sent without a name, so starting again may make a second one"
    elif exchange.operation is Operation.CALL_START:
        advice = f"stop it by its name {exchange.name!r}; starting again, even under that name, may make a second one"
    else:
        advice = f"stop it by its name {exchange.name!r}, or start it again with that name and may_be_running=True"
    last = "" if outcome.attempts == 1 else "at last: "
    what = f"{state} ({last}{_evidence(exchange, outcome)}); {advice}"
    return _attach(
        StreamOutcomeUnknownError(
            story.line(what),
            target=exchange.target,
            name=exchange.name,
            phase=outcome.phase,
            status=outcome.response.status if outcome.response is not None else None,
            accepted=accepted,
        ),
        story,
    )
