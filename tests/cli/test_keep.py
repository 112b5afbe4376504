"""``keep``: a keeper in a process of its own, what it writes, and its exit code."""

import asyncio
import io
import json
import re
import signal
import sys
import wave
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from attrs import define, field
from rich.cells import cell_len
from rich.console import Console

from signalwire_streams import Call, Conference
from signalwire_streams._cli.keep import Where
from signalwire_streams._cli.keep_runner import KeepRunner, draw_targets
from signalwire_streams._cli.options import Account
from signalwire_streams.keep_streaming import (
    Keeper,
    KeepStatus,
    Obstacle,
    PollingFailed,
    StandbyStarted,
    StartsPaused,
    StreamingInDoubt,
    StreamingRestarted,
    StreamingStarted,
    StreamTemplate,
    TargetEnded,
    TargetFailing,
    TargetReleased,
    TargetSnapshot,
)
from signalwire_streams.models import TargetKind
from signalwire_streams.simulator import Certificates, SimulatedSpace, Tone
from tests import waiting
from tests.redis_server import redis_servers

from .bulk_runs import files_in
from .shell import PATIENCE, URL, Ran, Shell, credentials, end_of, line_of, process

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
until = partial(waiting.until, timeout=PATIENCE, interval=0.01)
AUDIT = ("--name", "audit", "--url", URL)


@define(eq=False)
class Keeping:
    """A running ``keep --json``."""

    child: asyncio.subprocess.Process
    ready: Mapping[str, Any]
    lines: list[Any] = field(factory=list)

    async def wait_for(self, events: str, count: int = 1) -> list[Any]:
        """Return the events of some kinds, when there are those of so many conferences and calls."""
        kinds = events.split()
        while True:
            found = [line for line in self.lines if line.get("event") in kinds]
            if len({event.get("target") for event in found}) >= count:
                return found
            self.lines.append(json.loads(await line_of(self.child)))

    async def end(self, number: signal.Signals = signal.SIGINT) -> tuple[Ran, Any]:
        """Send a signal, and return the end and the report."""
        ran = await end_of(self.child, number)
        self.lines += ran.lines
        return ran, self.lines[-1]["report"]


@asynccontextmanager
async def keeping(
    space: SimulatedSpace, folder: Path, *arguments: str, target: tuple[str, ...] = AUDIT
) -> AsyncIterator[Keeping]:
    journal = ("--journal", str(folder / "kept.db"), "--poll", "0.1", "--json")
    async with process("keep", *target, *journal, *arguments, environment=credentials(space)) as child:
        yield Keeping(child, json.loads(await line_of(child))["ready"])


def alive(space: SimulatedSpace) -> list[str]:
    return sorted(stream.target_sid for stream in space.streams.active())


