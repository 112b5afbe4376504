"""What the benchmarks count with is right; how fast anything is, no test says."""

import json

import pytest

from benchmarks.answering import Arrivals
from benchmarks.figures import Rounds, Section, Series, Spread, percentile
from benchmarks.hearing.speaking import framed, media
from benchmarks.plan import Plan
from benchmarks.table import lines

HAND = Series("by hand", (2.0, 4.0, 10.0))
OURS = Series("ours", (1.0, 3.0, 5.0))
SECTION = Section(title="Cost", unit="µs", series=(HAND, OURS), yardstick="by hand", ours="ours", notes=("a note",))


def test_a_spread_is_the_median_with_the_least_and_the_most() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_ratios_are_taken_within_a_round() -> None:
    """The median of ratios is not the ratio of medians: a slow round slows both sides."""
    assert OURS.over(HAND) == Spread(0.5, 0.5, 0.75)


def test_a_section_knows_both_ratios() -> None:
    assert SECTION.over_yardstick(OURS) == Spread(0.5, 0.5, 0.75)
    assert SECTION.ours_over(HAND) == Spread(0.5, 0.5, 0.75)


@pytest.mark.parametrize("yardstick", [None, "not measured"])
def test_without_a_yardstick_there_is_no_ratio(yardstick: str | None) -> None:
    section = Section(title="Rate", unit="1/s", series=(HAND,), yardstick=yardstick)
    assert section.over_yardstick(HAND) is None
    assert section.ours_over(HAND) is None


def test_a_yardstick_that_is_nothing_divides_nothing() -> None:
    """Memory that did not grow at all is no measure."""
    section = Section(title="Memory", unit="MB", series=(Series("none", (0.0,)), OURS), yardstick="none")
    assert section.over_yardstick(OURS) is None


def test_the_document_holds_every_round() -> None:
    document = json.loads(json.dumps(SECTION.document()))
    assert document["series"][0]["rounds"] == [2.0, 4.0, 10.0]
    assert document["series"][1]["over_yardstick"] == {"median": 0.5, "min": 0.5, "max": 0.75}


def test_the_table_has_a_row_for_each_series_and_says_what_is_odd() -> None:
    text = "\n".join(lines([SECTION]))
    assert "Cost [µs]" in text
    assert "by hand *" in text
    assert "0.50 (0.50 … 0.75)" in text
    assert "(a note)" in text


def test_rounds_are_gathered_by_name() -> None:
    rounds = Rounds()
    for value in (1.0, 2.0):
        rounds.add("a", value)
    rounds.add("b", 3.0)
    assert rounds.series(["b", "c", "a"]) == (Series("b", (3.0,)), Series("a", (1.0, 2.0)))


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_a_percentile_is_a_value_that_happened(share: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == value


def test_what_is_repeated_is_repeated_an_odd_number_of_times() -> None:
    assert Plan().long_rounds % 2 == 1
    assert Plan().long_rounds >= 5


def test_arrivals_are_counted_by_window() -> None:
    arrivals = Arrivals([10.0, 10.5, 10.9, 14.0, 14.1])
    assert arrivals.busiest(1.0) == 3
    assert arrivals.within(0.4, 4.0) == 3
    assert Arrivals().busiest(1.0) == 0


def test_a_frame_reads_as_the_text_that_was_masked() -> None:
    """Both lengths: the short one, and the one in two bytes."""
    for text in (b"short", b"long" * 100):
        frame = framed(0x81, text)
        head = 2 if len(text) < 126 else 4
        mask, masked = frame[head : head + 4], frame[head + 4 :]
        assert bytes(byte ^ mask[n % 4] for n, byte in enumerate(masked)) == text
        assert frame[1] == 0x80 | min(len(text), 126)


def test_media_frames_are_numbered_as_a_space_does() -> None:
    frame = media(2)[1]
    text = bytes(byte ^ frame[4:8][n % 4] for n, byte in enumerate(frame[8:]))
    document = json.loads(text)
    assert document["media"]["chunk"] == "2"
    assert document["media"]["timestamp"] == "20"
    assert document["sequenceNumber"] == "3"
