"""``start-stream``, ``stop-stream`` and ``end``, on conferences and on calls."""

import io
import shlex
import sys
from pathlib import Path

import pytest

from signalwire_streams import Codec, Track
from signalwire_streams.simulator import SimulatedSpace

from .shell import URL, Shell, assert_usage_error


async def test_shown_stop_command_stops_the_started_stream(shell: Shell, space: SimulatedSpace) -> None:
    [conference, *_] = space.conference_sids
    ran = await shell("conferences", "start-stream", conference, "--url", URL, "--name", "audit-1")
    assert (ran.code, ran.err) == (0, "")
    [stream] = space.streams.active()
    assert stream.sid in ran.out
    assert "audit-1" in ran.out
    assert "queued" in ran.out
    stop = shlex.split(ran.out.splitlines()[-1])
    assert stop == ["signalwire-streams", "conferences", "stop-stream", conference, stream.sid]
    stopped = await shell(*stop[1:])
    assert (stopped.code, stopped.err) == (0, "")
    assert "stopped" in stopped.out
    assert space.streams.active() == []


async def test_call_stream_is_stopped_by_name(shell: Shell, space: SimulatedSpace) -> None:
    [call, *_] = space.call_sids
    assert (await shell("calls", "start-stream", call, "--url", URL, "--name", "audit-1")).code == 0
    assert [stream.target_sid for stream in space.streams.active()] == [call]
    ran = await shell("calls", "stop-stream", call, "audit-1", "--json")
    assert ran.code == 0
    assert (ran.json["status"], ran.json["call_sid"]) == ("stopped", call)
    assert space.streams.active() == []


