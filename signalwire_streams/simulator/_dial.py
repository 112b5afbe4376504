"""Dialling a WebSocket endpoint as a Space does, to find out whether it follows the protocol.

>>> from signalwire_streams.simulator import dial_media
>>> async def check() -> None:  # doctest: +SKIP
...     report = await dial_media("wss://rx.example.com/audio", audio="hello.wav", max_first_audio_ms=800)
...     assert not report.broken_rules
"""

import asyncio
import math
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import SystemRandom
from secrets import randbits
from typing import Any, Literal

import aiohttp
from attrs import field, frozen

from signalwire_streams.simulator._dial_session import (
    CLOSE_SECONDS,
    HEARD_BEFORE_BARGE_IN,
    NO_CODE,
    STALLED_SECONDS,
    Caller,
    DialSession,
    Limits,
    Observations,
)
from signalwire_streams.simulator._endpoint_messages import EndpointRule
from signalwire_streams.simulator._faults import FaultKind, matching_rules
from signalwire_streams.simulator._media_session import OutboundCall
from signalwire_streams.simulator._outbound import HANDSHAKE_SECONDS, Dialer
from signalwire_streams.simulator._requests import check_fields, is_ws_on_loopback, redact_url
from signalwire_streams.simulator._sources import CODECS, Codec, Sound, Tone, WavFile, codec_of, is_encodable
from signalwire_streams.simulator._state import Dialect, SpaceSettings, Stream, new_sid

_MAX_UNHEARD = 0.1  # seconds of audio that a close may cut off, since the endpoint's clock is another one
_MAX_AHEAD = 600.0  # seconds of audio; how much a Space stores is not documented
_MAX_AFTER_CLEAR = 0.2  # seconds of audio that were just being sent, for which no mark follows
_MAX_CLEAR_MS = 1_000.0
_MAX_SIZES = 5  # in a sentence
_SWITCHED, _UNAUTHORIZED, _REDIRECTS = 101, {401, 403}, {301, 302, 303, 307, 308}
_SINCE = {"start": "the start event", "speech": "the caller had finished speaking"}


@frozen
class BrokenRule:
    """A rule that an endpoint broke, or a limit that it missed.

    Attributes:
        rule: which one.
        message: what happened, in one sentence.
    """

    rule: EndpointRule
    message: str


@frozen
class Segment:
    """A piece of a call's audio.

    Attributes:
        track: ``inbound`` for what the caller said, ``outbound`` for what was played to the caller.
        timestamp: when it begins, in milliseconds after the first frame.
        payload: the audio, in the stream's encoding.
    """

    track: str
    timestamp: int
    payload: bytes = field(repr=lambda payload: f"<{len(payload)} bytes>")


@frozen(kw_only=True)
class DialReport:
    """How an endpoint behaved when it was dialled. Durations are milliseconds, sizes are bytes.

    Attributes:
        url: the endpoint, without user, password and query.
        broken_rules: the rules that it broke and the limits that it missed; empty if all is well.
        connect_ms: from dialling to the accepted upgrade; None if it was not accepted.
        first_audio_ms: until its first audio arrived; None if none did.
        first_audio_since: from when that is measured. ``speech``: from the end of what the caller said. ``start``: from
            the start event, for audio that came earlier, such as a greeting, and for a caller who said nothing.
        frame_size: size of a frame, the audio of one packet time.
        payload_sizes: the number of its media messages, by the size of their payload.
        received_ms: duration of the audio in them.
        heard_ms: how much of it was played to the caller.
        marks: number of its marks.
        marks_returned: how many of them were returned to it, once the audio before them was played or cleared.
        clears: number of its clear messages.
        clear_ms: from the barge-in to its next clear message; None if there was none.
        dtmf: digits that it sent.
        close_code: code with which it closed the socket; 1005 for none, 1006 if it broke the connection, None if it
            did not close the socket.
        close_ms: from the stop event to its close; None if it did not close the socket, or did before.
        recording: the audio of the call.
    """

    url: str
    broken_rules: tuple[BrokenRule, ...] = ()
    connect_ms: int | None = None
    first_audio_ms: int | None = None
    first_audio_since: Literal["start", "speech"] | None = None
    frame_size: float = 0.0
    payload_sizes: Mapping[int, int] = field(factory=dict, hash=False)
    received_ms: int = 0
    heard_ms: int = 0
    marks: int = 0
    marks_returned: int = 0
    clears: int = 0
    clear_ms: int | None = None
    dtmf: str = ""
    close_code: int | None = None
    close_ms: int | None = None
    recording: tuple[Segment, ...] = field(default=(), repr=False)


