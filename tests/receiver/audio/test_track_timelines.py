"""Where frames belong: rounding, gaps, repetitions, disorder, and timestamps that nobody can believe."""

from collections.abc import Iterable
from itertools import accumulate
from typing import Any, TypeAlias

import pytest
from hypothesis import given, strategies as st

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver import TrackStatistics
from signalwire_streams.receiver.audio import AudioFormat, TimelineStatistics, TrackTimeline, UnknownEncodingError

Frame: TypeAlias = tuple[int | None, int | None, int]
"""A timestamp, a number, and a length in milliseconds."""

MULAW = AudioFormat("audio/x-mulaw")
L16 = AudioFormat("audio/x-L16", 16000)
HOUR = 3_600_000
ABSURD = [1 << 63, (1 << 63) - 1, 10**30, HOUR * 24 * 365]


def positions(timeline: TrackTimeline, *frames: Frame, beside: Iterable[TrackTimeline] = ()) -> list[int | None]:
    """Return where the frames are in the end, in samples, with every correction made."""
    found: list[int | None] = []
    before = timeline.calls
    for timestamp, chunk, length in frames:
        found.append(timeline.place(timestamp, chunk, timeline.format.bytes_in(length), other_tracks=beside))
        for correction in timeline.corrections:
            found[correction.frame - before - 1] = correction.position
    return found


def places(timeline: TrackTimeline, *frames: Frame, beside: Iterable[TrackTimeline] = ()) -> list[float | None]:
    """Return where the frames are in the end, in milliseconds."""
    return [
        None if position is None else position * 1000 / timeline.format.sample_rate
        for position in positions(timeline, *frames, beside=beside)
    ]


def twenties(*timestamps: int, first: int = 1) -> list[Frame]:
    """Return numbered frames of 20 ms."""
    return [(timestamp, chunk, 20) for chunk, timestamp in enumerate(timestamps, first)]


def test_frames_follow_each_other_to_the_sample() -> None:
    """Frames of 12.5 ms have timestamps that are rounded, some up and some down."""
    for rounded in ([0, 12, 25, 37, 50, 62], [0, 13, 25, 38, 50, 63]):
        timeline = TrackTimeline(MULAW)
        found = [timeline.place(timestamp, chunk, 100) for chunk, timestamp in enumerate(rounded, 1)]

        assert found == [0, 100, 200, 300, 400, 500]
        assert timeline.statistics == TimelineStatistics(frames=6)
        assert timeline.end == 600


@pytest.mark.parametrize("numbered", [True, False])
def test_jitter_moves_nothing(numbered: bool) -> None:
    """Timestamps that are off by a few milliseconds mean nothing."""
    timeline = TrackTimeline(MULAW)
    frames: list[Frame] = [
        (timestamp, chunk if numbered else None, 20)
        for chunk, timestamp in enumerate([3, 16, 43, 57, 84, 100, 120, 137], 1)
    ]

    assert places(timeline, *frames) == [0, 20, 40, 60, 80, 100, 120, 140]
    assert timeline.statistics == TimelineStatistics(frames=8)


def test_timeline_uses_each_payload_length_when_lengths_change() -> None:
    """The payload's own length counts, not the previous one's."""
    timeline = TrackTimeline(L16)

    assert places(timeline, (0, 1, 20), (20, 2, 40), (60, 3, 5), (65, 4, 100), (165, 5, 20)) == [0, 20, 60, 65, 165]


def test_gap_is_kept() -> None:
    """Lost frames, and a pause without any, leave their time empty."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, (0, 1, 20), (20, 2, 20), (60, 4, 20), (500, 5, 20), (520, 6, 20)) == [0, 20, 60, 500, 520]
    assert timeline.statistics == TimelineStatistics(frames=5, gaps=2, gap_ms=440.0)


def test_track_that_begins_late_begins_late() -> None:
    """The time before the first frame is a gap as well."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, (5000, 251, 20), (5020, 252, 20)) == [5000, 5020]
    assert timeline.statistics == TimelineStatistics(frames=2, gaps=1, gap_ms=5000.0)


def test_lost_frame_that_is_shorter_than_the_tolerance_is_noticed_by_its_number() -> None:
    """Without numbers, several must be lost before the timestamps can tell."""
    numbered: list[Frame] = [(0, 1, 5), (10, 3, 5), (15, 4, 5)]
    unnumbered: list[Frame] = [(0, None, 5), (10, None, 5), (20, None, 5), (25, None, 5)]

    assert places(TrackTimeline(MULAW), *numbered) == [0, 10, 15]
    assert places(TrackTimeline(MULAW), *unnumbered) == [0, 5, 20, 25]