async def test_start_stream_sends_every_option(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("bearer-of-audio\n", encoding="utf-8")
    ran = await shell(
        *("conferences", "start-stream", space.conference_sids[0], "--url", URL, "--name", "n"),
        *("--track", Track.INBOUND.value, "--codec", Codec.L16_24K.value, "--no-realtime", "--deadline", "10"),
        *("--status-callback", "https://app.example.com/hear", "--status-callback-method", "GET"),
        *("--parameter", "tenant=a=b", "--parameter", "empty=", "--bearer-token-file", str(token)),
    )
    assert (ran.code, ran.err) == (0, "")
    [stream] = space.streams
    assert (stream.track, stream.codec, stream.realtime) == ("inbound_track", "L16@24000h", False)
    assert (stream.status_callback, stream.status_callback_method) == ("https://app.example.com/hear", "GET")
    assert stream.parameters == {"tenant": "a=b", "empty": ""}
    assert stream.authorization_bearer_token == "bearer-of-audio"


@pytest.mark.parametrize("codec", ["PCMU@40i", "L16@24000h@40i", "G722"])
async def test_start_stream_sends_codec_modifiers(shell: Shell, space: SimulatedSpace, codec: str) -> None:
    ran = await shell("conferences", "start-stream", space.conference_sids[0], "--url", URL, "--codec", codec)
    assert (ran.code, ran.err, space.streams[0].codec) == (0, "", codec)


async def test_bearer_token_is_read_from_standard_input(
    shell: Shell, space: SimulatedSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("bearer-of-audio\n"))
    ran = await shell("calls", "start-stream", space.call_sids[0], "--url", URL, "--bearer-token-file", "-")
    assert ran.code == 0
    assert space.streams[0].authorization_bearer_token == "bearer-of-audio"


@pytest.mark.parametrize("group", ["conferences", "calls"])
async def test_json_start_has_the_stream_and_its_stop_command(shell: Shell, space: SimulatedSpace, group: str) -> None:
    target = (space.conference_sids if group == "conferences" else space.call_sids)[0]
    ran = await shell(group, "start-stream", target, "--url", URL, "--json", "--project", space.project)
    facts = ran.json
    [stream] = space.streams
    assert facts["sid"] == stream.sid
    assert facts["name"] == stream.name
    assert facts["status"] == "queued"
    assert facts["date_updated"].endswith("+00:00")
    assert facts["ambiguous"] is facts["already_started"] is False
    assert shlex.split(facts["stop_command"]) == [
        *("signalwire-streams", group, "stop-stream", "--project", space.project, target, stream.sid)
    ]
    assert "extra" not in facts


async def test_unnamed_stream_has_only_a_sid(shell: Shell, space: SimulatedSpace) -> None:
    ran = await shell("conferences", "start-stream", space.conference_sids[0], "--url", URL, "--unnamed", "--json")
    assert ran.json["name"] is None
    assert space.streams[0].name is None


async def test_ambiguous_stream_is_stopped_by_name(shell: Shell, space: SimulatedSpace) -> None:
    """The sid in the second response is that of a stream that failed."""
    space.faults.add("reset", on="start", executed=True, times=1)
    ran = await shell("conferences", "start-stream", space.conference_sids[0], "--url", URL, "--name", "-n", "--json")
    assert ran.json["ambiguous"] is True
    stop = shlex.split(ran.json["stop_command"])
    assert stop[-3:] == ["--", space.conference_sids[0], "-n"]
    assert (await shell(*stop[1:])).code == 0
    assert space.streams.active() == []


async def test_unknown_outcome_is_a_failure_with_advice(shell: Shell, space: SimulatedSpace) -> None:
    space.faults.add("reset", on="start", executed=True)
    ran = await shell("calls", "start-stream", space.call_sids[0], "--url", URL, "--name", "audit-1", "--json")
    assert ran.code == 1
    facts = ran.json
    assert facts["error"] == "StreamOutcomeUnknownError"
    assert (facts["name"], facts["target"], facts["attempts"]) == ("audit-1", space.call_sids[0], 1)
    assert facts["sent"] in {"maybe", "yes"}
    assert ran.err == f"error: {facts['message']}\n"
    assert "'audit-1'" in ran.err


@pytest.mark.parametrize("option", [("--codec", "PCMU"), ("--realtime",), ("--no-realtime",)])
async def test_call_start_rejects_conference_options(offline_shell: Shell, option: tuple[str, ...]) -> None:
    ran = await offline_shell("calls", "start-stream", "sid", "--url", URL, *option)
    assert_usage_error(ran, f"--{option[0].removeprefix('--no-').removeprefix('--')} is for conference streams only")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a/b", "--url", URL), "conference_sid"),
        (("sid", "--url", "ws://host/x"), "wss://host/x"),
        (("sid", "--url", f"{URL}?key=hush"), "query string"),
        (("sid",), "Missing option '--url'"),
        (("--url", URL), "Missing argument 'CONFERENCE_SID'"),
        (("sid", "--url", URL, "--name", "n", "--unnamed"), "unnamed"),
        (("sid", "--url", URL, "--track", "left"), "'left' is not one of 'inbound_track'"),
        (("sid", "--url", URL, "--codec", "MP3"), "codec 'MP3' is unknown: write one of 'PCMU'"),
        (("sid", "--url", URL, "--codec", "PCMU@40ms"), "as in 'PCMU@40i' or 'L16@24000h@40i'"),
        (("sid", "--url", URL, "--deadline", "0"), "deadline must be"),
        (("sid", "--url", URL, "--deadline", "nan"), "deadline must be"),
        (("sid", "--url", URL, "--parameter", "hush"), "write it as NAME=VALUE"),
        (("sid", "--url", URL, "--parameter", "=hush"), "write it as NAME=VALUE"),
        (("sid", "--url", URL, "--parameter", "a=hush", "--parameter", "a=hush"), "--parameter a is given twice"),
        (("sid", "--url", URL, "--bearer-token-file", "hush"), "can't be read: No such file"),
        (("sid", "--url", URL, "--bearer-token-file", "hush\0"), "can't be read"),
        (("sid", "--url", URL, "--status-callback", "nowhere"), "status_callback"),
    ],
)
async def test_start_stream_rejects_invalid_arguments_in_one_sentence(
    offline_shell: Shell, arguments: tuple[str, ...], sentence: str
) -> None:
    ran = await offline_shell("conferences", "start-stream", *arguments)
    assert_usage_error(ran, sentence)
    assert "hush" not in ran.err


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff\xfe"])
async def test_file_without_token_is_a_usage_error(offline_shell: Shell, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    ran = await offline_shell("conferences", "start-stream", "sid", "--url", URL, "--bearer-token-file", str(path))
    assert_usage_error(ran, "token")
    assert "two words" not in ran.err


async def test_closed_standard_input_is_a_usage_error(offline_shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    ran = await offline_shell("conferences", "start-stream", "sid", "--url", URL, "--bearer-token-file", "-")
    assert_usage_error(ran, "--bearer-token-file can't be read: standard input is closed")


async def test_may_be_running_starts_again_under_the_name(shell: Shell, space: SimulatedSpace) -> None:
    """The second start gets a sid that does not run, so the command that stops it has the name."""
    again = ("conferences", "start-stream", space.conference_sids[0], "--url", URL, "--name", "audit-1")
    assert (await shell(*again)).code == 0
    ran = await shell(*again, "--may-be-running", "--json")
    assert (ran.code, ran.json["ambiguous"], ran.json["already_started"]) == (0, True, False)
    assert (await shell(*shlex.split(ran.json["stop_command"])[1:])).code == 0
    assert space.streams.active() == []


@pytest.mark.parametrize("group", ["conferences", "calls"])
async def test_may_be_running_without_name_is_a_usage_error(offline_shell: Shell, group: str) -> None:
    ran = await offline_shell(group, "start-stream", "sid", "--url", URL, "--may-be-running")
    assert_usage_error(ran, "the name that the stream may be running under")


@pytest.mark.parametrize("handle", ["sid", "name"])
async def test_stop_of_ended_stream_succeeds_and_reports_it(shell: Shell, space: SimulatedSpace, handle: str) -> None:
    [call, *_] = space.call_sids
    assert (await shell("calls", "start-stream", call, "--url", URL, "--name", "audit-1")).code == 0
    space.end_call(call)
    stop = ("calls", "stop-stream", call, str(getattr(space.streams[0], handle)))
    ran = await shell(*stop)
    assert (ran.code, ran.err) == (0, "")
    assert ran.rows[0] == f"Stopped a stream on call {call}. It had already ended."
    facts = (await shell(*stop, "--json")).json
    assert (facts["status"], facts["already_ended"]) == ("stopped", True)


async def test_stop_of_unknown_stream_is_a_failure(shell: Shell, space: SimulatedSpace) -> None:
    ran = await shell("conferences", "stop-stream", space.conference_sids[0], "nothing", "--json")
    assert (ran.code, ran.json["error"], ran.json["status"], ran.json["code"]) == (1, "NotFoundError", 404, 20404)


@pytest.mark.parametrize("noun", ["conference", "call"])
async def test_end_ends_the_target_and_its_streams(shell: Shell, space: SimulatedSpace, noun: str) -> None:
    [sid, *others] = space.conference_sids if noun == "conference" else space.call_sids
    for target in (sid, others[0]):
        assert (await shell(f"{noun}s", "start-stream", target, "--url", URL)).code == 0
    for _ in range(2):  # it is safe to repeat
        ran = await shell(f"{noun}s", "end", sid)
        assert (ran.code, ran.out, ran.err) == (0, f"Ended {noun} {sid}, and the streams on it.\n", "")
    assert [stream.target_sid for stream in space.streams.active()] == [others[0]]
    facts = (await shell(f"{noun}s", "end", sid, "--json")).json
    assert (facts["sid"], facts["status"]) == (sid, "completed")


async def test_end_of_an_unknown_conference_is_a_failure(shell: Shell) -> None:
    ran = await shell("conferences", "end", "nothing", "--json")
    assert (ran.code, ran.json["error"], ran.json["status"]) == (1, "NotFoundError", 404)