# What is wrong is one sentence, and nothing is sent.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--url", URL), "Missing option '--name'"),
        (("--name", "audit"), "--url is missing: write the wss:// address"),
        (("--name", "audit", "--url", "ws://host/x"), "write 'wss://host/x'"),
        (("--name", "a b", "--url", URL), "name 'a b' can't be part of a path"),
        ((*AUDIT, "--no-conferences"), "--no-conferences leaves nothing to keep: add --calls, or omit it"),
        ((*AUDIT, "--calls", "--codec", "PCMU"), "--codec is for conference streams only: omit it on calls"),
        ((*AUDIT, "--where", "support-*"), "write it as FIELD=PATTERN"),
        ((*AUDIT, "--where", "=support-*"), "write it as FIELD=PATTERN"),
        ((*AUDIT, "--where", "friend=a"), "a conference has no field of that name: write one of account_sid"),
        ((*AUDIT, "--where", "extra=a"), "a conference has no field of that name"),
        ((*AUDIT, "--where", "friendly_name=a", "--calls"), "uri, or keep only one of the two kinds"),
        ((*AUDIT, "--poll", "0"), "'--poll': 0.0 is not in the range"),
        ((*AUDIT, "--poll", "nan"), "'--poll': nan is not"),
        ((*AUDIT, "--in-doubt", "guess"), "'guess' is not one of 'hold', 'restart'"),
        ((*AUDIT, "--duplicate-names", "refused"), "'refused' is not one of 'conference=refused'"),
        ((*AUDIT, "--journal", ""), "journal is empty: name a file"),
        ((*AUDIT, "--journal", "file"), "since its schema differs: name another file"),
        ((*AUDIT, "--journal", "."), "is a directory, but a journal must be a regular file"),
        ((*AUDIT, "--journal", "missing/kept.db"), "can't be opened: name a file in a writable folder"),
        ((*AUDIT, "--journal", "redis://:hush@redis/0"), "put the password into SIGNALWIRE_KEEP_JOURNAL"),
        ((*AUDIT, "--parameter", "hush"), "write it as NAME=VALUE"),
        ((*AUDIT, "--parameter", "keep_attempt=1"), "leave no room for 'keep_attempt'"),
        ((*AUDIT, "--port", "8443"), "--port is for the server that records: add --receive DIR"),
        ((*AUDIT, "--mono"), "--mono is for the server that records: add --receive DIR"),
        ((*AUDIT, "--receive", "new"), "--receive has no --port: name the port of this machine"),
        (("--name", "audit", "--receive", "new"), "--url is missing"),
        ((*AUDIT, "--receive", "new", "--port", "1", "--cert", "no.pem"), "--cert or --key can't be read"),
        ((*AUDIT, "--receive", "new", "--port", "1", "--bearer-token-file", "file"), "omit --bearer-token-file"),
    ],
)
async def test_wrong_option_is_one_sentence(
    shell: Shell, space: SimulatedSpace, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    shell.environment.chdir(tmp_path)
    (tmp_path / "file").write_text("t0ken")
    ran = await shell("keep", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert sentence in ran.err
    assert "hush" not in ran.err
    assert len(ran.err.splitlines()) == 1
    assert files_in(tmp_path) == [tmp_path / "file"]
    assert space.requests.count("start-conference-stream") + space.requests.count("start-call-stream") == 0


async def test_directory_that_can_not_be_written_is_one_sentence(
    shell: Shell, space: SimulatedSpace, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    shell.environment.chdir(tmp_path)
    ran = await shell("keep", *AUDIT, "--receive", "file/new", "--port", "1")
    assert (ran.code, ran.out) == (1, "")
    assert re.fullmatch("error: can't write to file/new: .*: name another --receive\n", ran.err)
    assert space.requests.count() == 0


@pytest.mark.parametrize("has_journal", [False, True])
async def test_wrong_token_is_one_sentence(
    shell: Shell, space: SimulatedSpace, tmp_path: Path, *, has_journal: bool
) -> None:
    """Without a journal that is left behind, which would be of a wrong project."""
    shell.environment.chdir(tmp_path)
    if has_journal:
        async with keeping(space, tmp_path, "--on-exit", "stop") as keeper:
            await keeper.end()
    before = space.requests.count("start-conference-stream")
    shell.set({"SIGNALWIRE_API_TOKEN": "hush"})
    ran = await shell("keep", *AUDIT)
    assert (ran.code, ran.out) == (1, "")
    assert "check the project id, the API token and the Space" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert (tmp_path / "kept.db").exists() is has_journal
    assert space.requests.count("start-conference-stream") == before


async def test_space_that_can_not_be_reached_ends_the_first_start(offline_shell: Shell, tmp_path: Path) -> None:
    offline_shell.environment.chdir(tmp_path)
    ran = await offline_shell("keep", *AUDIT, "--json")
    assert (ran.code, ran.json["error"]) == (1, "TransportError")
    assert files_in(tmp_path) == []


@posix_only
@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"--name": "other"}, "belongs to the keeper named 'audit': pass --name 'audit', or name another file"),
        ({"--project": "p-2"}, "belongs to the project"),
        ({"--space": "http://localhost:9"}, "belongs to the Space"),
    ],
)
async def test_journal_of_another_keeper_is_one_sentence(
    shell: Shell, space: SimulatedSpace, tmp_path: Path, other: dict[str, str], sentence: str
) -> None:
    async with keeping(space, tmp_path) as keeper:
        await keeper.end()
    sent = space.requests.count()
    options = {"--name": "audit", "--url": URL, "--journal": str(tmp_path / "kept.db"), **other}
    ran = await shell("keep", *(word for option in options.items() for word in option))
    assert (ran.code, ran.out) == (2, "")
    assert sentence in ran.err
    assert len(ran.err.splitlines()) == 1
    assert space.requests.count() == sent


