"""``--token-key-file``: starts with signed tokens, from a key that neither a journal nor an output shows."""

import os
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import aiohttp
import pytest

from signalwire_streams import InvalidRequestError, PlannedRequest, SignedTokens, StartCallStream
from signalwire_streams._cli.bulk_secrets import Secrets
from signalwire_streams.models._signed_tokens import RejectedTokenError
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.simulator import SimulatedSpace

from .bulk_runs import bytes_in, ids_file
from .shell import Shell, assert_usage_error
from .test_bulk_start import write_to_stdin
from .test_listen import begin, dialled, listening, stop

KEY = f"hush-{token_urlsafe(32)}"
URL = ("--url", "wss://audio.example.com/live")


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    (tmp_path / "key").write_text(f"{KEY}\n", encoding="utf-8")
    return str(tmp_path / "key")


def subjects(space: SimulatedSpace, key: str = KEY) -> list[Any]:
    tokens = SignedTokens(key)
    return [tokens._decode(stream.authorization_bearer_token or "")["sub"] for stream in space.streams]


async def test_single_start_has_a_signed_token(shell: Shell, space: SimulatedSpace, key_file: str) -> None:
    ran = await shell("calls", "start-stream", space.call_sids[0], *URL, "--token-key-file", key_file, "--json")
    assert (ran.code, subjects(space)) == (0, space.call_sids[:1])


async def test_first_key_of_the_file_signs(shell: Shell, space: SimulatedSpace, monkeypatch: Any) -> None:
    write_to_stdin(monkeypatch, f"{token_urlsafe(32)}\n{KEY}\n")
    await shell("conferences", "start-stream", space.conference_sids[0], *URL, "--token-key-file", "-")
    with pytest.raises(RejectedTokenError, match="another key"):
        subjects(space)


async def test_dial_has_a_token_for_its_call(shell: Shell, key_file: str) -> None:
    """Which a receiver admits, and whose claims it has."""
    claims: list[Any] = []

    async def answer(session: StreamSession) -> None:
        claims.append((session.claims, session.start.call_sid))
        await session.wait_closed()

    async with MediaReceiver(answer, bearer_tokens=SignedTokens(KEY)).serve() as url:
        for _ in range(2):
            ran = await shell("dial", url, "--one-way", "--audio", "silence", "--token-key-file", key_file, "--json")
            assert (ran.code, ran.json["close_code"], ran.err) == (0, 1000, "")
            assert "hush" not in ran.out
    [(first, sid), (second, other)] = claims
    assert (first.kind, first.target, second.target) == ("call", sid, other)
    assert sid != other


async def test_resume_asks_for_the_key_in_one_sentence(
    shell: Shell, space: SimulatedSpace, tmp_path: Path, key_file: str
) -> None:
    journal = str(tmp_path / "runs" / "run.db")
    Path(journal).parent.mkdir()
    ids = ids_file(tmp_path / "ids", space.conference_sids)
    space.faults.add("status", on="start", status=404, times=3)
    ran = await shell("bulk", "start", ids, *URL, "--journal", journal, "--token-key-file", key_file)
    assert ran.code == 1
    assert "hush" not in ran.out + ran.err
    assert "Resume (and pass its secrets again)" in ran.out

    assert_usage_error(
        await shell("bulk", "resume", journal),
        f"the journal contains no secrets, and {space.conference_sids[0]} had some: pass them again with "
        "--token-key-file FILE, or add the original FILE after the journal",
    )
    (tmp_path / "token").write_text("fixed", encoding="utf-8")
    fixed = await shell("bulk", "resume", journal, "--bearer-token-file", str(tmp_path / "token"))
    assert_usage_error(fixed, "pass them again with --token-key-file FILE, or add")
    assert not space.streams

    ran = await shell("bulk", "resume", journal, "--token-key-file", key_file)
    assert (ran.code, sorted(subjects(space))) == (0, sorted(space.conference_sids))
    assert b"hush" not in bytes_in(tmp_path / "runs")


async def test_dry_run_shows_that_there_is_a_token(shell: Shell, space: SimulatedSpace, key_file: str) -> None:
    ran = await shell("bulk", "start", "--all-in-progress", *URL, "--token-key-file", key_file, "--dry-run", "--json")
    assert [line["authorization_bearer_token"] for line in ran.lines] == ["***"] * 3


def test_workers_add_tokens_to_requests_that_had_some() -> None:
    tokens = SignedTokens(KEY)
    request = StartCallStream(call_sid="c", url=URL[1], authorization_bearer_token=tokens)
    planned = PlannedRequest.from_request(request)
    assert Secrets({"authorization_bearer_token": tokens}).add_to(planned) == request
    for options in ({}, {"authorization_bearer_token": "fixed"}):
        with pytest.raises(InvalidRequestError, match=r"not kept in Redis \(signed_tokens\)"):
            Secrets(options).add_to(planned)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--token-key-file", "no-such-file"), "--token-key-file can't be read: No such file"),
        (("--token-key-file", os.devnull), "--token-key-file: keys is empty: create one with"),
        (("--token-key-file", "short"), "--token-key-file: a key is shorter than 32 bytes"),
        (("--token-key-file", "key", "--bearer-token-file", "key"), "contradict each other: write one of the two"),
        (("--bearer-token-file", "key", "--token-key-file", "key"), "contradict each other: write one of the two"),
    ],
)
@pytest.mark.parametrize("command", [("calls", "start-stream", "sid"), ("bulk", "start", "ids")])
async def test_wrong_key_file_ends_before_anything_is_sent(
    offline_shell: Shell, tmp_path: Path, monkeypatch: Any, key_file: str, command: Any, arguments: Any, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("hush", encoding="utf-8")
    ids_file(tmp_path / "ids", ["a"])
    ran = await offline_shell(*command, *URL, *arguments)
    assert_usage_error(ran, sentence)
    assert "hush" not in ran.err


async def test_key_and_targets_cannot_both_be_standard_input(offline_shell: Shell, monkeypatch: Any) -> None:
    write_to_stdin(monkeypatch, KEY)
    ran = await offline_shell("bulk", "start", "-", *URL, "--token-key-file", "-")
    assert_usage_error(ran, "standard input can't be the FILE and the bearer token")


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_listen_accepts_signed_tokens(tmp_path: Path, key_file: str, processes: str) -> None:
    tokens = SignedTokens(KEY)
    token = tokens.mint(StartCallStream(call_sid="c", url=URL[1]))
    options = ("--token-key-file", key_file, "--processes", processes)
    async with listening(tmp_path, *options, everybody=False) as listener:
        for wrong in (
            None,
            "fixed",
            SignedTokens(token_urlsafe(32)).mint(StartCallStream(call_sid="c", url=URL[1])),
        ):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                async with dialled(listener.url, wrong):
                    pass
        async with dialled(listener.url, token) as peer:
            await begin(peer)
            assert (await peer.receive()).data == 1008  # that start event names no call
        async with dialled(listener.url, token) as peer:
            start = {"streamSid": "s-1", "callSid": "c", "mediaFormat": {"encoding": "audio/x-mulaw"}}
            await peer.send_json({"event": "start", "start": start})
            await stop(peer)
        assert (await listener.ended())["sid"] == "s-1"
