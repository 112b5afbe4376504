"""What one caller waits for one start, beyond what it would wait for its own code."""

from benchmarks.children import child
from benchmarks.families.starts import HAND
from benchmarks.figures import Rounds, Section
from benchmarks.plan import Plan
from benchmarks.servers import server

_OURS = "this client"


def measure(plan: Plan) -> list[Section]:
    """Start by hand and with this client in turns, one at a time."""
    pairs = plan.pick(full=1_000, quick=200)
    medians, tails, added = Rounds(), Rounds(), Rounds()
    with server() as there, child("benchmarks.starting.in_turns:serve", plan.loops[0], base_url=there.base_url) as both:
        for number in range(-1, plan.pick(full=7, quick=3)):
            answer = both.ask(pairs=pairs, tag=f"round-{number}")
            if number < 0:
                continue
            for name, side in ((HAND, "hand"), (_OURS, "ours")):
                medians.add(name, answer[side]["median"])
                tails.add(name, answer[side]["p99"])
            added.add("median", answer["ours"]["median"] - answer["hand"]["median"])
            added.add("99th percentile", answer["ours"]["p99"] - answer["hand"]["p99"])
    notes = (f"{pairs} pairs a round, in turns and in one process; the other side is {there.name}",)
    return [
        Section(
            title="One start at a time: median",
            unit="µs",
            series=medians.series(),
            yardstick=HAND,
            plotted=True,
            notes=notes,
        ),
        Section(
            title="One start at a time: 99th percentile",
            unit="µs",
            series=tails.series(),
            yardstick=HAND,
            plotted=True,
        ),
        Section(title="What this client adds to one start", unit="µs", series=added.series()),
    ]
