"""What to do about the errors of a bulk run, for the command line and the live page."""

from signalwire_streams.errors import ApiError

ADVICE = {
    "AuthenticationError": "The Space does not accept this project and token: check SIGNALWIRE_PROJECT_ID and "
    "SIGNALWIRE_API_TOKEN.",
    "PermissionDeniedError": "The token lacks a permission: add the scope in the dashboard.",
    "NotFoundError": "The conference, call or stream does not exist (any more): check the sid, or skip it.",
    "ApiError": "The Space rejected the request with an unusual status: its message is above.",
    "BadRequestError": "The Space rejected the request: its message is above.",
    "UnprocessableError": "The Space rejected a field: its message is above.",
    "RateLimitedError": "Other clients use up the Space's rate limit: {again} later, or with a lower --rate.",
    "ServerError": "The Space failed: {again} when it works again.",
    "TransportError": "No response: check the network, then {again}.",
    "CircuitOpenError": "The Space kept failing, so these were not sent: {again} when it works again.",
    "MalformedResponseError": "The response did not come from the API; it may be a proxy's: check SIGNALWIRE_SPACE.",
    "InvalidRequestError": "These are invalid, and were not sent.",
    "JournalError": "The journal can't be written, so these were not sent: free some disk space, then {again}.",
}


def advice(kind: str, again: str) -> str:
    """Return what to do about errors of this class; *again* says how to try again."""
    return ADVICE.get(kind, ADVICE[ApiError.__name__]).format(again=again)