def test_gap_of_whole_frames_is_exact() -> None:
    """Though the timestamps about a lost frame of 12.5 ms say that it had 12 or 13."""
    timeline = TrackTimeline(MULAW)
    found = [timeline.place(timestamp, chunk, 100) for timestamp, chunk in [(0, 1), (12, 2), (37, 4), (50, 5), (25, 3)]]

    assert found == [0, 100, 300, 400, 200]
    assert timeline.statistics == TimelineStatistics(frames=5, gaps=1, gap_ms=0.0, out_of_order=1)


def test_timeline_with_zero_tolerance_still_allows_rounding() -> None:
    """None at all still leaves what rounding takes."""
    strict, loose = TrackTimeline(MULAW, tolerance=0), TrackTimeline(MULAW, tolerance=100)

    assert places(strict, (0, None, 10), (10, None, 10), (21, None, 10), (31, None, 10)) == [0, 10, 21, 31]
    assert [loose.place(at, None, 160) for at in (0, 100, 140)] == [0, 160, 320]


def test_gap_beyond_the_longest_is_shortened() -> None:
    """After it, the timestamps count from there."""
    timeline = TrackTimeline(MULAW, max_gap=2)

    assert places(timeline, *twenties(0, HOUR, HOUR + 20, HOUR + 60, HOUR + 80)) == [
        0, 2020, 2040, 2080, 2100,
    ]  # fmt: skip
    assert timeline.statistics == TimelineStatistics(frames=5, gaps=2, gap_ms=2020.0, truncated_gaps=1)


FAR_OFF = [*ABSURD, -(1 << 63), -1, 0, *(1980 + by for by in (100, 500, 900, 1020, 1500, 60_000, 1 << 31))]
FAR_OFF += [1980 - by for by in (500, 1020, 1200, 1500)]


@pytest.mark.parametrize("absurd", FAR_OFF)
@pytest.mark.parametrize("numbered", [True, False])
def test_one_absurd_timestamp_changes_nothing(absurd: int, numbered: bool) -> None:
    """Neither the end nor the place of any frame, wherever it stands among the others."""
    for at in (0, 1, 2, 99, 198, 199):
        timeline = TrackTimeline(MULAW)
        others = {20 * slot for slot in range(200) if slot != at}
        timestamp = absurd + (not numbered and absurd in others)  # without a number, it would be a repeated frame
        frames = [(20 * slot, slot + 1 if numbered else None, 20) for slot in range(200)]
        frames[at] = timestamp, frames[at][1], 20

        assert places(timeline, *frames) == [20 * slot for slot in range(200)]
        assert timeline.end == 200 * 160
        assert (timeline.statistics.gaps, timeline.statistics.gap_ms) == (0, 0)


@pytest.mark.parametrize("first", [0, 900, 2580, 30_000, 1 << 31, -(1 << 62)])
def test_two_absurd_timestamps_that_disagree_change_nothing(first: int) -> None:
    for second in [1980, 2480, 60_000, 1 << 40, -500]:
        timeline = TrackTimeline(MULAW)
        timestamps = [20 * slot for slot in range(200)]
        timestamps[100:102] = first, second

        assert places(timeline, *twenties(*timestamps)) == [20 * slot for slot in range(200)]
        assert timeline.statistics.gaps == 0


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("absurd", [-(1 << 40), 0, 2980, 32_000, 1 << 40])
def test_absurd_timestamps_that_agree_are_taken_back(count: int, absurd: int) -> None:
    """As soon as a frame follows those before them as if nothing had been missing."""
    for at in [0, 1, 100, 195]:
        timeline = TrackTimeline(MULAW)
        timestamps = [20 * slot for slot in range(200)]
        timestamps[at : at + count] = (absurd + 20 * slot for slot in range(count))

        assert places(timeline, *twenties(*timestamps)) == [20 * slot for slot in range(200)]
        assert (timeline.statistics.gaps, timeline.statistics.truncated_gaps) == (0, 0)


@pytest.mark.parametrize("pause", [30, 500, 1000, 1500, 30_000])
@pytest.mark.parametrize("after", range(2, 7))
def test_timestamp_that_denies_a_pause_does_not_undo_it(pause: int, after: int) -> None:
    """One that is wrong by just the length of the pause, some frames after it."""
    timeline = TrackTimeline(MULAW)
    right = [0, 20, 40, *range(60 + pause, 260 + pause, 20)]
    timestamps = [*right]
    timestamps[3 + after] -= pause

    assert places(timeline, *twenties(*timestamps)) == right
    assert (timeline.statistics.gaps, timeline.statistics.gap_ms) == (1, pause)


