"""Keepers on the page: what they keep, in what state and since when; against a simulated Space."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import Clock, InvalidRequestError, JournalError, StreamsClient
from signalwire_streams.keep_streaming import KeepStatus, StandbyEnded, StandbyStarted, StartsPaused, StartsResumed
from signalwire_streams.page import LivePage, _board
from signalwire_streams.page._board import Board
from signalwire_streams.simulator import SimulatedSpace
from tests.waiting import until

from .conftest import Browse, View

TEMPLATE: Any = {"url": "wss://rx.example.com/audio", "parameters": {"tenant": "hush-value"}}


@pytest.fixture
async def space(idle_clock: Clock) -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=2, calls=1, participants=0) as started:
        yield started


@pytest.fixture
async def client(space: SimulatedSpace, idle_clock: Clock) -> AsyncIterator[StreamsClient]:
    async with StreamsClient(
        space=space.base_url, project=space.project, token=space.token, clock=idle_clock
    ) as opened:
        yield opened


@pytest.fixture
async def page(client: StreamsClient, tmp_path: Path) -> LivePage:
    """A page without receivers, of a keeper that has not begun."""
    kept = client.keep_streaming(TEMPLATE, name="audit", calls=True, poll=1, journal=tmp_path / "kept.db")
    return LivePage(keepers=[kept], authorize=lambda _: True)


@pytest.fixture
async def view(browse: Browse, link: str) -> View:
    return await (await browse(link)).view()


def keeper_of(page: LivePage) -> Any:
    return page._board.keepers[0]._keeper


async def test_targets_of_a_keeper(page: LivePage, view: View, space: SimulatedSpace) -> None:
    """Each has its name, state, reason and the time since when it has been so; one that ends goes."""
    broken, good = space.conference_sids
    space.add_conference(friendly_name="<b>support</b>" + "x" * 1_000)
    fault = space.faults.add("status", on="start", status=403, target=broken)
    async with keeper_of(page):
        await view.until(lambda: view.states() == {"streaming": 3, "failing": 1})
        assert [keeper["name"] for keeper in view.keepers.values()] == ["audit"]
        [call] = [row for row in view.targets.values() if row["kind"] == "call"]
        assert (call["target"], call["name"].count(" > ")) == (space.call_sids[0], 1)
        rows = {row["target"]: row for row in view.targets.values()}
        assert (rows[good]["name"], rows[good]["kind"], rows[good]["reason"]) == ("conference-2", "conference", "")
        assert rows[broken]["reason"].startswith("HTTP 403")
        assert {len(row["name"]) for row in rows.values()} >= {300}

        await until(lambda: seconds_of(page, broken) > 5, timeout=60, interval=0.5)
        fault.remove()
        await view.until(lambda: view.states() == {"streaming": 4})
        row = view.targets[rows[broken]["id"]]
        assert (row["reason"], row["age"] < 3) == ("", True)
        space.end_conference(good)
        await view.until(lambda: len(view.targets) == 3)
        assert good not in str(view.targets)
    await view.until(lambda: view.notes() == ["It has ended."])
    assert len(view.targets) == 3
    assert not view.saw_secret


def seconds_of(page: LivePage, sid: str) -> float:
    seconds: float = next(target.seconds for target in keeper_of(page).snapshot if target.target == sid)
    return seconds


async def test_time_counts_from_the_change_and_not_from_the_opening(
    page: LivePage, browse: Browse, link: str, idle_clock: Clock
) -> None:
    async with keeper_of(page) as keeper:
        await until(lambda: [one.status for one in keeper.snapshot] == [KeepStatus.STREAMING] * 3, timeout=60)
        await idle_clock.sleep(70)
        view = await (await browse(link)).view()
        await view.until(lambda: view.targets)
        assert all(70 <= row["age"] < 75 for row in view.targets.values())


async def test_what_holds_a_keeper_up(page: LivePage, view: View, space: SimulatedSpace) -> None:
    async with keeper_of(page) as keeper:
        await view.until(lambda: view.targets)
        outage = space.faults.add("status", on="list", status=401)
        await view.until(view.notes)
        [note] = view.notes()
        assert note.startswith("The Space does not answer polls: list Conferences: HTTP 401")
        outage.remove()
        await view.until(lambda: not view.notes())
        keeper._emit(StartsPaused(receiver="wss://rx.example.com:443", reason="closed at once"))
        keeper._emit(StandbyStarted(reason="another keeper has the lease"))
        await view.until(lambda: len(view.notes()) == 2)
        assert view.notes() == [
            "Starts to wss://rx.example.com:443 wait: closed at once",
            "On standby: another keeper has the lease",
        ]
        assert [type(obstacle) for obstacle in keeper.obstacles] == [StartsPaused, StandbyStarted]
        keeper._emit(StartsResumed(receiver="wss://another.example.com:443"))
        keeper._emit(StandbyEnded())
        assert [type(obstacle) for obstacle in keeper.obstacles] == [StartsPaused]
        keeper._emit(StartsResumed(receiver="wss://rx.example.com:443"))
        assert keeper.obstacles == ()


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (JournalError("the disk is full"), "It has failed: the disk is full"),
        (KeyError("hush-key"), "It has failed: KeyError"),
    ],
)
async def test_keeper_that_failed_says_why(page: LivePage, view: View, error: Exception, note: str) -> None:
    """With no more than the type of an error of the user's."""
    async with keeper_of(page) as keeper:
        await view.until(lambda: view.targets)
        keeper._tasks.failure = error
        await view.until(view.notes)
        keeper._tasks.failure = None
    assert (view.notes(), view.saw_secret) == ([note], False)


