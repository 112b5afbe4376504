"""What the caller has heard, by the pace of the audio and the marks that return."""

import pytest

from signalwire_streams.receiver._heard_audio import HeardAudio

RATE = 8000


def heard_after(seconds: float, *, begun_at: float = 10.0) -> HeardAudio:
    """Send audio of that length at once."""
    heard = HeardAudio(RATE)
    heard.send(round(seconds * RATE), begun_at)
    return heard


def test_position_follows_the_clock_up_to_what_was_sent() -> None:
    heard = heard_after(1.0)
    assert [heard.position(now) for now in (10.0, 10.25, 11.0, 15.0)] == [0, 2000, 8000, 8000]


def test_pause_between_two_pieces_is_not_heard_as_audio() -> None:
    heard = heard_after(1.0)
    heard.send(RATE, 20.0)
    assert [heard.position(now) for now in (20.0, 20.5, 30.0)] == [8000, 12_000, 16_000]


def test_clear_ends_the_utterance_where_it_was_heard() -> None:
    heard = heard_after(1.0)
    assert heard.clear(10.5) == 4000
    assert (heard.position(12.0), heard.waiting(10.5)) == (4000, 0.0)
    heard.send(RATE, 12.0)
    assert heard.clear(12.25) == 2000
    assert heard.position(13.0) == 6000


def test_padding_is_played_but_is_no_audio_of_the_utterance() -> None:
    heard = HeardAudio(RATE)
    heard.send(160, 10.0, padding=60)
    heard.send(160, 10.0, padding=100)
    heard.send(160, 10.0)
    assert heard.position(11.0) == 480
    assert heard.clear(11.0) == 320


@pytest.mark.parametrize(("seconds", "samples"), [(0.0125, 100), (0.015, 100), (0.02, 100), (0.025, 140)])
def test_clear_within_padding_counts_the_audio_before_it(seconds: float, samples: int) -> None:
    heard = HeardAudio(RATE)
    heard.send(160, 10.0, padding=60)
    heard.send(160, 10.0)
    assert heard.clear(10.0 + seconds) == samples


def test_padding_that_was_played_is_folded() -> None:
    """A stream of many words, each with its mark, takes no more memory for it."""
    heard = HeardAudio(RATE)
    for number in range(1000):
        heard.send(160, 10.0 + number, padding=60)
    assert len(heard.utterance._padding) <= 2
    assert heard.clear(2000.0) == 100_000


def test_mark_that_returns_early_shows_a_faster_space() -> None:
    heard = heard_after(1.0)
    mark = heard.mark(10.0)
    heard.on_mark(mark, 10.001)
    assert heard.position(10.001) == 8000


def test_first_late_mark_is_latency_and_a_later_one_is_a_stall() -> None:
    """The audio travels as long as the mark does, so latency alone does not move the position."""
    heard = heard_after(1.0)
    first = heard.mark(10.0)
    heard.send(RATE, 10.0)
    second = heard.mark(10.0)
    heard.send(RATE, 10.0)
    heard.on_mark(first, 11.05)
    assert heard.position(11.05) == 8400
    heard.on_mark(second, 12.35)  # 300 ms later than the first one was
    assert heard.position(12.35) == 16_400
    assert heard.waiting(12.35) == pytest.approx(0.95)


def test_overdue_mark_holds_the_position() -> None:
    """A Space that stalls sends no mark, so nothing behind it was heard, or only as long as the mark may travel."""
    heard = heard_after(0.5)
    mark = heard.mark(10.0)
    heard.send(10 * RATE, 10.0)
    assert heard.position(10.9) == 7200
    assert heard.position(15.0) == 8000
    heard.on_mark(mark, 10.6)
    later = heard.mark(10.6)
    heard.send(RATE, 10.6)
    assert heard.position(60.0) == later.position + 800


def test_lost_mark_holds_the_position_until_a_later_one_returns() -> None:
    heard = heard_after(0.5)
    heard.mark(10.0)
    heard.send(RATE, 10.0)
    later = heard.mark(10.0)
    heard.send(RATE, 10.0)
    assert heard.position(11.8) == 8000
    heard.on_mark(later, 11.55)
    assert heard.position(11.8) == 14_400


def test_space_that_returns_no_mark_holds_nothing_for_longer_than_a_stall() -> None:
    heard = heard_after(0.5)
    heard.mark(10.0)
    heard.send(20 * RATE, 10.0)
    assert heard.position(15.4) == 8000
    assert heard.position(15.6) == 44_800


def test_cleared_marks_show_nothing() -> None:
    heard = heard_after(10.0)
    mark = heard.mark(10.0)
    heard.clear(11.0)
    heard.send(RATE, 11.0)
    heard.on_mark(mark, 11.01)
    assert heard.position(11.5) == 12_000
    heard.forget(mark)


def test_forgotten_mark_holds_nothing() -> None:
    heard = heard_after(0.5)
    heard.forget(heard.mark(10.0))
    heard.send(10 * RATE, 10.0)
    assert heard.position(15.0) == 40_000


def test_milliseconds_are_whole_and_not_rounded_up() -> None:
    heard = HeardAudio(RATE)
    assert [heard.milliseconds(samples) for samples in (0, 7, 8, 15.9, 16)] == [0, 0, 1, 1, 2]


def test_audio_after_the_end_of_an_utterance_is_that_of_the_next() -> None:
    heard = heard_after(1.0)
    first = heard.end_utterance()
    heard.send(RATE, 10.0)
    heard.on_heard(first)
    assert (first.heard, first.is_cleared) == (8000, False)
    assert heard.clear(11.5) == 4000
    heard.on_heard(first)
    assert first.heard == 8000


def test_clear_returns_what_was_heard_of_the_utterance_being_heard() -> None:
    """Whether others wait behind it, or the mark of an earlier one has not returned."""
    heard = heard_after(1.0)
    first = heard.end_utterance()
    heard.send(RATE, 10.0)
    second = heard.end_utterance()
    heard.send(RATE, 10.0)
    third = heard.utterance
    assert heard.clear(11.25) == 2000
    assert [(one.heard, one.is_cleared) for one in (first, second, third)] == [(8000, True), (2000, True), (0, True)]


def test_clear_after_the_last_word_returns_all_of_the_utterance() -> None:
    heard = heard_after(1.0)
    heard.end_utterance()
    assert heard.clear(15.0) == 8000
    assert heard.clear(15.0) == 0
