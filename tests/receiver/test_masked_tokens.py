"""No local variable of this package shows a bearer token, or a frame, when a traceback is printed with locals."""

import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import signalwire_streams
from signalwire_streams import InvalidRequestError
from signalwire_streams.errors import MalformedFrameError
from signalwire_streams.receiver import MediaReceiver, StreamSession, decode_event

from .conftest import Heard

pytestmark = pytest.mark.usefixtures("idle_clock")
PACKAGE = str(Path(signalwire_streams.__file__).parent)
SECRET = "hush-0123456789"


async def handler(session: StreamSession) -> None:
    raise AssertionError


def locals_of(error: BaseException) -> str:
    """Return the representations of all local variables in frames of this package."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if frame.f_code.co_filename.startswith(PACKAGE)]
    return "\n".join(f"{name}={value!r}" for frame in ours for name, value in frame.f_locals.items())


class Broken(list[str]):
    """A collection of tokens that can't be read to its end."""

    def __iter__(self) -> Iterator[str]:
        yield SECRET
        raise LookupError("no such table")

    def __repr__(self) -> str:
        return "<tokens>"


@pytest.mark.parametrize(
    "settings",
    [
        {"max_queue": 0},
        {"max_queue_bytes": -1},
        {"frame_limit": "x"},
        {"byte_order": "middle"},
        {"overflow": "shut"},
        {"heartbeat": -1},
        {"handler": None},
        {"handler": "x"},
        {"bearer_tokens": [SECRET], "max_queue": 0},
        {"bearer_tokens": {SECRET: 1}, "max_queue": 0},
        {"bearer_tokens": [SECRET, ""]},
        {"bearer_tokens": [SECRET, SECRET.encode()]},
        {"bearer_tokens": SECRET.encode()},
        {"bearer_tokens": bytearray(SECRET.encode())},
        {"bearer_tokens": SECRET + "\ud800"},
        {"bearer_tokens": f"Bearer {SECRET}"},
        {"bearer_tokens": iter([SECRET])},
        {"bearer_tokens": Broken([SECRET])},
    ],
)
def test_rejected_setting_shows_no_token(settings: dict[str, Any]) -> None:
    with pytest.raises((InvalidRequestError, LookupError)) as caught:
        MediaReceiver(**({"handler": handler, "bearer_tokens": SECRET} | settings))  # type: ignore[arg-type]
    shown = locals_of(caught.value)
    assert "tokens=" in shown
    assert "hush" not in shown + str(caught.value)


@pytest.mark.parametrize("is_async", [False, True])
async def test_failing_token_check_shows_no_token(
    serve: Any, dial: Any, heard: Heard, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """aiohttp logs its error with the traceback. The check itself gets the token as a plain str."""
    kinds: list[type[str]] = []

    def check(given: str) -> bool:
        kinds.append(type(given))
        assert given == SECRET
        raise LookupError("no such table")

    async def slow_check(given: str) -> bool:
        return check(given)

    url = await serve(MediaReceiver(heard, bearer_tokens=slow_check if is_async else check))
    with pytest.raises(aiohttp.WSServerHandshakeError, match="500"):
        await dial(url, SECRET)
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert kinds == [str]
    assert [type(error) for error in errors] == [LookupError]
    for error in errors:
        assert error is not None
        shown = locals_of(error)
        assert "token=***" in shown
        assert "hush" not in shown


@pytest.mark.parametrize(
    "document",
    [
        {"event": "start", "start": 5, "customParameters": {"card": SECRET}},
        {"event": "dtmf", "dtmf": {"digits": SECRET}},
        {"event": "media", "media": {"track": SECRET, "payload": "!"}},
        {"event": "mark", "mark": {"name": None, "other": SECRET}},
        [SECRET],
    ],
)
@pytest.mark.parametrize("encoding", [None, "utf-8"])
def test_malformed_frame_shows_no_content(document: Any, encoding: str | None) -> None:
    text = json.dumps(document)
    with pytest.raises(MalformedFrameError) as caught:
        decode_event(text if encoding is None else text.encode(encoding))
    assert "hush" not in locals_of(caught.value)
    assert caught.value.__context__ is None


def test_malformed_audio_shows_no_content() -> None:
    frame = (
        '{"event": "media", "sequenceNumber": "1", "media": {"track": "hush", "chunk": "1", "timestamp": "0", '
        '"payload": "hush!"}}'
    )
    with pytest.raises(MalformedFrameError, match="not base64") as caught:
        decode_event(frame)
    shown = locals_of(caught.value)
    assert "hush!" not in shown
    assert "frame=''" in shown
