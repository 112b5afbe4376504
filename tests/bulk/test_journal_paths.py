"""Paths that can't be a journal's: rejected in one sentence, with nothing opened, made, changed or deleted."""

import os
import shutil
import socket
import sqlite3
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    BulkJournal,
    InvalidRequestError,
    JournalError,
    StartConferenceStream,
    StreamsClient,
)
from signalwire_streams.bulk import _journal_writer as journal_module
from signalwire_streams.bulk._journal_file import JournalPath, journal_path
from signalwire_streams.bulk._write_ahead_log import finish_tables
from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"
REFUSED = (InvalidRequestError, JournalError)


async def start(client: StreamsClient, path: Any) -> None:
    await client.start_streams([StartConferenceStream(conference_sid="room", url=URL)], journal=path).report()


async def resume(client: StreamsClient, path: Any) -> None:
    await client.start_streams([], journal=path, resume=True).report()


async def stop(client: StreamsClient, path: Any) -> None:
    await client.stop_streams([], journal=path).report()


async def plan(client: StreamsClient, path: Any) -> None:
    client.create_journal([], journal=path)


async def stop_started(client: StreamsClient, path: Any) -> None:
    await client.stop_started(path).report()


async def status(client: StreamsClient, path: Any) -> None:
    BulkJournal(path).status()


async def requests(client: StreamsClient, path: Any) -> None:
    list(BulkJournal(path).requests())


Use = Callable[[StreamsClient, Any], Awaitable[None]]
CREATING = [start, stop, plan]
USES = [*CREATING, resume, stop_started, status, requests]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return each file of a folder, with its kind and mode, and the bytes of the regular ones."""
    found = {}
    for file in folder.rglob("*"):
        mode = file.lstat().st_mode
        found[str(file)] = mode, file.read_bytes() if stat.S_ISREG(mode) else b""
    return found


class BytesPath:
    """A path of bytes, as os.DirEntry has them."""

    def __fspath__(self) -> bytes:
        return b"run.db"


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this account may not make device nodes")


def listening_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


KINDS: dict[str, Callable[[Path], None]] = {
    "a device": device,
    "a FIFO": os.mkfifo,
    "a socket": listening_socket,
    "a directory": Path.mkdir,
}
THROUGH = ["link", "chain", "link", "chain"]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="run-") as name:  # not tmp_path, whose name may be too long for a socket
        yield Path(name)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("kind", "through"), [*((kind, "itself") for kind in KINDS), *zip(KINDS, THROUGH, strict=True)]
)
async def test_special_file_is_rejected_and_stays(
    space: SimulatedSpace, client: StreamsClient, folder: Path, kind: str, through: str, use: Use
) -> None:
    """A device, FIFO, socket or directory is not opened and not deleted, whichever way a path leads to it."""
    path = folder / "run.db"
    KINDS[kind](path)
    for link in {"itself": [], "link": ["link"], "chain": ["link", "link2"]}[through]:
        (folder / link).symlink_to(path)
        path = folder / link
    before = snapshot(folder)
    with pytest.raises(InvalidRequestError, match=f"is {kind}, but a journal must be a regular file") as refused:
        await use(client, path)
    assert "\n" not in str(refused.value)
    assert snapshot(folder) == before
    assert len(space.requests) == 0


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("suffix", [".lock", "-wal", "-shm", "-journal"])
async def test_special_file_beside_a_journal_is_rejected(
    client: StreamsClient, tmp_path: Path, suffix: str, use: Use
) -> None:
    """SQLite opens and deletes the files beside a journal as well."""
    if use not in CREATING:
        client.create_journal([], journal=tmp_path / "run.db")
        (tmp_path / "run.db.lock").unlink()
    os.mkfifo(tmp_path / f"run.db{suffix}")
    before = snapshot(tmp_path)
    with pytest.raises(InvalidRequestError, match="is a FIFO"):
        await use(client, tmp_path / "run.db")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("use", USES)
async def test_dangling_link_is_rejected(client: StreamsClient, tmp_path: Path, use: Use) -> None:
    """Nothing is made at its other end, be it missing or a circle."""
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    before = snapshot(tmp_path)
    for name, words in (("link", "is a symbolic link to a missing file"), ("circle", "can't be opened: Too many")):
        with pytest.raises(InvalidRequestError, match=words):
            await use(client, tmp_path / name)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ":memory:",
        "file:run.db",
        "file:run.db?mode=memory",
        "run\0.db",
        "run\n.db",
        "\udcff.db",
        b"run.db",
        7,
        BytesPath(),
    ],
)
async def test_invalid_name_is_rejected(
    client: StreamsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, use: Use
) -> None:
    """It ends in a sentence that can be printed, and no file is made anywhere."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(InvalidRequestError) as refused:
        await use(client, name)
    assert str(refused.value).isprintable()
    str(refused.value).encode()
    assert snapshot(tmp_path).keys() == {str(folder)}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", ["missing/run.db", "file/run.db", "x" * 300, "x" * 253, "x" * 249])
