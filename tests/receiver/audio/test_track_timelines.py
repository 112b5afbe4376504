"""Where frames belong: rounding, gaps, repetitions, disorder, and timestamps that nobody can believe."""

from itertools import accumulate
from typing import Any, TypeAlias

import pytest
from hypothesis import given, strategies as st

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver.audio import AudioFormat, TimelineStatistics, TrackTimeline, UnknownEncodingError

Frame: TypeAlias = tuple[int | None, int | None, int]
"""A timestamp, a number, and a length in milliseconds."""

MULAW = AudioFormat("audio/x-mulaw")
L16 = AudioFormat("audio/x-L16", 16000)
HOUR = 3_600_000
ABSURD = [1 << 63, (1 << 63) - 1, 10**30, HOUR * 24 * 365]


def places(timeline: TrackTimeline, *frames: Frame) -> list[float | None]:
    """Give where the frames are, in milliseconds."""
    found = []
    for timestamp, chunk, length in frames:
        position = timeline.place(timestamp, chunk, timeline.format.bytes_of(length))
        found.append(None if position is None else position * 1000 / timeline.format.sample_rate)
    return found


def twenties(*timestamps: int, first: int = 1) -> list[Frame]:
    """Give frames of 20 ms, numbered as they come."""
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


def test_lengths_may_change() -> None:
    """What counts is the payload, not what the one before had."""
    timeline = TrackTimeline(L16)

    assert places(timeline, (0, 1, 20), (20, 2, 40), (60, 3, 5), (65, 4, 100), (165, 5, 20)) == [0, 20, 60, 65, 165]


def test_a_gap_is_kept() -> None:
    """Lost frames, and a pause without any, leave their time empty."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, (0, 1, 20), (20, 2, 20), (60, 4, 20), (500, 5, 20), (520, 6, 20)) == [0, 20, 60, 500, 520]
    assert timeline.statistics == TimelineStatistics(frames=5, gaps=2, gap_ms=440.0)


def test_a_track_that_begins_late_begins_late() -> None:
    """The time before the first frame is a gap as well."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, (5000, 251, 20), (5020, 252, 20)) == [5000, 5020]
    assert timeline.statistics == TimelineStatistics(frames=2, gaps=1, gap_ms=5000.0)


def test_a_lost_frame_that_is_shorter_than_the_tolerance_is_noticed_by_its_number() -> None:
    """Without numbers, several must be lost before the timestamps can tell."""
    numbered: list[Frame] = [(0, 1, 5), (10, 3, 5), (15, 4, 5)]
    unnumbered: list[Frame] = [(0, None, 5), (10, None, 5), (20, None, 5)]

    assert places(TrackTimeline(MULAW), *numbered) == [0, 10, 15]
    assert places(TrackTimeline(MULAW), *unnumbered) == [0, 5, 20]


def test_a_gap_of_whole_frames_is_exact() -> None:
    """Though the timestamps about a lost frame of 12.5 ms say that it had 12 or 13."""
    timeline = TrackTimeline(MULAW)
    found = [timeline.place(timestamp, chunk, 100) for timestamp, chunk in [(0, 1), (12, 2), (37, 4), (50, 5), (25, 3)]]

    assert found == [0, 100, 300, 400, 200]
    assert timeline.statistics == TimelineStatistics(frames=5, gaps=1, gap_ms=0.0, out_of_order=1)


def test_the_tolerance_is_a_choice() -> None:
    """None at all still leaves what rounding takes."""
    rounded = [(0, 100), (12, 100), (25, 100), (40, 100)]
    strict, loose = TrackTimeline(MULAW, tolerance=0), TrackTimeline(MULAW, tolerance=100)

    assert [strict.place(at, None, size) for at, size in rounded] == [0, 100, 200, 320]
    assert [loose.place(at, None, 160) for at in (0, 100, 140)] == [0, 160, 320]


def test_a_gap_beyond_the_longest_is_shortened() -> None:
    """After it, the timestamps count from there."""
    timeline = TrackTimeline(MULAW, longest_gap=2)

    assert places(timeline, *twenties(0, HOUR, HOUR + 20, HOUR + 60)) == [0, 2020, 2040, 2080]
    assert timeline.statistics == TimelineStatistics(frames=4, gaps=2, gap_ms=2020.0, capped=1)


@pytest.mark.parametrize("absurd", ABSURD)
def test_one_absurd_timestamp_costs_its_own_frame_only(absurd: int) -> None:
    """When the next one shows that no time has passed, the gap is taken back."""
    timeline = TrackTimeline(MULAW)
    found = places(timeline, *twenties(0, 20, absurd, 60, 80))

    assert [found[0], found[1], found[3], found[4]] == [0, 20, 60, 80]
    assert found[2] in {40, 60_040}
    assert timeline.end == 800
    assert timeline.statistics.gaps == (1 if found[2] == 60_040 else 0)
    assert timeline.statistics.gap_ms == 20 * timeline.statistics.gaps


