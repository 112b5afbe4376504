"""Fault rules as they are written on the command line."""

from typing import Any

import pytest

from signalwire_streams._cli.simulate import parse_fault
from signalwire_streams.simulator import FaultKind, SimulatedSpace


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
        ("503:times=2.5", "times must be a whole number, not '2.5'"),
        ("503:times=-1", "times must be a whole number"),
        ("503:executed=maybe", "executed must be true or false"),
        ("latency:seconds=soon", "seconds must be a number of seconds"),
        ("latency:seconds=inf", "seconds must be a number of seconds"),
        ("latency:seconds=-1", "seconds must be a number of seconds"),
        ("503:times=1,times=2", "times is given twice"),
    ],
)
def test_parse_fault_rejects_wrong_syntax(spec: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"option|must be|twice") as caught:
        parse_fault(spec)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("kind", FaultKind)
def test_parse_fault_accepts_every_kind(kind: FaultKind) -> None:
    seconds = ":seconds=1"
    needs = {
        FaultKind.LATENCY: seconds,
        FaultKind.STATUS: ":status=500",
        FaultKind.SOCKET_SLOW: seconds,
        FaultKind.CALLBACK_DELAYED: seconds,
    }
    name, options = parse_fault(f"{kind}{needs.get(kind, '')}")
    SimulatedSpace().faults.add(name, **options)
