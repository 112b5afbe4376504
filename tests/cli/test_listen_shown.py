"""Output of ``listen``: levels, the live table, and lines."""

import asyncio
import io
import json
import logging
import math
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, Group

from signalwire_streams._cli.listen import Listener, _levels, bar, draw
from signalwire_streams._cli.listen_recording import RecordingOptions
from signalwire_streams._cli.listen_server import Ended, RecordingServer, Report, ServerOptions, Warned
from signalwire_streams._cli.progress import live_table
from signalwire_streams.receiver.audio import AudioFormat

from .shell import Shell, end_of, line_of, process
from .test_listen import begin, dialled, posix_only, speak, stop

LINEAR = AudioFormat("audio/x-L16", 8000)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that does not override whether streams are terminals."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": "80", "LINES": "20", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)


# Levels.


@pytest.mark.parametrize(
    ("level", "drawn", "plain"),
    [
        (None, "········", "........"),
        (-90.0, "········", "........"),
        (-60.0, "········", "........"),
        (-30.0, "████····", "####...."),
        (-33.0, "███▋····", "####...."),
        (0.0, "████████", "########"),
        (3.0, "████████", "########"),
    ],
)
def test_bar_length_follows_the_level(level: float | None, drawn: str, plain: str) -> None:
    assert (bar(level), bar(level, plain=True)) == (drawn, plain)


def test_bar_is_always_eight_cells_wide() -> None:
    assert {cell_len(bar(level / 10)) for level in range(-700, 50)} == {8}


# The table.


def row(number: int, **fields: Any) -> Any:
    """Return what the table shows of a recorder."""
    facts: dict[str, Any] = {
        "sid": f"{number:08}-dd84-439e-b154-5a137a1d5006",
        "seconds": 3_661.0,
        "levels": (("inbound", -12.0), ("outbound", None)),
        "frames": 366_100,
        "lost": 12,
        "status": "recording",
    }
    return SimpleNamespace(**facts | fields)


def drawn(rows: list[Any], *, width: int = 80, height: int = 20, plain: bool = False) -> list[str]:
    written = io.StringIO()
    group = draw(rows, f"Listening: {len(rows)} live", width=width, height=height, plain=plain)
    Console(file=written, width=width, color_system=None).print(group)
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_table_has_a_line_per_stream() -> None:
    titles, stream, total = drawn([row(7)], width=100)
    assert titles.split() == ["STREAM", "TIME", "LEVEL", "FRAMES", "LOST", "STATUS"]
    assert stream.split() == [
        *("00000007-dd84-439e-b154-5a137a1d5006", "1:01:01"),
        *("in", "██████▍·", "out", "········", "366,100", "12", "recording"),
    ]
    assert total == "Listening: 1 live"


def test_narrow_table_truncates_only_the_sid() -> None:
    _, stream, _ = drawn([row(7)])
    assert stream.startswith("00000007-")
    assert "…" in stream
    assert stream.split()[1:] == ["1:01:01", "in", "██████▍·", "out", "········", "366,100", "12", "recording"]
    assert cell_len(stream) <= 80


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (55, ["STREAM", "TIME", "LOST"]),
        (56, ["STREAM", "TIME", "LEVEL", "LOST"]),
        (71, ["STREAM", "TIME", "LEVEL", "LOST"]),
        (72, ["STREAM", "TIME", "LEVEL", "FRAMES", "LOST", "STATUS"]),
    ],
)
def test_narrow_table_has_fewer_columns(width: int, titles: list[str]) -> None:
    assert drawn([row(7)], width=width)[0].split() == titles


@pytest.mark.parametrize(
    ("level", "colour"),
    [(None, "green"), (-6.01, "green"), (-6.0, "yellow"), (-1.01, "yellow"), (-1.0, "red"), (0.0, "red")],
)
def test_loud_level_is_yellow_and_one_near_full_scale_red(level: float | None, colour: str) -> None:
    assert _levels([("inbound", level)], plain=False).spans[1].style == colour


