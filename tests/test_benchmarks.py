"""The arithmetic of the benchmarks, and that their contenders work; no test measures time."""

import json
from pathlib import Path

import pytest

from benchmarks import starters
from benchmarks.callgrind import CallgrindMissingError, compile_helper, counting
from benchmarks.figures import Plan, Rounds, Section, Series, Spread, percentile
from benchmarks.report import lines
from benchmarks.sender import framed, media
from benchmarks.servers import Arrivals, serve

HAND = Series("by hand", (2.0, 4.0, 10.0))
OURS = Series("ours", (1.0, 3.0, 5.0))
SECTION = Section(title="Cost", unit="µs", series=(HAND, OURS), baseline="by hand", ours="ours", notes=("a note",))


def test_spread_is_median_minimum_and_maximum() -> None:
    assert Spread.from_rounds([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_ratios_are_taken_within_a_round() -> None:
    """The median of ratios is not the ratio of medians: a slow round slows both sides."""
    assert OURS.over(HAND) == Spread(0.5, 0.5, 0.75)


def test_section_has_ratios_to_baseline_and_to_ours() -> None:
    assert SECTION.over_baseline(OURS) == Spread(0.5, 0.5, 0.75)
    assert SECTION.ours_over(HAND) == Spread(0.5, 0.5, 0.75)


@pytest.mark.parametrize("baseline", [None, "not measured"])
def test_section_without_baseline_has_no_ratio(baseline: str | None) -> None:
    section = Section(title="Rate", unit="1/s", series=(HAND,), baseline=baseline)
    assert section.over_baseline(HAND) is None
    assert section.ours_over(HAND) is None


def test_baseline_of_zero_gives_no_ratio() -> None:
    """For example, memory that did not grow."""
    section = Section(title="Memory", unit="MB", series=(Series("none", (0.0,)), OURS), baseline="none")
    assert section.over_baseline(OURS) is None


def test_document_has_every_round() -> None:
    document = json.loads(json.dumps(SECTION.document()))
    assert document["series"][0]["rounds"] == [2.0, 4.0, 10.0]
    assert document["series"][1]["over_baseline"] == {"median": 0.5, "min": 0.5, "max": 0.75}


def test_table_has_a_row_for_each_series_and_the_notes() -> None:
    text = "\n".join(lines([SECTION]))
    assert "Cost [µs]" in text
    assert "by hand *" in text
    assert "0.50 (0.50 … 0.75)" in text
    assert "(a note)" in text


def test_rounds_are_collected_by_name() -> None:
    rounds = Rounds()
    for value in (1.0, 2.0):
        rounds.add("a", value)
    rounds.add("b", 3.0)
    assert rounds.series(["b", "c", "a"]) == (Series("b", (3.0,)), Series("a", (1.0, 2.0)))


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_percentile_is_one_of_the_values(share: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == value


def test_number_of_long_rounds_is_odd() -> None:
    assert Plan().long_rounds % 2 == 1
    assert Plan().long_rounds >= 5


def test_arrivals_are_counted_by_window() -> None:
    arrivals = Arrivals([10.0, 10.5, 10.9, 14.0, 14.1])
    assert arrivals.busiest(1.0) == 3
    assert arrivals.within(0.4, 4.0) == 3
    assert Arrivals().busiest(1.0) == 0


def test_frame_unmasks_to_its_text() -> None:
    """With both forms of length: in seven bits, and in two bytes."""
    for text in (b"short", b"long" * 100):
        frame = framed(0x81, text)
        head = 2 if len(text) < 126 else 4
        mask, masked = frame[head : head + 4], frame[head + 4 :]
        assert bytes(byte ^ mask[n % 4] for n, byte in enumerate(masked)) == text
        assert frame[1] == 0x80 | min(len(text), 126)


def test_media_frames_are_numbered_like_those_of_a_space() -> None:
    frame = media(2)[1]
    text = bytes(byte ^ frame[4:8][n % 4] for n, byte in enumerate(frame[8:]))
    document = json.loads(text)
    assert document["media"]["chunk"] == "2"
    assert document["media"]["timestamp"] == "20"
    assert document["sequenceNumber"] == "3"


@pytest.mark.parametrize("starter", ["aiohttp_plain", "aiohttp_header", "aiohttp_tuned", "single", "bulk", "journaled"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # aiohttp 3.14 deprecates auth=, which is measured as well
async def test_starter_confirms_each_start(starter: str) -> None:
    """A response that the client does not believe would measure retries."""
    async with serve({}) as server:
        base_url = f"http://127.0.0.1:{(await server({}))['port']}"
        async with getattr(starters, starter)({"base_url": base_url}) as respond:
            answer = await respond({"starts": 20, "tag": "t"})
            assert (answer["confirmed"], (await server({}))["served"]) == (20, 20)


def test_counting_without_valgrind_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CallgrindMissingError, match="apt install valgrind gcc"):
        compile_helper(tmp_path)


def test_counting_that_is_not_enabled_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARKS_CALLGRIND", "/nonexistent")
    with counting(enabled=False):
        assert percentile([1.0], 0.5) == 1.0