@pytest.mark.parametrize("lost", [1, 3])
def test_loss_among_frames_that_deny_a_gap_does_not_keep_it(lost: int) -> None:
    """The gap of absurd timestamps is undone, and the one of the lost frames is kept."""
    timeline = TrackTimeline(MULAW)
    absurd: list[Frame] = [(0, 1, 20), (32_000, 2, 20), (32_020, 3, 20)]
    begin = 80 + 20 * lost
    frames = [*absurd, (60, 4, 20), *twenties(*range(begin, begin + 100, 20), first=5 + lost)]

    assert places(timeline, *frames) == [0, 20, 40, 60, *range(begin, begin + 100, 20)]
    assert (timeline.statistics.gaps, timeline.statistics.gap_ms) == (1, 20 * lost)


def test_gap_in_which_a_late_frame_came_is_not_taken_back() -> None:
    """Then it was none that only timestamps made."""
    timeline = TrackTimeline(MULAW)
    frames: list[Frame] = [(0, 1, 20), (5000, 3, 20), (5020, 4, 20), (4980, 2, 20), (60, 5, 20), (80, 6, 20)]

    assert places(timeline, *frames) == [0, 5000, 5020, 4980, 5040, 5060]


def test_late_frame_confirms_the_doubtful_one_after_it() -> None:
    timeline = TrackTimeline(MULAW)

    assert places(timeline, (0, 1, 20), (5000, 3, 20), (4980, 2, 20), (5020, 4, 20)) == [0, 5000, 4980, 5020]


def test_absurd_timestamp_within_a_pause_does_not_hide_it() -> None:
    """The frames about it agree with each other."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, *twenties(0, 5000, 1 << 40, 5040, 5060)) == [0, 5000, 5020, 5040, 5060]


def test_first_timestamp_is_wrong_only_if_two_agree_and_it_can_be() -> None:
    """Otherwise the first frame stays where it is, and the others follow it."""
    disagreeing = places(TrackTimeline(MULAW), *twenties(5000, 100, 3000, 200, 2500, 2520, 2540))
    shortened = places(TrackTimeline(MULAW), *twenties(100_000, 99_900, 99_920, 99_940))

    assert disagreeing == [5000 + 20 * slot for slot in range(7)]
    assert shortened == [60_000, 60_020, 60_040, 60_060]


def test_wrong_first_timestamp_of_a_late_track_leaves_the_gap_before_it() -> None:
    timeline = TrackTimeline(MULAW)

    assert places(timeline, *twenties(30_000, 5020, 5040, 5060)) == [5000, 5020, 5040, 5060]
    assert timeline.statistics == TimelineStatistics(frames=4, gaps=1, gap_ms=5000.0, overlaps=1)


def test_silence_is_no_longer_than_the_time_that_passed() -> None:
    """And five seconds; a gap for which no time is left is none."""
    timeline = TrackTimeline(MULAW)
    frames = [(9000, 1, 0.0), (9100, 5, 0.0), (9220, 10, 0.1), (30_000, 600, 1.0)]

    assert [timeline.place(at, chunk, 160, elapsed=elapsed) for at, chunk, elapsed in frames] == [
        5000 * 8, 5020 * 8, 5140 * 8, 6060 * 8,
    ]  # fmt: skip
    assert timeline.statistics == TimelineStatistics(frames=4, gaps=3, gap_ms=6000.0, truncated_gaps=3)


@pytest.mark.parametrize("unknown", [float("nan"), float("inf"), float("-inf")])
def test_time_of_arrival_that_is_no_number_bounds_nothing(unknown: float) -> None:
    """For example, frames whose arrival time is unknown."""
    timeline, plain = TrackTimeline(MULAW), TrackTimeline(MULAW)
    for slot, timestamp in enumerate([0, 20, 40, 100_000, 100_020], 1):
        timeline.place(timestamp, slot, 160, elapsed=unknown)
        plain.place(timestamp, slot, 160)

    assert (timeline.end, timeline.statistics) == (plain.end, plain.statistics)


def test_loss_right_after_a_pause_is_kept() -> None:
    """The frame that confirms the end of the pause is not the next one by its number."""
    frames: list[Frame] = [(0, 1, 20), (20, 2, 20), (1000, 3, 20), (1080, 7, 20), (1100, 8, 20)]

    assert places(TrackTimeline(MULAW), *frames) == [0, 20, 1000, 1080, 1100]


def test_frames_that_are_far_apart_are_kept_apart() -> None:
    """Each has a timestamp of its own; two later ones confirm it."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, *twenties(*range(0, 600_000, 59_000)))[:-2] == [*range(0, 500_000, 59_000)]