@pytest.mark.parametrize("height", [1, 4, 5, 24])
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_table_fits_the_terminal(height: int, count: int) -> None:
    """A stream, the number of hidden ones, and the sum are always there."""
    for width in [120, 80, 60, 30]:
        lines = drawn([row(number) for number in range(count)], width=width, height=height)
        assert len(lines) <= max(height - 1, 4)
        assert max(map(cell_len, lines)) <= width
        shown = sum(line.startswith("0000") for line in lines)
        more = [int(line.split()[1]) for line in lines if line.startswith("and ")]
        assert shown + sum(more) == count
        assert lines[-1].startswith(f"Listening: {count} live")


@pytest.mark.parametrize("count", range(2, 12))
def test_table_never_hides_a_single_stream(count: int) -> None:
    """Its row takes the place of the line that would count it."""
    lines = drawn([row(number) for number in range(count)], height=10)
    assert not any(line.startswith("and 1 more") for line in lines)


def test_last_line_counts_the_audio_of_live_and_ended_streams() -> None:
    """A stream of unknown encoding adds none."""
    options: Any = None
    server: Any = SimpleNamespace(streams=lambda: [row(1), row(2, seconds=None)])
    listener = Listener(options, streams=None, as_json=False)
    listener._server = server
    for seconds in (60.0, None):
        listener.report(Ended("s-1", "s-1 ended", {"seconds": seconds, "files": [], "error": None}, lost=0))
    written = io.StringIO()
    console = Console(file=written, width=80, color_system=None)
    console.print(listener._draw(console))
    assert written.getvalue().splitlines()[-1].rstrip() == "Listening: 2 live, 2 ended, 1 h 2 min of audio"


def test_table_shows_streams_of_unknown_encoding_or_track_names() -> None:
    strange = row(1, seconds=None, levels=())
    three = row(2, levels=(("left-of-the-room", -1.0), ("b", -61.0), ("c", -0.5)))
    _, first, second, _ = drawn([strange, three], width=100, plain=True)
    assert first.split()[1:] == ["-", "366,100", "12", "recording"]
    assert second.split()[2:6] == ["left", "########", "b", "........"]


def test_table_is_ascii_on_an_ascii_terminal() -> None:
    lines = drawn([row(7), row(8, sid="ü" * 60, levels=(("ü", -6.0),))], width=60, plain=True)
    assert "".join(lines).isascii()


# Where it is shown.


def pretend_terminal(monkeypatch: pytest.MonkeyPatch, *streams: str) -> None:
    """Make stdout or stderr look like a terminal."""
    for name in streams:
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True)


def looking() -> tuple[Any, asyncio.Event]:
    """Return a function that draws a table, and an event that is set after a few calls."""
    seen = asyncio.Event()
    times = 0

    def look(console: Console) -> Group:
        nonlocal times
        times += 1
        if times > 2:
            seen.set()
        return draw([row(7)], f"Listening: {times}", width=console.width, height=console.height)

    return look, seen


async def test_live_table_writes_lines_above_it_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is gone at the end; the lines stay, whole, and without what a peer put in them."""
    pretend_terminal(monkeypatch, "stdout", "stderr")
    monkeypatch.setattr("signalwire_streams._cli.progress._TABLE_EVERY", 0.0)
    look, seen = looking()
    async with live_table(look, as_json=False) as shown:
        await seen.wait()
        shown.write("it ended " * 20)
        shown.warn("so\x1b[31m\nit is")
        assert shown.is_live
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "it ended " * 20 in captured.err
    assert "so [31m it is" in captured.err
    assert "00000007-" in captured.err
    assert captured.err.endswith("\x1b[1A\x1b[2K" * 3)


@pytest.mark.usefixtures("idle_clock")
async def test_live_table_is_drawn_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch, "stderr")
    look, _ = looking()
    async with live_table(look, as_json=False):
        await asyncio.sleep(1.1)
    assert str(look(Console()).renderables[-1]) == "Listening: 5"


@pytest.mark.parametrize(
    ("terminals", "as_json"), [((), False), ((), True), (("stdout",), False), (("stdout", "stderr"), True)]
)
async def test_live_table_writes_only_lines_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminals: tuple[str, ...], *, as_json: bool
) -> None:
    """Also where JSON goes to the terminal, which a table would disturb."""
    pretend_terminal(monkeypatch, *terminals)
    look, seen = looking()
    async with live_table(look, as_json=as_json) as shown:
        shown.write("it ended")
        shown.warn("no")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("it ended\n", "no\n")
    assert not seen.is_set()


async def test_live_table_on_stderr_leaves_stdout_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in ``signalwire-streams listen > streams.txt``."""
    pretend_terminal(monkeypatch, "stderr")
    look, seen = looking()
    monkeypatch.setattr("signalwire_streams._cli.progress._TABLE_EVERY", 0.0)
    async with live_table(look, as_json=False) as shown:
        await seen.wait()
        shown.write("it ended")
    captured = capsys.readouterr()
    assert captured.out == "it ended\n"
    assert "00000007-" in captured.err


