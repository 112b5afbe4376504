"""Bulk runs: many starts or stops from one iterable, one outcome for each, a journal and a report.

The modules below are imported when one of their names is first used, so a client that makes no bulk run does not pay
for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from signalwire_streams.bulk._journal import BulkJournal, JournalItem, JournalStatus
    from signalwire_streams.bulk._operations import Ledger as Ledger
    from signalwire_streams.bulk._results import BulkError, BulkOutcome, BulkReport, BulkStatus
    from signalwire_streams.bulk._runner import BulkRun, RunObserver as RunObserver
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

if not TYPE_CHECKING:  # pragma: no branch
    _MODULES = {
        "_journal": "BulkJournal JournalItem JournalStatus",
        "_operations": "Ledger",
        "_results": "BulkError BulkOutcome BulkReport BulkStatus",
        "_runner": "BulkRun RunObserver",
        "_serialization": "PlannedRequest",
    }

    def __getattr__(name: str) -> object:
        for module, names in _MODULES.items():
            if name in names.split():
                globals()[name] = found = getattr(import_module(f"{__name__}.{module}"), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__} - {"TYPE_CHECKING", "import_module"})