def test_jump_that_is_confirmed_is_not_taken_back() -> None:
    """Timestamps that go back after that have begun anew, and new audio is put after the old."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, *twenties(0, 30_000, 30_020, 40, 60)) == [0, 30_000, 30_020, 30_040, 30_060]
    assert timeline.statistics == TimelineStatistics(frames=5, gaps=1, gap_ms=29_980.0, overlaps=1)


def test_absurd_timestamps_in_turn_with_good_ones_never_add_up() -> None:
    """The recording stays as long as the stream."""
    timeline = TrackTimeline(MULAW)
    found = places(timeline, *twenties(*(ABSURD[1] if number % 2 else 20 * number for number in range(1000))))

    assert found == [20 * number for number in range(1000)]


def test_timestamps_below_zero_follow() -> None:
    """Time before the stream's start can't be."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, *twenties(-5000, -4980, -4940, -4920)) == [0, 20, 60, 80]


def test_track_without_timestamps_is_contiguous() -> None:
    """Numbers or none, the frames follow each other; those that came with one are still placed by it."""
    assert places(TrackTimeline(MULAW), (None, None, 20), (None, None, 20), (None, None, 30)) == [0, 20, 40]
    assert places(TrackTimeline(MULAW), (None, 1, 20), (None, 7, 20), (100, 8, 20)) == [0, 20, 100]
    assert places(TrackTimeline(MULAW), (None, 1, 20), (None, 1, 20), (None, 2, 20)) == [0, None, 20]


@pytest.mark.parametrize("chunks", [(1, 2, 3), (None, None, None)])
def test_frame_that_comes_again_is_dropped(chunks: tuple[int | None, ...]) -> None:
    """At once or a little later, by its number and timestamp."""
    timeline = TrackTimeline(MULAW)
    one, two, three = ((20 * at, chunk, 20) for at, chunk in enumerate(chunks))

    assert places(timeline, one, one, two, one, three, two) == [0, None, 20, None, 40, None]
    assert timeline.statistics == TimelineStatistics(frames=3, duplicates=3)


@pytest.mark.parametrize("numbered", [True, False])
def test_late_frames_go_to_their_own_place(numbered: bool) -> None:
    """Each into the gap that it left, in any order, as long as there is one."""
    timeline = TrackTimeline(MULAW)
    order = [0, 5, 3, 1, 4, 2, 6]
    frames = [(20 * at, at + 1 if numbered else None, 20) for at in order]

    assert places(timeline, *frames) == [20 * at for at in order]
    assert timeline.statistics == TimelineStatistics(frames=7, gaps=1, gap_ms=0.0, out_of_order=4)


def test_first_frame_may_be_late() -> None:
    """Also one that is very short."""
    assert places(TrackTimeline(MULAW), (20, 2, 20), (0, 1, 20), (40, 3, 20)) == [20, 0, 40]
    assert places(TrackTimeline(MULAW), (5, 2, 5), (0, 1, 5), (10, 3, 5)) == [5, 0, 10]


def test_late_frames_of_several_lengths_fit_as_they_are() -> None:
    """A short one is not drawn to the gap's end, nor to its beginning, unless it is there."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, (0, 1, 20), (100, 6, 20), (22, 3, 20), (55, 4, 10), (20, 2, 2), (95, 5, 5)) == [
        0, 100, 22, 55, 20, 95,
    ]  # fmt: skip
    assert timeline.statistics.gap_ms == 43.0


def test_late_frame_with_jitter_is_moved_into_its_gap() -> None:
    """Before the gap's beginning or beyond its end, as far as the tolerance goes."""
    for jittered in (15, 20, 26):
        timeline = TrackTimeline(MULAW)
        assert places(timeline, (0, 1, 20), (40, 3, 20), (jittered, 2, 20)) == [0, 40, 20]
    timeline = TrackTimeline(MULAW)
    assert places(timeline, (0, 1, 20), (36, 3, 20), (20, 2, 20), (60, 4, 20)) == [0, 36, 20, 56]


