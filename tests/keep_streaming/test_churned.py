"""Half an hour of conferences and calls that come and go, with the real keeper, sockets, and faults all the time."""

from pathlib import Path

import pytest

from tests.keep_streaming.churned import CALLS, CONFERENCES, Report, Scene


def play(name: str, directory: Path, *, targets: int) -> Report:
    scene: Scene = {**CONFERENCES, **CALLS}[name]
    return scene.play(directory, targets=targets, seconds=1800.0, life=300.0)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("conferences, two keepers that know nothing of each other", 40),
        ("conferences, received here, keeper killed five times", 25),
        ("calls that hold", 40),
    ],
)
def test_none_is_ever_doubled(tmp_path: Path, name: str, targets: int) -> None:
    """For three of the thirty minutes the Space can't be reached, or gives no useful response."""
    report = play(name, tmp_path, targets=targets)
    assert report.targets >= targets / 2
    assert report.doubled == 0, report
    assert report.share >= 0.7, report
    assert {"TargetAppeared", "StreamingStarted", "TargetEnded", "PollingFailed"} <= report.events.keys()
