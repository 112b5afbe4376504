"""The journal of a keeper: the attempts whose streams may be running, in a file that survives a crash.

A SQLite file like that of a bulk run, with the same log, lock and checks. It holds one row for each target that has not
ended, and no token, no parameter value and no address.
"""

import sqlite3
from contextlib import ExitStack
from math import inf
from os import PathLike
from typing import Self

from attrs import asdict

from signalwire_streams.bulk._journal_file import JournalPath, journal_path
from signalwire_streams.bulk._journal_writer import JournalWriter, existing_file, lay_out, new_file
from signalwire_streams.bulk._write_ahead_log import is_free, now, read_facts, verify
from signalwire_streams.clock import Clock
from signalwire_streams.keep_streaming._records import KeeperOwner, KeptTarget, Target
from signalwire_streams.models import TargetKind

_VERSION = "keep-1"
_SCHEMA = (
    "CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE targets (
        kind TEXT NOT NULL CHECK (kind IN ('conference', 'call')),
        sid TEXT NOT NULL,
        state TEXT,
        changed TEXT NOT NULL,
        PRIMARY KEY (kind, sid)
    ) WITHOUT ROWID""",
    # By a trigger, since all writes of one commit have to be one statement: only those keep their order.
    """CREATE TRIGGER forget AFTER INSERT ON targets WHEN new.state IS NULL BEGIN
        DELETE FROM targets WHERE kind = new.kind AND sid = new.sid;
    END""",
)
_WRITE = "INSERT OR REPLACE INTO targets (changed, kind, sid, state) VALUES (?, ?, ?, ?)"


class KeeperJournal(JournalWriter):
    """The open journal of the one keeper that may use it.

    Attributes:
        targets: the records that an earlier keeper left.
    """

    obstacle: str | None = None  # the lock of the file keeps others away

    def __init__(self, *, path: JournalPath, lock: sqlite3.Connection, opened: ExitStack, clock: Clock | None) -> None:
        super().__init__(path=path, lock=lock, opened=opened, clock=clock)
        self.targets: dict[Target, KeptTarget] = {}
        for kind, sid, text in self._database.execute("SELECT kind, sid, state FROM targets"):
            with path.decoding(f"the row {sid!r} of its table targets"):
                self.targets[TargetKind(kind), sid] = KeptTarget.decode(text)
        self.is_lost: bool = True
        self._written = {target: kept.encode() for target, kept in self.targets.items()}
        self._watch()

    @classmethod
    def open(cls, path: JournalPath | PathLike[str] | str, owner: KeeperOwner, *, clock: Clock | None = None) -> Self:
        """Open the journal of a keeper that ended or was killed, or create one.

        Raises:
            InvalidRequestError: the file is another keeper's or no journal, or another process uses it.
            JournalError: it can't be read or written, or a part of it is missing.
        """
        path = journal_path(path).resolved()
        if not path.exists() or is_free(path):
            with path.errors("created"), new_file(path) as lock, ExitStack() as opened:
                with lay_out(path, _SCHEMA) as database:
                    facts = {"schema": _VERSION, **asdict(owner), "started_at": now()}
                    database.executemany("INSERT INTO run VALUES (?, ?)", facts.items())
                return cls(path=path, lock=lock, opened=opened, clock=clock)

        def check() -> None:
            known, _ = verify(path, _read_owner)
            owner.check(path, known)

        with existing_file(path, check) as (lock, _), ExitStack() as opened:
            return cls(path=path, lock=lock, opened=opened, clock=clock)

    async def acquire(self) -> bool:
        was_lost, self.is_lost = self.is_lost, False
        return was_lost

    async def permit(self) -> float:
        return inf

    def stop_waiting(self) -> None:
        """Do nothing, since nothing waits."""

    async def save(self, target: Target, kept: KeptTarget) -> None:
        self._written.pop(target, None)  # in case this is cancelled, and then not written
        text = kept.encode()
        await self._commits.write(_WRITE, *target, text)
        self._written[target] = text

    def save_later(self, target: Target, kept: KeptTarget) -> None:
        text = kept.encode()
        if self._written.get(target) != text:
            self._written[target] = text
            self._commits.write_later(_WRITE, *target, text)

    def forget(self, target: Target) -> None:
        self._written.pop(target, None)
        self._commits.write_later(_WRITE, *target, None)


def _read_owner(path: JournalPath, database: sqlite3.Connection) -> KeeperOwner:
    facts = read_facts(path, database, schema=_SCHEMA, version=_VERSION)
    facts.pop("started_at", None)
    with path.decoding("its table run"):
        return KeeperOwner(**facts)
