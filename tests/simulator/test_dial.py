"""The caller that tests an endpoint: a good one keeps all rules, and of each broken one the rule is named."""

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket

from signalwire_streams.simulator import (
    Certificates,
    DialReport,
    EndpointRule,
    Segment,
    Silence,
    Tone,
    dial_media,
)
from tests.ports import free_port
from tests.uvicorn_server import UVICORN, running
from tests.waiting import until

from .endpoints import FRAME, Behaviour, Endpoint, answer, serving

pytestmark = pytest.mark.usefixtures("idle_clock")


@pytest.fixture(scope="session")
def certificates() -> Certificates:
    return Certificates.make()


async def dialled(behaviour: Behaviour, **options: Any) -> DialReport:
    async with serving(behaviour) as (url, _):
        return await dial_media(url, **options)


def rules(report: DialReport) -> list[EndpointRule]:
    return [broken.rule for broken in report.broken_rules]


async def test_good_endpoint_keeps_all_rules_and_is_measured() -> None:
    report = await dialled(answer)
    assert report.broken_rules == ()
    assert report.url.startswith("ws://127.0.0.1:")
    assert (report.first_audio_since, report.frame_size, report.payload_sizes) == ("speech", 160, {160: 25})
    assert report.first_audio_ms == pytest.approx(80, abs=20)
    assert (report.received_ms, report.heard_ms) == (500, 500)
    assert (report.marks, report.marks_returned, report.clears, report.clear_ms) == (1, 1, 0, None)
    assert (report.close_code, report.dtmf) == (1000, "")
    assert report.connect_ms is not None
    assert report.close_ms is not None


async def test_audio_is_sent_as_a_space_sends_it() -> None:
    """Speech, then silence, on both tracks, with parameters and token."""

    async def behave(there: Endpoint) -> None:
        await answer(there, after=200)

    async with serving(behave) as (url, sockets):
        report = await dial_media(
            url,
            audio=Tone(seconds=0.1),
            both_tracks=True,
            codec="L16@16000h@40i",
            dialect="twilio",
            parameters={"tenant": "acme"},
            authorization_bearer_token="t0ken",
        )
    [there] = sockets
    assert there.headers["Authorization"] == "Bearer t0ken"
    assert there.messages[0]["event"] == "connected"
    start = there.messages[1]["start"]
    assert start["mediaFormat"] == {"encoding": "audio/x-L16", "sampleRate": 16000, "channels": 1}
    assert (start["tracks"], start["customParameters"]) == (["inbound", "outbound"], {"tenant": "acme"})
    assert start["callSid"]
    media = [message for message in there.messages if message["event"] == "media"]
    assert {message["streamSid"] for message in media} == {start["streamSid"]}
    spoken = [message["media"]["payload"].strip("A") not in {"", "="} for message in media]
    assert spoken == [True] * 6 + [False] * (len(media) - 6)
    assert there.messages[-1]["event"] == "stop"
    assert rules(report) == [EndpointRule.PARTIAL_FRAMES]


async def test_sids_differ_from_call_to_call() -> None:
    async with serving(answer) as (url, sockets):
        for _ in range(2):
            await dial_media(url)
    assert len({there.sid for there in sockets}) == 2


async def test_greeting_is_measured_from_the_start() -> None:
    """Audio that comes before the caller has spoken is no answer; with a caller who is silent it is awaited."""

    async def greet(there: Endpoint) -> None:
        await answer(there, after=25)

    report = await dialled(greet)
    assert (report.first_audio_since, report.broken_rules) == ("start", ())
    assert report.first_audio_ms == pytest.approx(480, abs=20)
    report = await dialled(greet, audio=Silence(seconds=0.02), max_first_audio_ms=400)
    assert report.first_audio_since == "start"
    assert report.first_audio_ms == pytest.approx(480, abs=20)
    assert rules(report) == [EndpointRule.LATE_AUDIO]


