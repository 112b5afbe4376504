"""The journal of a keeper: the attempts whose streams may be running, in a file that survives a crash.

A SQLite file like that of a bulk run, with the same log, lock and checks. It holds one row for each target that has not
ended, and no token, no parameter value and no address.
"""

import json
import secrets
import sqlite3
from collections.abc import Mapping
from contextlib import ExitStack
from os import PathLike
from typing import Self, TypeAlias, TypeVar

from attrs import asdict, field, frozen
from attrs.validators import instance_of

from signalwire_streams.bulk._journal_file import JournalPath, journal_path
from signalwire_streams.bulk._journal_writer import JournalWriter, existing_file, lay_out, new_file
from signalwire_streams.bulk._write_ahead_log import is_free, now, read_facts, verify
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.keep_streaming._values import Fate, StreamAttempt, TargetState
from signalwire_streams.models import TargetKind

Target: TypeAlias = tuple[TargetKind, str]
"""The kind and the sid of a conference or call."""

_Value = TypeVar("_Value")

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
_BASE_BITS = 48  # JSON readers in other languages have integers of 53 bits


def new_state() -> TargetState:
    """Return the state of a target that appears.

    Its attempts begin at a random number. So no attempt has the number of one that a lost journal recorded, or of one
    that was forgotten with the target.
    """
    return TargetState(last=secrets.randbits(_BASE_BITS))


@frozen(kw_only=True)
class KeptTarget:
    """A target's record.

    Attributes:
        state: what a keeper that restarts has to know of it.
        fingerprints: those of the requests of its attempts, by number.
    """

    state: TargetState
    fingerprints: Mapping[int, str] = field(factory=dict)

    def encode(self) -> str:
        state = self.state
        content: dict[str, object] = {
            "last": state.last,
            "attempts": [
                [attempt.number, attempt.fate, attempt.sid, self.fingerprints.get(attempt.number)]
                for attempt in state.attempts
            ],
            "has_streamed": state.has_streamed,
        }
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read a record; raise ValueError, TypeError or LookupError for any other text."""
        content = json.loads(text)
        attempts = tuple(
            StreamAttempt(number=_checked(number, int), fate=Fate(fate), sid=sid and _checked(sid, str))
            for number, fate, sid, _ in content["attempts"]
        )
        state = TargetState(
            last=_checked(content["last"], int),
            attempts=attempts,
            has_streamed=_checked(content["has_streamed"], bool),
        )
        known = {number: _checked(text, str) for number, *_, text in content["attempts"] if text is not None}
        return cls(state=state, fingerprints=known)


def _checked(value: object, kind: type[_Value]) -> _Value:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    return value


@frozen
class KeeperOwner:
    """Whose streams a journal is of."""

    origin: str = field(validator=instance_of(str))
    project: str = field(validator=instance_of(str))
    name: str = field(validator=instance_of(str))

    def check(self, path: JournalPath, known: "KeeperOwner") -> None:
        for noun, its, ours in (("Space", known.origin, self.origin), ("project", known.project, self.project)):
            if its != ours:
                raise InvalidRequestError(
                    f"{path} belongs to the {noun} {its}: use it there, and name another file for {ours}"
                )
        if known.name != self.name:
            raise InvalidRequestError(
                f"{path} is of the streams named {known.name!r}: pass name={known.name!r}, or name another file for "
                f"{self.name!r}"
            )


class KeeperJournal(JournalWriter):
    """The open journal of the one keeper that may use it.

    Attributes:
        targets: the records that an earlier keeper left.
    """

    def __init__(self, *, path: JournalPath, lock: sqlite3.Connection, opened: ExitStack, clock: Clock | None) -> None:
        super().__init__(path=path, lock=lock, opened=opened, clock=clock)
        self.targets: dict[Target, KeptTarget] = {}
        for kind, sid, text in self._database.execute("SELECT kind, sid, state FROM targets"):
            with path.decoding(f"the row {sid!r} of its table targets"):
                self.targets[TargetKind(kind), sid] = KeptTarget.decode(text)
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

    async def save(self, target: Target, kept: KeptTarget) -> None:
        """Write a target's record, and return once it is on disk."""
        self._written.pop(target, None)  # in case this is cancelled, and then not written
        text = kept.encode()
        await self._commits.write(_WRITE, *target, text)
        self._written[target] = text

    def save_later(self, target: Target, kept: KeptTarget) -> None:
        """Write a target's record with the next commit, if it has changed."""
        text = kept.encode()
        if self._written.get(target) != text:
            self._written[target] = text
            self._commits.write_later(_WRITE, *target, text)

    def forget(self, target: Target) -> None:
        """Remove the record of a target that has ended."""
        self._written.pop(target, None)
        self._commits.write_later(_WRITE, *target, None)


def _read_owner(path: JournalPath, database: sqlite3.Connection) -> KeeperOwner:
    facts = read_facts(path, database, schema=_SCHEMA, version=_VERSION)
    facts.pop("started_at", None)
    with path.decoding("its table run"):
        return KeeperOwner(**facts)