@pytest.mark.parametrize("late", [(10, 2, 20), (20, 2, 60), (-100, 2, 20), (65, 2, 20)])
def test_late_frame_without_a_gap_is_dropped(late: Frame) -> None:
    """Existing audio is not overwritten."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, (0, 1, 20), (50, 3, 20), late, (70, 4, 20)) == [0, 50, None, 70]
    assert timeline.statistics.too_late == 1


def test_number_of_remembered_gaps_is_bounded() -> None:
    """After 64 more of them, a late frame follows what came last."""
    timeline = TrackTimeline(MULAW)
    apart: list[Frame] = [(200 * at, None, 20) for at in range(70)]

    assert places(timeline, *apart)[:68] == [200 * at for at in range(68)]
    assert len(timeline._holes) == 64
    assert places(timeline, (100, None, 20)) == [68 * 200 - 140]


def test_new_audio_is_never_dropped() -> None:
    """Timestamps that repeat or run slow make the audio no shorter, and a pause makes up for it."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, *twenties(0, 0, 20, 25, 40, 200, 220)) == [0, 20, 40, 60, 80, 200, 220]
    assert timeline.statistics == TimelineStatistics(frames=7, gaps=1, gap_ms=100.0, overlaps=4)
    assert places(TrackTimeline(MULAW), *((0, chunk, 20) for chunk in range(1, 200))) == [20 * at for at in range(199)]


@pytest.mark.parametrize("first", [102, 1])
def test_timestamps_and_numbers_may_restart(first: int) -> None:
    """What comes then follows what there was, and its own gaps are kept."""
    timeline = TrackTimeline(MULAW)
    before = places(timeline, *twenties(*range(0, 2020, 20)))
    after = places(timeline, *twenties(0, 20, 60, 80, first=first))

    assert before == list(range(0, 2020, 20))
    assert after == [2020, 2040, 2080, 2100]


def test_constant_timestamp_drops_nothing() -> None:
    """The timestamps tell the frames apart."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, *((20 * at, 1, 20) for at in range(100))) == [20 * at for at in range(100)]


def test_absurd_number_drops_nothing() -> None:
    """Those that follow count as usual again."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, (0, 1, 20), (20, 1 << 80, 20), (40, 3, 20), (80, 5, 20), (60, 4, 20)) == [0, 20, 40, 80, 60]


@pytest.mark.parametrize("numbered", [True, False])
def test_time_of_empty_frames_passes(numbered: bool) -> None:
    """At once, without a second frame that agrees; if their time does not pass, the audio is whole."""
    lengths = [20, 0, 20, 20, 0, 0, 20, 0, 20]
    for passing in (20, 0):
        timestamps = accumulate((length or passing for length in lengths[:-1]), initial=0)
        frames = [
            (timestamp, chunk if numbered else None, length)
            for chunk, (timestamp, length) in enumerate(zip(timestamps, lengths, strict=True), 1)
        ]
        timeline = TrackTimeline(MULAW)
        expected = [timestamp if length else None for timestamp, _, length in frames]
        assert [timeline.place(timestamp, chunk, 8 * length) for timestamp, chunk, length in frames] == [
            None if place is None else 8 * place for place in expected
        ]
        assert timeline.statistics.gap_ms == passing * lengths.count(0)


def test_empty_frame_gets_no_place_and_partial_sample_is_dropped() -> None:
    """Nothing has no place; half a sample is left out, and counted."""
    timeline = TrackTimeline(L16)

    assert [timeline.place(at, None, size) for at, size in [(0, 0), (0, 1), (0, 641), (20, -5), (20, 640)]] == [
        None, None, 0, None, 320,
    ]  # fmt: skip
    assert timeline.statistics == TimelineStatistics(frames=2, partial_samples=2)


def two_tracks(**options: Any) -> tuple[TrackTimeline, TrackTimeline]:
    return TrackTimeline(MULAW, **options), TrackTimeline(MULAW, **options)


def test_other_track_confirms_passed_time() -> None:
    """A track that begins after more than the longest gap is put where it belongs."""
    one, other = two_tracks(max_gap=60)
    for at in range(0, 300_000, 1000):
        one.place(at, None, 8000, other_tracks=[other])

    assert other.place(299_500, 1, 160, other_tracks=[one]) == 299_500 * 8
    assert other.statistics == TimelineStatistics(frames=1, gaps=1, gap_ms=299_500.0)


def test_tracks_that_pause_together_stay_together() -> None:
    """Where one gap was shortened, the other is as well, by as much."""
    one, other = two_tracks(max_gap=60)
    one.place(0, 1, 160, other_tracks=[other])
    other.place(0, 1, 320, other_tracks=[one])
    frames: list[Frame] = [(HOUR, 2, 20), (HOUR + 20, 3, 20)]

    assert positions(one, *frames, beside=[other]) == [60_020 * 8, 60_040 * 8]
    assert positions(other, *frames, beside=[one]) == [60_020 * 8, 60_040 * 8]
    assert one.place(HOUR + 40, 4, 160, other_tracks=[other]) == other.place(HOUR + 40, 4, 160, other_tracks=[one])


