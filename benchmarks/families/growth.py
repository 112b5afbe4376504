"""How the cost of a start grows with the number of targets and with concurrency, and how much memory it takes."""

from benchmarks.children import child
from benchmarks.families.starts import ask
from benchmarks.figures import Rounds, Section
from benchmarks.plan import Plan
from benchmarks.servers import Server, server

_JOURNALED = "benchmarks.starting.this_client:journaled"
_CONCURRENCY = 64
_YARDSTICK = "1,000"
_WARM_UP = 1_000


def measure(plan: Plan) -> list[Section]:
    """Run bulk runs of all sizes, each in a process of its own that has its connections already."""
    sizes = plan.pick(full=(100, 1_000, 10_000, 100_000), quick=(100, 1_000, 5_000))
    widths = plan.pick(full=(1, 8, 64, 256, 512), quick=(1, 64, 512))
    starts = plan.pick(full=2_000, quick=1_000)
    by_size, by_width = (Rounds(), Rounds()), (Rounds(), Rounds())
    with server() as there:
        for number in range(plan.long_rounds):
            for size in sizes:
                _run(by_size, f"{size:,}", there, starts=size, concurrency=_CONCURRENCY, number=number)
            for width in widths:
                _run(by_width, str(width), there, starts=starts, concurrency=width, number=number)
    notes = (f"bulk runs with a journal, concurrency {_CONCURRENCY}; the other side is {there.name}",)
    wide_notes = (f"bulk runs of {starts:,} with a journal",)
    grown = "peak beyond that of a client which has already made a run of 1,000"
    return [
        Section(
            title="CPU per start by number of targets",
            unit="µs",
            series=by_size[0].series(),
            yardstick=_YARDSTICK,
            plotted=True,
            notes=notes,
        ),
        Section(
            title="Memory by number of targets", unit="MB", series=by_size[1].series(), plotted=True, notes=(grown,)
        ),
        Section(
            title="CPU per start by concurrency",
            unit="µs",
            series=by_width[0].series(),
            yardstick="64",
            plotted=True,
            notes=wide_notes,
        ),
        Section(title="Memory by concurrency", unit="MB", series=by_width[1].series(), notes=(grown,)),
    ]


def _run(
    rounds: tuple[Rounds, Rounds], name: str, there: Server, *, starts: int, concurrency: int, number: int
) -> None:
    with child(_JOURNALED, base_url=there.base_url, concurrency=concurrency) as client:
        ask(name, client, there, starts=_WARM_UP, tag="warm-up")
        answer = ask(name, client, there, starts=starts, tag=f"round-{number}")
    rounds[0].add(name, answer["cpu"] / starts * 1e6)
    rounds[1].add(name, answer["grown"])