async def test_targets_are_bounded_and_read_in_turns(
    page: LivePage, view: View, space: SimulatedSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest are shown, and how many are not."""
    monkeypatch.setattr(page._board.keepers[0], "_max_rows", 7)
    monkeypatch.setattr(_board, "_TARGETS_AT_ONCE", 3)
    for _ in range(10):
        space.add_conference()
    async with keeper_of(page):
        await view.until(lambda: view.states() == {"streaming": 7})
        [keeper] = view.keepers.values()
        assert keeper["hidden"] == 6


async def test_page_that_is_opened_again_gets_all_rows(
    page: LivePage, view: View, browse: Browse, link: str, space: SimulatedSpace
) -> None:
    """Nothing is read while no page is open, and nothing that has ended meanwhile is shown."""
    async with keeper_of(page):
        await view.until(lambda: view.states() == {"streaming": 3})
        await view.socket.close()
        await until(lambda: page._board._drawing is None)
        space.end_conference(space.conference_sids[0])
        await until(lambda: len(keeper_of(page).snapshot) == 2, timeout=60, interval=0.5)
        again = await (await browse(link)).view()
        await again.until(lambda: again.targets)
        assert again.states() == {"streaming": 2}


async def test_last_runs_and_keepers_are_shown(
    page: LivePage, view: View, client: StreamsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that adds runs for years fills neither its memory nor the page."""
    run = client.start_streams([])
    await run.report()
    for _ in range(3):
        page.add_run(run)
    await view.until(lambda: len(view.runs) == 3)
    first = min(view.runs)
    for number in range(20):
        page.add_run(run)
        page.add_keeper(client.keep_streaming(TEMPLATE, name=f"k-{number}", journal=tmp_path / "other.db"))
    await view.until(lambda: first not in view.runs and len(view.keepers) == 20)
    assert (len(view.runs), "audit" in str(view.keepers)) == (20, False)
    assert isinstance(page._board, Board)


def test_keepers_are_a_list_of_keepers(client: StreamsClient, tmp_path: Path) -> None:
    keeper = client.keep_streaming(TEMPLATE, name="audit", journal=tmp_path / "kept.db")
    one: Any = keeper
    with pytest.raises(InvalidRequestError, match=r"are lists: write .*keepers=\[keeper\]"):
        LivePage(keepers=one)
    with pytest.raises(InvalidRequestError, match=r"keepers contains a StreamsClient: pass what client.keep_streaming"):
        LivePage(keepers=[client])  # type: ignore[list-item]