def test_track_that_begins_after_a_shortened_gap_joins_the_other() -> None:
    """Though by its own timestamp it would be somewhere else."""
    one, other = two_tracks(max_gap=10)
    places(one, *twenties(0, 25_000, 25_020))

    assert other.place(25_040, 1, 160, other_tracks=[one]) == one.end


def test_tracks_whose_timestamps_restart_stay_together() -> None:
    """The one that is behind is put beside the other, not after its own last frame."""
    one, other = two_tracks()
    for chunk in range(1, 11):
        one.place(1000 * (chunk - 1), chunk, 8000, other_tracks=[other])
    other.place(0, 1, 40_000, other_tracks=[one])

    assert positions(one, (0, 11, 20), (20, 12, 20), beside=[other]) == [80_000, 80_160]
    assert positions(other, (0, 2, 20), (20, 3, 20), beside=[one]) == [80_000, 80_160]


@pytest.mark.parametrize("absurd", FAR_OFF)
def test_absurd_timestamp_on_one_track_moves_neither(absurd: int) -> None:
    for at in (0, 1, 99, 199):
        tracks = two_tracks()
        for slot in range(200):
            for track, other in (tracks, tracks[::-1]):
                timestamp = absurd if track is tracks[1] and slot == at else 20 * slot
                track.place(timestamp, slot + 1, 160, other_tracks=[other])
        assert [track.end for track in tracks] == [200 * 160] * 2


def test_track_without_frames_confirms_nothing() -> None:
    """Nor does one that is not as far."""
    one, other = two_tracks(max_gap=10)

    assert one.place(HOUR, 1, 160, other_tracks=[other]) == 10_000 * 8
    assert other.place(HOUR * 2, 1, 160, other_tracks=[one]) == 10_000 * 8


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"max_gap": 0}, "max_gap"),
        ({"max_gap": -1}, "max_gap"),
        ({"max_gap": float("inf")}, "max_gap"),
        ({"max_gap": float("nan")}, "max_gap"),
        ({"max_gap": 86_401}, "max_gap"),
        ({"tolerance": -1}, "tolerance"),
        ({"tolerance": 1001}, "tolerance"),
    ],
)
def test_invalid_argument_is_rejected(wrong: dict[str, Any], name: str) -> None:
    """A timeline that can't work is not made."""
    with pytest.raises(InvalidRequestError, match=f"^{name} must be"):
        TrackTimeline(MULAW, **wrong)


def test_frames_of_an_unknown_encoding_have_no_place() -> None:
    """Nobody can tell how long they are."""
    with pytest.raises(UnknownEncodingError):
        TrackTimeline(AudioFormat("audio/opus", 48000))


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.sampled_from([8000, 11025, 16000, 24000]), st.data())
def test_audio_without_loss_is_contiguous(sizes: list[int], rate: int, data: st.DataObject) -> None:
    """Frames of any length, with timestamps rounded either way, are placed exactly."""
    timeline = TrackTimeline(AudioFormat("audio/x-L16", rate))
    begins = list(accumulate(sizes, initial=0))
    up = data.draw(st.booleans())

    for chunk, (begin, size) in enumerate(zip(begins, sizes, strict=False), 1):
        timestamp = (begin * 1000 + (rate - 1 if up else 0)) // rate
        assert timeline.place(timestamp, chunk, 2 * size) == begin
    assert timeline.statistics == TimelineStatistics(frames=len(sizes))


@given(LENGTHS, st.data())
def test_any_arrival_is_placed_where_it_was(lengths: list[int], data: st.DataObject) -> None:
    """Frames of whole milliseconds that are lost, repeated and out of order are placed exactly, each one once."""
    frames = list(zip(accumulate(lengths, initial=0), range(1, len(lengths) + 1), lengths, strict=False))
    arrived = data.draw(st.lists(st.sampled_from(frames), max_size=60))
    timeline = TrackTimeline(L16)

    found = places(timeline, *arrived)

    firsts = [number for number, frame in enumerate(arrived) if frame not in arrived[:number]]
    assert [(number, place) for number, place in enumerate(found) if place is not None] == [
        (number, arrived[number][0]) for number in firsts
    ]
    assert timeline.statistics.duplicates == len(arrived) - len(firsts)
    missing = timeline.end * 1000 / 16000 - sum(length for _, _, length in set(arrived))
    assert timeline.statistics.gap_ms == missing


