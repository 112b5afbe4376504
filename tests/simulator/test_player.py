"""Playback: audio takes its time, and marks are returned when they are reached."""

import pytest

from signalwire_streams.simulator._media_session import Player


def test_player_plays_audio_in_real_time() -> None:
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


def test_mark_on_an_empty_queue_is_reached_at_once() -> None:
    player = Player(octets_per_second=10)
    player.mark("now", now=3.0)
    assert player.advance(3.0) == ["now"]


def test_audio_after_a_pause_begins_when_it_arrives() -> None:
    player = Player(octets_per_second=10)
    player.play(b"0123456789", now=0.0)
    assert player.advance(5.0) == []
    player.play(b"0123456789", now=9.0)
    player.mark("end", now=9.0)
    assert player.next_mark() == 10.0


@pytest.mark.parametrize(("now", "heard"), [(0.0, b""), (0.3, b"012"), (1.0, b"0123456789"), (1.2, b"0123456789ab")])
def test_clear_keeps_what_was_played_so_far(now: float, heard: bytes) -> None:
    """Its marks are returned at once, and what follows is played at once."""
    player = Player(octets_per_second=10)
    player.play(b"0123456789", now=0.0)
    player.play(b"abcde", now=0.0)
    player.mark("end", now=0.0)
    assert player.clear(now) == ["end"]
    assert player.played_audio == heard
    player.mark("next", now)
    assert player.advance(now) == ["next"]


def test_player_without_rate_plays_at_once() -> None:
    player = Player(octets_per_second=None)
    player.play(b"0123456789", now=0.0)
    player.mark("end", now=0.0)
    assert player.advance(0.0) == ["end"]
    assert player.played_audio == b"0123456789"
    assert player.clear(0.0) == []
