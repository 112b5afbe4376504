"""Check more faults than the suite, or with ``--soak`` more hours: ``python -m tests.keep_streaming --faults 3``."""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

from tests.keep_streaming import soak, spaces
from tests.keep_streaming.model import MAX_STARTS

Row = tuple[str, bool]
"""What was found, and whether that is good."""


def check(setup: spaces.Setup, *, faults: int, starts: int) -> Row:
    result = setup.check(spaces.faults(faults), starts=starts)
    if result.problem is not None:
        return "\n  ".join((result.problem, *result.steps)), False
    return f"{result.states:,} states, at most {result.rounds} rounds, {result.doubts:,} states in doubt", True


def play(scene: soak.Scene) -> Row:
    report = scene.play(targets=5000, seconds=7200.0)
    text = (
        f"streamed {report.share:.1%} of {report.targets:,} lives, {report.doubled:,} doubled, "
        f"{report.missed:,} missed (of at most {report.longest_missed:.0f} s), "
        f"{report.events.get('StreamingInDoubt', 0):,} times in doubt, {report.starts:,} starts, "
        f"at most {report.kept:,} kept at once"
    )
    broken = scene.broken_promises(report)
    return "\n  ".join([text, *broken]), not broken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.keep_streaming", description=__doc__)
    parser.add_argument("words", nargs="*", help="only those whose description has one of these words")
    parser.add_argument("--faults", type=int, default=3, help="how many faults in all (default: %(default)s)")
    parser.add_argument("--starts", type=int, help="starts of a target (default: 3 where names protect, else 2)")
    parser.add_argument("--soak", action="store_true", help="5,000 targets in two hours by a virtual clock, instead")
    given = parser.parse_args()
    rows: dict[str, Callable[[], Row]]
    if given.soak:
        rows = {name: partial(play, scene) for name, scene in (soak.CONFERENCES | soak.CALLS).items()}
    else:
        rows = {
            name: partial(check, setup, faults=given.faults, starts=given.starts or starts)
            for setups, starts in ((spaces.CONFERENCES, MAX_STARTS), (spaces.OTHERS, MAX_STARTS - 1))
            for name, setup in setups.items()
        }
    is_good = True
    for name, row in rows.items():
        if given.words and not any(word in name for word in given.words):
            continue
        began = time.process_time()
        text, row_is_good = row()
        is_good &= row_is_good
        sys.stdout.write(f"{name}: {text} ({time.process_time() - began:.1f} s)\n")
        sys.stdout.flush()
    return 0 if is_good else 1


sys.exit(main())
