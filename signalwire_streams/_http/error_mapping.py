"""Maps the result of a call to a typed exception: a message of one line, with the evidence and without secrets."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from signalwire_streams._http.error_bodies import TOO_MANY_REQUESTS_CODE, Problem, redact, request_id
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
    HTTPStatus.TOO_MANY_REQUESTS: RateLimitedError,
}
_HINTS: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "check the project id, the API token and the Space",
    HTTPStatus.FORBIDDEN: "check the token's scopes",
}
_REDIRECT, _FAULT = 300, 500
_SENT_NOTES: Mapping[Sent, str] = {"no": "nothing was sent", "maybe": "the Space may have received it", "yes": ""}
_UNSENT = {AttemptResult.DEADLINE_EXCEEDED, AttemptResult.BREAKER_OPEN, AttemptResult.UNRETRYABLE}
_UNREADABLE = {AttemptResult.MALFORMED, AttemptResult.ACCEPTED}


def to_exception(request: Request, result: Result) -> StreamsError:
    response = result.response
    if result.decision is RetryDecision.UNKNOWN:
        return _unknown_error(request, result)
    if response is None or result.attempt_result in _UNREADABLE:
        return _no_response_error(request, result)
    return _api_error(request, result, response)


def _error(kind: type[_Error], request: Request, result: Result, what: str, **fields: Any) -> _Error:  # noqa: ANN401
    response = result.response
    id_ = redact(request_id(response.headers) or "", request.secrets) if response is not None else ""
    notes = (
        f"{result.attempts} attempts" if result.attempts > 1 else "",
        _SENT_NOTES[result.sent] if response is None and result.decision is not RetryDecision.UNKNOWN else "",
        f"retry after {round(result.retry_after, 3):g} s" if result.retry_after is not None else "",
        f"request id {id_}" if id_ else "",
    )
    tail = f" ({', '.join(filter(None, notes))})" if any(notes) else ""
    error = kind(
        f"{request.description} {request.target}: {what}{tail}",
        sent=result.sent,
        attempts=result.attempts,
        retry_after=result.retry_after,
        request_id=id_ or None,
        **fields,
    )
    if result.cause is not None:
        _remove_http_errors(result.cause)
    error.__cause__ = result.cause
    return error


def _remove_http_errors(cause: BaseException) -> None:
    """Remove aiohttp's exceptions from an error's chain: their text may repeat bytes of a response's head."""
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


def describe_result(request: Request, result: Result) -> str:
    """Return how an attempt or a call ended, for an error or a log line: without secrets and any part of a body."""
    response, words = result.response, result.attempt_result.description
    if result.sent != "no":  # an earlier attempt was, or may have been
        words = words.replace("not sent", "not sent again")
    how = redact(result.detail, request.secrets) if response is None else _status(response)
    return f"{words}: {how}" if how else words


def describe_unknown(result: Result, evidence: str) -> str:
    """Return what is known of a start whose outcome is unknown, and the evidence of its last attempt."""
    accepted = result.attempt_result is AttemptResult.ACCEPTED
    state = "the stream is running, but its sid was lost" if accepted else "the stream may or may not be running"
    is_only = result.attempts == (result.attempt_result not in _UNSENT)
    last = "" if is_only else "last attempt: "
    return f"{state} ({last}{evidence})"


def _evidence(request: Request, result: Result) -> str:
    response = result.response
    if response is None:
        return describe_result(request, result)
    said = redact("; ".join(response.problem.sentences), request.secrets) if response.problem is not None else ""
    return _status(response) + (f": {said}" if said else _body_kind(request, response, result.detail))


def _status(response: Response) -> str:
    code = response.problem.code if response.problem is not None else None
    return f"HTTP {response.status}" + (f" [code {code}]" if code is not None else "")


def _body_kind(request: Request, response: Response, detail: str) -> str:
    if detail:
        return f": {redact(detail, request.secrets)}"
    if not response.body:
        return ", no body"
    kind = response.headers.get("Content-Type", "no content type")
    return f", {redact(kind, request.secrets)} body, {len(response.body)} bytes long"


def _no_response_error(request: Request, result: Result) -> StreamsError:
    response, evidence = result.response, _evidence(request, result)
    if result.attempt_result in _UNREADABLE:
        what = evidence if response is None else f"{result.attempt_result.description}: {evidence}"
        status = None if response is None else response.status
        return _error(MalformedResponseError, request, result, what, status=status)
    kind = CircuitOpenError if result.attempt_result is AttemptResult.BREAKER_OPEN else TransportError
    return _error(kind, request, result, evidence, phase=result.phase)


def _api_error(request: Request, result: Result, response: Response) -> ApiError:
    problem, secrets = response.problem or Problem(), request.secrets
    # Under a 2xx, the body has the error's kind.
    status = problem.status or response.status if response.status < _REDIRECT else response.status
    kind = _BY_STATUS.get(status, ServerError if status >= _FAULT else ApiError)
    if problem.code == TOO_MANY_REQUESTS_CODE:
        kind = RateLimitedError
    elif result.attempt_result is AttemptResult.SERVER_FAULT:
        kind = ServerError
    hint = _HINTS.get(status, "")
    if result.attempt_result is AttemptResult.REDIRECTED:
        hint = "the API does not redirect: check the Space's name or base_url"
    return _error(
        kind,
        request,
        result,
        _evidence(request, result) + (f"; {hint}" if hint else ""),
        status=response.status,
        code=problem.code,
        errors=tuple(redact(text, secrets) for text in problem.sentences),
        more_info=problem.more_info and redact(problem.more_info, secrets),
    )


def _unknown_error(request: Request, result: Result) -> StreamOutcomeUnknownError:
    if request.name is None:
        advice = "it was sent without a name, so starting again may start a second one"
    elif request.operation is Operation.CALL_START:
        advice = f"stop it by its name {request.name!r}; starting again, even under that name, may start a second one"
    else:
        advice = f"stop it by its name {request.name!r}, or start it again with that name and may_be_running=True"
    return _error(
        StreamOutcomeUnknownError,
        request,
        result,
        f"{describe_unknown(result, _evidence(request, result))}; {advice}",
        target=request.target,
        name=request.name,
        phase=result.phase,
        status=result.response.status if result.response is not None else None,
        accepted=result.attempt_result is AttemptResult.ACCEPTED,
    )