@given(st.lists(st.tuples(st.none() | st.integers(0, 900), st.integers(1, 60)), max_size=60), st.booleans())
def test_new_audio_is_never_dropped_nor_written_over(frames: list[tuple[int | None, int]], skip: bool) -> None:
    """Whatever its timestamps say, as long as the numbers grow."""
    timeline = TrackTimeline(MULAW)
    numbered = [(at, number * (2 if skip else 1), length) for number, (at, length) in enumerate(frames, 1)]
    end = 0
    for position, (_, length) in zip(positions(timeline, *numbered), frames, strict=True):
        assert position is not None
        assert position >= end
        end = position + length * 8
    assert timeline.end == end
    assert timeline.statistics.frames == len(frames)


@given(st.lists(st.tuples(st.integers(9, 2000), st.integers(0, 5), st.none() | st.integers()), max_size=8))
def test_pauses_and_losses_are_kept_and_errors_are_not(turns: list[tuple[int, int, int | None]]) -> None:
    """Each pause is followed by three frames with right timestamps, and each wrong one stands between right ones.

    A timestamp that is wrong by no more than three packets could as well correct a short pause.
    """
    frames: list[Frame] = [(20 * slot, slot + 1, 20) for slot in range(3)]
    expected: list[float | None] = [0, 20, 40]
    at, chunk = 60, 3
    for pause, lost, wrong in [*turns, (9, 0, None)]:
        at += pause + 20 * lost
        chunk += lost
        for slot in range(6):
            chunk += 1
            is_wrong = wrong is not None and slot == 3 and abs(wrong - at) > 60
            frames.append((wrong if is_wrong else at, chunk, 20))
            expected.append(at)
            at += 20

    assert places(TrackTimeline(MULAW), *frames) == expected


WILD = st.none() | st.integers(-100, 5000) | st.integers() | st.sampled_from([*ABSURD, -(1 << 63), -(10**40)])


@given(st.lists(st.tuples(st.booleans(), WILD, WILD, st.integers(-1, 2000)), max_size=60))
def test_any_frames_keep_the_invariants(frames: list[tuple[bool, int | None, int | None, int]]) -> None:
    """Nothing raises, nothing grows, no gap is longer than it may be, and no place is before the start."""
    tracks = two_tracks(max_gap=3)
    furthest = 0
    for left, timestamp, chunk, size in frames:
        track, beside = tracks if left else tracks[::-1]
        places = [track.place(timestamp, chunk, size, other_tracks=[beside])]
        places += [correction.position for correction in track.corrections]
        for position in filter(None, places):
            assert 0 <= position <= furthest + 3 * 8000 + 10 * 2000
        furthest = max(furthest, track.end)
        assert len(track._holes) <= 65
        assert len(track._doubts) <= 3
        assert len(track._repeated) < 8
        assert len(track._sequence._ordinals) <= 64
        assert abs(track._shift) < 1 << 70
        assert track.statistics.gap_ms >= 0
        assert track.statistics.gaps >= 0
    dropped = [track.statistics.duplicates + track.statistics.too_late for track in tracks]
    sounding = sum(size > 0 for _, _, _, size in frames)
    assert sounding - sum(dropped) <= sum(track.statistics.frames for track in tracks) <= sounding


NUMBERED = ["both", "numbers only", "timestamps only", "no timestamps"]


@pytest.mark.parametrize("restarting", NUMBERED)
def test_numbering_that_restarts_drops_nothing(restarting: str) -> None:
    """After however many frames, and whether the timestamps restart as well, go on, or are missing."""
    for count in [8, 9, 20, 63, 64, 65, 66, 67, 68, 100, 133, 200, 300]:
        timeline, counted = TrackTimeline(MULAW), TrackStatistics()
        for slot in range(3 * count):
            number = slot % count
            timestamp = 20 * (slot if restarting == "numbers only" else number)
            chunk = None if restarting == "timestamps only" else number + 1
            stamp = None if restarting == "no timestamps" else timestamp
            timeline.place(stamp, chunk, 160)
            counted._record(chunk, stamp, bytes(160), 0.0)

        found = timeline.statistics
        assert (found.frames, timeline.end, found.gaps) == (3 * count, 3 * count * 160, 0)
        assert (found.duplicates, found.restarts) == (counted.duplicates, counted.sequence_resets)
        assert found.duplicates == 0
        if restarting != "timestamps only":
            assert found.restarts == 2


