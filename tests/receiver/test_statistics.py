"""Statistics of a stream: missing, repeated and late frames, delay and jitter."""

import random
from threading import Event, RLock, Thread
from typing import Any
from weakref import WeakSet

import pytest

from signalwire_streams.receiver import MediaEvent, StreamStatistics, TrackStatistics


def record(statistics: TrackStatistics, media: MediaEvent, arrived: float) -> None:
    statistics._record(media.chunk, media.timestamp, media.payload, arrived)


def counted(chunks: list[int | None], *, payload: bytes = b"12") -> TrackStatistics:
    statistics = TrackStatistics()
    for chunk in chunks:
        record(statistics, MediaEvent(track="inbound", payload=payload, chunk=chunk), 0.0)
    return statistics


@pytest.mark.parametrize(
    ("chunks", "missing", "gaps", "duplicates", "out_of_order"),
    [
        ([], 0, 0, 0, 0),
        ([1, 2, 3], 0, 0, 0, 0),
        ([7, 8], 0, 0, 0, 0),
        ([1, 4, 5], 2, 1, 0, 0),
        ([1, 1, 2, 2, 2], 0, 0, 3, 0),
        ([1, 3, 2], 0, 1, 0, 1),
        ([1, 3, 2, 2, 1], 0, 1, 2, 1),
        ([1, 100, 37, 37], 97, 1, 1, 1),
        ([1, 1000, 999, 999], 997, 1, 1, 1),
        ([5, 4], 0, 0, 0, 1),
        ([None, None], 0, 0, 0, 0),
    ],
)
def test_missing_frames_are_counted_by_chunk_numbers(
    chunks: list[int | None], missing: int, gaps: int, duplicates: int, out_of_order: int
) -> None:
    statistics = counted(chunks)
    found = (statistics.missing, statistics.gaps, statistics.duplicates, statistics.out_of_order)
    assert found == (missing, gaps, duplicates, out_of_order)
    assert (statistics.frames, statistics.bytes) == (len(chunks), 2 * len(chunks))


@pytest.mark.parametrize(
    ("chunks", "missing", "misnumbered", "restarts"),
    [
        ([1, 3002, 3003], 3000, 0, 0),
        ([1, 3003, 2, 3], 0, 1, 0),
        ([1, 2, 1 << 62, 4, 5], 1, 1, 0),
        ([1, 2, 1 << 62, 4, (1 << 62) + 1, 5], 1, 2, 0),
        ([1, 2, 1 << 62, None, (1 << 62) + 1, 3], 0, 2, 0),
        ([100, 36, 36, 101], 0, 2, 0),
        ([100, 30, 30, 31, 32], 0, 1, 1),
        ([100, 1, 2, 3, 5, 4], 0, 0, 1),
        ([100, 1, 3, 4, 5], 0, 1, 1),
        ([1 << 62, 1, 2, 3], 0, 0, 1),
        ([5, 1 << 62, (1 << 62) + 1, 6, 7, 8], 0, 0, 2),
    ],
)
def test_distant_number_is_believed_if_the_next_one_follows(
    chunks: list[int | None], missing: int, misnumbered: int, restarts: int
) -> None:
    """By itself it changes nothing, and where the numbers begin anew nothing is missing."""
    statistics = counted(chunks)
    assert (statistics.missing, statistics.invalid_sequence, statistics.sequence_resets) == (
        missing,
        misnumbered,
        restarts,
    )
    assert statistics.duplicates == 0


def test_frames_are_classified_after_a_restart() -> None:
    statistics = counted([*range(1, 101), 1, 2, 2, 1, 5, 4])
    found = (statistics.missing, statistics.gaps, statistics.duplicates, statistics.out_of_order)
    assert found == (1, 1, 2, 1)


def test_counts_are_right_for_any_order_of_frames() -> None:
    """The counts are correct for any frames lost, repeated or shuffled within the window."""
    source = random.Random(1)  # noqa: S311  (nothing is guarded here)
    for _ in range(200):
        numbers = list(range(1, 41))
        lost = set(source.sample(numbers[1:-1], source.randrange(5)))
        sent = [number for number in numbers if number not in lost]
        again = source.sample(sent, 3)
        middle = sent[1:-1] + again
        source.shuffle(middle)
        statistics = counted([1, *middle, 40])
        assert statistics.missing == len(lost)
        assert statistics.duplicates == len(again)


def test_delay_and_jitter_are_measured() -> None:
    """Lateness is against the least delayed frame; jitter is smoothed."""
    statistics = TrackStatistics()
    for slot, arrived in enumerate([10.000, 10.020, 10.070, 10.061]):
        media = MediaEvent(track="inbound", payload=b"", chunk=slot + 1, timestamp=20 * slot)
        record(statistics, media, arrived)
    assert statistics.delay_ms == pytest.approx(1.0)
    assert statistics.max_delay_ms == pytest.approx(30.0)
    assert statistics.jitter == pytest.approx(30 / 16 + (29 - 30 / 16) / 16)


