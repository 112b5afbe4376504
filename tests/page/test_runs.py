"""Bulk runs on the page, against a simulated Space."""

import math
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from signalwire_streams import BulkRun, Clock, InvalidRequestError, RateLimit, StartConferenceStream, StreamsClient
from signalwire_streams.page import LivePage
from signalwire_streams.simulator import SimulatedSpace

from .conftest import Browse, Browser, View

URL = "wss://rx.example.com/audio"


@pytest.fixture
async def space(idle_clock: Clock) -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=30) as started:
        yield started


@pytest.fixture
async def client(space: SimulatedSpace, idle_clock: Clock) -> AsyncIterator[StreamsClient]:
    async with StreamsClient(
        space=space.base_url, project=space.project, token=space.token, clock=idle_clock
    ) as opened:
        yield opened


@pytest.fixture
async def view(page: LivePage, browser: Browser) -> View:
    return await browser.view()


def requests_of(space: SimulatedSpace) -> list[StartConferenceStream]:
    sids = [*space.conference_sids, "CO-none", "CO-nowhere"]
    return [StartConferenceStream(conference_sid=sid, url=URL, parameters={"pin": "secret"}) for sid in sids]


async def test_progress_of_a_run(view: View, page: LivePage, space: SimulatedSpace, client: StreamsClient) -> None:
    """Counts, retries and the most frequent errors with what to do; the total is that of the items."""
    space.faults.add("503-api", on="start", every_nth=10, per_target=1)
    run = client.start_streams(requests_of(space))
    page.add_run(run, rate_limit=1_242.0)
    await view.until(lambda: view.runs)
    [facts] = view.runs.values()
    assert (facts["title"], facts["done"], facts["total"], facts["ended"]) == ("Starting streams", 0, 32, False)

    report = await run.report()
    await view.until(lambda: view.runs[facts["id"]]["ended"])
    await view.until(lambda: view.runs[facts["id"]]["rates"])
    facts = view.runs[facts["id"]]
    assert facts["counts"] == {"started": 30, "rejected": 2}
    assert (facts["done"], facts["attempts"]) == (32, report.attempts)
    assert facts["retries"] == report.attempts - 32 > 0
    assert (facts["limit"], facts["left"]) == (1_242.0, None)
    [error] = facts["errors"]
    assert (error["label"].split()[0], error["count"]) == ("NotFoundError", 2)
    assert "check the sid, or skip it" in error["advice"]
    assert "CO-no" in error["example"]
    assert "secret" not in str(view.runs)


async def test_time_left_and_rate_while_it_runs(
    view: View, page: LivePage, space: SimulatedSpace, client: StreamsClient
) -> None:
    space.faults.add("latency", seconds=2.0)
    run = client.start_streams(requests_of(space), concurrency=4)
    page.add_run(run, title="Recording all", total=100)
    shown: list[dict[str, Any]] = []
    async for outcome in run:
        assert outcome.attempts
        while len(shown) < 12 and run.snapshot.total >= 8:
            await view.read()
            shown += [facts for facts in view.runs.values() if facts not in shown]
    assert {(facts["title"], facts["total"]) for facts in shown} == {("Recording all", 100)}
    assert any(facts["left"] for facts in shown)
    assert any(any(facts["rates"]) for facts in shown)


async def test_run_without_a_length(browse: Browse, space: SimulatedSpace, client: StreamsClient) -> None:
    """Nothing says how many items a generator has. A page without receivers says so."""

    def generate() -> Iterator[StartConferenceStream]:
        yield from requests_of(space)[:3]

    space.faults.add("reset", on="start", executed=True)
    run: BulkRun[Any] = client.start_streams(generate())
    page = LivePage(runs=[run])
    async with page.serve() as link:
        browser = await browse(link)
        await browser.enter()
        view = await browser.view()
        await run.report()
        await view.until(lambda: any(facts["ended"] for facts in view.runs.values()))
        [facts] = view.runs.values()
        assert (facts["total"], facts["left"], facts["done"]) == (None, None, 3)
        assert [error["advice"] for error in facts["errors"]] == ["These may be running: stop each by its name."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"title": b"x"}, "title must be a str, not bytes"),
        ({"total": math.nan}, "total must be a whole number of 0 or more, not nan"),
        ({"total": "9"}, "total must be a whole number of 0 or more, not '9'"),
        ({"rate_limit": math.nan}, "rate_limit must be requests per second, such as 1_242.0, not nan"),
        ({"rate_limit": True}, "rate_limit must be requests per second"),
        ({"rate_limit": RateLimit()}, "write rate_limit=limit.rate"),
    ],
)
async def test_what_cannot_be_shown_of_a_run_is_said(
    client: StreamsClient, options: dict[str, Any], message: str
) -> None:
    page, run = LivePage(), client.start_streams([])
    await run.report()
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        page.add_run(run, **options)


async def test_long_title_is_cut(view: View, page: LivePage, client: StreamsClient) -> None:
    run = client.start_streams([])
    await run.report()
    page.add_run(run, title="<b>" * 10_000)
    await view.until(lambda: view.runs)
    [facts] = view.runs.values()
    assert facts["title"] == "<b>" * 100
