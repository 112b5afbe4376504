"""``python -m benchmarks [family ...] [--json FILE] [--plots DIR] [--quick]``."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.families import audio, growth, imports, latency, pacing, starts
from benchmarks.figures import Section
from benchmarks.machine import facts
from benchmarks.plan import Plan
from benchmarks.table import lines

FAMILIES: Mapping[str, Callable[[Plan], list[Section]]] = {
    "starts": starts.measure,
    "growth": growth.measure,
    "latency": latency.measure,
    "imports": imports.measure,
    "audio": audio.measure,
    "pacing": pacing.measure,
}


def main() -> None:
    """Measure, print, and write down what was asked for."""
    options = _options()
    plan = Plan(quick=options.quick, loops=tuple(options.loops))
    machine = facts()
    found: dict[str, list[Section]] = {}
    for family in options.families or FAMILIES:
        began = time.monotonic()
        found[family] = FAMILIES[family](plan)
        print(f"{family}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    print("\n".join(lines([section for sections in found.values() for section in sections])))
    print("\n* the yardstick; ratios are taken within a round, then their median and spread")
    print("  ".join(f"{name}: {value}" for name, value in machine.items() if name != "packages"))
    if options.json is not None:
        options.json.write_text(json.dumps(_document(plan, machine, found), indent=1) + "\n", "utf-8")
    if options.plots is not None:
        # Only here, so that measuring needs no matplotlib.
        draw = import_module("benchmarks.plots").draw
        for family, sections in found.items():
            draw(family, sections, options.plots)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("families", nargs="*", metavar="family", help=f"{', '.join(FAMILIES)}; all by default")
    parser.add_argument("--json", type=Path, help="write every figure of every round there")
    parser.add_argument("--plots", type=Path, help="draw one SVG for each family into that directory")
    parser.add_argument("--quick", action="store_true", help="only see that everything works")
    parser.add_argument("--loops", nargs="+", default=["asyncio", "uvloop"], choices=["asyncio", "uvloop"])
    options = parser.parse_args()
    unknown = set(options.families) - set(FAMILIES)
    if unknown:
        parser.error(f"no such family: {', '.join(sorted(unknown))} (there are {', '.join(FAMILIES)})")
    return options


def _document(plan: Plan, machine: dict[str, Any], found: Mapping[str, Sequence[Section]]) -> dict[str, Any]:
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": plan.quick,
        "machine": machine,
        "families": {family: [section.document() for section in sections] for family, sections in found.items()},
    }


if __name__ == "__main__":
    main()
