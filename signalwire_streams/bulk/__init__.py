"""Bulk runs: many starts or stops from one iterable, one outcome for each, a journal and a report."""

from signalwire_streams.bulk._journal import BulkJournal, JournalItem, JournalStatus
from signalwire_streams.bulk._results import BulkError, BulkOutcome, BulkReport, BulkStatus
from signalwire_streams.bulk._runner import BulkRun
from signalwire_streams.bulk._serialization import PlannedRequest

__all__ = [
    "BulkError",
    "BulkJournal",
    "BulkOutcome",
    "BulkReport",
    "BulkRun",
    "BulkStatus",
    "JournalItem",
    "JournalStatus",
    "PlannedRequest",
]
