"""What a page shows and plays, and that it leaves nothing behind and slows nothing."""

import asyncio
import json
import logging
import socket as sockets
import struct
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from signalwire_streams.page import LivePage, _board
from signalwire_streams.page._board import Board, StreamRow
from signalwire_streams.receiver import MediaEvent, MediaReceiver, StreamSession
from tests.waiting import until

from .conftest import SILENCE, Browse, Browser, Call, Caller, Handler, View, no_task_left, tone

LOUD = tone(500)


async def test_rows_appear_and_go(browser: Browser, call: Call, handler: Handler) -> None:
    """A stream's row has its target, levels, loss and delay; it says for ten seconds why it ended, and then goes."""
    view = await browser.view()
    await view.until(lambda: view.wholes)
    caller = await call("s-1", callSid="call-1", customParameters={"pin": "secret-1234"})
    row = await view.row("s-1")
    assert (row["target"], row["state"], row["levels"], row["lost"]) == ("call-1", "waiting", [0, 0], 0)

    await caller.speak(20, LOUD)
    await view.until(lambda: view.rows[row["id"]]["levels"][0] > 50)
    assert view.rows[row["id"]]["levels"][1] == 0
    await caller.send(LOUD, LOUD, skip=3)
    await view.until(lambda: view.rows[row["id"]]["lost"] == 6)
    assert view.rows[row["id"]]["state"] == "live"
    await view.until(lambda: view.rows[row["id"]]["state"] == "no audio")
    await view.until(lambda: view.rows[row["id"]]["levels"] == [0, 0])

    await caller.stop()
    await view.until(lambda: view.rows[row["id"]]["state"] == "ended: stopped")
    ended_at = asyncio.get_running_loop().time()
    await view.until(lambda: not view.rows)
    assert asyncio.get_running_loop().time() - ended_at == pytest.approx(10, abs=1)
    assert handler.events == 42


async def test_row_of_an_ended_stream_goes_once(browse: Browse, stack: AsyncExitStack) -> None:
    """Its handler may work on, such as to upload a recording."""
    is_uploaded = asyncio.Event()

    async def handle(session: StreamSession) -> None:
        await session.wait_closed()
        await is_uploaded.wait()

    receiver = MediaReceiver(handle, bearer_tokens=None)
    url = await stack.enter_async_context(receiver.serve())
    http = await stack.enter_async_context(aiohttp.ClientSession())
    browser = await browse(await stack.enter_async_context(LivePage(receivers=[receiver]).serve()))
    await browser.enter()
    view = await browser.view()
    caller = Caller(await http.ws_connect(url))
    await caller.begin("s-1")
    await view.row("s-1")
    await caller.stop()
    await view.until(lambda: any(row["state"].startswith("ended") for row in view.rows.values()))
    await view.until(lambda: not view.rows)
    for _ in range(10):
        await view.read()
        assert not view.rows
    is_uploaded.set()


async def test_stream_that_is_older_than_the_page(browser: Browser, call: Call, handler: Handler) -> None:
    """Its time counts from its start; hostile names arrive as they are, but not at any length."""
    caller = await call("<img src=x onerror=alert(1)>" + "x" * 1_000)
    await caller.speak(100)
    view = await browser.view()
    await view.until(lambda: view.rows)
    [row] = view.rows.values()
    assert (len(row["name"]), row["name"][:5], row["target"]) == (300, "<img ", "")
    assert row["age"] >= 2


