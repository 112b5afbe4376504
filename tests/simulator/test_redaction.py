"""Secrets are shown neither by the admin paths, which anyone can read, nor by what a failed test prints."""

from collections.abc import AsyncIterator

import pytest

from signalwire_streams.simulator import Stream
from signalwire_streams.simulator._outbound import StatusCallback
from signalwire_streams.simulator._requests import redact_url

from .peer import Peer, simulated

SECRETS = ("bearer-of-audio", "tenant-7", "pass-word", "pin-1234", "wss-word")
FIELDS = {
    "Url": "wss://ada:wss-word@rx.example.com/audio",
    "Name": "n",
    "AuthorizationBearerToken": "bearer-of-audio",
    "Parameter1.Name": "tenant",
    "Parameter1.Value": "tenant-7",
    "StatusCallback": "https://ada:pass-word@app.example.com:8443/status?pin=pin-1234#pin-1234",
}


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with simulated() as peer:
        yield peer


async def test_admin_paths_show_names_and_no_secrets(peer: Peer) -> None:
    """Neither for streams nor for requests, also rejected ones."""
    await peer.start(**FIELDS)
    await peer.start(bearertoken="bearer-of-audio", **FIELDS)
    bare = {"Authorization": ""}
    streams = await peer.send("GET", "/_space/streams", headers=bare)
    [stream] = streams.json["streams"]
    assert stream["url"] == "wss://rx.example.com/audio"
    assert stream["status_callback"] == "https://app.example.com:8443/status"
    assert stream["parameters"] == {"tenant": "***"}
    requests = await peer.send("GET", "/_space/requests", headers=bare)
    taken, refused = (request["fields"] for request in requests.json["requests"])
    assert taken == {
        "Url": "wss://rx.example.com/audio",
        "Name": "n",
        "AuthorizationBearerToken": "***",
        "Parameter1.Name": "tenant",
        "Parameter1.Value": "***",
        "StatusCallback": "https://app.example.com:8443/status",
    }
    assert refused == {**taken, "bearertoken": "***"}
    for secret in SECRETS:
        assert secret.encode() not in streams.body + requests.body


async def test_reprs_show_no_secrets(peer: Peer) -> None:
    """The attributes have the true values."""
    await peer.start(**FIELDS)
    [stream], [request] = peer.space.streams, peer.space.requests
    shown = repr(stream) + repr(request)
    assert "{'tenant': '***'}" in shown
    assert "status_callback='https://app.example.com:8443/status'" in shown
    assert "'AuthorizationBearerToken': '***'" in shown
    for secret in SECRETS:
        assert secret not in shown
    assert request.fields == FIELDS
    assert (stream.url, stream.status_callback) == (FIELDS["Url"], FIELDS["StatusCallback"])
    assert (stream.parameters, stream.authorization_bearer_token) == ({"tenant": "tenant-7"}, "bearer-of-audio")


async def test_admin_path_shows_a_start_with_nothing_but_a_url(peer: Peer) -> None:
    await peer.start()
    [stream] = (await peer.send("GET", "/_space/streams")).json["streams"]
    assert (stream["status_callback"], stream["parameters"]) == (None, {})
    assert "status_callback=None" in repr(peer.space.streams[0])


def test_repr_of_a_callback_shows_no_fields() -> None:
    stream = Stream(
        sid="s", target_kind="call", target_sid="c", created_at=0, url="", status_callback=FIELDS["StatusCallback"]
    )
    callback = StatusCallback.from_stream(stream, "stream-started", project="p", number=1, moment=0)
    assert repr(callback) == "StatusCallback(method='POST', url='https://app.example.com:8443/status')"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/x", "https://h/x"),
        ("https://u:a@b@h/x?y#z", "https://h/x"),
        ("https://u:a/b?c@h/x", "https://h/x"),
        ("u:a@h/x#y?z", "h/x"),
        ("/x?y", "/x"),
        ("", ""),
    ],
)
def test_redacted_url_has_no_user_password_query_and_fragment(url: str, shown: str) -> None:
    assert redact_url(url) == shown
