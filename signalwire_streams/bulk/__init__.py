"""Many starts or stops: workers over one iterable, one outcome for each, a journal and a report."""

from signalwire_streams.bulk.outcomes import BulkOutcome, BulkState
from signalwire_streams.bulk.planning import PlannedRequest
from signalwire_streams.bulk.records import BulkJournal, JournalItem, JournalStatus
from signalwire_streams.bulk.report import BulkError, BulkReport
from signalwire_streams.bulk.run import BulkRun

__all__ = [
    "BulkError",
    "BulkJournal",
    "BulkOutcome",
    "BulkReport",
    "BulkRun",
    "BulkState",
    "JournalItem",
    "JournalStatus",
    "PlannedRequest",
]