async def dial_media(
    url: str,
    *,
    audio: Sound | str | Path | None = None,
    both_tracks: bool = False,
    codec: str = "PCMU",
    dialect: Dialect = "signalwire",
    parameters: Mapping[str, str] | None = None,
    authorization_bearer_token: str | Callable[[str], str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    faults: Mapping[str, Mapping[str, Any]] | None = None,
    one_way: bool = False,
    seconds: float = 10.0,
    max_first_audio_ms: float | None = None,
    barge_in: bool = False,
    max_clear_ms: float | None = None,
    require_mark: bool = False,
    on_stage: Callable[[str], None] | None = None,
) -> DialReport:
    """Dial a WebSocket endpoint as a Space does for a bidirectional stream of a call, and report how it behaves.

    The caller speaks in real time, listens until the endpoint's audio has ended for a second, and hangs up. The
    endpoint is expected to close the socket within 5 seconds of the stop event.

    Args:
        url: the endpoint: ``wss://``, or ``ws://`` on this machine.
        audio: what the caller says: a sound that ends, or the path of a WAV file; a tone of one second by default.
            With ``Silence(seconds=0.02)``, a single frame, the caller says nothing and waits for a greeting.
        both_tracks: whether the outbound track is sent as well. Of a bidirectional stream, only the inbound one is
            documented.
        codec: PCMU, PCMA or L16, with sample rate and packet time if wanted, such as ``L16@16000h``.
        dialect: the vendor whose frame format is sent.
        parameters: the custom parameters of the start event.
        authorization_bearer_token: the token that is sent with the upgrade, or a function that returns it for the sid
            of the call.
        ssl_context: which certificates are accepted; None for those of well-known authorities.
        faults: settings of faults by their kind, such as ``{"frames-lost": {"every": 10}}``; see `FaultKind`.
        one_way: the stream only sends, like those that are started over REST, and the endpoint must send nothing.
        seconds: how long the caller listens after speaking, at most.
        max_first_audio_ms: limit for `DialReport.first_audio_ms`.
        barge_in: whether the caller speaks again once 300 ms of the endpoint's audio were heard, which must then send
            a clear message, and no more audio until the caller has finished.
        max_clear_ms: limit for `DialReport.clear_ms`; 1,000 by default.
        require_mark: whether the endpoint must send a mark after its audio, by which it learns what was heard.
        on_stage: called when the call reaches another stage: "dialling", "speaking", "listening", …

    Raises:
        ValueError: an argument is invalid; nothing was dialled.
        OSError: the WAV file can't be read, or can no longer be read.
    """
    token = authorization_bearer_token
    if not (token is None or isinstance(token, str) or callable(token)):
        wanted = "a str, or a function that returns one for the sid of the call"
        raise ValueError(f"authorization_bearer_token must be {wanted}, not {type(token).__name__}")
    sound = WavFile(Path(audio)) if isinstance(audio, str | Path) else audio or Tone(seconds=1.0)
    _check_start(url, codec)
    numbers = {"seconds": seconds, "max_first_audio_ms": max_first_audio_ms, "max_clear_ms": max_clear_ms}
    for name, limit in numbers.items():
        if limit is not None and not 0 < limit < math.inf:
            raise ValueError(f"{name} must be a number above 0, not {limit!r}")
    if max_clear_ms is not None and not barge_in:
        raise ValueError("max_clear_ms is a limit for barge_in=True: write that too, or omit it")
    if one_way and (barge_in or require_mark or max_first_audio_ms is not None):
        raise ValueError("one_way=True plays no audio: omit it, or barge_in, require_mark and max_first_audio_ms")
    if sound.clip("inbound", codec_of(codec).rate).repeats:
        raise ValueError("the audio never ends: give it a duration, as in Tone(seconds=1)")
    settings = SpaceSettings(seed=randbits(64), dialect=dialect, bidirectional=not one_way, ssl_context=ssl_context)
    for kind, options in (faults or {}).items():
        if not settings.faults.add(kind, **options).kind.affects_dialling:
            kinds = ", ".join(kind for kind in FaultKind if kind.affects_dialling)
            raise ValueError(f"{kind!r} does not apply to a dialled stream: write one of {kinds}")
    stream = Stream(
        sid=new_sid(SystemRandom()),
        target_kind="call",
        target_sid=(call_sid := new_sid(SystemRandom())),
        created_at=settings.clock(),
        url=url,
        track="both_tracks" if both_tracks else "inbound_track",
        codec=codec,
        parameters=parameters or {},
        authorization_bearer_token=token(call_sid) if callable(token) else token,
    )
    clear_limit = (max_clear_ms or _MAX_CLEAR_MS) if barge_in else None
    limits = Limits(
        patience=max(seconds, (max_first_audio_ms or 0) / 1_000, (clear_limit or 0) / 1_000),
        max_first_audio_ms=max_first_audio_ms,
        max_clear_ms=clear_limit,
        require_mark=require_mark,
        one_way=one_way,
    )
    return await _dial(stream, settings, Caller(sound), limits, on_stage or (lambda _: None))


def _check_start(url: str, codec: str) -> None:
    """Raise ValueError for what a Space would reject in a request to start such a stream, or can't be dialled."""
    values = {"Url": f"wss{url[2:]}" if is_ws_on_loopback(url) else url, "StreamCodec": codec}
    problems = [problem.message for problem in check_fields("start-conference-stream", values)]
    if not problems and url.startswith("/"):
        problems.append("Url must be absolute, as in wss://example.com/audio")
    if not problems and not is_encodable(codec):
        problems.append(f"StreamCodec must be one of {', '.join(CODECS)}: a Space can do more, but not this simulation")
    if problems:
        raise ValueError("; ".join(problems))


async def _dial(
    stream: Stream, settings: SpaceSettings, caller: Caller, limits: Limits, on_stage: Callable[[str], None]
) -> DialReport:
    url = redact_url(stream.url)
    call = OutboundCall(stream, list(matching_rules(settings.faults, "dial", stream.target_sid)))
    dialer = Dialer(settings, on_connected=lambda _: None, on_ended=lambda *_: None)
    now = asyncio.get_running_loop().time
    began = now()
    on_stage("dialling")
    try:
        async with dialer.session_of(call) as session:
            try:
                # If aiohttp returned a close frame, and the connection was gone, it would forget the code.
                socket = await dialer.connect(call, session, autoclose=False)
            except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
                reason = _reason(error, has_token=stream.authorization_bearer_token is not None)
                return DialReport(url=url, broken_rules=(BrokenRule(EndpointRule.NOT_ACCEPTED, reason),))
            connect_ms = _ms(now() - began)
            connection = socket._response.connection  # noqa: SLF001  (aiohttp has no other way to it)
            transport = None if connection is None else connection.transport
            try:
                media = DialSession(call, socket, caller=caller, settings=settings, limits=limits, on_stage=on_stage)
                await media.run()
            finally:
                await socket.close()  # unless `run` has; the WAV file may have disappeared before
                if transport is not None:
                    transport.abort()  # TLS would wait for the other end's last word
    finally:
        await dialer.close()
    return _report(stream, media.seen, caller, limits, url=url, connect_ms=connect_ms)


def _reason(error: Exception, *, has_token: bool) -> str:
    match error:
        case aiohttp.WSServerHandshakeError():
            what = _rejection(error, has_token=has_token)
        case aiohttp.ClientResponseError() | aiohttp.ServerDisconnectedError():
            what = "did not respond to the upgrade with HTTP"
        case TimeoutError():
            what = f"did not accept the upgrade within {HANDSHAKE_SECONDS:g} s"
        case aiohttp.ClientConnectorCertificateError():
            certificate = error.certificate_error
            what = f"has a certificate that is not trusted: {getattr(certificate, 'verify_message', certificate)}"
        case aiohttp.ClientSSLError():
            what = f"can't be reached by TLS: {getattr(error.os_error, 'reason', error.os_error)}"
        case aiohttp.ClientConnectorError(os_error=ConnectionResetError(errno=None)):
            what = "closed the connection during the TLS handshake"  # a reset by TCP has a number
        case aiohttp.ClientConnectorDNSError():
            what = "can't be reached: its host name is unknown"
        case OSError(errno=int(number)):
            what = f"can't be reached: {os.strerror(number)}"
        case _:
            what = f"can't be reached: {type(error).__name__}"
    return f"the endpoint {what}"


def _rejection(error: aiohttp.WSServerHandshakeError, *, has_token: bool) -> str:
    if error.status == _SWITCHED:
        return f"accepted the upgrade with a response that is no WebSocket handshake: {error.message}"
    if error.status in _REDIRECTS:
        return f"redirects the upgrade with HTTP {error.status}, which a Space may not follow: dial its target"
    if error.status < min(_REDIRECTS):
        return f"responded to the upgrade with HTTP {error.status} instead of {_SWITCHED}, as a web page does"
    token = f", with{'' if has_token else 'out'} a bearer token" if error.status in _UNAUTHORIZED else ""
    return f"rejected the upgrade with HTTP {error.status}{token}"


def _report(
    stream: Stream, seen: Observations, caller: Caller, limits: Limits, *, url: str, connect_ms: int
) -> DialReport:
    codec = codec_of(stream.codec)
    rate = codec.rate * codec.width / 1_000  # bytes per millisecond
    return DialReport(
        url=url,
        broken_rules=tuple(BrokenRule(rule, message) for rule, message in _broken_rules(seen, codec, limits)),
        connect_ms=connect_ms,
        first_audio_ms=seen.first_audio_ms,
        first_audio_since=seen.first_audio_since,
        frame_size=rate * codec.packet_time,
        payload_sizes=dict(sorted(seen.payload_sizes.items())),
        received_ms=round(sum(size * count for size, count in seen.payload_sizes.items()) / rate),
        heard_ms=round(sum(len(audio) for _, audio in seen.heard) / rate),
        marks=seen.marks,
        marks_returned=seen.marks_returned,
        clears=seen.clears,
        clear_ms=seen.clear_ms,
        dtmf=stream.dtmf_received,
        close_code=seen.close_code,
        close_ms=seen.close_ms,
        recording=tuple(_recording(seen, caller, codec)),
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)


def _recording(seen: Observations, caller: Caller, codec: Codec) -> Iterator[Segment]:
    speech, length = caller.speech(codec.rate), codec.frame_start(seen.slots)
    for begin in caller.begins:
        said = codec.encode(speech.samples(0, min(speech.length, length - begin)))
        yield Segment("inbound", begin * 1_000 // codec.rate, said)
    for at, audio in seen.heard:
        yield Segment("outbound", max(_ms(at - seen.began_at), 0), bytes(audio))


def _broken_rules(seen: Observations, codec: Codec, limits: Limits) -> Iterator[tuple[EndpointRule, str]]:
    for (rule, what), count in seen.invalid.items():
        yield rule, f"the endpoint sent {what}{f', {count:,} times' if count > 1 else ''}"
    partial = {size: count for size, count in sorted(seen.payload_sizes.items()) if not _is_whole(size, codec)}
    if partial:
        counts = f"{sum(partial.values()):,} of the endpoint's {seen.payload_sizes.total():,} payloads"
        frame = f"{codec.packet_time} ms ({codec.rate * codec.packet_time * codec.width / 1_000:g} bytes)"
        sizes = ", ".join(f"{size:,}" for size in list(partial)[:_MAX_SIZES])
        yield EndpointRule.PARTIAL_FRAMES, f"{counts} are not whole frames of {frame}: {sizes} bytes"
    if seen.stalled:
        yield EndpointRule.NOT_READ, f"the endpoint did not read: a frame waited {STALLED_SECONDS:g} s to be sent"
    if seen.closed_early or seen.stopped_at is not None:  # not if a fault has ended the call
        yield from _broken_by_audio(seen, limits)
    if seen.not_closed:
        yield (
            EndpointRule.NOT_CLOSED,
            f"the endpoint did not close the socket within {CLOSE_SECONDS:g} s after the call",
        )
    elif seen.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE:
        yield EndpointRule.WRONG_CLOSE_CODE, "the endpoint broke the connection instead of closing the socket"
    elif seen.close_code not in {None, aiohttp.WSCloseCode.OK, NO_CODE}:
        code = f"code {seen.close_code} instead of {aiohttp.WSCloseCode.OK}"
        yield EndpointRule.WRONG_CLOSE_CODE, f"the endpoint closed the socket with {code}"


def _is_whole(size: int, codec: Codec) -> bool:
    samples, rest = divmod(size, codec.width)
    in_a_frame = codec.rate * codec.packet_time / 1_000
    frames = round(samples / in_a_frame)
    return frames > 0 and not rest and abs(samples - frames * in_a_frame) < 1


def _broken_by_audio(seen: Observations, limits: Limits) -> Iterator[tuple[EndpointRule, str]]:
    first_audio, most = seen.first_audio_ms, limits.max_first_audio_ms
    if limits.one_way:
        if seen.closed_early:
            yield EndpointRule.CLOSED_EARLY, "the endpoint closed the socket before the stop event"
    elif first_audio is None:
        patience = f"within {limits.patience:g} s after the caller had finished speaking"
        when = "before it closed the socket" if seen.closed_early else patience
        yield EndpointRule.NO_AUDIO, f"the endpoint sent no audio {when}"
    else:
        if most is not None and first_audio > most:
            late = f"{first_audio:,} ms after {_SINCE[seen.first_audio_since or 'start']}; the limit is {most:,g} ms"
            yield EndpointRule.LATE_AUDIO, f"the endpoint's first audio came {late}"
        if seen.ahead > _MAX_AHEAD:
            ahead = f"{seen.ahead:,.0f} s ahead of what was heard; the limit is {_MAX_AHEAD:g} s"
            yield EndpointRule.TOO_FAR_AHEAD, f"the endpoint sent audio {ahead}"
        if limits.require_mark:
            yield from _broken_by_marks(seen)
        if limits.max_clear_ms is not None:
            yield from _broken_by_interruption(seen, limits.max_clear_ms)
        if seen.closed_early and seen.unheard > _MAX_UNHEARD:
            rest = f"{_ms(seen.unheard):,} ms before all of its audio was heard"
            yield EndpointRule.CLOSED_EARLY, f"the endpoint closed the socket {rest}: a mark tells when it was"


def _broken_by_marks(seen: Observations) -> Iterator[tuple[EndpointRule, str]]:
    if not seen.marks:
        yield EndpointRule.NO_MARK, "the endpoint sent no mark with its audio, so it can't know what was heard"
    elif seen.unmarked > _MAX_AFTER_CLEAR and seen.unheard <= _MAX_UNHEARD:  # else its mark may have been about to come
        rest = f"{_ms(seen.unmarked):,} ms of audio after its last mark"
        yield EndpointRule.NO_MARK, f"the endpoint sent {rest}, so it can't know whether that was heard"


def _broken_by_interruption(seen: Observations, most: float) -> Iterator[tuple[EndpointRule, str]]:
    clear = seen.clear_ms
    if seen.interrupted_at is None:
        least = f"{_ms(HEARD_BEFORE_BARGE_IN)} ms"
        yield EndpointRule.NO_CLEAR, f"the endpoint's audio was too short to be interrupted, which takes {least} of it"
    elif clear is None:
        yield EndpointRule.NO_CLEAR, "the endpoint sent no clear when the caller interrupted it"
    elif clear > most:
        late = f"{clear:,} ms after the caller had interrupted it; the limit is {most:,g} ms"
        yield EndpointRule.LATE_CLEAR, f"the endpoint's clear came {late}"
    if seen.after_clear > _MAX_AFTER_CLEAR:
        rest = f"{_ms(seen.after_clear):,} ms of audio after its clear"
        yield EndpointRule.SENT_AFTER_CLEAR, f"the endpoint sent {rest}, while the caller was still interrupting it"