async def test_opened_stream_has_waveform_statistics_and_events(browser: Browser, call: Call) -> None:
    caller = await call("s-1")
    view = await browser.view()
    row = await view.row("s-1")
    await caller.speak(50, SILENCE, LOUD)
    await view.open(row["id"])
    await view.until(lambda: view.details)
    assert view.details["format"] == "audio/x-mulaw at 8,000 Hz"
    assert view.details["playable"] is True
    assert max(view.wave[1::2]) > 50
    assert set(view.wave[::2]) == {0}

    await caller.send(LOUD, LOUD, skip=2)
    await view.until(lambda: view.details["tracks"].get("inbound", {}).get("missing") == 2)
    await view.until(lambda: [text for _, text in view.details["events"]][-1] != "audio arrives")
    assert [text for _, text in view.details["events"]][:3] == ["started", "audio arrives", "4 frames lost"]
    await view.open(None)
    details = view.details
    await caller.stop()
    await view.until(lambda: view.rows[row["id"]]["state"] == "ended: stopped")
    assert view.details is details


async def test_keys_are_events_without_their_digits(browser: Browser, call: Call, handler: Handler) -> None:
    """They reach the handler as well."""
    caller = await call("s-1")
    view = await browser.view()
    row = await view.row("s-1")
    await view.open(row["id"])
    await caller.socket.send_json({"event": "dtmf", "dtmf": {"digit": "#", "track": "inbound"}})
    await view.until(lambda: view.details and len(view.details["events"]) == 2)
    assert [text for _, text in view.details["events"]] == ["started", "a key was pressed"]
    assert handler.events == 1


async def test_opened_stream_shows_each_frame(browser: Browser, call: Call) -> None:
    """A click of 20 ms is in the waveform, wherever it falls between two messages."""
    caller = await call("s-1")
    view = await browser.view()
    row = await view.row("s-1")
    await view.open(row["id"])
    await view.until(lambda: view.details)
    waves: list[int] = []
    for position in range(5):
        await caller.speak(position)
        await caller.send(LOUD)
        await caller.speak(9 - position)
        waves.clear()
        while not waves or max(waves) <= 50:
            await view.read()
            waves += view.wave
        await caller.speak(200)  # the meter falls
        while view.wave[:2] != [0, 0]:
            await view.read()


async def test_row_is_sent_again_only_if_it_has_changed(browser: Browser, call: Call) -> None:
    await call("s-1")
    view = await browser.view()
    await view.row("s-1")
    messages = [json.loads(await view.socket.receive_str()) for _ in range(10)]
    rows = [row for message in messages for row in message.get("rows", [])]
    assert len(rows) <= 3, "its numbers are read in every fifth tick"


async def test_audio_below_the_range_of_a_meter_has_no_level(browser: Browser, call: Call) -> None:
    caller = await call("s-1")
    view = await browser.view()
    row = await view.row("s-1")
    await view.open(row["id"])
    await caller.speak(20, b"\xfe" * 160)  # 8 of 32,767
    await view.until(lambda: view.rows[row["id"]]["state"] == "live" and len(view.wave) >= 4)
    assert (view.rows[row["id"]]["levels"], max(view.wave)) == ([0, 0], 0)


async def test_unknown_encoding_has_no_level_and_no_sound(browser: Browser, call: Call) -> None:
    caller = await call("s-1", encoding="audio/opus")
    view = await browser.view()
    row = await view.row("s-1")
    await caller.speak(60, LOUD)
    await view.open(row["id"])
    await view.until(lambda: view.details and view.rows[row["id"]]["state"] == "live")
    assert (view.details["playable"], view.rows[row["id"]]["levels"]) == (False, [0, 0])
    assert await browser.upgrade(f"audio?stream={row['id']}") == 404


@pytest.mark.parametrize("rate", [1, 11_025, 768_000])
async def test_rate_without_whole_frames_has_no_sound(browser: Browser, call: Call, rate: int) -> None:
    """Else the listener would see its stream end."""
    caller = await call("s-1", mediaFormat={"encoding": "audio/x-mulaw", "sampleRate": rate, "channels": 1})
    view = await browser.view()
    row = await view.row("s-1")
    await caller.speak(2)
    await view.open(row["id"])
    await view.until(lambda: view.details)
    assert view.details["playable"] is False
    assert await browser.upgrade(f"audio?stream={row['id']}") == 404


