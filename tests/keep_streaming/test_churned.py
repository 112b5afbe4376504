"""Some minutes of conferences that come and go, with the real keeper, sockets, and faults all the time."""

from pathlib import Path

import pytest

from tests.keep_streaming.churned import Report, Scene


def play(scene: Scene, directory: Path, *, targets: int) -> Report:
    """For three of the minutes there is no useful response to anything."""
    report = scene.play(directory, targets=targets, seconds=600.0, life=150.0)
    assert report.targets >= targets / 2
    assert report.doubled == 0, report
    assert {"TargetAppeared", "StreamingStarted", "TargetEnded", "PollingFailed"} <= report.events.keys()
    return report


def test_two_keepers_that_know_nothing_of_each_other_double_nothing(tmp_path: Path) -> None:
    report = play(Scene(keepers=2), tmp_path, targets=16)
    assert report.share >= 0.4, report


@pytest.mark.timeout(300.0)  # two processes that take turns, on a machine that may be busy
def test_killed_keeper_doubles_nothing(tmp_path: Path) -> None:
    report = play(Scene(kills=1), tmp_path, targets=6)
    assert report.share >= 0.4, report


def test_stream_of_another_is_told_and_replaced_once_it_ends(tmp_path: Path) -> None:
    report = play(Scene(foreign_streams=0.5, duplicate_names="http-error"), tmp_path, targets=10)
    assert report.events["StreamingInDoubt"] >= 1
    assert report.share >= 0.3, report
