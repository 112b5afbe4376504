"""An hour of conferences and calls that come and go, by a virtual clock, with faults all the time."""

import pytest

from tests.keep_streaming.soak import CALLS, CONFERENCES, Report, Scene


def play(scene: Scene) -> Report:
    return scene.play(targets=200, seconds=3600.0)


@pytest.mark.parametrize("scene", [pytest.param(scene, id=name) for name, scene in CONFERENCES.items()])
def test_conferences_are_streamed_once_nearly_all_the_time(scene: Scene) -> None:
    """For three of the sixty minutes there is no response to anything."""
    report = play(scene)
    assert report.doubled == 0
    assert report.share >= 0.96, report
    assert report.missed <= 1, report
    assert report.kept <= 100, "about 33 of them live at once"


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith("calls that hold")])
def test_calls_that_hold_are_never_doubled(name: str) -> None:
    report = play(CALLS[name])
    assert report.doubled == 0
    assert 0 < report.missed <= report.events["StreamingInDoubt"]


def test_calls_that_restart_are_streamed_and_each_doubt_is_told() -> None:
    report = play(CALLS["calls that restart"])
    assert report.share >= 0.96
    assert report.missed <= 1
    assert 0 < report.doubled <= report.events["StreamingInDoubt"]


def test_wrong_belief_doubles_some() -> None:
    """Nothing protects a conference if its Space accepts a second stream of a name."""
    assert 0 < play(CALLS["conferences whose Space does not refuse, though it is believed to"]).doubled <= 20
