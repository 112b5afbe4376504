"""``listen``: a receiver in a process of its own, dialled over real sockets."""

import asyncio
import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import ssl
import sys
import wave
from array import array
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import aiohttp
import pytest
from attrs import define

from signalwire_streams import InvalidRequestError, StreamsClient
from signalwire_streams._cli.listen_recording import Recording, RecordingOptions
from signalwire_streams.receiver import MediaEvent
from signalwire_streams.receiver.audio import AudioFormat, WavRecorder
from signalwire_streams.simulator import SimulatedSpace, Tone
from tests.ports import free_port

from .bulk_runs import until
from .shell import PATIENCE, Ran, Shell, end_of, line_of, process

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
pytestmark = posix_only

BOTH = ("inbound", "outbound")
LOUD = bytes(range(0x80, 0x80 + 80)) * 2  # 20 ms of µ-law
SPEECH = b64encode(LOUD).decode()


@define(eq=False)
class Listener:
    """A running ``listen --json``."""

    child: asyncio.subprocess.Process
    url: str
    directory: Path

    async def ended(self) -> Any:
        """Return the JSON object of the next stream that ends."""
        return json.loads(await line_of(self.child))

    async def end(self, number: signal.Signals = signal.SIGINT) -> Ran:
        """Send a signal, and wait for the end."""
        return await end_of(self.child, number)


@asynccontextmanager
async def listening(
    directory: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    code: str | None = None,
    everybody: bool = True,
) -> AsyncIterator[Listener]:
    """Run a listener while the block runs."""
    options = ["--json", "--directory", str(directory), *(["--allow-anonymous"] if everybody else []), *arguments]
    async with process("listen", *options, environment=environment, code=code) as child:
        facts = json.loads(await line_of(child))
        yield Listener(child, facts["url"], directory)


@asynccontextmanager
async def dialled(url: str, token: str | None = None) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.ws_connect(url, headers=headers) as peer:
        yield peer


async def begin(
    peer: aiohttp.ClientWebSocketResponse,
    sid: str | None = "s-1",
    tracks: Sequence[str] = BOTH,
    encoding: str = "audio/x-mulaw",
) -> None:
    media = {"encoding": encoding, "sampleRate": 8000, "channels": 1}
    start = {"streamSid": sid, "accountSid": "p", "tracks": tracks, "mediaFormat": media}
    await peer.send_json(
        {"event": "start", "sequenceNumber": "1", "start": {**start, "customParameters": {"a": "pin"}}}
    )


async def speak(peer: aiohttp.ClientWebSocketResponse, count: int = 5, tracks: Sequence[str | None] = BOTH) -> None:
    for number in range(count):
        for track in tracks:
            media = {"track": track, "chunk": str(number + 1), "timestamp": str(number * 20), "payload": SPEECH}
            await peer.send_json({"event": "media", "media": media})


async def stop(peer: aiohttp.ClientWebSocketResponse) -> None:
    await peer.send_json({"event": "stop", "sequenceNumber": "9"})
    async with asyncio.timeout(PATIENCE):
        await peer.receive()


def files_in(directory: Path) -> list[Path]:
    """Return all files, at any depth."""
    return [path for path in directory.rglob("*") if path.is_file()]


def sound_of(file: str | Path) -> tuple[int, "array[int]"]:
    """Return a WAV file's channels and samples; reading it proves that it is complete."""
    with wave.open(str(file)) as audio:
        samples = array("h", audio.readframes(audio.getnframes()))
        assert len(samples) == audio.getnframes() * audio.getnchannels()
        return audio.getnchannels(), samples


# Recordings.


