"""The vendor's fixed words, and the package's own, letter for letter."""

from enum import StrEnum

import pytest

from signalwire_streams import models
from signalwire_streams.models import (
    AnsweredBy,
    CallbackMethod,
    CallDirection,
    CallStatus,
    Codec,
    ConferenceStatus,
    Operation,
    ParticipantStatus,
    Priority,
    RetryDecision,
    StreamStatus,
    Track,
)

WORDS: dict[type[StrEnum], list[str]] = {
    Track: ["inbound_track", "outbound_track", "both_tracks"],
    Codec: ["PCMU", "PCMA", "L16", "L16@16000h", "L16@24000h"],
    CallbackMethod: ["GET", "POST"],
    StreamStatus: ["queued", "in-progress", "stopped"],
    ConferenceStatus: ["init", "in-progress", "completed"],
    ParticipantStatus: ["in-progress", "completed"],
    CallStatus: ["queued", "ringing", "in-progress", "canceled", "completed", "busy", "failed", "no-answer"],
    CallDirection: ["inbound", "outbound"],
    AnsweredBy: ["human", "machine"],
}


@pytest.mark.parametrize(("vocabulary", "words"), WORDS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_enum_values_are_the_documented_ones(vocabulary: type[StrEnum], words: list[str]) -> None:
    """Each vocabulary has the documented words and no other, and a member is its word."""
    assert [member.value for member in vocabulary] == words
    assert [f"{member}" for member in vocabulary] == words
    assert all(member == member.value for member in vocabulary)


@pytest.mark.parametrize(
    ("kind", "is_start"),
    [
        (Operation.READ, False),
        (Operation.STOP, False),
        (Operation.STOP_BY_NAME, False),
        (Operation.CONFERENCE_START, True),
        (Operation.CALL_START, True),
        (Operation.UNNAMED_START, True),
    ],
)
def test_is_start_is_true_for_starts_only(kind: Operation, *, is_start: bool) -> None:
    """Reads and stops may be done twice; starts may not."""
    assert kind.is_start is is_start
    assert kind.is_stop is (kind in {Operation.STOP, Operation.STOP_BY_NAME})


def test_is_retry_is_true_for_decisions_after_which_another_attempt_follows() -> None:
    final = {decision for decision in RetryDecision if not decision.is_retry}
    assert final == {
        RetryDecision.SUCCEED,
        RetryDecision.ALREADY_STARTED,
        RetryDecision.ALREADY_STOPPED,
        RetryDecision.SUCCEED_WITHOUT_SID,
        RetryDecision.FAIL,
        RetryDecision.UNKNOWN,
    }


def test_priorities_are_interactive_before_bulk() -> None:
    """Interactive requests go before bulk ones, and there is nothing else."""
    assert list(Priority) == [Priority.INTERACTIVE, Priority.BULK]


def test_all_exports_exist() -> None:
    """Each exported name of the models exists, once and in order."""
    assert sorted(models.__all__) == sorted(set(models.__all__))
    assert all(hasattr(models, name) for name in models.__all__)