# What is kept.


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_each_conference_is_streamed_and_left(
    space: SimulatedSpace, tmp_path: Path, number: signal.Signals
) -> None:
    async with keeping(space, tmp_path, "--parameter", "tenant=hush-value") as keeper:
        started = await keeper.wait_for("streaming_started", 3)
        new = space.add_conference()
        await keeper.wait_for("streaming_started", 4)
        ran, report = await keeper.end(number)
    assert (ran.code, ran.err) == (0, "")
    assert (report["ok"], report["live"], report["on_exit"]) == (True, 4, "leave")
    assert report["counts"] == {"failing": 0, "in_doubt": 0, "waiting": 0, "streaming": 4}
    assert report["events"] == {"target_appeared": 4, "streaming_started": 4}
    assert started[0] == {
        "event": "streaming_started", "at": started[0]["at"], "kind": "conference", "target": started[0]["target"]
    }  # fmt: skip
    assert alive(space) == sorted(space.conference_sids)
    assert new in alive(space)
    assert {stream.name for stream in space.streams} == {f"audit-{sid}" for sid in space.conference_sids}
    assert "hush" not in json.dumps(keeper.lines)


@posix_only
async def test_calls_are_kept_and_stopped_if_asked_for(space: SimulatedSpace, tmp_path: Path) -> None:
    async with keeping(space, tmp_path, "--calls", "--no-conferences", "--on-exit", "stop") as keeper:
        await keeper.wait_for("streaming_started", 2)
        assert alive(space) == sorted(space.call_sids)
        ran, report = await keeper.end(signal.SIGTERM)
    assert (ran.code, ran.err, report["on_exit"]) == (0, "", "stop")
    assert alive(space) == []


@posix_only
async def test_only_what_matches_is_kept(space: SimulatedSpace, tmp_path: Path) -> None:
    chosen = space.add_conference(friendly_name="support-1")
    space.add_conference(friendly_name="support-2", status="init")
    async with keeping(space, tmp_path, "--where", "friendly_name=support-*") as keeper:
        await keeper.wait_for("streaming_started")
        _, report = await keeper.end()
    assert (report["live"], alive(space)) == (1, [chosen])


@posix_only
async def test_running_streams_are_started_again_at_the_interval_of_reassert(
    space: SimulatedSpace, tmp_path: Path
) -> None:
    async with keeping(space, tmp_path, "--reassert", "0.2") as keeper:
        await keeper.wait_for("streaming_started", 3)
        await space.requests.wait_for(9, "start-conference-stream", timeout=PATIENCE)
        ran, _ = await keeper.end()
    assert ran.code == 0
    assert alive(space) == sorted(space.conference_sids)


@posix_only
async def test_journal_in_redis_is_leased_for_the_seconds_of_lease(space: SimulatedSpace, tmp_path: Path) -> None:
    with redis_servers() as start:
        redis = start("--maxmemory-policy", "noeviction")
        async with keeping(space, tmp_path, "--journal", redis.url, "--lease", "600") as keeper:
            await keeper.wait_for("streaming_started", 3)
            [*_, key, _] = redis.ask("KEYS", "*:lease").split(b"\r\n")
            milliseconds = int(redis.ask("PTTL", key.decode())[1:])
            ran, _ = await keeper.end()
    assert ran.code == 0
    assert 100_000 < milliseconds <= 600_000


