"""Status callbacks: what the Space tells of its streams, signed, and tried as often as documented.

https://signalwire.com/docs/compatibility-api/. Nothing of the client half is used here: the signature is spelled once
more, so that a mistake in the one who checks it can't pass unseen.
"""

import asyncio
import hashlib
import hmac
import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

import aiohttp
from attrs import define, field, frozen
from yarl import URL

from signalwire_streams.simulator._faults import FaultKind, FaultRule, Faults
from signalwire_streams.simulator._request_log import shown_address
from signalwire_streams.simulator._state import Stream

__all__ = ["Notice", "Notices"]

_TRIES: Final = 3
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=2.0, sock_read=5.0)
_SIGNATURE: Final = "X-SignalWire-Signature"
_GOOD: Final = range(200, 300)


@frozen
class Notice:
    """One callback, ready to go out.

    Attributes:
        method: GET or POST.
        url: the address, with the fields in its query for GET.
        fields: what it tells.
    """

    method: str
    url: str = field(repr=lambda url: repr(shown_address(url)))
    fields: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, stream: Stream, event: str, *, project: str, number: int, moment: float) -> "Notice":
        """Write a stream's callback."""
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
        """Sign it: HMAC-SHA1 over the address and, for POST, the sorted fields."""
        signed = self.url
        if self.method == "POST":
            signed += "".join(name + value for name, value in sorted(self.fields.items()))
        return b64encode(hmac.new(key.encode(), signed.encode(), hashlib.sha1).digest()).decode("ascii")


@define(eq=False)
class Notices:
    """Sends callbacks, those of one stream in their order.

    Attributes:
        project: the Project ID.
        key: the signing key.
        clock: the time, in POSIX seconds.
        sleep: waits between two tries.
        trust: which certificates are accepted.
        faults: the fault rules.
        sent: how often a callback was delivered.
        lost: how often one was given up.
    """

    project: str
    key: str = field(repr=False)
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    trust: ssl.SSLContext | None
    faults: Faults
    sent: int = field(init=False, default=0)
    lost: int = field(init=False, default=0)
    _session: aiohttp.ClientSession | None = field(init=False, default=None)
    _last: dict[str, "asyncio.Task[None]"] = field(init=False, factory=dict)
    _tasks: "set[asyncio.Task[None]]" = field(init=False, factory=set)
    _overtaken: dict[str, list[Notice]] = field(init=False, factory=dict)
    _number: int = field(init=False, default=0)

    def tell(self, stream: Stream, event: str) -> None:
        """Send a stream's callback, if it wants any."""
        if stream.status_callback is None:
            return
        self._number += 1
        notice = Notice.of(stream, event, project=self.project, number=self._number, moment=self.clock())
        rule = self.faults.trip_callback(event, stream.target_sid)
        kind = None if rule is None else rule.kind
        if kind is FaultKind.CALLBACK_REORDERED:
            self._overtaken.setdefault(stream.sid, []).append(notice)
            return
        if kind is FaultKind.CALLBACK_LOST:
            self.lost += 1
            return
        self._send(stream.sid, notice, rule)
        if kind is FaultKind.CALLBACK_DUPLICATED:
            self._send(stream.sid, notice, None)
        for overtaken in self._overtaken.pop(stream.sid, ()):
            self._send(stream.sid, overtaken, None)

    def _send(self, sid: str, notice: Notice, rule: FaultRule | None) -> None:
        """Send it behind those of the same stream; one that is late is waited for by none."""
        late = rule is not None and rule.kind is FaultKind.CALLBACK_DELAYED
        before = None if late else self._last.get(sid)
        task = asyncio.create_task(self._deliver(notice, before, rule))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not late:
            self._last[sid] = task
            task.add_done_callback(lambda done: self._forget(sid, done))

    async def close(self) -> None:
        """Give up what is not delivered."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._session is not None:
            await self._session.close()

    async def settled(self) -> None:
        """Wait until every callback is delivered, or given up."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _forget(self, sid: str, task: "asyncio.Task[None]") -> None:
        if self._last.get(sid) is task:
            del self._last[sid]

    async def _deliver(self, notice: Notice, before: "asyncio.Task[None] | None", rule: FaultRule | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        key = self.key
        if rule is not None and rule.kind is FaultKind.CALLBACK_DELAYED:
            await self.sleep(rule.settings.seconds)
        elif rule is not None and rule.kind is FaultKind.CALLBACK_BAD_SIGNATURE:
            key = f"not {key}"
        for number in range(_TRIES):
            if number:
                await self.sleep(1.0)
            if await self._try(notice, key):
                self.sent += 1
                return
        self.lost += 1

    async def _try(self, notice: Notice, key: str) -> bool:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar())
        try:
            async with self._session.request(
                notice.method,
                URL(notice.url, encoded=True),  # as it was signed, to the byte
                data=notice.fields if notice.method == "POST" else None,
                headers={_SIGNATURE: notice.signature(key)},
                ssl=self.trust if self.trust is not None else True,
                allow_redirects=False,
            ) as response:
                return response.status in _GOOD
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
