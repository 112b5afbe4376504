"""What the other end of a stream sends: its messages, parsed strictly, and the rules that it can break (pure).

https://signalwire.com/docs/compatibility-api/cxml/voice/stream
"""

import json
from base64 import b64decode
from enum import StrEnum
from typing import Any

DTMF_KEYS = frozenset("0123456789*#ABCD")
_MISSING = {"media": "payload", "mark": "name", "dtmf": "digit of 0 to 9, *, # and A to D"}


class EndpointRule(StrEnum):
    """What an endpoint can do wrong: a broken rule of the protocol, or a missed limit."""

    NOT_ACCEPTED = "not_accepted"
    SENT_BEFORE_START = "sent_before_start"
    SENT_ONE_WAY = "sent_one_way"
    INVALID_JSON = "invalid_json"
    INVALID_MESSAGE = "invalid_message"
    INVALID_PAYLOAD = "invalid_payload"
    WRONG_STREAM_SID = "wrong_stream_sid"
    PARTIAL_FRAMES = "partial_frames"
    NO_AUDIO = "no_audio"
    LATE_AUDIO = "late_audio"
    TOO_FAR_AHEAD = "too_far_ahead"
    NO_MARK = "no_mark"
    NO_CLEAR = "no_clear"
    LATE_CLEAR = "late_clear"
    SENT_AFTER_CLEAR = "sent_after_clear"
    NOT_READ = "not_read"
    CLOSED_EARLY = "closed_early"
    WRONG_CLOSE_CODE = "wrong_close_code"
    NOT_CLOSED = "not_closed"


class InvalidMessageError(ValueError):
    """A message breaks a rule. The text says what was sent, such as "a message that is not JSON"."""

    def __init__(self, rule: EndpointRule, text: str) -> None:
        super().__init__(text)
        self.rule = rule


def parse_message(data: object, stream_sid: str) -> tuple[str, Any]:
    """Return the event of a message, and its audio, name of a mark or digit.

    Raises:
        InvalidMessageError: it is invalid, or of another stream.
    """
    if not isinstance(data, str):
        raise InvalidMessageError(EndpointRule.INVALID_MESSAGE, "a message that is not text")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidMessageError(EndpointRule.INVALID_JSON, "a message that is not JSON") from None
    event = message.get("event") if isinstance(message, dict) else None
    if event not in ("media", "mark", "clear", "dtmf"):
        raise InvalidMessageError(EndpointRule.INVALID_MESSAGE, "a message that is no media, mark, clear or dtmf event")
    if message.get("streamSid") != stream_sid:
        wrong = "another streamSid than the stream's" if "streamSid" in message else "no streamSid"
        raise InvalidMessageError(EndpointRule.WRONG_STREAM_SID, f"a {event} event with {wrong}")
    match message:
        case {"media": {"payload": str(payload)}} if event == "media":
            try:
                return event, b64decode(payload, validate=True)
            except ValueError:
                raise InvalidMessageError(EndpointRule.INVALID_PAYLOAD, "a payload that is not Base64") from None
        case {"mark": {"name": str(name)}} if event == "mark":
            return event, name
        case {"dtmf": {"digit": str(digit)}} if event == "dtmf" and digit in DTMF_KEYS:
            return event, digit
        case _ if event == "clear":
            return event, None
    raise InvalidMessageError(EndpointRule.INVALID_MESSAGE, f"a {event} event without a {_MISSING[event]}")