@pytest.mark.parametrize(
    ("patterns", "is_kept"),
    [
        ([], True),
        ([("friendly_name", "support-*")], True),
        ([("friendly_name", "Support-*")], False),
        ([("friendly_name", "support-*"), ("region", "eu")], False),
        ([("region", "")], True),
        ([("status", "in-progress")], True),
    ],
)
def test_all_patterns_have_to_match(patterns: list[tuple[str, str]], *, is_kept: bool) -> None:
    conference = Conference(sid="room", friendly_name="support-1", status="in-progress")
    assert Where(patterns)(conference) is is_kept


def test_from_is_the_field_of_calls() -> None:
    where = Where([("from", "+1201*")])
    where.check([TargetKind.CALL])
    assert where(Call(sid="leg", from_="+12015550100"))
    assert not where(Call(sid="leg", to="+12015550100"))


@posix_only
async def test_killed_keeper_goes_on_from_its_journal(space: SimulatedSpace, tmp_path: Path) -> None:
    """It has started what it recorded; whatever was in flight is not started twice."""
    space.faults.add("reset", on="start", executed=True, every_nth=2)
    async with keeping(space, tmp_path) as keeper:
        await keeper.wait_for("streaming_started", 1)
        await end_of(keeper.child, signal.SIGKILL)
    async with keeping(space, tmp_path) as keeper:
        await keeper.wait_for("streaming_started streaming_restarted", 3)
        await keeper.end()
    assert alive(space) == sorted(space.conference_sids)
    assert space.streams.duplicates() == []


# Whether all was well.


@posix_only
async def test_failing_conference_fails_the_command(space: SimulatedSpace, tmp_path: Path) -> None:
    [broken, *_] = space.conference_sids
    space.faults.add("status", on="start", status=403, target=broken)
    async with keeping(space, tmp_path) as keeper:
        [failing] = await keeper.wait_for("target_failing")
        await keeper.wait_for("streaming_started", 2)
        ran, report = await keeper.end()
    assert ran.code == 1
    assert failing["target"] == broken
    assert failing["reason"].startswith("HTTP 403")
    assert (report["ok"], report["counts"]["failing"], report["counts"]["streaming"]) == (False, 1, 2)


@posix_only
async def test_conference_that_ended_without_a_stream_fails_the_command(space: SimulatedSpace, tmp_path: Path) -> None:
    [broken, *_] = space.conference_sids
    space.faults.add("status", on="start", status=403, target=broken)
    async with keeping(space, tmp_path) as keeper:
        await keeper.wait_for("target_failing")
        space.end_conference(broken)
        await keeper.wait_for("target_ended")
        ran, report = await keeper.end()
    assert (ran.code, report["missed"], report["counts"]["failing"]) == (1, 1, 0)


@posix_only
async def test_call_in_doubt_fails_the_command(space: SimulatedSpace, tmp_path: Path) -> None:
    space.faults.add("reset", on="start-call-stream", executed=True, times=1)
    async with keeping(space, tmp_path, "--calls", "--no-conferences") as keeper:
        [doubt] = await keeper.wait_for("streaming_in_doubt")
        ran, report = await keeper.end()
    assert (ran.code, report["counts"]["in_doubt"]) == (1, 1)
    assert doubt["reason"] == "the response to a start was lost, and the Space may accept a second stream"


@posix_only
async def test_outage_is_ridden_out(space: SimulatedSpace, tmp_path: Path) -> None:
    async with keeping(space, tmp_path) as keeper:
        await keeper.wait_for("streaming_started", 3)
        outage = space.faults.add("status", on="list", status=401)
        [failed] = await keeper.wait_for("polling_failed")
        outage.remove()
        await keeper.wait_for("polling_recovered")
        ran, _ = await keeper.end()
    assert "HTTP 401" in failed["reason"]
    assert ran.code == 0


