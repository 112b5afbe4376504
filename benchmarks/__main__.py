"""``python -m benchmarks [family ...] [--json FILE] [--plots DIR] [--quick] [--seed NUMBER] [--instructions]``."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks.families import audio, capacity, fleet, imports, instructions, listen, pcm, starts
from benchmarks.figures import NotMeasuredError, Plan, Section
from benchmarks.report import draw, lines, machine

FAMILIES: Mapping[str, Callable[[Plan], list[Section]]] = {
    "starts": starts.measure_starts,
    "growth": starts.measure_growth,
    "latency": starts.measure_latency,
    "imports": imports.measure,
    "audio": audio.measure,
    "heap": audio.measure_unpinned,
    "capacity": capacity.measure,
    "listen": listen.measure,
    "pacing": starts.measure_pacing,
    "fleet": fleet.measure,
    "instructions": instructions.measure,
    "pcm": pcm.measure,
}


def main() -> None:
    """Measure, print each family when it is done, and write the requested files."""
    options = _options()
    plan = Plan(quick=options.quick, loops=tuple(options.loops), seed=options.seed)
    measured_on = machine()
    described = {name: value for name, value in measured_on.items() if name != "packages"}
    print(", ".join(f"{name}: {value}" for name, value in {**described, "seed": plan.seed}.items()))
    print("* is the baseline of its table; a ratio is taken within a round: median (min … max) of the rounds")
    found, left_out = dict[str, list[Section]](), list[str]()
    chosen = ["instructions"] if options.instructions else options.families
    for family in chosen or FAMILIES:
        began = time.monotonic()
        try:
            found[family] = FAMILIES[family](plan)
        except NotMeasuredError as error:
            left_out.append(family)
            print(f"\n{family.upper()} is left out: {error}", flush=True)
            continue
        print(f"\n{family.upper()} ({time.monotonic() - began:.0f} s)")
        print("\n".join(lines(found[family])), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(_document(plan, measured_on, found), indent=1) + "\n", "utf-8")
    if options.plots is not None:
        for family, sections in found.items():
            draw(family, sections, options.plots)
    if chosen and left_out:
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("families", nargs="*", metavar="family", help=f"{', '.join(FAMILIES)}; by default all")
    parser.add_argument("--instructions", action="store_true", help="only count instructions with valgrind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round to this file")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="plot each family as an SVG in this directory")
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 1_000, help="of the order of the contenders; random by default"
    )
    parser.add_argument("--loops", nargs="+", default=["asyncio", "uvloop"], choices=["asyncio", "uvloop"])
    options = parser.parse_args()
    unknown = set(options.families) - set(FAMILIES)
    if unknown:
        parser.error(f"no such family: {', '.join(sorted(unknown))} (there are {', '.join(FAMILIES)})")
    return options


def _document(plan: Plan, measured_on: dict[str, Any], found: Mapping[str, Sequence[Section]]) -> dict[str, Any]:
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": plan.quick,
        "seed": plan.seed,
        "machine": measured_on,
        "families": {family: [section.document() for section in sections] for family, sections in found.items()},
    }


if __name__ == "__main__":
    main()
