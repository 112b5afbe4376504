"""The playback clock: audio is heard in the time that it takes, and marks come back when they are reached."""

import pytest

from signalwire_streams.simulator._audio.media_session import Player


def test_audio_is_heard_in_its_own_time() -> None:
    player = Player(octets_per_second=10)
    player.play(b"0123456789", now=5.0)
    player.mark("end of the first", now=5.1)
    player.play(b"abcde", now=5.2)
    player.mark("end", now=5.2)
    assert player.advance(5.9) == []
    assert player.played_audio == b""
    assert player.next_mark() == 6.0
    assert player.advance(6.0) == ["end of the first"]
    assert player.played_audio == b"0123456789"
    assert player.next_mark() == 6.5
    assert player.advance(7.0) == ["end"]
    assert player.played_audio == b"0123456789abcde"
    assert player.next_mark() is None


def test_a_mark_with_nothing_before_it_is_reached_at_once() -> None:
    player = Player(octets_per_second=10)
    player.mark("now", now=3.0)
    assert player.advance(3.0) == ["now"]


def test_after_a_pause_the_clock_begins_anew() -> None:
    player = Player(octets_per_second=10)
    player.play(b"0123456789", now=0.0)
    assert player.advance(5.0) == []
    player.play(b"0123456789", now=9.0)
    player.mark("end", now=9.0)
    assert player.next_mark() == 10.0


@pytest.mark.parametrize(("now", "heard"), [(0.0, b""), (0.3, b"012"), (1.0, b"0123456789"), (1.2, b"0123456789ab")])
def test_what_is_cleared_was_heard_up_to_then(now: float, heard: bytes) -> None:
    """Its marks come back at once, and what comes next is heard at once."""
    player = Player(octets_per_second=10)
    player.play(b"0123456789", now=0.0)
    player.play(b"abcde", now=0.0)
    player.mark("end", now=0.0)
    assert player.clear(now) == ["end"]
    assert player.played_audio == heard
    player.mark("next", now)
    assert player.advance(now) == ["next"]


def test_without_a_clock_all_is_heard_at_once() -> None:
    player = Player(octets_per_second=None)
    player.play(b"0123456789", now=0.0)
    player.mark("end", now=0.0)
    assert player.advance(0.0) == ["end"]
    assert player.played_audio == b"0123456789"
    assert player.clear(0.0) == []
