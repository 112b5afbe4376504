"""Cost of an import compared with ``import aiohttp``, the loaded modules, and the classes that are made."""

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
_CLASSES = """
import builtins
build, own = builtins.__build_class__, []
def build_and_list(body, name, *bases, **options):
    if body.__globals__["__name__"].startswith("signalwire_streams"):
        own.append((body.__globals__, name))
    return build(body, name, *bases, **options)
builtins.__build_class__ = build_and_list
{}
print(len(own), sum("__attrs_attrs__" in vars(names[name]) for names, name in own if name in names))
"""
_NOWHERE = "/nonexistent"
NO_CERTIFICATES = "aiohttp finds no certificates to trust, which it would read when it is imported"
BASELINE, CLIENT = "import aiohttp", "from signalwire_streams import StreamsClient"
IMPORTS = (
    BASELINE,
    "import signalwire_streams",
    CLIENT,
    "from signalwire_streams.receiver import MediaReceiver",
)


def measure(plan: Plan) -> list[Section]:
    """Import in new processes, in turn."""
    cpu, wall = Rounds(), Rounds()
    for number in range(-1, plan.pick(full=21, quick=11)):  # the first round writes the bytecode
        for statement in IMPORTS:
            used, waited = map(float, python(_TIMED.format(statement) + _TIMES).split())
            if number >= 0:
                cpu.add(statement, used * 1e3)
                wall.add(statement, waited * 1e3)
    return [
        Section(
            title="CPU of an import",
            unit="ms",
            series=cpu.series(),
            baseline=BASELINE,
            beside=(Section(title="time", unit="ms", series=wall.series()), *_classes()),
            plotted=True,
            notes=(NO_CERTIFICATES, *_packages()),
        )
    ]


def _classes() -> tuple[Section, Section]:
    made, attrs_made = Rounds(), Rounds()
    for statement in IMPORTS[1:]:
        everything, by_attrs = map(int, python(_CLASSES.format(statement)).split())
        made.add(statement, everything)
        attrs_made.add(statement, by_attrs)
    return (
        Section(title="own classes made", unit="", series=made.series()),
        Section(title="by attrs", unit="", series=attrs_made.series()),
    )


def _packages() -> tuple[str, str]:
    modules = json.loads(python(_LOADED))
    own = {name.split(".")[1] for name in modules if name.startswith("signalwire_streams.")}
    unwanted = [name for name in _UNWANTED if name in own] + [name for name in _UNWANTED_EXTRAS if name in modules]
    return (
        f"packages that the client loads: {', '.join(sorted(own))}",
        f"loaded without need: {', '.join(unwanted) or 'nothing'}",
    )


def python(program: str) -> str:
    """Run a program in a new interpreter, and return what it prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout  # noqa: S603


def environment() -> dict[str, str]:
    """Return the environment of an import.

    Bytecode may be written, as for an installed package; otherwise every import would compile this one again. aiohttp
    finds no certificates to trust: it reads all of them when it is imported, and how many there are is the machine's
    affair.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "SSL_CERT_FILE": _NOWHERE, "SSL_CERT_DIR": _NOWHERE}
