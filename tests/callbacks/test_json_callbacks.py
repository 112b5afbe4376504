"""JSON callbacks, which streams started by the Calling API or SWML send."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from signalwire_streams.callbacks import (
    SHA256_SIGNATURE_HEADER,
    CallbackEvent,
    CallStreamChanged,
    CallStreamState,
    UnknownCallback,
    diagnose_signature,
    parse_callback,
    verify_signature,
)

from .signing import KEY, raw_signature
from .test_receiving import serving

PARAMS: dict[str, Any] = {
    "call_id": "call-1",
    "node_id": "node-1",
    "control_id": "control-1",
    "state": "streaming",
    "url": "wss://rx.example.com/hush",
    "name": "audit",
}
DOCUMENT: dict[str, Any] = {
    "event_type": "calling.call.stream",
    "timestamp": 1_790_000_000.25,
    "project_id": "project-1",
    "space_id": "space-1",
    "params": PARAMS,
}


def changed(**params: Any) -> dict[str, Any]:
    return {**DOCUMENT, "params": {**PARAMS, **params}}


def test_each_field_of_a_call_stream_is_parsed() -> None:
    """And a URL is not shown."""
    event = parse_callback(DOCUMENT)

    assert isinstance(event, CallStreamChanged)
    assert (event.call_sid, event.account_sid, event.stream_name) == ("call-1", "project-1", "audit")
    assert (event.control_id, event.url, event.stream_sid) == ("control-1", "wss://rx.example.com/hush", None)
    assert (event.state, event.target, event.end_reason) == (CallStreamState.STREAMING, "call-1", None)
    assert event.timestamp == datetime.fromtimestamp(1_790_000_000.25, UTC)
    assert event.document["space_id"] == "space-1"
    assert not event.is_duplicate
    assert "hush" not in repr(event)
    assert hash(event) == hash(parse_callback(json.loads(json.dumps(DOCUMENT))))


@pytest.mark.parametrize(
    ("state", "read", "ending"),
    [
        ("finished", CallStreamState.FINISHED, "it has finished"),
        ("paused", "paused", None),
        (None, None, None),
        (["streaming"], None, None),
        ("", None, None),
    ],
)
def test_unknown_state_is_kept_as_received(state: Any, read: str | None, ending: str | None) -> None:
    event = parse_callback(changed(state=state))
    assert isinstance(event, CallStreamChanged)
    assert (event.state, event.end_reason) == (read, ending)


@pytest.mark.parametrize(
    ("timestamp", "moment"),
    [
        (1_790_000_000, datetime.fromtimestamp(1_790_000_000, UTC)),
        ("1790000000.5", datetime.fromtimestamp(1_790_000_000.5, UTC)),
        (1_790_000_000_250, datetime.fromtimestamp(1_790_000_000.25, UTC)),
        (100_000_000_000, datetime.fromtimestamp(100_000_000_000, UTC)),
        (100_000_000_001, datetime.fromtimestamp(100_000_000.001, UTC)),
        ("2026-11-21T10:15:00Z", datetime(2026, 11, 21, 10, 15, tzinfo=UTC)),
        (float("nan"), None),
        (float("inf"), None),
        (-1e300, None),
        (1e300, None),
        (True, None),
        ({}, None),
        (None, None),
        ("soon", None),
    ],
)
def test_timestamp_in_seconds_milliseconds_or_iso_is_parsed(timestamp: Any, moment: datetime | None) -> None:
    event = parse_callback({**DOCUMENT, "timestamp": timestamp})
    assert event.timestamp == moment


@pytest.mark.parametrize(
    ("document", "event"),
    [
        ({"event_type": "calling.call.state", "params": {"call_id": "c"}}, "calling.call.state"),
        ({"event_type": "calling.call.state"}, "calling.call.state"),
        ({"event_type": 5, "params": []}, "5"),
        ({"event": "stream-started", "params": {"name": "audit"}}, None),
    ],
)
def test_other_documents_are_unknown_callbacks(document: dict[str, Any], event: str | None) -> None:
    """With the whole document."""
    read = parse_callback(document)
    assert isinstance(read, UnknownCallback)
    assert (read.event, read.document) == (event, document)
    assert "document" not in repr(read)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "both"])
@pytest.mark.usefixtures("idle_clock")
async def test_signed_json_callback_reaches_the_handler(algorithm: str) -> None:
    """Receiver, `verify_signature` and `diagnose_signature` agree on each kind of signature."""
    body = json.dumps(DOCUMENT).encode()
    async with serving() as server:
        strong = {SHA256_SIGNATURE_HEADER: raw_signature(server.url, body, algorithm="sha256")}
        weak = {"X-SignalWire-Signature": raw_signature(server.url, body)}
        headers = {"sha1": weak, "sha256": strong, "both": weak | strong}[algorithm]
        assert await server.send(body, "", {"Content-Type": "application/json"} | headers) == 204
        assert await server.heard.get() == parse_callback(DOCUMENT)
        asked: dict[str, Any] = {"url": server.url, "headers": headers, "body": body, "keys": [KEY]}
        assert verify_signature(**asked)
        assert diagnose_signature(**asked).valid


@pytest.mark.usefixtures("idle_clock")
async def test_any_signed_json_object_is_delivered() -> None:
    """It never gets a 403 for its contents."""
    async with serving() as server:
        for body in (b"{}", b'{"event_type":null}', b'{"params":"x"}', b' {"event_type":"new"}', b'{"a":NaN}'):
            assert await server.post_json(body) == 204
            event = await server.heard.get()
            assert isinstance(event, UnknownCallback)
            assert event.document == json.loads(body) or b"NaN" in body


@pytest.mark.usefixtures("idle_clock")
async def test_json_callbacks_of_a_stream_are_delivered_once_and_in_order() -> None:
    """A repeated one is dropped, and so is a start after the end, as with forms."""
    hold, order = asyncio.Event(), list[tuple[str | None, Any]]()

    async def handler(event: CallbackEvent) -> None:
        assert isinstance(event, CallStreamChanged)
        if event.state == CallStreamState.STREAMING:
            await hold.wait()
        order.append((event.control_id, event.state))

    async with serving(handler=handler) as server:
        for params in (
            {},
            {"state": "finished"},
            {"state": "finished"},
            {"control_id": "control-2", "state": "finished"},
            {"control_id": "control-2"},
        ):
            body = json.dumps(
                {**changed(**params), "timestamp": len(order) + server.receiver.statistics.received}
            ).encode()
            assert await server.post_json(body) == 204
        counts = server.receiver.statistics
        assert (counts.received, counts.duplicates, counts.late) == (5, 1, 1)
        hold.set()

    assert order == [("control-2", "finished"), ("control-1", "streaming"), ("control-1", "finished")]


@pytest.mark.usefixtures("idle_clock")
async def test_json_callbacks_without_control_id_are_not_one_stream() -> None:
    async with serving() as server:
        for number in range(2):
            document = {**changed(control_id=None), "timestamp": number}
            assert await server.post_json(json.dumps(document).encode()) == 204
        assert [(await server.heard.get()).timestamp_text for _ in range(2)] == ["0", "1"]
    assert server.receiver.statistics.duplicates == 0