def test_a_jump_within_the_longest_gap_is_taken_back_as_well() -> None:
    """With numbers that show that the next frame is the later one."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, *twenties(0, 30_000, 40, 60)) == [0, 30_000, 40, 60]
    assert timeline.statistics == TimelineStatistics(frames=4, gaps=1, gap_ms=20.0)


def test_a_jump_that_is_confirmed_is_not_taken_back() -> None:
    """Timestamps that go back after that have begun anew, and new audio is put after the old."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, *twenties(0, 30_000, 30_020, 40, 60)) == [0, 30_000, 30_020, 30_040, 30_060]
    assert timeline.statistics == TimelineStatistics(frames=5, gaps=1, gap_ms=29_980.0, overlaps=1)


def test_absurd_timestamps_in_turn_with_good_ones_never_add_up() -> None:
    """The recording stays as long as the stream, and one gap."""
    timeline = TrackTimeline(MULAW)
    found = places(timeline, *twenties(*(ABSURD[1] if number % 2 else 20 * number for number in range(1000))))

    assert found[::2] == [20 * number for number in range(0, 1000, 2)]
    assert max(place for place in found if place is not None) <= 80_000


def test_timestamps_below_zero_follow() -> None:
    """Time before the stream's start can't be."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, *twenties(-5000, -4980, -4940)) == [0, 20, 60]


def test_a_track_without_timestamps_is_contiguous() -> None:
    """Numbers or none, the frames follow each other; those that came with one are still placed by it."""
    assert places(TrackTimeline(MULAW), (None, None, 20), (None, None, 20), (None, None, 30)) == [0, 20, 40]
    assert places(TrackTimeline(MULAW), (None, 1, 20), (None, 7, 20), (100, 8, 20)) == [0, 20, 100]
    assert places(TrackTimeline(MULAW), (None, 1, 20), (None, 1, 20), (None, 2, 20)) == [0, None, 20]


@pytest.mark.parametrize("chunks", [(1, 2, 3), (None, None, None)])
def test_a_frame_that_comes_again_is_dropped(chunks: tuple[int | None, ...]) -> None:
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


def test_the_first_frame_may_be_late() -> None:
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


def test_a_late_frame_with_jitter_is_moved_into_its_gap() -> None:
    """Before the gap's beginning or beyond its end, as far as the tolerance goes."""
    for jittered in (15, 20, 26):
        timeline = TrackTimeline(MULAW)
        assert places(timeline, (0, 1, 20), (40, 3, 20), (jittered, 2, 20)) == [0, 40, 20]
    timeline = TrackTimeline(MULAW)
    assert places(timeline, (0, 1, 20), (36, 3, 20), (20, 2, 20), (60, 4, 20)) == [0, 36, 20, 56]


@pytest.mark.parametrize("late", [(10, 2, 20), (20, 2, 60), (-100, 2, 20)])
def test_a_late_frame_without_a_gap_is_dropped(late: Frame) -> None:
    """What is there is not written over."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, (0, 1, 20), (50, 3, 20), late, (70, 4, 20)) == [0, 50, None, 70]
    assert timeline.statistics.too_late == 1


def test_gaps_are_not_remembered_forever() -> None:
    """After 64 more of them, a frame is too late."""
    timeline = TrackTimeline(MULAW)
    kept = places(timeline, *((40 * at, 2 * at + 1, 20) for at in range(66)))

    assert kept == [40 * at for at in range(66)]
    assert places(timeline, (20, 66, 20), (60, 67, 20)) == [None, 60]


def test_new_audio_is_never_dropped() -> None:
    """Timestamps that repeat or run slow make the audio no shorter, and a pause makes up for it."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, *twenties(0, 0, 20, 25, 40, 200)) == [0, 20, 40, 60, 80, 200]
    assert timeline.statistics == TimelineStatistics(frames=6, gaps=1, gap_ms=100.0, overlaps=4)
    assert places(TrackTimeline(MULAW), *((0, chunk, 20) for chunk in range(1, 200))) == [20 * at for at in range(199)]


@pytest.mark.parametrize("first", [102, 1])
def test_timestamps_and_numbers_may_begin_anew(first: int) -> None:
    """What comes then follows what there was, and its own gaps are kept."""
    timeline = TrackTimeline(MULAW)
    before = places(timeline, *twenties(*range(0, 2020, 20)))
    after = places(timeline, *twenties(0, 20, 60, first=first))

    assert before == list(range(0, 2020, 20))
    assert after == [2020, 2040, 2080]