def test_repeated_frame_is_not_measured() -> None:
    statistics = TrackStatistics()
    for arrived in (1.0, 5.0):
        record(statistics, MediaEvent(track="inbound", payload=b"", chunk=1, timestamp=0), arrived)
    assert statistics.max_delay_ms == 0


def heard(*transits: float, apart: float = 0.02, statistics: TrackStatistics | None = None) -> TrackStatistics:
    """Record frames of 20 ms with the given transit times in milliseconds."""
    statistics = statistics or TrackStatistics()
    for slot, transit in enumerate(transits, statistics.frames):
        arrived = slot * apart
        timestamp = round(arrived * 1000 - transit)
        record(statistics, MediaEvent(track="inbound", payload=b"", chunk=slot + 1, timestamp=timestamp), arrived)
    return statistics


def test_permanent_delay_is_forgotten() -> None:
    """It counts for 10 to 20 seconds; what came to be less late counts at once."""
    statistics = heard(*[0] * 700, 1500)
    assert statistics.delay_ms == pytest.approx(1500)
    assert heard(*[1500] * 499, statistics=statistics).delay_ms == pytest.approx(1500)
    assert heard(*[1500] * 500, statistics=statistics).delay_ms == pytest.approx(0, abs=1e-6)
    assert heard(-10, 20, statistics=statistics).delay_ms == pytest.approx(30)
    assert heard(*[20] * 499, statistics=statistics).delay_ms == pytest.approx(30)
    assert heard(*[20] * 1000, statistics=statistics).delay_ms == pytest.approx(0, abs=1e-6)
    assert statistics.max_delay_ms == pytest.approx(1500)


def test_least_delayed_frame_may_begin_a_span() -> None:
    statistics = heard(5, 5, -5, 5, apart=5.0)
    assert statistics.delay_ms == pytest.approx(10)


def test_pause_counts_as_delay() -> None:
    """What was least delayed is remembered until frames come again, up to a minute later."""
    statistics = heard(0, 0)
    record(statistics, MediaEvent(track="inbound", payload=b"", chunk=3, timestamp=0), 60.0)
    assert statistics.delay_ms == 60_000


def test_frame_a_tenth_of_a_second_before_the_least_delayed_one_is_believed() -> None:
    statistics = heard(*[0] * 10, -100)
    assert heard(0, statistics=statistics).delay_ms == pytest.approx(100)


@pytest.mark.parametrize("absurd", [10.0**15, -(10.0**15), 60_001.0, -60_001.0])
@pytest.mark.parametrize("first", [0, 5])
def test_absurd_timestamp_jump_is_a_new_base(absurd: float, first: int) -> None:
    """It adds neither lateness nor jitter, whether it goes on from there or not."""
    statistics = heard(*[0] * first, absurd, *[0] * 5, *[absurd] * 5)
    assert (statistics.delay_ms, statistics.max_delay_ms, statistics.jitter) == pytest.approx((0, 0, 0))
    assert heard(absurd + 10, statistics=statistics).delay_ms == pytest.approx(10)


@pytest.mark.parametrize("ahead", [110, 500, 5_000, 50_000, 10**12])
@pytest.mark.parametrize("position", [0, 1, 2, 100, 490])
def test_single_timestamp_ahead_changes_nothing(ahead: int, position: int) -> None:
    """It did not come before the others, so its timestamp is wrong: neither delay nor jitter follow it."""
    transits = [float(number % 7) for number in range(500)]
    good = heard(*transits)
    transits[position] -= ahead
    statistics = heard(*transits)
    assert statistics.frames == 500
    assert statistics.delay_ms == pytest.approx(transits[-1])
    assert statistics.max_delay_ms == pytest.approx(6)
    assert statistics.jitter == pytest.approx(good.jitter, abs=0.5)


def test_timestamps_ahead_that_do_not_agree_change_nothing() -> None:
    statistics = heard(*[0] * 10, *(-1_000.0 * number for number in range(1, 20)), 3)
    assert (statistics.delay_ms, statistics.max_delay_ms) == pytest.approx((3, 3))


def test_same_wrong_timestamp_twice_is_not_confirmed_by_a_later_frame() -> None:
    statistics = heard(*[0] * 10, -5_000, *[0] * 5, -5_000, *[0] * 5)
    assert (statistics.delay_ms, statistics.max_delay_ms) == (0, 0)


def test_timestamps_that_stay_ahead_are_the_new_base() -> None:
    """As after a delay that stayed: the second frame confirms the first, and the least delayed one is the base."""
    statistics = heard(*[0] * 10, -5_010, -5_000)
    assert statistics.delay_ms == pytest.approx(10)
    assert heard(-4_990, statistics=statistics).delay_ms == pytest.approx(20)
    assert statistics.jitter == pytest.approx(10 / 16)


