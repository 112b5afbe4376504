"""The arithmetic of the benchmarks, and that their contenders work; no test measures time."""

import json
import re
from pathlib import Path

import pytest
from attrs import evolve

from benchmarks import starters
from benchmarks.callgrind import CallgrindMissingError, compile_helper, counting
from benchmarks.families import audio
from benchmarks.figures import Plan, Rounds, Section, Series, Spread, percentile
from benchmarks.processes import child
from benchmarks.report import lines
from benchmarks.search import Searches, highest
from benchmarks.sender import OCTETS, FrameCount, framed, media
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
    assert "Cost\n" in text
    assert "median, µs" in text
    assert "by hand *" in text
    assert "0.50 (0.50 … 0.75)" in text
    assert "a note" in text
    assert "aim" not in text


def test_table_shows_aims_and_what_is_beside() -> None:
    """A figure beside it has no unit where its title says it; with a baseline it is a ratio."""
    faults = Section(title="faults a frame", unit="", series=(HAND, OURS))
    delay = Section(title="delay", unit="ms", series=(OURS,))
    cpu = Section(title="CPU", unit="µs", series=(HAND, OURS), baseline="by hand")
    _, title, headings, by_hand, ours, note = lines(
        [evolve(SECTION, aims={"ours": "≤ 0.80"}, beside=(faults, delay, cpu))]
    )
    assert title == "Cost"
    assert [len(line) for line in (headings, ours)] == [len(headings)] * 2
    columns = re.split(r" {2,}", headings.strip())
    cells = re.split(r" {2,}", ours.strip())
    assert columns == ["median, µs", "min … max", "÷ *", "aim", "faults a frame", "delay, ms", "CPU ÷ *"]
    ratio = "0.50 (0.50 … 0.75)"
    assert cells == ["ours", "3", "1 … 5", ratio, "≤ 0.80", "3", "3", ratio]
    assert re.split(r" {2,}", by_hand.strip()) == ["by hand *", "4", "2 … 10", "4"]
    assert note == "    a note"


def test_columns_are_as_wide_in_all_tables() -> None:
    """Headings stand in the same place, so that tables below each other can be compared."""
    wide = evolve(SECTION, series=(Series("by hand", (20_000.0, 40_000.0)), Series("ours", (1.0, 3.0))))
    headings = [line for line in lines([SECTION, wide]) if "median" in line]
    assert len(headings) == 2
    assert headings[0] == headings[1]


@pytest.mark.parametrize("limit", [0, 1, 2, 49, 50, 51, 99, 100, 700, 999, 1_000])
@pytest.mark.parametrize("growth", [1.2, 2.0])
@pytest.mark.parametrize("first", [1, 50, 800])
def test_search_finds_the_highest_number(limit: int, growth: float, first: int) -> None:
    tried: list[int] = []

    def passes(number: int) -> bool:
        tried.append(number)
        return number <= limit

    assert highest(passes, first=first, most=1_000, growth=growth) == limit
    assert len(set(tried)) == len(tried)
    assert all(0 < number <= 1_000 for number in tried)


def test_search_stops_at_its_precision() -> None:
    found = highest(lambda number: number <= 700, first=50, most=3_200, growth=2.0, precision=0.05)
    assert 700 / 1.05 <= found <= 700


def test_second_search_begins_where_the_first_ended() -> None:
    """And tells what the lowest number that failed failed by; one failure of two is forgiven."""
    searches, tried = Searches(Plan(quick=True)), list[int]()

    def failure(number: int) -> str:
        tried.append(number)
        if tried.count(number) == 1 and number == 100:
            return "a moment of noise"
        return "" if number <= 300 else "a delay"

    searches.search("ours", failure)
    searches.search("not limited", lambda _: "")
    first = tried.copy()
    searches.search("ours", failure)
    [ours] = searches.found.series(["ours"])
    assert tried[len(first)] == ours.rounds[0]
    assert 300 / 1.25 <= min(ours.rounds) <= 300
    failed, free = searches.limits(["ours", "not limited", "left out"])
    assert failed.startswith("ours: at 3")
    assert failed.endswith(" streams, a delay")
    assert free == "not limited: no number failed"


def test_order_is_another_in_each_turn_and_the_same_for_a_seed() -> None:
    contenders = list(range(6))
    orders = [Plan(seed=3).shuffled(contenders, turn) for turn in range(10)]
    assert orders == [Plan(seed=3).shuffled(contenders, turn) for turn in range(10)]
    assert len(set(map(tuple, orders))) > 1
    assert all(sorted(order) == contenders for order in orders)


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
    assert Plan().long_rounds >= 3


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


RECEIVERS = [target for name, target in audio.MAIN if name != audio.FASTAPI]  # which is installed for benchmarks only


@pytest.mark.parametrize(("target", "tls"), [(RECEIVERS[0], False), *((target, True) for target in RECEIVERS)])
def test_receiver_receives_what_is_sent(target: str, *, tls: bool) -> None:
    """All frames of both tracks, and then the pings, each after what was sent before it."""
    paces: tuple[audio.Pace, ...] = ("as fast as read", "real time")
    with (
        audio.certificate() as certificate,
        child("sender:serve") as sender,
        child(target, certificate=certificate if tls else None) as receiver,
    ):
        for pace in paces:
            _, received = audio.send(3, 10, sender, receiver, pace=pace, tls=tls, tracks=2)
            assert (received["frames"], received["octets"]) == (30, 30 * OCTETS)
            assert ("p99" in received) is (pace == "real time")
        sender.ask(connect=receiver.ask()["port"], sockets=3, tls=tls, tracks=2)
        assert 0 < sender.ask(ping=True)["p99"] < 60
        sender.ask()


def test_next_frame_waits_until_the_one_before_is_handled(tmp_path: Path) -> None:
    handled = tmp_path / "handled"
    count = FrameCount.create(handled)
    with (
        child("sender:serve", handled=str(handled)) as sender,
        child("receivers:media_receiver", handled=str(handled)) as receiver,
    ):
        _, received = audio.send(2, 10, sender, receiver, pace="one frame a wake")
    assert received["frames"] == count.value == 20


def test_counting_without_valgrind_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CallgrindMissingError, match="apt install valgrind gcc"):
        compile_helper(tmp_path)


def test_counting_that_is_not_enabled_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARKS_CALLGRIND", "/nonexistent")
    with counting(enabled=False):
        assert percentile([1.0], 0.5) == 1.0