@posix_only
async def test_outage_at_the_end_fails_the_command(space: SimulatedSpace, tmp_path: Path) -> None:
    async with keeping(space, tmp_path) as keeper:
        await keeper.wait_for("streaming_started", 3)
        space.faults.add("status", on="list", status=401)
        await keeper.wait_for("polling_failed")
        ran, report = await keeper.end()
    assert ran.code == 1
    [obstacle] = report["obstacles"]
    assert obstacle.startswith("polling failed: ")
    assert "HTTP 401" in obstacle


@posix_only
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_second_signal_aborts_the_starts_in_flight(
    space: SimulatedSpace, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    space.faults.add("hang", on="start")
    async with keeping(space, tmp_path) as keeper:
        await space.requests.wait_for(3, "start-conference-stream", timeout=PATIENCE)
        keeper.child.send_signal(number)
        await asyncio.sleep(0)
        await until_waiting(keeper.child, number)
        ran, report = await keeper.end(number)
    assert (ran.code, ran.err) == (code, "")
    assert (report["aborted"], report["ok"]) == (True, False)


async def until_waiting(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Wait until a process has handled a signal, since two at once are one."""
    pending = Path(f"/proc/{child.pid}/status")
    mask = 1 << (number - 1)

    def is_handled() -> bool:
        [line] = [line for line in pending.read_text().splitlines() if line.startswith("ShdPnd")]
        return not int(line.split()[1], 16) & mask

    await until(is_handled)


@pytest.mark.parametrize(
    ("obstacle", "line", "is_well"),
    [
        (PollingFailed(reason="HTTP 401"), "polling failed: HTTP 401", False),
        (
            StartsPaused(receiver="wss://rx", reason="its socket was closed"),
            "wss://rx starts paused: its socket was closed",
            False,
        ),
        (StandbyStarted(reason="another one works"), "standby started: another one works", True),
    ],
)
def test_obstacle_is_shown_until_it_ends(
    obstacle: Obstacle, line: str, capsys: pytest.CaptureFixture[str], *, is_well: bool
) -> None:
    account = Account("example", "p", as_json=False)
    runner = KeepRunner(account, None, template={}, kinds=[], journal="redis://:hush@redis/0", on_exit="leave")
    keeper = SimpleNamespace(obstacles=(obstacle,), snapshot=())
    runner._keeper = cast("Keeper", keeper)
    runner.note(obstacle)
    assert runner.last_line == f"Keeping: 0 live, 0 ended; {line}"
    assert runner.is_well is is_well
    keeper.obstacles = ()
    assert (runner.last_line, runner.is_well) == ("Keeping: 0 live, 0 ended", True)
    assert capsys.readouterr().out.splitlines()[0].partition(" ")[2] == line


@pytest.mark.parametrize(
    ("events", "is_well", "missed"),
    [
        ((), False, 0),
        ((StreamingStarted,), True, 0),
        ((StreamingRestarted,), True, 0),
        ((TargetReleased,), True, 0),
        ((StreamingStarted, TargetEnded), True, 0),
        ((TargetEnded,), False, 1),
    ],
)
@pytest.mark.parametrize("trouble", [TargetFailing, StreamingInDoubt])
def test_trouble_counts_until_a_stream_starts_or_the_target_is_released(
    trouble: Any, events: Sequence[Any], missed: int, *, is_well: bool
) -> None:
    """A target that ends before that has had no stream."""
    account = Account("example", "p", as_json=False)
    runner = KeepRunner(account, None, template={}, kinds=[], journal="kept.db", on_exit="leave")
    runner.note(trouble(target="room-1"))
    for event in events:
        runner.note(event(target="room-1"))
    assert (runner.is_well, runner._missed) == (is_well, missed)


# What is received.


@posix_only
async def test_streams_are_recorded_by_the_names_of_their_conferences(tmp_path: Path) -> None:
    """On this machine the Space needs no --url. Nobody else can send."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    certificates = Certificates.make()
    authority.configure_trust(certificates.trust)
    receive = ("--receive", str(tmp_path / "recordings"), "--cert", str(tmp_path / "both.pem"))
    async with (
        SimulatedSpace(
            conferences=2, audio=Tone(seconds=0.2), real_time=False, ssl_context=certificates.trust
        ) as space,
        keeping(space, tmp_path, *receive, "--parameter", "pin=hush", target=("--name", "audit")) as keeper,
    ):
        assert keeper.ready["url"].startswith("wss://127.0.0.1:")
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                await http.ws_connect(keeper.ready["url"], ssl=certificates.trust)
        recorded: list[Any] = []
        while len({facts["target"] for facts in recorded}) < 2:
            keeper.lines.append(json.loads(await line_of(keeper.child)))
            recorded = [line["recording"] for line in keeper.lines if "recording" in line]
        ran, report = await keeper.end()
    assert ran.err == ""
    assert report["recordings"] >= 2
    assert report["incomplete_recordings"] == 0
    assert {facts["target"] for facts in recorded} == set(space.conference_sids)
    for facts in recorded:
        [file] = facts["files"]
        assert file == str(tmp_path / "recordings" / f"{facts['target']}-{facts['sid']}.wav")
        with wave.open(file) as audio:
            assert audio.getnframes() == 1600
    assert "hush" not in json.dumps(keeper.lines)


@posix_only
async def test_pipe_is_told_where_recordings_go_and_what_listens(space: SimulatedSpace, tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    receive = ("--receive", str(tmp_path / "new"), "--cert", str(tmp_path / "both.pem"))
    arguments = ("--name", "audit", "--journal", str(tmp_path / "kept.db"), *receive)
    async with process("keep", *arguments, environment=credentials(space)) as child:
        first = [await line_of(child) for _ in range(3)]
        await end_of(child, signal.SIGINT)
    assert re.fullmatch(
        re.escape(f"Recordings: {tmp_path / 'new'}; listening on ") + r"wss://127\.0\.0\.1:\d+/\n", first[2]
    )


@posix_only
async def test_stream_that_never_arrives_fails_the_command(space: SimulatedSpace, tmp_path: Path) -> None:
    """The Space accepts the start, but does not connect."""
    receive = ("--receive", str(tmp_path / "new"), "--port", "0")
    trustme = pytest.importorskip("trustme")
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    options = (*receive, "--cert", str(tmp_path / "both.pem"))
    async with keeping(space, tmp_path, *options, target=("--name", "audit")) as keeper:
        await keeper.wait_for("target_appeared", 3)
        ran, report = await keeper.end()
    assert (ran.code, report["ok"], report["counts"]["waiting"]) == (1, False, 3)
    assert "streaming_started" not in report["events"]


# What people see.


@posix_only
async def test_pipe_gets_a_line_per_event(space: SimulatedSpace, tmp_path: Path) -> None:
    for sid in space.conference_sids:
        space.end_conference(sid)
    journal = str(tmp_path / "kept.db")
    arguments = (*AUDIT, "--journal", journal, "--poll", "0.1")
    async with process("keep", *arguments, environment=credentials(space)) as child:
        first = [await line_of(child) for _ in range(4)]
        sid = space.add_conference()
        told = [(await line_of(child)).split(maxsplit=1)[1] for _ in range(2)]
        ran = await end_of(child, signal.SIGINT)
    assert first == [
        f"Keeping one stream on each conference of {space.base_url} (project {space.project}).\n",
        f"Journal: {journal}\n",
        "Nothing is in progress now: each conference gets a stream when it begins.\n",
        "Press Ctrl-C to end and leave the streams running.\n",
    ]
    assert told == [f"conference {sid} appeared\n", f"conference {sid} streaming started\n"]
    assert (ran.code, ran.err) == (0, "")
    headline, *rows = ran.rows
    assert headline.endswith(", streams left running.")
    assert rows == [
        "  streaming  1",
        "  events     1 appeared, 1 streaming started",
        f"Journal: {journal}",
        "Run the same command to resume.",
    ]


def snapshot(number: int, status: KeepStatus = KeepStatus.STREAMING, **fields: Any) -> TargetSnapshot:
    sid = f"{number:08}-dd84-439e-b154-5a137a1d5006"
    facts: dict[str, Any] = {"kind": TargetKind.CONFERENCE, "reason": None, "item": None, **fields}
    return TargetSnapshot(target=sid, status=status, **facts)


def drawn(targets: list[TargetSnapshot], *, width: int = 80, height: int = 20, plain: bool = False) -> list[str]:
    written = io.StringIO()
    group = draw_targets(targets, f"Keeping: {len(targets)} live", width=width, height=height, plain=plain)
    Console(file=written, width=width, color_system=None).print(group)
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_table_begins_with_what_is_not_streamed() -> None:
    reason = "HTTP 403: no\x1b[2J scope"
    targets = [
        snapshot(1),
        snapshot(2, KeepStatus.WAITING),
        snapshot(3, KeepStatus.IN_DOUBT),
        snapshot(4, KeepStatus.FAILING, reason=reason),
    ]
    assert drawn(targets) == [
        "SID            STATUS     REASON",
        "00000004-dd8…  failing    HTTP 403: no [2J scope",
        "00000003-dd8…  in doubt",
        "00000002-dd8…  waiting",
        "00000001-dd8…  streaming",
        "Keeping: 4 live",
    ]


def test_wide_table_has_whole_sids_and_names() -> None:
    items = [
        None,
        Conference(sid="room"),
        Conference(sid="room", friendly_name="support-1"),
        Call(sid="leg", from_="+12015550100", to="+12015550101"),
    ]
    lines = drawn([snapshot(number, item=item) for number, item in enumerate(items)], width=120)
    assert [line.split(maxsplit=1) for line in lines[1:-1]] == [
        [snapshot(0).target, "streaming"],
        [snapshot(1).target, "streaming"],
        [snapshot(2).target, "support-1                     streaming"],
        [snapshot(3).target, "+12015550100 > +12015550101   streaming"],
    ]


@pytest.mark.parametrize("height", [1, 4, 5, 24])
@pytest.mark.parametrize("count", [0, 1, 2, 100])
@pytest.mark.parametrize("width", [120, 80, 60, 30])
def test_table_fits_the_terminal(height: int, count: int, width: int) -> None:
    lines = drawn([snapshot(number, reason="why " * 50) for number in range(count)], width=width, height=height)
    assert len(lines) <= max(height - 1, 4)
    assert max(map(cell_len, lines)) <= width
    more = [int(line.split()[1]) for line in lines if line.startswith("and ")]
    assert sum(line.startswith("0000") for line in lines) + sum(more) == count


def test_table_is_ascii_on_an_ascii_terminal() -> None:
    conference = Conference(sid="room", friendly_name="Büro" * 20)
    lines = drawn([snapshot(1, item=conference, reason="ä" * 200)], width=120, plain=True)
    assert "".join(lines).isascii()


async def test_help_names_each_field_of_a_start(bare_shell: Shell) -> None:
    ran = await bare_shell("keep", "--help")
    assert (ran.code, ran.err) == (0, "")
    options = {"parameters": "--parameter", "authorization_bearer_token": "--bearer-token-file"}
    for name in StreamTemplate.__annotations__:
        assert options.get(name, "--" + name.replace("_", "-")) in ran.out
    assert "  signalwire-streams keep --" in ran.out.partition("Example")[2]