async def test_recording_has_both_sides_of_the_call() -> None:
    """What was cleared is not heard."""

    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.until("media", 50)
        await there.play(FRAME * 50)
        await there.until("media", 25)
        await there.send("clear")
        await there.until("media", 25)
        await there.play(b"\x2a" * 160)
        await there.until("stop")

    report = await dialled(behave)
    assert report.broken_rules == ()
    said, first, second = report.recording
    assert (said.track, said.timestamp, len(said.payload)) == ("inbound", 0, 8000)
    assert (first.track, first.payload) == (
        "outbound",
        FRAME * (len(first.payload) // 160) + FRAME[: len(first.payload) % 160],
    )
    assert first.timestamp == pytest.approx(980, abs=20)
    assert len(first.payload) == pytest.approx(4000, abs=160)
    assert second == Segment("outbound", second.timestamp, b"\x2a" * 160)
    assert second.timestamp == pytest.approx(1980, abs=40)
    assert (report.received_ms, report.clears, report.clear_ms) == (1020, 1, None)
    assert report.heard_ms == round(len(first.payload) / 8) + 20
    assert "\\x" not in repr(report) + repr(report.recording)


async def test_audio_cleared_at_once_is_no_part_of_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    time = loop.time

    async def behave(there: Endpoint) -> None:
        await there.until_start()
        now = time()
        monkeypatch.setattr(loop, "time", lambda: now)
        await there.play(FRAME * 50)
        await there.send("clear")
        await there.mark()
        await there.until("mark")
        monkeypatch.setattr(loop, "time", time)
        await there.until("stop")

    report = await dialled(behave)
    assert {segment.track for segment in report.recording} == {"inbound"}
    assert (report.received_ms, report.heard_ms) == (1000, 0)


async def nothing(there: Endpoint) -> None:
    await there.until("stop")


async def too_early(there: Endpoint) -> None:
    for _ in range(3):
        await there.play(FRAME)
    await answer(there)


async def partial(there: Endpoint) -> None:
    await there.until_start()
    await there.play(FRAME[:100], FRAME, FRAME * 3, b"", FRAME * 25 + b"\x55")
    await there.until("stop")


async def late(there: Endpoint) -> None:
    await answer(there, after=100)


async def without_mark(there: Endpoint) -> None:
    await there.until_start()
    await there.play(FRAME)
    await there.until("stop")


async def closes_at_once(there: Endpoint) -> None:
    await there.until_start()


async def closes_before_the_end_of_its_audio(there: Endpoint) -> None:
    await there.until_start()
    await there.play(FRAME * 100)


async def wrong_code(there: Endpoint) -> None:
    await answer(there)
    await there.socket.close(code=1011)


async def breaks_the_connection(there: Endpoint) -> None:
    await answer(there)
    there.socket.get_extra_info("socket").shutdown(2)


async def never_closes(there: Endpoint) -> None:
    await answer(there)
    await there.until("never")


async def after_start(there: Endpoint, *texts: str | bytes) -> None:
    await there.until_start()
    for text in texts:
        await (there.socket.send_bytes(text) if isinstance(text, bytes) else there.socket.send_str(text))
    await there.play(FRAME)
    await there.until("stop")


def sending(*texts: str | bytes) -> Behaviour:
    return lambda there: after_start(there, *texts)


def sending_own(event: str, **body: Any) -> Behaviour:
    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.send(event, **body)
        await there.play(FRAME)
        await there.until("stop")

    return behave


OTHER = json.dumps({"event": "media", "streamSid": "MZ1", "media": {"payload": b64encode(FRAME).decode()}})
NONE = json.dumps({"event": "clear"})
BROKEN: dict[str, tuple[Behaviour, dict[str, Any], EndpointRule, str]] = {
    "no audio": (nothing, {}, EndpointRule.NO_AUDIO, "no audio within 10 s after the caller had finished speaking"),
    "sends before start": (
        too_early,
        {},
        EndpointRule.SENT_BEFORE_START,
        "the endpoint sent a message before the start event, 3 times",
    ),
    "partial frames": (
        partial,
        {},
        EndpointRule.PARTIAL_FRAMES,
        "3 of the endpoint's 5 payloads are not whole frames of 20 ms (160 bytes): 0, 100, 4,001 bytes",
    ),
    "late first audio": (
        late,
        {"max_first_audio_ms": 500},
        EndpointRule.LATE_AUDIO,
        "ms after the caller had finished speaking; the limit is 500 ms",
    ),
    "no mark": (without_mark, {"require_mark": True}, EndpointRule.NO_MARK, "sent no mark with its audio"),
    "closes at once": (closes_at_once, {}, EndpointRule.NO_AUDIO, "sent no audio before it closed the socket"),
    "does not wait for its mark": (
        closes_before_the_end_of_its_audio,
        {},
        EndpointRule.CLOSED_EARLY,
        "ms before all of its audio was heard",
    ),
    "wrong code": (wrong_code, {}, EndpointRule.WRONG_CLOSE_CODE, "closed the socket with code 1011 instead of 1000"),
    "breaks the connection": (breaks_the_connection, {}, EndpointRule.WRONG_CLOSE_CODE, "broke the connection"),
    "never closes": (never_closes, {}, EndpointRule.NOT_CLOSED, "did not close the socket within 5 s"),
    "no JSON": (sending("hello", "[" * 10_000), {}, EndpointRule.INVALID_JSON, "a message that is not JSON, 2 times"),
    "no object": (sending("[]"), {}, EndpointRule.INVALID_MESSAGE, "no media, mark, clear or dtmf event"),
    "binary": (sending(FRAME), {}, EndpointRule.INVALID_MESSAGE, "a message that is not text"),
    "unknown event": (sending_own("play"), {}, EndpointRule.INVALID_MESSAGE, "no media, mark, clear or dtmf event"),
    "no Base64": (
        sending_own("media", media={"payload": "!"}),
        {},
        EndpointRule.INVALID_PAYLOAD,
        "the endpoint sent a payload that is not Base64",
    ),
    "no payload": (sending_own("media"), {}, EndpointRule.INVALID_MESSAGE, "a media event without a payload"),
    "no name": (sending_own("mark", mark={}), {}, EndpointRule.INVALID_MESSAGE, "a mark event without a name"),
    "no digit": (sending_own("dtmf", dtmf={"digit": "x"}), {}, EndpointRule.INVALID_MESSAGE, "without a digit of 0 to"),
    "another stream": (sending(OTHER), {}, EndpointRule.WRONG_STREAM_SID, "another streamSid than the stream's"),
    "no stream": (sending(NONE), {}, EndpointRule.WRONG_STREAM_SID, "a clear event with no streamSid"),
    "too large": (
        sending("x" * (5 << 20)),
        {},
        EndpointRule.INVALID_MESSAGE,
        "something that is no WebSocket message, or one of more than 4 MiB",
    ),
    "sends over a one-way stream": (
        without_mark,
        {"one_way": True},
        EndpointRule.SENT_ONE_WAY,
        "the endpoint sent a message over a one-way stream",
    ),
    "closes a one-way stream": (
        closes_at_once,
        {"one_way": True},
        EndpointRule.CLOSED_EARLY,
        "closed the socket before the stop event",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_endpoint_is_found_and_named(name: str) -> None:
    behaviour, options, rule, sentence = BROKEN[name]
    report = await dialled(behaviour, **options)
    assert rules(report) == [rule]
    assert sentence in report.broken_rules[0].message


async def test_endpoint_may_send_digits_and_hang_up() -> None:
    """After its audio has been heard."""

    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.send("dtmf", dtmf={"digit": "#"})
        await there.play(FRAME * 10)
        await there.mark()
        await there.until("mark")

    report = await dialled(behave, require_mark=True)
    assert (report.broken_rules, report.dtmf, report.close_code, report.close_ms) == ((), "#", 1000, None)
    assert report.heard_ms == 200


async def test_one_way_endpoint_only_listens() -> None:
    report = await dialled(nothing, one_way=True)
    assert (report.broken_rules, report.close_code, report.first_audio_ms) == ((), 1000, None)


async def test_caller_hangs_up_in_the_middle_of_an_endless_answer() -> None:
    """That breaks no rule, and its marks are not returned any more."""

    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.play(FRAME * 50 * 60)
        await there.mark()
        await there.until("stop")

    report = await dialled(behave, seconds=3)
    assert (report.broken_rules, report.marks, report.marks_returned) == ((), 1, 0)
    assert report.heard_ms == pytest.approx(4000, abs=40)


def interrupted(after: int | None, *, seconds: float = 5.0) -> Behaviour:
    """Clear so many frames after the answer has begun; the caller speaks again after 300 ms of it."""

    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.until("media", 55)
        await there.play(FRAME * round(seconds * 50))
        if after is not None:
            await there.until("media", after)
            await there.send("clear")
        await there.until("stop")

    return behave


async def test_clear_at_barge_in_is_measured() -> None:
    """The caller says the same again."""
    report = await dialled(interrupted(30), barge_in=True)
    assert report.broken_rules == ()
    assert report.clear_ms == pytest.approx(280, abs=40)
    first, again, heard = report.recording
    assert (first.track, again.track, heard.track) == ("inbound", "inbound", "outbound")
    assert first.payload == again.payload
    assert again.timestamp == pytest.approx(1400, abs=40)
    assert report.heard_ms == pytest.approx(600, abs=40)


async def test_recording_ends_with_the_call_that_the_endpoint_closes_during_an_interruption() -> None:
    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.until("media", 55)
        await there.play(FRAME * 250)
        await there.until("media", 30)

    report = await dialled(behave, barge_in=True)
    first, again, heard = report.recording
    assert (first.track, again.track, heard.track) == ("inbound", "inbound", "outbound")
    assert again.timestamp == pytest.approx(1400, abs=40)
    assert again.timestamp + len(again.payload) / 8 == pytest.approx(heard.timestamp + len(heard.payload) / 8, abs=40)
    assert first.payload.startswith(again.payload)


async def test_silent_endpoint_is_awaited_no_longer_for_its_clear() -> None:
    report = await dialled(nothing, barge_in=True, seconds=2)
    assert rules(report) == [EndpointRule.NO_AUDIO]
    assert "within 2 s after the caller had finished speaking" in report.broken_rules[0].message


async def test_clear_at_once_counts_if_the_caller_was_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine sends late frames one after the other, and an endpoint may answer the first spoken one."""
    loop, blocked = asyncio.get_running_loop(), 0.0
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + blocked)

    async def behave(there: Endpoint) -> None:
        nonlocal blocked
        await there.until_start()
        await there.until("media", 55)
        silence = there.messages[-1]["media"]["payload"]
        await there.play(*[FRAME] * 100)
        await there.until("media", 10)
        blocked = 0.2
        while (await there.until("media"))["media"]["payload"] == silence:
            pass
        await there.send("clear")
        await there.until("stop")

    report = await dialled(behave, barge_in=True)
    assert report.broken_rules == ()


@pytest.mark.parametrize(
    ("behaviour", "options", "rule", "sentence"),
    [
        (interrupted(None), {}, EndpointRule.NO_CLEAR, "sent no clear when the caller interrupted it"),
        (interrupted(10), {}, EndpointRule.NO_CLEAR, "too short to be interrupted, which takes 300 ms of it"),
        (interrupted(90), {}, EndpointRule.LATE_CLEAR, "had interrupted it; the limit is 1,000 ms"),
        (interrupted(60), {"max_clear_ms": 400}, EndpointRule.LATE_CLEAR, "the limit is 400 ms"),
        (interrupted(None, seconds=0.2), {}, EndpointRule.NO_CLEAR, "too short to be interrupted, which takes 300 ms"),
    ],
    ids=["none", "before", "late", "later than the limit", "too short"],
)
async def test_wrong_clear_at_barge_in_is_named(
    behaviour: Behaviour, options: dict[str, Any], rule: EndpointRule, sentence: str
) -> None:
    report = await dialled(behaviour, barge_in=True, **options)
    assert rules(report) == [rule]
    assert sentence in report.broken_rules[0].message


async def test_audio_after_a_clear_is_named() -> None:
    """The endpoint has cleared what the Space has, but goes on sending what it has itself; a new answer comes later."""

    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.until("media", 55)
        for number in range(50):
            if number == 30:
                await there.send("clear")
            await there.play(FRAME)
            await there.until("media")
        await there.until("media", 50)
        await there.play(FRAME * 50)
        await there.until("stop")

    report = await dialled(behave, barge_in=True)
    assert [broken.message for broken in report.broken_rules] == [
        "the endpoint sent 400 ms of audio after its clear, while the caller was still interrupting it"
    ]
    assert report.received_ms == 2000


@pytest.mark.parametrize("answer_seconds", [2.0, 5.0])
async def test_clear_is_awaited_as_long_as_its_limit_lasts(answer_seconds: float) -> None:
    """Also if that is longer than what the caller says and the pause after it, or than the answer."""
    endpoint = interrupted(190, seconds=answer_seconds)
    report = await dialled(endpoint, audio=Tone(seconds=0.2), barge_in=True, max_clear_ms=4000)
    assert report.broken_rules == ()


@asynccontextmanager
async def answering(response: bytes | None, *, until: bytes | int = b"\r\n\r\n") -> AsyncIterator[str]:
    """Serve TCP connections that are answered with some bytes, closed without any, or never answered."""
    connections = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        if response is not None:
            await (reader.readexactly(until) if isinstance(until, int) else reader.readuntil(until))
            writer.write(response)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for writer in connections:
            writer.close()


def http(status: str, *lines: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", "Content-Length: 0", "Connection: close", *lines, "", "")).encode()


UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: AAAA\r\n\r\n"
)


@pytest.mark.parametrize(
    ("response", "token", "sentence"),
    [
        (http("401 Unauthorized"), "t0ken", "rejected the upgrade with HTTP 401, with a bearer token"),
        (http("403 Forbidden"), None, "rejected the upgrade with HTTP 403, without a bearer token"),
        (http("404 Not Found"), "t0ken", "rejected the upgrade with HTTP 404"),
        (http("200 OK"), None, "responded to the upgrade with HTTP 200 instead of 101, as a web page does"),
        *(
            (http("301 Moved", f"Location: {where}"), "t0ken", "redirects the upgrade with HTTP 301, which a Space may")
            for where in ("/", "https://127.0.0.1:1/", "wss://127.0.0.1:1/", "http://[")
        ),
        (
            UPGRADED,
            None,
            "accepted the upgrade with a response that is no WebSocket handshake: Invalid challenge response",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", None, "did not respond to the upgrade with HTTP"),
        (b"", None, "did not respond to the upgrade with HTTP"),
        (None, None, "did not accept the upgrade within 5 s"),
    ],
)
async def test_endpoint_that_does_not_accept_is_named(response: bytes | None, token: str | None, sentence: str) -> None:
    async with answering(response) as url:
        report = await dial_media(url, authorization_bearer_token=token)
    assert rules(report) == [EndpointRule.NOT_ACCEPTED]
    assert report.broken_rules[0].message.startswith(f"the endpoint {sentence}")
    assert (report.connect_ms, report.close_code, report.recording, report.frame_size) == (None, None, (), 0)


async def test_port_without_listener_is_named() -> None:
    report = await dial_media(f"ws://127.0.0.1:{free_port()}/")
    assert [broken.message for broken in report.broken_rules] == ["the endpoint can't be reached: Connection refused"]
    assert (report.received_ms, report.heard_ms, report.marks, report.marks_returned, report.clears) == (0, 0, 0, 0, 0)
    assert (report.dtmf, report.payload_sizes, report.frame_size, report.recording) == ("", {}, 0.0, ())


async def test_tls_errors_are_named(certificates: Certificates) -> None:
    async with serving(answer, certificates.server) as (url, _):
        untrusted = await dial_media(url)
        trusted = await dial_media(url, ssl_context=certificates.trust)
    async with answering(None) as url:
        plain = await dial_media(url.replace("ws:", "wss:"), ssl_context=certificates.trust)
    async with serving(answer) as (url, _):
        not_tls = await dial_media(url.replace("ws:", "wss:"), ssl_context=certificates.trust)
    async with answering(b"", until=1) as url:
        closing = await dial_media(url.replace("ws:", "wss:"), ssl_context=certificates.trust)
    assert "the endpoint has a certificate that is not trusted: " in untrusted.broken_rules[0].message
    assert trusted.broken_rules == ()
    assert plain.broken_rules[0].message == "the endpoint did not accept the upgrade within 5 s"
    assert "by TLS" in not_tls.broken_rules[0].message
    assert closing.broken_rules[0].message == "the endpoint closed the connection during the TLS handshake"


async def test_endpoint_that_does_not_read_is_named() -> None:
    """The caller waits no longer than 5 seconds until a frame is sent."""

    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.play(bytes(192_000))
        await asyncio.sleep(60)

    report = await dialled(behave, audio=Silence(seconds=60), codec="L16@192000h@500i", both_tracks=True)
    assert rules(report) == [EndpointRule.NOT_READ]


@pytest.mark.parametrize(
    ("faults", "received"),
    [
        ({"frames-lost": {"every": 2}}, 0.5),
        ({"frames-duplicated": {"every": 1}}, 2.0),
        ({"socket-slow": {"seconds": 1}}, 1.0),
        ({"no-stop": {}}, 1.0),
        ({"connection-dropped": {"after": 60}}, 1.0),
    ],
)
async def test_faults_are_not_blamed_on_the_endpoint(faults: dict[str, Any], received: float) -> None:
    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.play(FRAME)
        await there.until("stop")

    async with serving(behave) as (url, sockets):
        report = await dial_media(url, faults=faults)
    assert report.broken_rules == ()
    [there] = sockets
    media = [message["media"]["chunk"] for message in there.messages if message["event"] == "media"]
    assert len(media) / int(media[-1]) == pytest.approx(received, abs=0.05)
    assert ("socket-slow" in faults) == ((report.connect_ms or 0) >= 1000)
    assert ("no-stop" in faults or "connection-dropped" in faults) == (report.close_code is None)


async def test_endpoint_that_ignores_a_close_is_named() -> None:
    """Without a stop event, the caller closes the socket itself."""

    async def behave(there: Endpoint) -> None:
        await there.until_start()
        await there.play(FRAME)
        await asyncio.sleep(30)

    report = await dialled(behave, faults={"no-stop": {}})
    assert rules(report) == [EndpointRule.NOT_CLOSED]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("socket-refused", "can't be reached: ConnectionRefusedError"),
        ("tls-untrusted", "a certificate that is not trusted"),
    ],
)
async def test_faults_of_the_connection_end_the_call(certificates: Certificates, fault: str, sentence: str) -> None:
    async with serving(answer, certificates.server) as (url, _):
        report = await dial_media(url, faults={fault: {}}, ssl_context=certificates.trust)
        await asyncio.sleep(1)  # the server has noticed
    assert sentence in report.broken_rules[0].message


URL = "ws://127.0.0.1:9/"


@pytest.mark.parametrize(
    ("url", "options", "sentence"),
    [
        ("http://127.0.0.1/", {}, "Url must be a wss URL"),
        ("ws://rx.example.com/", {}, "Url must be a wss URL"),
        ("wss://rx.example.com/?a=b", {}, "Url must not have a query string"),
        ("/audio", {}, "Url must be absolute, as in wss://example.com/audio"),
        ("wss://rx.example.com:99999/", {}, "Url is not a valid URL"),
        (URL, {"codec": "OPUS"}, "StreamCodec is not a supported codec"),
        (URL, {"codec": "G722"}, "StreamCodec must be one of PCMU, PCMA, L16"),
        (URL, {"audio": Tone()}, "the audio never ends: give it a duration, as in Tone(seconds=1)"),
        (URL, {"audio": __file__}, "is not a WAV file"),
        (URL, {"seconds": 0}, "seconds must be a number above 0, not 0"),
        (URL, {"max_first_audio_ms": float("nan")}, "max_first_audio_ms must be a number above 0, not nan"),
        (URL, {"max_clear_ms": 500}, "max_clear_ms is a limit for barge_in=True: write that too, or omit it"),
        (URL, {"one_way": True, "barge_in": True}, "one_way=True plays no audio: omit it, or barge_in"),
        (
            URL,
            {"faults": {"503": {}}},
            "'503' does not apply to a dialled stream: write one of",
        ),
        (URL, {"faults": {"boom": {}}}, "'boom' is not a kind of fault"),
        (URL, {"faults": {"frames-lost": {"every": 0}}}, "every must be a whole number from 1"),
    ],
)
async def test_wrong_arguments_dial_nothing(url: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        await dial_media(url, **options)


async def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await dial_media(URL, audio=tmp_path / "none.wav")


async def test_stages_are_told_in_order() -> None:
    stages: list[str] = []
    await dialled(interrupted(30), barge_in=True, on_stage=stages.append)
    assert stages == ["dialling", "speaking", "waiting for audio", "listening", "interrupting", "listening", "closing"]


async def test_cancelled_call_closes_its_socket() -> None:
    async with serving(nothing) as (url, sockets):
        call = asyncio.create_task(dial_media(url))
        await asyncio.sleep(2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: sockets[0].socket.closed)
    assert sockets[0].socket.close_code == 1000


def fastapi_endpoint() -> FastAPI:
    app = FastAPI()

    @app.websocket("/good")
    async def good(websocket: WebSocket) -> None:
        await websocket.accept()
        async for message in websocket.iter_json():
            if message["event"] == "start":
                sid = message["start"]["streamSid"]
                media = {"payload": b64encode(FRAME).decode()}
                await websocket.send_json({"event": "media", "streamSid": sid, "media": media})
            if message["event"] == "stop":
                break
        await websocket.close()

    @app.websocket("/refuses")
    async def refuses(websocket: WebSocket) -> None:
        await websocket.close()

    @app.websocket("/fails")
    async def fails(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_json()
        raise ZeroDivisionError

    return app


@pytest.mark.parametrize("websockets", UVICORN[1:])
@pytest.mark.parametrize(
    ("path", "sentences"),
    [
        ("good", []),
        ("missing", ["the endpoint rejected the upgrade with HTTP 403, without a bearer token"]),
        ("refuses", ["the endpoint rejected the upgrade with HTTP 403, without a bearer token"]),
        (
            "fails",
            [
                "the endpoint sent no audio before it closed the socket",
                "the endpoint broke the connection instead of closing the socket",
            ],
        ),
    ],
)
async def test_endpoint_of_fastapi_is_judged(websockets: str, path: str, sentences: list[str]) -> None:
    async with running(fastapi_endpoint(), websockets) as server:
        port = server.servers[0].sockets[0].getsockname()[1]
        report = await dial_media(f"ws://127.0.0.1:{port}/{path}")
    assert [broken.message for broken in report.broken_rules] == sentences
