"""Checks that do not belong to one model: handles, deadlines and counts."""

from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import example, given, strategies as st

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import (
    check_count,
    check_deadline,
    check_path_segment,
    check_patience,
    redact_url,
    secrets_in,
)


@given(st.text())
@example("a/../b")
@example("%2e%2e")
@example("\u2025")
@example("\uff0f")
def test_any_text_is_one_path_segment_or_rejected(text: str) -> None:
    """A sid that passes comes back from a URL's path as exactly one segment; any other is rejected."""
    try:
        handle = check_path_segment(text, "sid")
    except InvalidRequestError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert handle == text
    path = urlsplit(f"https://host/Calls/{quote(handle, safe='@:')}/Streams").path
    assert [unquote(segment) for segment in path.split("/")] == ["", "Calls", handle, "Streams"]
    assert handle not in {"", ".", ".."}


@given(st.text(alphabet="ab.:@-_~!$&'()*+,;=é通", min_size=1).filter(lambda text: ".." not in text and text != "."))
def test_plain_text_is_not_rejected(text: str) -> None:
    """Text without special characters is used unchanged."""
    assert check_path_segment(text, "sid") == text


@pytest.mark.parametrize("seconds", [1, 0.001, 45.0, 86_400, 366 * 86_400, None])
def test_deadline_above_zero_is_accepted(seconds: float | None) -> None:
    """A deadline is seconds, or None for the policy's own."""
    assert check_deadline(seconds) == seconds


@pytest.mark.parametrize(
    "seconds",
    [0, -1, -0.5, float("inf"), float("-inf"), float("nan"), True, "5", [], b"1", 366 * 86_400 + 1, 10**400],
    ids=lambda seconds: repr(seconds)[:10],
)
def test_invalid_deadline_is_rejected(seconds: object) -> None:
    """A deadline that is no number above 0, or longer than a year, is rejected and not repeated."""
    with pytest.raises(
        InvalidRequestError, match=r"^deadline must be a number of seconds above 0, and at most a year$"
    ):
        check_deadline(seconds)


@pytest.mark.parametrize("seconds", [0, 0.0, 0.001, 366 * 86_400])
def test_time_to_wait_may_be_zero(seconds: float) -> None:
    assert check_patience(seconds, "timeout") == seconds


@pytest.mark.parametrize("seconds", [-0.001, False, True, 366 * 86_400 + 1, float("nan"), "0", None])
def test_invalid_time_to_wait_is_rejected(seconds: object) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"^timeout must be a number of seconds, 0 or more, and at most a year$"
    ):
        check_patience(seconds, "timeout")


@pytest.mark.parametrize(("count", "least"), [(1, 1), (0, 0), (10**9, 1)])
def test_sufficient_count_is_accepted(count: int, least: int) -> None:
    """A count is a whole number that reaches the least one."""
    assert check_count(count, "concurrency", least=least) == count


@pytest.mark.parametrize("count", [0, -1, 1.0, "3", True, None, float("nan")])
def test_invalid_count_is_rejected(count: object) -> None:
    """A count that is too small or no whole number is rejected by the name of its argument."""
    with pytest.raises(InvalidRequestError, match=r"^concurrency must be a whole number of 1 or more, not "):
        check_count(count, "concurrency")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.com/a?key=hush", "https://example.com/a"),
        ("https://example.com/a#hush", "https://example.com/a"),
        ("https://ada:hush@example.com/a", "https://example.com/a"),
        ("https://ada@example.com/a", "https://example.com/a"),
        ("https://ada:hush@example.com?k=hush@x", "https://x"),
        ("https://ada:hu/sh@example.com/a", "https://example.com/a"),
        ("https://ada:hu?sh@example.com/a", "https://example.com/a"),
        ("https://ada:hu#sh@example.com/a", "https://example.com/a"),
        ("https://ada:hu@sh@example.com/a", "https://example.com/a"),
        ("https://example.com/a@b", "https://b"),
        ("https://example.com/a@b?hush", "https://b"),
        ("https:ada:hush@example.com", "example.com"),
        ("ada:hush@example.com/a", "example.com/a"),
        ("ada:hush@https://example.com", "https://example.com"),
        ("//ada:hush@example.com", "example.com"),
        ("hush://hush@example.com", "hush://example.com"),
        ("hu?sh://ada@example.com", "example.com"),
        ("", ""),
    ],
)
def test_redacted_url_drops_query_and_credentials(url: str, shown: str) -> None:
    """Of a URL no query, no fragment and nothing up to the last @ is shown, since a password can hold anything."""
    assert redact_url(url) == shown


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://example.com/a", ()),
        ("https://example.com/a?key=hush", ("key=hush", "hush")),
        ("https://ada@example.com/a", ("ada",)),
        ("https://ada:hush@example.com/a?key=hush", ("key=hush", "hush", "ada:hush")),
        ("https://ada:hu@sh@example.com/a", ("ada:hu@sh", "hu@sh")),
        ("https://ada:hu%40sh@example.com/a", ("ada:hu%40sh", "hu%40sh", "ada:hu@sh", "hu@sh")),
        ("https://example.com/?to=a@b", ("to=a@b", "a@b")),
        ("", ()),
    ],
)
def test_secrets_in_url_are_query_and_credentials(url: str, parts: tuple[str, ...]) -> None:
    """A query, each value in it, the user with password, and the password alone are secrets, escaped or not."""
    assert secrets_in(url) == parts