@pytest.mark.parametrize("broken", ["measure", "refresh", "_find_rows"])
async def test_bug_freezes_only_what_it_concerns(
    browser: Browser,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    """It is logged, but not in each tick."""
    owner: Any = Board if broken == "_find_rows" else StreamRow
    works, failures = getattr(owner, broken), 0

    def fails(one: Any, now: float) -> Any:
        nonlocal failures
        if failures < 20 if owner is Board else one.session.stream_sid == "bad":
            failures += 1
            raise KeyError("a bug")
        return works(one, now)

    await call("bad")
    view = await browser.view()
    await view.row("bad")
    monkeypatch.setattr(owner, broken, fails)
    caller = await call("good")
    row = await view.row("good")
    await caller.speak(100)
    await view.until(lambda: view.rows[row["id"]]["state"] == "live")
    assert failures > 1
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == "a part of the live page can't be drawn"


async def test_too_many_rows_are_counted(
    browser: Browser, call: Call, handler: Handler, page: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest streams are shown."""
    monkeypatch.setattr(page._board, "_max_rows", 10)
    for number in range(12):
        await call(f"s-{number}")
    await until(lambda: len(handler.sessions) == 12)
    view = await browser.view()
    await view.until(lambda: view.hidden and len(view.rows) == 10)
    assert (view.hidden, "s-0" in {row["name"] for row in view.rows.values()}) == (2, True)


# Listening.


async def test_listening_plays_both_tracks_and_is_logged(
    browser: Browser, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    """Inbound is on the left, outbound on the right; the browser gets the stream's sample rate."""
    caller = await call("s-1")
    view = await browser.view()
    row = await view.row("s-1")
    with caplog.at_level(logging.INFO, "signalwire_streams.page"):
        audio = await browser.socket(f"audio?stream={row['id']}")
        assert await audio.receive_json() == {"rate": 8000}
        speaking = asyncio.create_task(caller.speak(50, LOUD, SILENCE))
        pcm = b""
        while len(pcm) < 4 * 160 * 30:
            pcm += await audio.receive_bytes()
        await speaking
        await caller.stop()
        while (message := await audio.receive()).type is aiohttp.WSMsgType.BINARY:
            pcm += message.data
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.OK)
    samples = struct.unpack(f"<{len(pcm) // 2}h", pcm)
    assert max(samples[::2]) > 16_000
    assert set(samples[1::2]) == {0}
    assert [record.getMessage() for record in caplog.records] == [
        "a browser at 127.0.0.1 listens to stream s-1",
        "a browser at 127.0.0.1 no longer listens to stream s-1",
    ]
    assert {vars(record)["stream"] for record in caplog.records} == {"s-1"}


async def test_page_closed_in_mid_listen_leaves_nothing(
    browser: Browser, call: Call, handler: Handler, page: LivePage
) -> None:
    """No task, tap or socket; the stream goes on."""
    caller = await call("s-1")
    await until(lambda: handler.sessions)
    with no_task_left():
        view = await browser.view()
        row = await view.row("s-1")
        await view.open(row["id"])
        audio = await browser.socket(f"audio?stream={row['id']}")
        await audio.receive_json()
        await caller.speak(10, LOUD)
        await audio.receive_bytes()
        assert len(handler.sessions[0]._listeners.feeds) == 2
        for socket in (audio, view.socket):
            assert socket._response.connection is not None
            socket._response.connection.transport.abort()  # type: ignore[union-attr]
        await until(lambda: not (page._pages or page._listeners))
        await until(lambda: not handler.sessions[0]._listeners.feeds)
        await until(lambda: page._board._drawing is None)
        await asyncio.sleep(1)
    await caller.speak(10)
    await until(lambda: handler.events == 40)


async def test_listener_that_sends_something_is_closed(browser: Browser, call: Call) -> None:
    await call("s-1")
    view = await browser.view()
    row = await view.row("s-1")
    audio = await browser.socket(f"audio?stream={row['id']}")
    await audio.receive_json()
    await audio.send_str("hello")
    while (message := await audio.receive()).type is aiohttp.WSMsgType.BINARY:
        pass
    assert message.type is aiohttp.WSMsgType.CLOSE


async def test_pages_and_listeners_take_nothing_from_a_late_loop(browse: Browse, stack: AsyncExitStack) -> None:
    """A handler that begins its loop later gets the audio that arrived before, whatever a browser shows and plays."""
    may_begin = asyncio.Event()
    events: list[Any] = []

    async def late(session: StreamSession) -> None:
        await may_begin.wait()
        events.extend([event async for event in session])

    receiver = MediaReceiver(late, bearer_tokens=None)
    page = LivePage(receivers=[receiver])
    url, link = [await stack.enter_async_context(one) for one in (receiver.serve(), page.serve())]
    browser = await browse(link)
    await browser.enter()
    http = await stack.enter_async_context(aiohttp.ClientSession())
    caller = Caller(await http.ws_connect(url))
    await caller.begin("s-1")
    view = await browser.view()
    row = await view.row("s-1")
    audio = await browser.socket(f"audio?stream={row['id']}")
    await audio.receive_json()
    await caller.speak(20, LOUD)
    await audio.receive_bytes()
    may_begin.set()
    await caller.stop()
    await until(lambda: len(events) == 40)
    assert all(isinstance(event, MediaEvent) for event in events)


# Bounds.


async def test_twenty_pages_get_the_same_and_leave_nothing(
    browser: Browser, call: Call, handler: Handler, page: LivePage
) -> None:
    caller = await call("s-1")
    await until(lambda: handler.sessions)
    with no_task_left():
        views = [await browser.view() for _ in range(20)]
        for view in views:
            row = await view.row("s-1")
            await view.open(row["id"])
        await caller.speak(20, LOUD)
        for view in views:
            await _until_loud(view)
        assert len(handler.sessions[0]._listeners.feeds) == 1
        for view in views:
            await view.socket.close()
        await until(lambda: page._board._drawing is None)
        assert not handler.sessions[0]._listeners.feeds
        await asyncio.sleep(1)
    view = await browser.view()  # it draws again, and knows the stream by the same number
    assert (await view.row("s-1"))["id"] == row["id"]


async def _until_loud(view: View) -> None:
    await view.until(lambda: view.details and max(view.wave, default=0) > 50)


async def test_pages_and_listeners_are_bounded(
    receiver: MediaReceiver, call: Call, browse: Browse, stack: AsyncExitStack
) -> None:
    """One more is told why; when another has left, there is room again."""
    page = LivePage(receivers=[receiver], max_pages=2, max_listeners=1)
    browser = await browse(await stack.enter_async_context(page.serve()))
    await browser.enter()
    await call("s-1")
    view, other = [await browser.view() for _ in range(2)]
    row = await view.row("s-1")
    surplus = await browser.socket()
    closing = await surplus.receive()
    assert (closing.data, closing.extra) == (aiohttp.WSCloseCode.TRY_AGAIN_LATER, "Too many pages are open: close one.")
    await other.socket.close()
    await until(lambda: len(page._pages) == 1)
    await (await browser.view()).row("s-1")

    audio = await browser.socket(f"audio?stream={row['id']}")
    await audio.receive_json()
    closing = await (await browser.socket(f"audio?stream={row['id']}")).receive()
    assert (closing.data, closing.extra) == (
        aiohttp.WSCloseCode.TRY_AGAIN_LATER,
        "Too many listen: try again later.",
    )


async def test_browser_that_stops_reading_is_dropped(
    browser: Browser, call: Call, handler: Handler, page: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing piles up for it, the other pages go on, and its connection is reset in the end."""
    encode = _board._encode
    monkeypatch.setattr(_board, "_encode", lambda message: encode(message) + " " * 4_000_000)
    caller = await call("s-1")
    view = await browser.view()
    row = await view.row("s-1")
    deaf = await browser.socket()
    deaf._response.connection.transport.pause_reading()  # type: ignore[union-attr]
    await until(lambda: len(page._pages) == 2)
    await view.until(lambda: len(page._pages) == 1)
    await caller.speak(30, LOUD)
    await view.until(lambda: view.rows[row["id"]]["levels"][0] > 50)
    await until(lambda: handler.events == 60)


async def test_page_closes_although_a_browser_reads_nothing(
    receiver: MediaReceiver, browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = _board._encode
    monkeypatch.setattr(_board, "_encode", lambda message: encode(message) + " " * 4_000_000)
    page = LivePage(receivers=[receiver])
    with no_task_left():
        async with page.serve() as link:
            browser = await browse(link)
            await browser.enter()
            deaf = await browser.socket()
            deaf._response.connection.transport.pause_reading()  # type: ignore[union-attr]
            await until(lambda: page._board.tick > 5)
        assert not page._pages
        await browser.session.close()


async def test_slow_browser_gets_the_whole_board_instead_of_what_it_missed(
    browser: Browser, call: Call, page: LivePage
) -> None:
    await call("s-1")
    board = page._board
    view = await browser.view()
    await view.row("s-1")
    board._messages.clear()
    board._messages.extend((number, "") for number in range(board.tick + 50, board.tick + 60))
    [whole] = board.since(board.tick)
    assert json.loads(whole)["all"] is True
    assert board.since(board.tick + 55) == ["", "", "", ""]


async def test_listener_that_stops_reading_is_dropped(
    browser: Browser, call: Call, handler: Handler, page: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its audio is dropped, and the stream is not slowed."""

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(web.WebSocketResponse, "send_bytes", never)
    caller = await call("s-1")
    view = await browser.view()
    row = await view.row("s-1")
    audio = await browser.socket(f"audio?stream={row['id']}")
    await audio.receive_json()
    await caller.speak(200, LOUD)
    assert len(page._listeners) == 1
    await caller.speak(400, LOUD)
    await until(lambda: not page._listeners)
    assert handler.sessions[0].statistics.of("inbound").frames == 600
    await until(lambda: handler.events == 1200)


@pytest.mark.parametrize("text", ["", "{}", "[]", "7", '{"open": "x"}' + "[" * 900, "x" * 5_000])
async def test_malformed_message_closes_the_page(browser: Browser, page: LivePage, text: str) -> None:
    """So does one that is too long."""
    socket = await browser.socket()
    await socket.send_str(text)
    await until(lambda: not page._pages)
    await socket.close()


@pytest.mark.parametrize("number", [0, -1, 10**12, "1", None, True, 1.5, [], {}])
async def test_unknown_stream_opens_nothing(browser: Browser, call: Call, number: Any) -> None:
    await call("s-1")
    view = await browser.view()
    await view.open(number)
    await view.row("s-1")
    for _ in range(5):
        await view.read()
    assert view.details == {}
    shown = number if isinstance(number, int) else "x"
    assert await browser.upgrade(f"audio?stream={'9' * 400 if number == 0 else shown}") == 404


async def test_page_closes_with_its_block(receiver: MediaReceiver, browse: Browse) -> None:
    """Its sockets are closed with 1001, and browsers that do not respond are cut off."""
    page = LivePage(receivers=[receiver])
    with no_task_left():
        async with page.serve() as link:
            browser = await browse(link)
            await browser.enter()
            view = await browser.view()
            await view.until(lambda: view.wholes)
            await browser.socket()  # it reads no close frame
            assert page.opened.is_set()
        while (message := await view.socket.receive()).type is aiohttp.WSMsgType.TEXT:
            pass
        assert message.data == aiohttp.WSCloseCode.GOING_AWAY
    with sockets.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", browser.address.port or 0)) != 0
