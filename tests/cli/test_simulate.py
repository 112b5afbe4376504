"""``simulate``: a Space of its own, in a process of its own."""

import json
import signal
import socket
import sys
from typing import get_args

import pytest

from signalwire_streams.cli.simulate import DuplicateNames
from signalwire_streams.simulator import SimulatedSpace

from .shell import URL, Shell, end_of, line_of, process

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")


def _environment(facts: dict[str, str]) -> dict[str, str]:
    return {
        "SIGNALWIRE_SPACE": facts["base_url"],
        "SIGNALWIRE_PROJECT_ID": facts["project"],
        "SIGNALWIRE_API_TOKEN": facts["token"],
    }


@posix_only
async def test_it_announces_itself_serves_and_ends(bare_shell: Shell) -> None:
    arguments = ("--json", "--conferences", "4", "--fault", "503-api:on=start", "--rate-limit", "none", "--seed", "5")
    async with process("simulate", *arguments, "--quiet-requests") as child:
        facts = json.loads(await line_of(child))
        assert sorted(facts) == ["base_url", "project", "signing_key", "token"]
        bare_shell.set(_environment(facts))
        listed = await bare_shell("conferences", "list", "--json")
        refused = await bare_shell(
            "calls", "start-stream", "no-such-call", "--url", URL, "--deadline", "0.001", "--json"
        )
        ran = await end_of(child, signal.SIGTERM)
    assert len(listed.lines) == 4
    assert refused.code == 1
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert facts["project"] == SimulatedSpace(conferences=4, calls=5, seed=5).project


@posix_only
async def test_a_person_gets_lines_to_paste(bare_shell: Shell) -> None:
    async with process("simulate", "--calls", "1") as child:
        text = ""
        while "Ctrl-C" not in text:
            text += await line_of(child)
        exports = dict(
            line.strip().removeprefix("export ").split("=", 1) for line in text.splitlines() if "export " in line
        )
        bare_shell.set(exports)
        listed = await bare_shell("calls", "list", "--json")
        assert (await bare_shell("calls", "start-stream", listed.json["sid"], "--url", URL)).code == 0
        ran = await end_of(child, signal.SIGINT)
    assert "(live conferences: 10, live calls: 1)" in text
    assert list(exports) == ["SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN"]
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "\nEnded. Requests: 2, streams: 1, still alive: 1, ever doubled: 0.\n"


async def test_a_port_that_is_taken_is_a_failure(bare_shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with process("simulate", "--json", "--port", str(port)) as child:
            ran = await end_of(child)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"error: can't listen on 127.0.0.1 port {port}: ")
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--fault", "boom"), "'boom' is no kind of fault"),
        (("--fault", "503:times"), "write it as key=value"),
        (("--fault", "503:times=0"), "times must be at least 1"),
        (("--fault", "503:seconds=1"), "seconds is no setting of '503'"),
        (("--fault", "latency"), "'latency' needs seconds"),
        (("--rate-limit", "0"), "write a number above 0, or none"),
        (("--rate-limit", "9" * 5000), "write a number above 0, or none"),
        (("--port", "70000"), "70000 is not in the range"),
        (("--conferences", "-1"), "-1 is not in the range"),
        (("--duplicate-names", "maybe"), "'maybe' is not one of 'stream-error'"),
    ],
)
async def test_what_cannot_be_meant_is_misuse(bare_shell: Shell, arguments: tuple[str, ...], sentence: str) -> None:
    ran = await bare_shell("simulate", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert sentence in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("word", get_args(DuplicateNames))
def test_the_space_knows_each_way_to_treat_duplicates(word: DuplicateNames) -> None:
    assert SimulatedSpace(duplicate_names=word).duplicate_names == word