async def test_server_reports_the_receivers_log(tmp_path: Path) -> None:
    """With its error but without a traceback, and only while it serves."""
    log = logging.getLogger("signalwire_streams.receiver")
    before = list(log.handlers)
    reports: list[Report] = []
    options = ServerOptions(
        host="127.0.0.1",
        port=0,
        path="/",
        ssl_context=None,
        tokens=None,
        byte_order="little",
        recording=RecordingOptions(directory=tmp_path),
    )
    async with RecordingServer(options, reports.append).serve():
        log.warning("a stream did not start")
        try:
            raise RuntimeError("boom")  # noqa: TRY301  (as a handler may)
        except RuntimeError:
            log.exception("the handler failed")
        log.info("all is well")
    assert log.handlers == before
    assert reports == [
        Warned("error: a stream did not start"),
        Warned("error: the handler failed (RuntimeError: boom)"),
    ]


@posix_only
async def test_listen_writes_a_line_per_start_and_end(tmp_path: Path) -> None:
    """And one for all at the end; a sid can't clear the screen."""
    async with process("listen", "--allow-anonymous", "--directory", str(tmp_path)) as child:
        url = (await line_of(child)).split()[-1]
        while "Ctrl-C" not in await line_of(child):
            pass
        async with dialled(url) as peer:
            await begin(peer, "s\x1b[2J\n1")
            await speak(peer)
            began = await line_of(child)
            await stop(peer)
        ended = await line_of(child)
        ran = await end_of(child, signal.SIGINT)
    assert began == "s [2J 1 started: audio/x-mulaw at 8000 Hz, inbound and outbound\n"
    assert ended == f"s [2J 1 ended (stopped): 0.1 s, peak -0.2 dBFS, 10 frames, 0 lost; {tmp_path / 's-2J-1.wav'}\n"
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "Ended. Streams: 1, files: 1, audio: 0 s, lost frames: 0.\n"


@posix_only
async def test_listen_reports_lost_frames(tmp_path: Path) -> None:
    """Frames that never came, that came twice, and that came late, each by its own name."""
    async with process("listen", "--json", "--allow-anonymous", "--directory", str(tmp_path)) as child:
        url = json.loads(await line_of(child))["url"]
        async with dialled(url) as peer:
            await begin(peer)
            for chunk in (1, 2, 2, 5, 4, 9):
                media = {"track": "inbound", "chunk": str(chunk), "timestamp": str(chunk * 20), "payload": "gICAgA=="}
                await peer.send_json({"event": "media", "media": media})
            await peer.send_str("not JSON")
            await stop(peer)
        facts = json.loads(await line_of(child))
    told = facts["tracks"]["inbound"]
    assert (told["frames"], told["missing"], told["duplicates"], told["out_of_order"]) == (6, 4, 1, 1)
    assert (told["dropped"], facts["malformed"]) == (0, 1)
    assert math.isclose(told["peak_dbfs"], -0.172, abs_tol=0.01)


async def test_listen_help_has_an_example_and_names_the_environment(bare_shell: Shell) -> None:
    ran = await bare_shell("listen", "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "  signalwire-streams listen --" in ran.out.partition("Example")[2]
    for name in ("SIGNALWIRE_STREAMS_TOKEN", "SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN"):
        assert name in ran.out