def test_tracks_are_counted_separately_and_are_bounded() -> None:
    """A peer that makes up names of tracks fills no memory."""
    statistics = StreamStatistics()
    assert statistics.of("inbound") is statistics.of("inbound") is not statistics.of("outbound")
    assert statistics.of(None) is statistics.of("")
    for number in range(1000):
        statistics.of(f"track-{number}").frames += 1
    assert list(statistics.tracks) == ["inbound", "outbound", "", *(f"track-{number}" for number in range(5)), "others"]
    assert sum(track.frames for track in statistics.tracks.values()) == 1000


def test_track_with_a_very_long_name_is_counted_with_others() -> None:
    statistics = StreamStatistics()
    for length in (100, 101):
        statistics.of("a" * length)
    assert list(statistics.tracks) == ["a" * 100, "others"]


def test_state_stays_small_however_long_the_stream_is() -> None:
    """In order, with gaps, and without numbers."""
    statistics = TrackStatistics()
    for number in range(1, 5000):
        chunk = None if number % 7 == 0 else number * (1 + number // 2500)
        record(statistics, MediaEvent(track="inbound", payload=b"a", chunk=chunk, timestamp=number * 20), number / 50)
    sequence = statistics._sequence
    assert sequence._seen.bit_length() <= 64
    assert len(sequence._stamps) == 64
    assert len(sequence._ordinals) == 64


def test_counts_are_up_to_date_whenever_tracks_are_read() -> None:
    statistics = StreamStatistics()
    for number in range(1, 101):
        statistics._record(MediaEvent(track="inbound", payload=b"12", chunk=number), 0.0)
        assert statistics.tracks["inbound"].frames == number


def test_repr_has_the_counts_of_all_frames() -> None:
    statistics = StreamStatistics()
    statistics._record(MediaEvent(track="inbound", payload=b"12", chunk=1), 0.0)
    counts = "malformed=0, unknown=0, dropped=0, restarts=0, gap_seconds=0"
    assert f"{counts}, tracks={{'inbound': TrackStatistics(frames=1, bytes=2," in repr(statistics)


def waiting(statistics: StreamStatistics) -> int:
    return len(statistics._uncounted) // 5


def test_frames_that_wait_to_be_counted_are_few_and_short() -> None:
    statistics = StreamStatistics()
    for _ in range(99):
        statistics._record(MediaEvent(track="inbound", payload=b"12"), 0.0)
        assert waiting(statistics) <= 32
    assert waiting(statistics) > 0
    statistics._record(MediaEvent(track="inbound", payload=bytes(5000)), 0.0)
    assert waiting(statistics) == 0


def test_streams_that_start_together_do_not_count_their_frames_together() -> None:
    """Hundreds of them would stop the event loop for tens of milliseconds."""
    streams = [StreamStatistics() for _ in range(330)]
    for _ in range(100):
        for statistics in streams:
            statistics._record(MediaEvent(track="inbound", payload=b"12"), 0.0)
        assert sum(not waiting(statistics) for statistics in streams) <= 11


def test_frames_that_wait_to_be_counted_are_no_work_for_the_garbage_collector() -> None:
    statistics, living = StreamStatistics(), WeakSet[MediaEvent]()
    for _ in range(20):
        event = MediaEvent(track="inbound", payload=b"12")
        living.add(event)
        statistics._record(event, 0.0)
        del event
    assert len(living) == 0


class Contended:
    """A lock that says when a thread waits for it."""

    def __init__(self) -> None:
        self.lock, self.has_waited = RLock(), Event()

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            self.has_waited.set()
            self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_statistics_can_be_read_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As exporters of metrics do. Counts that the two threads make at once are not made twice, and none is lost."""
    lock, statistics, count = Contended(), StreamStatistics(), TrackStatistics._record
    monkeypatch.setattr("signalwire_streams.receiver._statistics._COUNTING", lock, raising=False)
    threads = list[Thread]()

    def read() -> None:
        _ = statistics.tracks
        lock.has_waited.set()

    def count_beside(track: TrackStatistics, *frame: Any) -> None:
        """Count a frame while another thread reads and a second frame arrives."""
        if not threads:
            threads.append(Thread(target=read))
            threads[0].start()
            assert lock.has_waited.wait(30)
            statistics._record(MediaEvent(track="inbound", payload=b"12", chunk=3), 0.0)
        count(track, *frame)

    monkeypatch.setattr(TrackStatistics, "_record", count_beside)
    statistics._most = 100  # so that they are counted when they are read
    for chunk in (1, 2):
        statistics._record(MediaEvent(track="inbound", payload=b"12", chunk=chunk), 0.0)
    _ = statistics.tracks
    threads[0].join(30)
    track = statistics.tracks["inbound"]
    assert (track.frames, track.missing, track.duplicates) == (3, 0, 0)
