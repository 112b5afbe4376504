"""What a caller expects of an endpoint's marks, of the pace of its audio, and of the tokens that it checks."""

import asyncio
import re
from base64 import b64encode
from typing import Any

import pytest

from signalwire_streams import SignedTokens
from signalwire_streams.simulator import EndpointRule, dial_media

from .endpoints import FRAME, Behaviour, Endpoint, answer, serving

pytestmark = pytest.mark.usefixtures("idle_clock")


async def sentences(behaviour: Behaviour, **options: Any) -> list[tuple[EndpointRule, str]]:
    async with serving(behaviour) as (url, _):
        report = await dial_media(url, **options)
    return [(broken.rule, broken.message) for broken in report.broken_rules]


def playing(*steps: str) -> Behaviour:
    """Play half a second of audio, send a mark or clear, in an order."""

    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.until("media", 55)
        for step in steps:
            if step in {"audio", "tail"}:
                await there.play(*[FRAME] * (25 if step == "audio" else 5))
            else:
                await there.send(step, **({"mark": {"name": "m"}} if step == "mark" else {}))
        await there.until("stop")

    return behave


UNMARKED = (
    EndpointRule.NO_MARK,
    "the endpoint sent 500 ms of audio after its last mark, so it can't know whether that was heard",
)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (("audio", "mark"), []),
        (("mark", "audio", "mark"), []),
        (("audio", "audio", "mark", "mark"), []),
        (("mark", "audio"), [UNMARKED]),
        (("mark", "audio", "mark", "audio"), [UNMARKED]),
        (("audio", "mark", "audio", "clear"), []),
        (("audio", "mark", "audio", "clear", "tail"), []),
        (("audio", "mark", "clear", "audio"), [UNMARKED]),
    ],
)
async def test_mark_follows_the_audio_that_it_is_for(steps: tuple[str, ...], expected: list[Any]) -> None:
    """A mark returns when the audio before it was heard. Some audio may be on its way when the endpoint clears it."""
    assert await sentences(playing(*steps), require_mark=True) == expected
    assert await sentences(playing(*steps)) == []


async def test_endpoint_that_hangs_up_after_unmarked_audio_is_named() -> None:
    """It waited for as long as the audio lasts, by its own clock."""

    async def hang_up(there: Endpoint) -> None:
        await there.until_start()
        await there.until("media", 55)
        await there.mark()
        await there.play(*[FRAME] * 25)
        await there.until("media", 30)

    assert await sentences(hang_up, require_mark=True) == [UNMARKED]


async def test_audio_that_the_callers_end_has_cut_off_needs_no_mark_yet() -> None:
    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.mark()
        await there.play(FRAME * 50 * 60)
        await there.until("stop")

    assert await sentences(behave, require_mark=True, seconds=3) == []


async def test_mark_that_is_due_returns_before_the_stop_of_a_caller_who_was_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A busy machine notices the end of the audio and that of the call at the same time."""
    loop, blocked = asyncio.get_running_loop(), 0.0
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + blocked)
    events: list[str] = []

    async def behave(there: Endpoint) -> None:
        nonlocal blocked
        await there.until_start()
        await there.until("media", 55)
        await there.play(FRAME * 50)
        await there.mark()
        await there.until("media", 10)
        blocked = 20.0
        await there.until("stop")
        events.extend(message["event"] for message in there.messages if message["event"] != "media")

    async with serving(behave) as (url, _):
        report = await dial_media(url, seconds=5)
    assert (report.marks, report.marks_returned) == (1, 1)
    assert events[-2:] == ["mark", "stop"]


async def test_audio_cut_off_by_the_endpoints_close_is_named_once() -> None:
    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.mark()
        await there.play(FRAME * 100)

    [(rule, _)] = await sentences(behave, require_mark=True)
    assert rule is EndpointRule.CLOSED_EARLY


@pytest.mark.parametrize(("minutes", "expected"), [(9, []), (11, [EndpointRule.TOO_FAR_AHEAD])])
async def test_audio_far_ahead_of_what_is_heard_is_named(minutes: int, expected: list[EndpointRule]) -> None:
    """An answer may come faster than it is heard, but not without an end."""

    async def behave(there: Endpoint) -> None:
        await there.until_start()
        for _ in range(minutes):
            await there.play(FRAME * 50 * 60)
        await there.until("stop")

    broken = await sentences(behave, seconds=3)
    assert [rule for rule, _ in broken] == expected
    if broken:
        assert broken[0][1] == "the endpoint sent audio 660 s ahead of what was heard; the limit is 600 s"


async def test_token_may_depend_on_the_call() -> None:
    async with serving(answer) as (url, sockets):
        report = await dial_media(url, authorization_bearer_token=lambda call_sid: f"token-{call_sid}")
    assert report.broken_rules == ()
    [there] = sockets
    assert there.headers["Authorization"] == f"Bearer token-{there.messages[1]['start']['callSid']}"


@pytest.mark.parametrize("token", [SignedTokens("k" * 40), b64encode(b"bytes"), ["t"]])
async def test_token_that_is_neither_text_nor_function_dials_nothing(token: Any) -> None:
    sentence = "authorization_bearer_token must be a str, or a function that returns one for the sid of the call, not "
    with pytest.raises(ValueError, match=re.escape(sentence + type(token).__name__)):
        await dial_media("ws://127.0.0.1:9/", authorization_bearer_token=token)