async def test_path_where_no_file_can_be_made_is_rejected(
    client: StreamsClient, tmp_path: Path, name: str, use: Use
) -> None:
    """A folder that is missing, or is a file, and a name that is too long for one of the files, leave nothing."""
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(REFUSED) as refused:
        await use(client, tmp_path / name)
    assert "\n" not in str(refused.value)
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="only Linux has a folder that takes no file from root")
@pytest.mark.parametrize("use", CREATING)
async def test_folder_that_takes_no_file_is_rejected(client: StreamsClient, use: Use) -> None:
    """Not even root may make a file in every folder."""
    with pytest.raises(InvalidRequestError, match="a writable folder"):
        await use(client, "/proc/run.db")


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("content", ["text", "other database", "other database in WAL mode", "cut journal"])
async def test_other_file_stays_as_it_is(client: StreamsClient, tmp_path: Path, content: str, use: Use) -> None:
    """A file that is no journal keeps its bytes, and gets no file beside it."""
    path = tmp_path / "run.db"
    if content == "text":
        path.write_text("nothing of the kind, and long enough to be looked into" * 40)
    elif content == "cut journal":
        client.create_journal([], journal=path)
        os.truncate(path, 5000)
        (tmp_path / "run.db.lock").unlink()
    else:
        other = sqlite3.connect(path)
        if content.endswith("WAL mode"):
            other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE orders (x)")
        other.close()
    before = snapshot(tmp_path)
    with pytest.raises(REFUSED, match=r"already exists|is not a journal|malformed"):
        await use(client, path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("use", CREATING)
@pytest.mark.parametrize("suffix", ["-wal", "-journal", "-shm"])
@pytest.mark.parametrize("main", ["missing", "empty"])
async def test_remains_of_another_journal_stay(
    client: StreamsClient, tmp_path: Path, main: str, suffix: str, use: Use
) -> None:
    """SQLite deletes a log without its main file; a run may be in it."""
    if main == "empty":
        (tmp_path / "run.db").touch()
    (tmp_path / f"run.db{suffix}").write_text("x" * 4096)
    before = snapshot(tmp_path)
    with pytest.raises(InvalidRequestError, match="files of another journal are next to"):
        await use(client, tmp_path / "run.db")
    assert snapshot(tmp_path) == before


async def test_index_that_sqlite_had_only_begun_is_its_own(client: StreamsClient, tmp_path: Path) -> None:
    """SQLite begins an index with three bytes; a process may be killed then."""
    journal = client.create_journal([], journal=tmp_path / "run.db")
    (tmp_path / "run.db-shm").write_bytes(bytes(3))
    assert (await client.start_streams([], journal=journal.path, resume=True).report()).total == 0


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("suffix", [".lock-wal", ".lock-shm", ".lock-journal", "-shm"])
async def test_other_file_beside_a_journal_stays(client: StreamsClient, tmp_path: Path, suffix: str, use: Use) -> None:
    """SQLite deletes what it takes for a leftover of the lock, and overwrites what it takes for its index."""
    if use not in CREATING:
        client.create_journal([], journal=tmp_path / "run.db")
        (tmp_path / "run.db.lock").unlink()
    (tmp_path / f"run.db{suffix}").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(InvalidRequestError, match=r"another program.s file|blocks the lock file"):
        await use(client, tmp_path / "run.db")
    assert snapshot(tmp_path) == before


async def test_journal_with_unfinished_tables_is_taken_for_new(
    client: StreamsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed as it makes a journal leaves a file that a new run uses."""
    made, killed = tmp_path / "made.db", tmp_path / "run.db"

    def finish(database: sqlite3.Connection) -> None:
        shutil.copy(made, killed)
        finish_tables(database)

    monkeypatch.setattr(journal_module, "finish_tables", finish)
    client.create_journal([], journal=made)
    monkeypatch.undo()
    before = snapshot(tmp_path)
    for use in (resume, stop_started, status, requests):
        with pytest.raises(InvalidRequestError, match="was not started yet: start it without resuming"):
            await use(client, killed)
    assert snapshot(tmp_path) == before
    assert client.create_journal([], journal=killed).status().planned == 0


async def test_empty_file_is_used_and_kept(client: StreamsClient, tmp_path: Path) -> None:
    """A file that somebody made beforehand is not deleted when the plan is wrong."""
    path, link = tmp_path / "run.db", tmp_path / "link"
    path.touch()
    link.symlink_to(path)
    before = snapshot(tmp_path)
    items: list[Any] = [StartConferenceStream(conference_sid=f"room-{number}", url=URL) for number in range(20_000)]
    items.append("room")
    with pytest.raises(InvalidRequestError, match="an item is a str"):
        client.create_journal(items, journal=link)
    assert snapshot(tmp_path) == before
    assert client.create_journal([], journal=link).status().planned == 0
    assert link.is_symlink()


async def test_failed_plan_leaves_nothing(client: StreamsClient, tmp_path: Path) -> None:
    """Neither the file, nor its lock, nor what SQLite made."""
    wrong: Any = [StartConferenceStream(conference_sid="room", url=URL), "room"]
    with pytest.raises(InvalidRequestError, match="an item is a str"):
        client.create_journal(wrong, journal=tmp_path / "run.db")
    assert snapshot(tmp_path) == {}


async def test_failed_creation_does_not_delete_a_replaced_file(
    client: StreamsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed creation removes only its own files."""
    path = tmp_path / "run.db"

    def replace(*_: Any) -> None:
        other = tmp_path / "other"  # written while the first one is there, so that it can't get its inode
        other.write_text("mine")
        other.replace(path)
        raise sqlite3.OperationalError("no more")

    monkeypatch.setattr("signalwire_streams.bulk._journal._lay_out", replace)
    with pytest.raises(JournalError, match="can't be created: no more"):
        client.create_journal([], journal=path)
    assert path.read_text() == "mine"


async def test_file_made_during_creation_stays(
    client: StreamsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that knows nothing of our lock may make the file while we take it."""
    path = tmp_path / "run.db"
    hold = JournalPath.lock

    def late(wanted: JournalPath) -> Any:
        lock = hold(wanted)
        path.write_text("mine")
        return lock

    monkeypatch.setattr(JournalPath, "lock", late)
    with pytest.raises(InvalidRequestError, match="already exists"):
        client.create_journal([], journal=path)
    assert snapshot(tmp_path).keys() == {str(path)}
    assert path.read_text() == "mine"


async def test_finished_journal_is_read_without_making_a_file(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path
) -> None:
    """A journal that is whole by itself needs no other file, so it can be read on a disk that takes none."""
    path = tmp_path / "run.db"
    one = StartConferenceStream(conference_sid=space.conference_sids[0], url=URL)
    await client.start_streams([one], journal=path).report()
    (tmp_path / "run.db.lock").unlink()
    before = snapshot(tmp_path)
    assert BulkJournal(path).status().counts == {"started": 1}
    assert len(list(BulkJournal(path).streams())) == 1
    assert snapshot(tmp_path) == before


async def test_read_only_journal_is_not_resumed(
    client: StreamsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No lock is made beside it."""
    path = client.create_journal([], journal=tmp_path / "run.db").path
    (tmp_path / "run.db.lock").unlink()
    before = snapshot(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InvalidRequestError, match="can't be written: use an account that has write permission"):
        await resume(client, path)
    assert snapshot(tmp_path) == before


async def test_journal_ignores_a_change_of_the_working_directory(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path means what it meant when it was passed, also after a chdir in mid-run."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.chdir(first)
    journal = BulkJournal("run.db")
    run = client.start_streams(
        [StartConferenceStream(conference_sid=sid, url=URL) for sid in space.conference_sids],
        journal="run.db",
        concurrency=1,
    )
    monkeypatch.chdir(second)
    async for _ in run:
        monkeypatch.chdir(tmp_path)
        assert journal.status().is_locked
    monkeypatch.chdir(second)
    assert journal.status().counts == {"started": 3}
    assert str(journal.path) == "run.db"
    stopping = BulkJournal(first / "run.db")
    assert (await client.stop_started(stopping.path).report()).ok
    assert list(second.iterdir()) == []


async def test_relative_path_needs_a_working_directory(
    client: StreamsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path needs a working directory."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for use in (plan, status):
        with pytest.raises(InvalidRequestError, match="has no folder"):
            await use(client, "run.db")
    monkeypatch.chdir(tmp_path)
    assert journal_path("run.db").file == tmp_path / "run.db"