async def test_listen_records_a_stream_of_the_space(tmp_path: Path) -> None:
    """Over wss with a certificate made for the run, the right token, both tracks side by side, nothing lost."""
    folder = tmp_path / "new" / "folder"
    async with listening(
        folder, "--self-signed", "--streams", "1", environment={"SIGNALWIRE_STREAMS_TOKEN": "t0ken"}, everybody=False
    ) as listener:
        trust = ssl.create_default_context(cafile=folder / "authority.pem")
        async with (
            SimulatedSpace(conferences=1, audio=Tone(seconds=0.5), real_time=False, ssl_context=trust) as space,
            StreamsClient(base_url=space.base_url, project=space.project, token=space.token) as client,
        ):
            stream = await client.conferences.start_stream(
                space.conference_sids[0], url=listener.url, authorization_bearer_token="t0ken"
            )
            facts = await listener.ended()
        ran = await end_of(listener.child)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert (facts["sid"], facts["end"], facts["error"]) == (stream.sid, "stopped", None)
    assert facts["files"] == [str(folder / f"{stream.sid}.wav")]
    assert facts["seconds"] == pytest.approx(0.5)
    assert facts["peak_dbfs"] == pytest.approx(-10.4, abs=0.2)
    for track in BOTH:
        counted = dict(facts["tracks"][track])
        assert (counted.pop("frames"), counted.pop("seconds"), counted.pop("file")) == (25, 0.5, facts["files"][0])
        counted.pop("peak_dbfs")
        assert set(counted.values()) == {0}
    channels, samples = sound_of(facts["files"][0])
    assert (channels, len(samples)) == (2, 8000)
    assert samples[::2] != samples[1::2]


async def test_listen_mono_passthrough_writes_a_file_per_track(tmp_path: Path) -> None:
    async with listening(tmp_path, "--mono", "--passthrough") as listener, dialled(listener.url) as peer:
        await begin(peer)
        await speak(peer)
        await stop(peer)
        facts = await listener.ended()
    assert facts["files"] == [str(tmp_path / f"s-1-{track}.wav") for track in BOTH]
    for file in map(Path, facts["files"]):
        content = file.read_bytes()
        assert content[20:22] == b"\x07\x00"
        assert LOUD * 5 in content


@pytest.mark.parametrize("byte_order", ["little", "big"])
async def test_l16_audio_is_recorded_in_the_byte_order_that_is_named(
    tmp_path: Path, byte_order: Literal["little", "big"]
) -> None:
    async with listening(tmp_path, "--byte-order", byte_order) as listener, dialled(listener.url) as peer:
        await begin(peer, tracks=["inbound"], encoding="audio/x-L16")
        await speak(peer, 1, tracks=["inbound"])
        await stop(peer)
        facts = await listener.ended()
    channels, samples = sound_of(facts["files"][0])
    pairs = zip(LOUD[::2], LOUD[1::2], strict=True)
    assert [*samples[::channels]][:80] == [int.from_bytes(pair, byte_order, signed=True) for pair in pairs]


async def test_listen_never_overwrites_a_file(tmp_path: Path) -> None:
    """Two streams of one sid at the same time have two files."""
    (tmp_path / "s-1.wav").write_bytes(b"precious")
    async with listening(tmp_path) as listener, dialled(listener.url) as one, dialled(listener.url) as other:
        for peer in (one, other):
            await begin(peer)
            await speak(peer)
        for peer in (one, other):
            await stop(peer)
        files = [file for _ in range(2) for file in (await listener.ended())["files"]]
    assert sorted(files) == [str(tmp_path / f"s-1-{number}.wav") for number in (2, 3)]
    assert [len(sound_of(file)[1]) for file in files] == [1600, 1600]
    assert (tmp_path / "s-1.wav").read_bytes() == b"precious"