@pytest.mark.parametrize("silent", range(4))
@pytest.mark.parametrize("restarting", NUMBERED)
def test_new_payloads_are_kept_when_the_numbering_restarts_early(silent: int, restarting: str) -> None:
    """After fewer than eight frames too, of which the first ones may be silence."""
    for count in range(1, 8):
        timeline, counted = TrackTimeline(MULAW), TrackStatistics()
        quiet = min(silent, count - 1) if restarting in {"both", "no timestamps"} else 0
        order = [*range(count), *range(count), *range(count + 20)]
        for slot, number in enumerate(order):
            timestamp = (
                None if restarting == "no timestamps" else 20 * (slot if restarting == "numbers only" else number)
            )
            chunk = None if restarting == "timestamps only" else number + 1
            payload = bytes(160) if number < quiet else bytes([slot + 1]) * 160
            timeline.place(timestamp, chunk, 160, payload=payload)
            counted._record(chunk, timestamp, payload, 0.0)

        found = timeline.statistics
        assert (found.frames, timeline.end, found.gaps) == (len(order), len(order) * 160, 0)
        assert (found.duplicates, found.restarts) == (counted.duplicates, counted.sequence_resets)
        assert found.duplicates == 0


@pytest.mark.parametrize("resent", [range(1), range(7), range(5, 20), range(19, 20)])
@pytest.mark.parametrize("numbered", [True, False])
def test_resent_payload_is_dropped(resent: range, numbered: bool) -> None:
    timeline, counted = TrackTimeline(MULAW), TrackStatistics()
    for number in [*range(20), *resent, *range(20, 25)]:
        chunk, payload = number + 1 if numbered else None, bytes([number]) * 160
        timeline.place(20 * number, chunk, 160, payload=payload)
        counted._record(chunk, 20 * number, payload, 0.0)

    assert (timeline.statistics.frames, timeline.end) == (25, 25 * 160)
    assert timeline.statistics.duplicates == counted.duplicates == len(resent)
    assert timeline.statistics.restarts == counted.sequence_resets == 0


@pytest.mark.parametrize("at", [0, 1, 2, 3, 50, 197, 198, 199])
def test_unnumbered_frame_with_the_timestamp_of_another_one_is_kept(at: int) -> None:
    """Its payload shows that it is another frame."""
    for off in [-1020, -100, -40, -20, 20, 40, 100, 1020]:
        timeline = TrackTimeline(MULAW)
        found: dict[int, int | None] = {}
        for slot in range(200):
            timestamp = 20 * slot + (off if slot == at else 0)
            found[slot] = timeline.place(timestamp, None, 160, payload=bytes([slot]) * 160)
            found.update((correction.frame - 1, correction.position) for correction in timeline.corrections)

        assert found == {slot: 160 * slot for slot in range(200)}
        assert (timeline.statistics.duplicates, timeline.statistics.gap_ms) == (0, 0)


def test_restart_may_hold_empty_frames() -> None:
    """They count as frames by their numbers, and have no place."""
    timeline = TrackTimeline(MULAW)
    frames = [(None if slot == 2 else 20 * slot, slot + 1, 0 if slot == 2 else 20) for slot in range(10)]

    assert places(timeline, *frames, *frames)[10:] == [200, 220, None, *range(240, 380, 20)]
    assert timeline.statistics.restarts == 1


def test_frames_of_a_restart_get_their_places_in_their_order() -> None:
    """Those that were taken for repeated ones at first as well."""
    timeline = TrackTimeline(MULAW)
    frames = twenties(*range(0, 400, 20))

    assert places(timeline, *frames, *frames) == [20 * slot for slot in range(40)]


@pytest.mark.parametrize("resent", [range(1), range(7), range(5, 20), range(19, 20)])
def test_resend_is_no_restart(resent: range) -> None:
    """Fewer than eight frames, or any that do not begin with the first one."""
    timeline = TrackTimeline(MULAW)
    frames = twenties(*range(0, 500, 20))
    sent = [*frames[:20], *(frames[number] for number in resent), *frames[20:]]

    assert [place for place in places(timeline, *sent) if place is not None] == [20 * slot for slot in range(25)]
    assert (timeline.statistics.duplicates, timeline.statistics.restarts) == (len(resent), 0)


@given(st.lists(st.tuples(WILD, st.none() | st.integers(1, 90) | WILD, st.integers(0, 2)), max_size=80))
def test_recordings_and_statistics_agree(frames: list[tuple[int | None, int | None, int]]) -> None:
    """On repeated frames and restarts, whatever comes."""
    timeline, counted = TrackTimeline(MULAW), TrackStatistics()
    for timestamp, chunk, size in frames:
        stamp = timestamp if timestamp is None or -(1 << 63) <= timestamp < 1 << 63 else None
        timeline.place(stamp, chunk, size)
        counted._record(chunk, stamp, bytes(size), 0.0)

    assert timeline.statistics.duplicates == counted.duplicates
    assert timeline.statistics.restarts == counted.sequence_resets