def test_a_counter_that_stands_still_takes_nothing() -> None:
    """The timestamps tell the frames apart."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, *((20 * at, 1, 20) for at in range(100))) == [20 * at for at in range(100)]


def test_an_absurd_number_takes_nothing() -> None:
    """Those that follow count as usual again."""
    timeline = TrackTimeline(MULAW)

    assert places(timeline, (0, 1, 20), (20, 1 << 80, 20), (40, 3, 20), (80, 5, 20), (60, 4, 20)) == [0, 20, 40, 80, 60]


def test_empty_and_broken_frames() -> None:
    """Nothing has no place; half a sample is left out, and counted."""
    timeline = TrackTimeline(L16)

    assert [timeline.place(at, None, size) for at, size in [(0, 0), (0, 1), (0, 641), (20, -5), (20, 640)]] == [
        None, None, 0, None, 320,
    ]  # fmt: skip
    assert timeline.statistics == TimelineStatistics(frames=2, broken=2)


def two_tracks(**options: Any) -> tuple[TrackTimeline, TrackTimeline]:
    return TrackTimeline(MULAW, **options), TrackTimeline(MULAW, **options)


def test_another_track_vouches_for_the_time_that_has_passed() -> None:
    """A track that begins after more than the longest gap is put where it belongs."""
    one, other = two_tracks(longest_gap=60)
    for at in range(0, 300_000, 1000):
        one.place(at, None, 8000, beside=[other])

    assert other.place(299_500, 1, 160, beside=[one]) == 299_500 * 8
    assert other.statistics == TimelineStatistics(frames=1, gaps=1, gap_ms=299_500.0)


def test_tracks_that_pause_together_stay_together() -> None:
    """Where one gap was shortened, the other is as well, by as much."""
    one, other = two_tracks(longest_gap=60)
    one.place(0, 1, 160, beside=[other])
    other.place(0, 1, 320, beside=[one])

    assert one.place(HOUR, 2, 160, beside=[other]) == 60_020 * 8
    assert other.place(HOUR, 2, 160, beside=[one]) == 60_020 * 8
    assert one.place(HOUR + 20, 3, 160, beside=[other]) == other.place(HOUR + 20, 3, 160, beside=[one])


def test_a_track_that_begins_after_a_shortened_gap_joins_the_other() -> None:
    """Though by its own timestamp it would be somewhere else."""
    one, other = two_tracks(longest_gap=10)
    places(one, *twenties(0, 25_000, 25_020))

    assert other.place(25_040, 1, 160, beside=[one]) == one.end


def test_tracks_whose_timestamps_begin_anew_stay_together() -> None:
    """The one that is behind is put beside the other, not after its own last frame."""
    one, other = two_tracks()
    for chunk in range(1, 11):
        one.place(1000 * (chunk - 1), chunk, 8000, beside=[other])
    other.place(0, 1, 40_000, beside=[one])

    assert one.place(0, 11, 160, beside=[other]) == 80_000
    assert other.place(0, 2, 160, beside=[one]) == 80_000


def test_a_track_that_never_came_vouches_for_nothing() -> None:
    """Nor does one that is not as far."""
    one, other = two_tracks(longest_gap=10)

    assert one.place(HOUR, 1, 160, beside=[other]) == 10_000 * 8
    assert other.place(HOUR * 2, 1, 160, beside=[one]) == 10_000 * 8


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"longest_gap": 0}, "longest_gap"),
        ({"longest_gap": -1}, "longest_gap"),
        ({"longest_gap": float("inf")}, "longest_gap"),
        ({"longest_gap": float("nan")}, "longest_gap"),
        ({"longest_gap": 86_401}, "longest_gap"),
        ({"tolerance": -1}, "tolerance"),
        ({"tolerance": 1001}, "tolerance"),
    ],
)
def test_what_is_written_wrong_is_told(wrong: dict[str, Any], name: str) -> None:
    """A timeline that can't work is not made."""
    with pytest.raises(InvalidRequestError, match=f"^{name} can't be"):
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
def test_what_arrives_is_where_it_was(lengths: list[int], data: st.DataObject) -> None:
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
    end = 0
    for number, (timestamp, length) in enumerate(frames, 1):
        position = timeline.place(timestamp, number * (2 if skip else 1), length * 8)
        assert position is not None
        assert position >= end
        end = position + length * 8
    assert timeline.statistics.frames == len(frames)


WILD = st.none() | st.integers(-100, 5000) | st.integers() | st.sampled_from([*ABSURD, -(1 << 63), -(10**40)])


@given(st.lists(st.tuples(st.booleans(), WILD, WILD, st.integers(-1, 2000)), max_size=60))
def test_anything_may_come(frames: list[tuple[bool, int | None, int | None, int]]) -> None:
    """Nothing raises, nothing grows, no gap is longer than it may be, and no place is before the start."""
    tracks = two_tracks(longest_gap=3)
    furthest = 0
    for left, timestamp, chunk, size in frames:
        track, beside = tracks if left else tracks[::-1]
        position = track.place(timestamp, chunk, size, beside=[beside])
        if position is not None:
            assert 0 <= position <= furthest + 3 * 8000
            furthest = max(furthest, position + size)
        assert len(track._holes) <= 65
        assert len(track._recent) == 67
        assert abs(track._shift) < 1 << 70
        assert track.statistics.gap_ms >= 0
        assert track.statistics.gaps >= 0
    total = [track.statistics.frames + track.statistics.duplicates + track.statistics.too_late for track in tracks]
    assert sum(total) == sum(size > 0 for _, _, _, size in frames)