async def test_recording_stays_in_the_directory_whatever_the_sid(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "here"
    names = {
        "../../outside": "outside",
        "/etc/passwd": "etc-passwd",
        "..": "stream",
        "a\x00b\nc\x1b[31m": "a-b-c-31m",
        "-rf": "rf",
        "é" * 300: "stream-2",
        "x" * 5000: "x" * 80,
        "X-2": "X-2",
        None: "stream-3",
    }
    told = []
    async with listening(folder) as listener:
        for sid in names:
            async with dialled(listener.url) as peer:
                await begin(peer, sid)
                await stop(peer)
                told.append(await listener.ended())
    assert [facts["sid"] for facts in told] == list(names)
    assert [facts["files"] for facts in told] == [[str(folder / f"{name}.wav")] for name in names.values()]
    assert len(files_in(tmp_path)) == len(names)


async def test_unannounced_track_is_recorded(tmp_path: Path) -> None:
    """It gets a file of its own, as do frames that name no track; made-up names do not fill the disk."""
    others = ["../up", None, *(f"made-up-{number}" for number in range(20))]
    async with listening(tmp_path) as listener, dialled(listener.url) as peer:
        await begin(peer)
        await speak(peer, tracks=[*BOTH, *others])
        await stop(peer)
        facts = await listener.ended()
    assert facts["files"][:3] == [str(tmp_path / name) for name in ("s-1.wav", "s-1-up.wav", "s-1-unnamed.wav")]
    assert len(facts["files"]) == len(files_in(tmp_path)) == 7
    assert [len(sound_of(file)[1]) for file in facts["files"][1:]] == [800] * 6
    assert facts["left_out"] == 16 * 5


@pytest.mark.parametrize("encoding", ["audio/x-mulaw", "audio/opus"])
@pytest.mark.parametrize("announced", [BOTH, ("t" * 65,), ("ü" * 70,)])
async def test_listen_records_tracks_with_long_names(tmp_path: Path, encoding: str, announced: Sequence[str]) -> None:
    """Names that differ only after what a file's name takes of them have files of their own."""
    names = ["t" * 64, "t" * 65, "t" * 99, "t" * 100, "é" * 90]
    async with listening(tmp_path) as listener, dialled(listener.url) as peer:
        await begin(peer, tracks=announced, encoding=encoding)
        await speak(peer, tracks=["inbound", *names])
        await stop(peer)
        facts = await listener.ended()
    assert (facts["error"], facts["end"], facts["left_out"]) == (None, "stopped", 0)
    files = {facts["tracks"][name]["file"] for name in names}
    assert len(files) == len(names)
    assert all(path.stat().st_size > 500 for path in files_in(tmp_path))


def test_longest_names_that_a_peer_may_choose_make_files(tmp_path: Path) -> None:
    """File systems take 255 bytes."""
    session: Any = SimpleNamespace(
        stream_sid="s" * 300,
        start=SimpleNamespace(tracks=["t" * 64, "u" * 64], custom_parameters={"room": "r" * 300}),
        audio_format=AudioFormat("audio/x-mulaw", 8000),
    )
    options = RecordingOptions(directory=tmp_path, layout="mono", target_parameter="room")
    for _ in range(12):
        recording = Recording(options, session)
        recording.open()
        recording.write(MediaEvent(track="v" * 300, payload=bytes(160)))
        recording.close()
    assert len(files_in(tmp_path)) == 36
    assert {path.name.partition("-")[0] for path in files_in(tmp_path)} == {"r" * 80}


def test_listen_reports_why_a_file_cannot_be_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a file that exists makes it try the next number."""
    tried: list[Path] = []

    def refuse(recorder: WavRecorder) -> None:
        tried.append(recorder.path)
        raise InvalidRequestError("no such layout")

    monkeypatch.setattr(WavRecorder, "open", refuse)
    session: Any = SimpleNamespace(
        stream_sid="s-1", start=SimpleNamespace(tracks=BOTH), audio_format=AudioFormat("audio/x-mulaw", 8000)
    )
    recording = Recording(RecordingOptions(directory=tmp_path), session)
    with pytest.raises(InvalidRequestError, match="no such layout"):
        recording.open()
    assert tried == [tmp_path / "s-1.wav"]


async def test_unknown_encoding_is_recorded_raw(tmp_path: Path) -> None:
    """The message says that no WAV can be written."""
    async with listening(tmp_path) as listener, dialled(listener.url) as peer:
        await begin(peer, encoding="audio/\x1b[31mopus")
        await speak(peer, tracks=["inbound"])
        await stop(peer)
        facts = await listener.ended()
        ran = await listener.end()
    assert ran.code == 0
    assert "its encoding 'audio/ [31mopus' is unknown, so no WAV can be written" in ran.err
    assert facts["files"] == [str(tmp_path / "s-1-inbound.raw")]
    assert (tmp_path / "s-1-inbound.raw").read_bytes() == LOUD * 5
    assert (facts["seconds"], facts["peak_dbfs"], facts["tracks"]["inbound"]["frames"]) == (None, None, 5)


# How streams end.


async def test_recording_is_complete_when_the_peer_is_killed(tmp_path: Path) -> None:
    async with listening(tmp_path) as listener, dialled(listener.url) as peer:
        await begin(peer)
        await speak(peer)
        assert peer._conn is not None
        assert peer._conn.transport is not None
        peer._conn.transport.abort()  # as a process that is killed leaves it
        facts = await listener.ended()
    assert facts["end"] in {"connection_lost", "closed"}
    assert len(sound_of(facts["files"][0])[1]) == 1600


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_finishes_recordings(tmp_path: Path, number: signal.Signals) -> None:
    """The files are complete, each stream is reported, and the exit code is 0."""
    async with listening(tmp_path) as listener, dialled(listener.url) as one, dialled(listener.url) as other:
        for peer in (one, other):
            await begin(peer)
            await speak(peer, 200)
        await until(lambda: len(files_in(tmp_path)) == 2)
        ran = await listener.end(number)
    assert (ran.code, ran.err) == (0, "")
    assert [facts["end"] for facts in ran.lines] == ["shutdown"] * 2
    for facts in ran.lines:
        assert len(sound_of(facts["files"][0])[1]) == facts["tracks"]["inbound"]["frames"] * 320


async def test_pending_socket_does_not_delay_the_end_of_listen(tmp_path: Path) -> None:
    """It does not wait 10 seconds for a start event, and does not report that there was none."""
    async with listening(tmp_path) as listener, dialled(listener.url):
        ran = await listener.end()
    assert (ran.code, ran.out, ran.err) == (0, "", "")


async def test_listen_ends_after_a_time_or_number_of_streams(bare_shell: Shell, tmp_path: Path) -> None:
    ran = await bare_shell("listen", "--allow-anonymous", "--directory", str(tmp_path), "--seconds", "0.01")
    assert (ran.code, ran.err) == (0, "")
    assert ran.rows[-1] == "Ended. Streams: 0, files: 0, audio: 0 s, lost frames: 0."


# Tokens and certificates.


async def test_listen_rejects_wrong_tokens(tmp_path: Path) -> None:
    """There may be several, also from a file; none is ever printed."""
    (tmp_path / "tokens").write_text("t0ken-a\n t0ken-b \n")
    environment = {"SIGNALWIRE_STREAMS_TOKEN": "t0ken-c"}
    arguments = ("--bearer-token-file", str(tmp_path / "tokens"), "--streams", "2")
    async with listening(tmp_path / "rec", *arguments, environment=environment, everybody=False) as listener:
        for wrong in (None, "t0ken-c", "t0ken-a t0ken-b"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                async with dialled(listener.url, wrong):
                    raise AssertionError
            assert caught.value.status == 401
        told = []
        for right in ("t0ken-a", "t0ken-b"):
            async with dialled(listener.url, right) as peer:
                await begin(peer, right[-1])
                await stop(peer)
                told.append(await listener.ended())
        ran = await end_of(listener.child)
    assert [facts["sid"] for facts in told] == ["a", "b"]
    assert ran.code == 0
    for secret in ("t0ken", "pin"):
        assert secret not in json.dumps(told) + ran.out + ran.err


async def test_listen_serves_the_given_certificate(bare_shell: Shell, tmp_path: Path) -> None:
    """An invalid one is a usage error, and OpenSSL asks for no password."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    trust = ssl.create_default_context(cafile=tmp_path / "authority.pem")
    async with (
        listening(tmp_path, "--cert", str(tmp_path / "both.pem"), "--path", "/audio") as listener,
        aiohttp.ClientSession() as session,
        session.ws_connect(listener.url, ssl=trust) as peer,
    ):
        await begin(peer)
        await stop(peer)
        assert (await listener.ended())["end"] == "stopped"
    assert listener.url.startswith("wss://127.0.0.1:")
    assert listener.url.endswith("/audio")
    (tmp_path / "key.pem").write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    for key in ("key.pem", "authority.pem"):
        command = ("listen", "--allow-anonymous", "--cert", str(tmp_path / "both.pem"), "--key", str(tmp_path / key))
        ran = await bare_shell(*command)
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
        assert "are not a certificate and its key" in ran.err


# Failures.


async def test_listen_reports_a_directory_it_cannot_write_to(bare_shell: Shell, tmp_path: Path) -> None:
    """It is reported before any stream is accepted."""
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        ran = await bare_shell("listen", "--allow-anonymous", "--directory", str(directory))
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (1, "", 1)
        assert ran.err.startswith(f"error: can't write to {directory}: ")


async def test_failed_recording_does_not_affect_other_streams(tmp_path: Path) -> None:
    """It is closed as failed, and reported; a later one is recorded; the exit code is 1."""
    folder = tmp_path / "folder"
    async with listening(folder) as listener, dialled(listener.url) as before:
        await begin(before, "before")
        await until((folder / "before.wav").exists)
        shutil.move(folder, tmp_path / "elsewhere")
        async with dialled(listener.url) as unlucky:
            await begin(unlucky, "unlucky")
            async with asyncio.timeout(PATIENCE):
                assert (await unlucky.receive()).data == aiohttp.WSCloseCode.INTERNAL_ERROR
            failed = await listener.ended()
        folder.mkdir()
        async with dialled(listener.url) as after:
            await begin(after, "after")
            await speak(after)
            await stop(after)
            well = await listener.ended()
        await speak(before)
        await stop(before)
        unhurt = await listener.ended()
        ran = await listener.end()
    assert (failed["end"], failed["files"]) == ("handler_failed", [])
    assert failed["error"].startswith(f"the recording {folder / 'unlucky.wav'} can't be created: ")
    assert ran.err == f"error: unlucky is not fully recorded: {failed['error']}\n"
    assert [facts["error"] for facts in (well, unhurt)] == [None, None]
    assert len(sound_of(well["files"][0])[1]) == len(sound_of(tmp_path / "elsewhere" / "before.wav")[1]) == 1600
    assert ran.code == 1


@pytest.mark.parametrize("encoding", ["audio/x-mulaw", "audio/opus"])
async def test_listen_reports_a_full_disk(tmp_path: Path, encoding: str) -> None:
    """A limit on the size of files stands for it."""
    code = (
        "import resource, sys; sys.dont_write_bytecode = True;"  # Python 3.13.0 would leave a part of a module
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from signalwire_streams.__main__ import main; sys.exit(main())"
    )
    async with listening(tmp_path, code=code) as listener, dialled(listener.url) as peer:
        await begin(peer, encoding=encoding)
        with contextlib.suppress(ConnectionError):  # it may be closed before all is said
            await speak(peer, 400)
            await stop(peer)
        facts = await listener.ended()
        ran = await listener.end()
    assert ran.code == 1
    assert "can't be written" in facts["error"]
    assert ran.err.splitlines()[-1] == f"error: s-1 is not fully recorded: {facts['error']}"


async def test_listen_reports_a_port_in_use(bare_shell: Shell, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = await bare_shell("listen", "--allow-anonymous", "--directory", str(tmp_path), "--port", str(port))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"error: can't listen on 127.0.0.1 port {port}: {os.strerror(errno.EADDRINUSE)}\n"


@pytest.mark.parametrize("processes", ["1", *(["2"] if sys.platform == "linux" else [])])
async def test_broken_pipe_ends_listen(tmp_path: Path, processes: str) -> None:
    """As in ``signalwire-streams listen --json | head -1``: the stream is recorded nevertheless."""
    reading, writing = os.pipe()
    options = ("listen", "--json", "--allow-anonymous", "--processes", processes, "--directory", str(tmp_path))
    async with process(*options, stdout=writing) as child:
        os.close(writing)
        with os.fdopen(reading, "rb") as lines:
            facts = json.loads(await asyncio.to_thread(lines.readline))
        async with dialled(facts["url"]) as peer:
            await begin(peer)
            await speak(peer)
            await stop(peer)
            ran = await end_of(child)
    assert (ran.code, ran.err) == (141, "")
    assert len(sound_of(tmp_path / "s-1.wav")[1]) == 1600


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "set SIGNALWIRE_STREAMS_TOKEN, or name a --bearer-token-file"),
        (
            ("--allow-anonymous", "--bearer-token-file", "-"),
            "--bearer-token-file and --allow-anonymous contradict each other",
        ),
        (("--bearer-token-file", "no-such-file"), "--bearer-token-file can't be read: No such file"),
        (("--bearer-token-file", "\0"), "--bearer-token-file can't be read: write the name of a text file"),
        (("--bearer-token-file", os.devnull), "--bearer-token-file contains no token"),
        (("--allow-anonymous", "--key", "key.pem"), "--key has no --cert"),
        (("--allow-anonymous", "--self-signed", "--cert", "x"), "--self-signed creates a certificate: omit it"),
        (("--allow-anonymous", "--cert", "no-such-file"), "--cert or --key can't be read: No such file"),
        (("--allow-anonymous", "--path", "audio"), "'audio' is not a path: write it as /audio"),
        (("--allow-anonymous", "--path", "/{a}"), "'/{a}' is not a path"),
        (("--allow-anonymous", "--port", "70000"), "70000 is not in the range"),
        (("--allow-anonymous", "--host", ""), "empty: write an address such as 127.0.0.1, or 0.0.0.0 for all"),
        (("--allow-anonymous", "--self-signed", "--host", "a..b"), "--host 'a..b' is neither a name nor an address"),
        (("--allow-anonymous", "--self-signed", "--host", "a b"), "--host 'a b' is neither a name nor an address"),
        (("--allow-anonymous", "--seconds", "nan"), "nan is not a finite number"),
        (("--allow-anonymous", "--seconds", "0"), "0.0 is not in the range"),
        (("--allow-anonymous", "--streams", "0"), "0 is not in the range"),
        (("--allow-anonymous", "--byte-order", "middle"), "'middle' is not one of"),
        (("--allow-anonymous", "--seconds", "0.1", "--health-port", "0"), "0 is not in the range 1<=x<=65535"),
    ],
)
async def test_listen_rejects_invalid_arguments(
    bare_shell: Shell, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    bare_shell.environment.delenv("SIGNALWIRE_STREAMS_TOKEN", raising=False)
    bare_shell.environment.chdir(tmp_path)
    ran = await bare_shell("listen", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert sentence in ran.err
    assert len(ran.err.splitlines()) == 1


async def test_self_signed_certificate_is_valid_for_the_host(tmp_path: Path) -> None:
    """The name localhost and the loopback addresses are in it as well."""
    async with listening(tmp_path, "--self-signed", "--host", "127.0.0.2") as listener:
        trust = ssl.create_default_context(cafile=tmp_path / "authority.pem")
        async with aiohttp.ClientSession() as session, session.ws_connect(listener.url, ssl=trust) as peer:
            await begin(peer)
            await stop(peer)
            assert (await listener.ended())["end"] == "stopped"


async def test_idle_listen_exits_141_on_a_broken_pipe(tmp_path: Path) -> None:
    """As in ``signalwire-streams listen | head -1``, where only the summary meets the closed pipe."""
    reading, writing = os.pipe()
    async with process(
        "listen", "--allow-anonymous", "--directory", str(tmp_path), "--seconds", "0.5", stdout=writing
    ) as child:
        os.close(writing)
        with os.fdopen(reading, "rb") as lines:
            while b"Ctrl-C" not in await asyncio.to_thread(lines.readline):
                pass
        ran = await end_of(child)
    assert (ran.code, ran.err) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no device that is always full")
async def test_listen_ends_when_stdout_is_on_a_full_disk(
    bare_shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    with output.open("w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        options = ("--json", "--allow-anonymous", "--directory", str(tmp_path / "recordings"))
        listener = asyncio.create_task(bare_shell("listen", *options))
        await until(lambda: output.read_text(encoding="utf-8").endswith("\n"))
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, stdout.fileno())
        os.close(full)
        async with dialled(json.loads(output.read_text(encoding="utf-8"))["url"]) as peer:
            await begin(peer)
            await speak(peer)
            await stop(peer)
            ran = await listener
    assert (ran.code, ran.err) == (1, "error: the output can't be written: No space left on device\n")
    assert len(sound_of(tmp_path / "recordings" / "s-1.wav")[1]) == 1600


@pytest.mark.parametrize(("options", "host"), [((), "127.0.0.1"), (("--health-host", "127.0.0.2"), "127.0.0.2")])
async def test_listener_says_that_it_is_alive_and_ready(tmp_path: Path, options: tuple[str, ...], host: str) -> None:
    port = free_port()
    async with listening(tmp_path, "--health-port", str(port), *options) as listener, aiohttp.ClientSession() as http:
        for path in ("healthz", "readyz"):
            async with http.get(f"http://{host}:{port}/{path}") as response:
                assert (response.status, await response.text()) == (200, "ok\n")
        await listener.end()


async def test_health_port_that_is_taken_is_said(tmp_path: Path, bare_shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ("--allow-anonymous", "--directory", str(tmp_path), "--health-port", str(port))
        ran = await bare_shell("listen", *options)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"error: can't listen on 127.0.0.1 port {port}: Address already in use\n"
