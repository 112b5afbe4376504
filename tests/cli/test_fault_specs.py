"""Fault rules as they are written on the command line."""

from inspect import signature
from typing import Any

import pytest

from signalwire_streams._cli.simulate import _FAULT_OPTIONS, parse_fault
from signalwire_streams.simulator import FaultKind, Faults, SimulatedSpace

from .shell import Shell


@pytest.mark.parametrize(
    ("spec", "kind", "options"),
    [
        ("reset", "reset", {}),
        ("reset:on=start,executed=true,every_nth=10", "reset", {"on": "start", "executed": True, "every_nth": 10}),
        ("503:on=start,times=1", "503", {"on": "start", "times": 1}),
        ("latency:seconds=0.2", "latency", {"seconds": 0.2}),
        ("hang:read_body=false,per_target=2", "hang", {"read_body": False, "per_target": 2}),
        (
            "throttle:retry_after=1.5,code=20429,status=429",
            "throttle",
            {"retry_after": "1.5", "code": 20429, "status": 429},
        ),
        ("status:status=418,body=empty,target=x", "status", {"status": 418, "body": "empty", "target": "x"}),
        ("redirect:location=https://a.b/c:d=e", "redirect", {"location": "https://a.b/c:d=e"}),
        ("duplicate-name:as=stream-error", "duplicate-name", {"as_": "stream-error"}),
    ],
)
def test_parse_fault_returns_kind_and_options(spec: str, kind: str, options: dict[str, Any]) -> None:
    assert parse_fault(spec) == (kind, options)
    space = SimulatedSpace()
    space.faults.add(kind, **options)
    assert len(space.faults) == 1


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("503:", "'' is not an option"),
        ("503:times", "'times' is not an option: write it as key=value"),
        ("503:times=", "'times=' is not an option"),
        ("503:when=now", "'when' is not an option: write one of on, target"),
        ("503:times=2.5", "times: '2.5' is not a valid integer"),
        ("503:executed=maybe", "executed: 'maybe' is not a valid boolean"),
        ("503:body=pdf", "body: 'pdf' is not one of 'api', 'html', 'empty'"),
        ("duplicate-name:as=error", "as: 'error' is not one of 'http-error', 'stream-error'"),
        ("latency:seconds=soon", "seconds: 'soon' is not a valid float"),
        ("503:times=1,times=2", "times is given twice"),
    ],
)
def test_parse_fault_rejects_wrong_syntax(spec: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"option|is not|twice") as caught:
        parse_fault(spec)
    assert sentence in str(caught.value)
    assert "Recognized" not in str(caught.value)


@pytest.mark.parametrize("kind", FaultKind)
async def test_simulate_accepts_and_documents_every_kind_of_fault(bare_shell: Shell, kind: FaultKind) -> None:
    needs = {FaultKind.STATUS: "status=500"} | dict.fromkeys(
        (FaultKind.LATENCY, FaultKind.EXECUTED_LATE, FaultKind.SOCKET_SLOW, FaultKind.CALLBACK_DELAYED), "seconds=1"
    )
    name, options = parse_fault(f"{kind}:times=1,{needs[kind]}" if kind in needs else f"{kind}:times=1")
    SimulatedSpace().faults.add(name, **options)
    words = (await bare_shell("simulate", "--help")).out.partition("Kinds")[2].replace(",", " ").split()
    assert kind in words
    assert {name.removesuffix("_") for name in kind.settings} - {"headers"} <= {word.split("=")[0] for word in words}


def test_every_condition_of_a_fault_is_an_option() -> None:
    conditions = set(signature(Faults.add).parameters) - {"self", "kind", "settings"}
    assert {name for name in conditions if name not in _FAULT_OPTIONS} == set()
