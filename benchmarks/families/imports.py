"""Import time compared with ``import aiohttp``, and the loaded modules."""

import json
import os
import subprocess
import sys

from benchmarks.figures import Plan, Rounds, Section

_TIMED = "import time; w, c = time.perf_counter(), time.process_time(); {}; "
_TIMES = "print(time.process_time() - c, time.perf_counter() - w)"
_LOADED = "import json, sys; from signalwire_streams import StreamsClient; print(json.dumps(sorted(sys.modules)))"
_UNWANTED = ("_cli", "simulator", "receiver", "callbacks", "pytest_plugin")
_UNWANTED_EXTRAS = ("click", "rich", "trustme", "pytest")
_IMPORTS = (
    "import aiohttp",
    "import signalwire_streams",
    "from signalwire_streams import StreamsClient",
    "from signalwire_streams.receiver import MediaReceiver",
)


def measure(plan: Plan) -> list[Section]:
    """Import in new processes, in turn."""
    cpu, wall = Rounds(), Rounds()
    for number in range(-1, plan.pick(full=21, quick=11)):  # the first round writes the bytecode
        for statement in _IMPORTS:
            used, waited = map(float, _python(_TIMED.format(statement) + _TIMES).split())
            if number >= 0:
                cpu.add(statement, used * 1e3)
                wall.add(statement, waited * 1e3)
    return [
        Section(
            title="CPU of an import",
            unit="ms",
            series=cpu.series(),
            baseline="import aiohttp",
            plotted=True,
            notes=_packages(),
        ),
        Section(title="Time of an import", unit="ms", series=wall.series(), baseline="import aiohttp"),
    ]


def _packages() -> tuple[str, str]:
    modules = json.loads(_python(_LOADED))
    own = {name.split(".")[1] for name in modules if name.startswith("signalwire_streams.")}
    unwanted = [name for name in _UNWANTED if name in own] + [name for name in _UNWANTED_EXTRAS if name in modules]
    return (
        f"packages that the client loads: {', '.join(sorted(own))}",
        f"loaded without need: {', '.join(unwanted) or 'nothing'}",
    )


def _python(program: str) -> str:
    command = [sys.executable, "-c", program]
    # Bytecode may be written, as for an installed package; otherwise every import would compile this one again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout  # noqa: S603
