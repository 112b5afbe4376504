"""Status callbacks: signed, and retried as often as documented.

https://signalwire.com/docs/compatibility-api/. The signature is computed here independently of the client half, so that
a mistake in its verification cannot go unnoticed.
"""

import asyncio
import hashlib
import hmac
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlencode

import aiohttp
from attrs import field, frozen
from yarl import URL

from signalwire_streams.simulator._connections import OutboundClient
from signalwire_streams.simulator._faults import FaultKind, FaultRule, matching_rules
from signalwire_streams.simulator._request_log import redact_url
from signalwire_streams.simulator._settings import SpaceSettings
from signalwire_streams.simulator._state import Stream

_ATTEMPTS = 3
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=2.0, sock_read=5.0)
_SIGNATURE = "X-SignalWire-Signature"
_SUCCESS = range(200, 300)


@frozen
class StatusCallback:
    """A callback. With GET, its fields are in the query of the URL too."""

    method: str
    url: str = field(repr=lambda url: repr(redact_url(url)))
    fields: Mapping[str, str] = field(repr=False)

    @classmethod
    def from_stream(cls, stream: Stream, event: str, *, project: str, number: int, moment: float) -> "StatusCallback":
        target = "ConferenceSid" if stream.target_kind == "conference" else "CallSid"
        fields = {
            "AccountSid": project,
            target: stream.target_sid,
            "StreamSid": stream.sid,
            "StreamName": stream.name or stream.sid,
            "StreamTrack": stream.track,
            "StreamEvent": event,
            "Timestamp": datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "Unique-ID": f"{stream.sid}-{number}",
        }
        if stream.error is not None and event == "stream-error":
            fields["StreamError"] = stream.error
        url = stream.status_callback or ""
        if stream.status_callback_method == "GET":
            url += ("&" if "?" in url else "?") + urlencode(fields)
        return cls(stream.status_callback_method, url, fields)

    def signature(self, key: str) -> str:
        """Compute HMAC-SHA1 over the URL and, for POST, the sorted fields."""
        signed = self.url
        if self.method == "POST":
            signed += "".join(name + value for name, value in sorted(self.fields.items()))
        return b64encode(hmac.new(key.encode(), signed.encode(), hashlib.sha1).digest()).decode("ascii")


class StatusCallbackSender(OutboundClient):
    """Sends callbacks, those of one stream in order."""

    def __init__(self, settings: SpaceSettings) -> None:
        super().__init__(settings.ssl_context)
        self.sleep = settings.sleep
        self._settings = settings
        self._last_tasks: dict[str, asyncio.Task[None]] = {}
        self._overtaken: dict[str, list[StatusCallback]] = {}
        self._number = 0

    def send(self, stream: Stream, event: str) -> None:
        if stream.status_callback is None:
            return
        self._number += 1
        callback = StatusCallback.from_stream(
            stream, event, project=self._settings.project, number=self._number, moment=self._settings.clock()
        )
        rule = next(matching_rules(self._settings.faults, event, stream.target_sid), None)
        kind = None if rule is None else rule.kind
        if kind is FaultKind.CALLBACK_REORDERED:
            self._overtaken.setdefault(stream.sid, []).append(callback)
            return
        if kind is FaultKind.CALLBACK_LOST:
            return
        self._schedule(stream.sid, callback, rule)
        if kind is FaultKind.CALLBACK_DUPLICATED:
            self._schedule(stream.sid, callback)
        for overtaken in self._overtaken.pop(stream.sid, ()):
            self._schedule(stream.sid, overtaken)

    def _schedule(self, sid: str, callback: StatusCallback, rule: FaultRule | None = None) -> None:
        """Deliver a callback after those of the same stream; none waits for one that is delayed by a fault."""
        is_delayed = rule is not None and rule.kind is FaultKind.CALLBACK_DELAYED
        previous = None if is_delayed else self._last_tasks.get(sid)
        task = self._spawn(self._deliver(callback, previous, rule))
        if not is_delayed:
            self._last_tasks[sid] = task
            task.add_done_callback(lambda done: self._forget(sid, done))

    def _forget(self, sid: str, task: "asyncio.Task[None]") -> None:
        if self._last_tasks.get(sid) is task:
            del self._last_tasks[sid]

    async def _deliver(
        self, callback: StatusCallback, previous: "asyncio.Task[None] | None", rule: FaultRule | None
    ) -> None:
        if previous is not None:
            await asyncio.wait({previous})
        key = self._settings.signing_key
        if rule is not None and rule.kind is FaultKind.CALLBACK_DELAYED:
            await self.sleep(rule.settings.seconds)
        elif rule is not None and rule.kind is FaultKind.CALLBACK_BAD_SIGNATURE:
            key = f"not {key}"
        for number in range(_ATTEMPTS):
            if number:
                await self.sleep(1.0)
            if await self._attempt(callback, key):
                return

    async def _attempt(self, callback: StatusCallback, key: str) -> bool:
        try:
            async with self._shared_session().request(
                callback.method,
                URL(callback.url, encoded=True),  # byte for byte what was signed
                data=callback.fields if callback.method == "POST" else None,
                headers={_SIGNATURE: callback.signature(key)},
                ssl=self._ssl,
                allow_redirects=False,
                timeout=_TIMEOUT,
            ) as response:
                return response.status in _SUCCESS
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
