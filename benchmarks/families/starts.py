"""Cost of a start: CPU and rate, growth with size and concurrency, latency, and use of the rate limit."""

from contextlib import ExitStack

from benchmarks.figures import NotMeasuredError, Plan, Rounds, Section
from benchmarks.processes import Child, ChildError, Contender, child, on_loop, start_all
from benchmarks.servers import Server, server

HAND = "hand-written aiohttp"
OURS = "this client"
SINGLE = "this client, one at a time"

COMMON = (
    (HAND, "starters:aiohttp_plain"),
    ("hand-written aiohttp, tuned", "starters:aiohttp_tuned"),
    (SINGLE, "starters:single"),
    ("this client, bulk", "starters:bulk"),
    ("this client, bulk with journal", "starters:journaled"),
)
"""The contenders that run on all loops, and whose instructions are counted; the baseline first."""
_ON_FIRST_LOOP = (
    ("hand-written aiohttp, header for auth=", "starters:aiohttp_header"),
    ("twilio (async)", "starters:twilio"),
    ("signalwire-sdk 3.0.2 in threads", "starters:signalwire_sdk"),
    ("telnyx (async)", "starters:telnyx"),
    ("httpx by hand", "starters:httpx_plain"),
)


class StartsNotConfirmedError(NotMeasuredError):
    """A contender did not start what it was asked to, so its figure would be of something else."""


def ask(name: str, child: Child, running: Server, *, starts: int, tag: str, counted: bool = False) -> dict[str, float]:
    """Start streams in a child, and check with the server that each was one request."""
    before = running.served()
    answer = child.ask(starts=starts, tag=tag, counted=counted)
    _check(name, answer["confirmed"], running.served() - before, starts)
    return answer


def _check(name: str, confirmed: int, served: int, starts: int) -> None:
    if not confirmed == served == starts:
        raise StartsNotConfirmedError(f"{name}: {confirmed} confirmed, {served} served, {starts} asked for")


def measure_starts(plan: Plan) -> list[Section]:
    """Start the same streams with all contenders in turn."""
    contenders = [
        Contender(on_loop(name, loop), target, loop)
        for loop in plan.loops
        for name, target in (*COMMON, *(_ON_FIRST_LOOP if loop == plan.loops[0] else ()))
    ]
    rounds, passes, starts = plan.pick(full=(7, 2, 600), quick=(3, 1, 300))
    costs, rates = Rounds(), Rounds()
    with server() as running, ExitStack() as stack:
        children, notes = start_all(stack, contenders, base_url=running.base_url)
        for number in range(-1, rounds):  # the first round warms up, and opens the connections
            spent = dict.fromkeys(children, (0.0, 0.0))
            # Short turns: what slows the machine for a second then slows all contenders.
            for turn in range(passes):
                for name in plan.shuffled(children, number, turn):
                    child = children[name]
                    try:
                        answer = ask(name, child, running, starts=starts, tag=f"{number}-{turn}")
                    except ChildError as error:
                        del children[name]
                        notes.append(f"left out: {name}, since {error}")
                        continue
                    cpu, seconds = spent[name]
                    spent[name] = cpu + answer["cpu"], seconds + answer["seconds"]
            for name in children if number >= 0 else ():
                cpu, seconds = spent[name]
                costs.add(name, cpu / (starts * passes) * 1e6)
                rates.add(name, starts * passes / seconds)
    about = f"{starts * passes:,} starts a round, from 16 workers; the server is {running.name}"
    sections = []
    for loop in plan.loops:
        names = [contender.name for contender in contenders if contender.loop == loop and contender.name in children]
        sections.append(
            Section(
                title=f"CPU per start, {loop}",
                unit="µs",
                series=costs.series(names),
                baseline=on_loop(HAND, loop),
                ours=on_loop(SINGLE, loop),
                beside=(Section(title="starts a second", unit="", series=rates.series(names)),),
                plotted=True,
                notes=(about, *notes),
            )
        )
    return sections


_CONCURRENCY = 64
_WARM_UP = 1_000


def measure_growth(plan: Plan) -> list[Section]:
    """Run bulk runs of all sizes and concurrencies, each in a new process whose connections are open."""
    sizes = plan.pick(full=(100, 1_000, 10_000, 50_000), quick=(100, 1_000, 5_000))
    widths = plan.pick(full=(1, 8, 64, 256, 512), quick=(1, 64, 512))
    starts = plan.pick(full=2_000, quick=1_000)
    by_size, by_width = (Rounds(), Rounds()), (Rounds(), Rounds())
    with server() as running:
        for number in range(plan.long_rounds):
            for size in sizes:
                _grow(by_size, f"{size:,}", running, starts=size, concurrency=_CONCURRENCY, number=number)
            for width in widths:
                _grow(by_width, str(width), running, starts=starts, concurrency=width, number=number)
    about = f"bulk runs with a journal, concurrency {_CONCURRENCY}; the server is {running.name}"
    grown = ("peak above that of a client which has made a run of 1,000 before",)
    return [
        Section(
            title="CPU per start by number of targets",
            unit="µs",
            series=by_size[0].series(),
            baseline="1,000",
            plotted=True,
            notes=(about,),
        ),
        Section(title="Memory by number of targets", unit="MB", series=by_size[1].series(), plotted=True, notes=grown),
        Section(
            title="CPU per start by concurrency",
            unit="µs",
            series=by_width[0].series(),
            baseline="64",
            plotted=True,
            notes=(f"bulk runs of {starts:,} with a journal",),
        ),
        Section(title="Memory by concurrency", unit="MB", series=by_width[1].series(), notes=grown),
    ]


def _grow(
    rounds: tuple[Rounds, Rounds], name: str, running: Server, *, starts: int, concurrency: int, number: int
) -> None:
    with child("starters:journaled", base_url=running.base_url, concurrency=concurrency) as client:
        ask(name, client, running, starts=_WARM_UP, tag="warm-up")
        answer = ask(name, client, running, starts=starts, tag=f"round-{number}")
    rounds[0].add(name, answer["cpu"] / starts * 1e6)
    rounds[1].add(name, answer["grown"])


def measure_latency(plan: Plan) -> list[Section]:
    """Start by hand and with this client alternately, one at a time: what one caller waits for one start."""
    pairs = plan.pick(full=1_000, quick=200)
    medians, tails, added = Rounds(), Rounds(), Rounds()
    with server() as running, child("starters:latency", plan.loops[0], base_url=running.base_url) as both:
        for number in range(-1, plan.pick(full=7, quick=3)):
            answer = both.ask(pairs=pairs, tag=f"round-{number}")
            if number < 0:
                continue
            for name, side in ((HAND, "hand"), (OURS, "ours")):
                medians.add(name, answer[side]["median"])
                tails.add(name, answer[side]["p99"])
            added.add("median", answer["ours"]["median"] - answer["hand"]["median"])
            added.add("99th percentile", answer["ours"]["p99"] - answer["hand"]["p99"])
    about = f"{pairs:,} pairs a round, alternating in one process; the server is {running.name}"
    sides = (("median", medians.series()), ("99th percentile", tails.series()))
    return [
        *(
            Section(
                title=f"One start at a time: {what}",
                unit="µs",
                series=series,
                baseline=HAND,
                plotted=True,
                notes=(about,),
            )
            for what, series in sides
        ),
        Section(title="What this client adds to one start", unit="µs", series=added.series()),
    ]


# Source: https://signalwire.com/docs/platform/rate-limits
LIMIT, WINDOW = 13_800, 10.0


def measure_pacing(plan: Plan) -> list[Section]:
    """Run journaled bulk runs for a little longer than one window, with the rate limiter on."""
    seconds = plan.pick(full=WINDOW + 2.0, quick=3.5)
    window = plan.pick(full=WINDOW, quick=2.0)
    used, worst, cores = Rounds(), Rounds(), Rounds()
    for _ in range(plan.long_rounds):
        for utilization in (1.0, 0.9):
            rate = LIMIT / WINDOW * utilization
            answer = _pace(utilization, int(rate * seconds), window)
            name = f"utilization={utilization}: {rate:,.0f} starts a second"
            used.add(name, answer["steady"] / (rate * window) * 100)
            worst.add(name, answer["busiest"] / (rate * window) * 100)
            cores.add(name, answer["cpu"] / answer["seconds"] * 100)
    about = f"bulk runs with a journal, {seconds:.0f} s each, against a small server that records each arrival"
    seen = f"the fullest {window:.0f} s on the server; 100 is all that the client may send"
    return [
        Section(title="Use of the rate limit", unit="%", series=used.series(), notes=(about,)),
        Section(title="Worst window", unit="%", series=worst.series(), plotted=True, notes=(seen,)),
        Section(title="CPU of the client at that rate", unit="% of one core", series=cores.series(), plotted=True),
    ]


def _pace(utilization: float, starts: int, window: float) -> dict[str, float]:
    with child("servers:serve") as running:
        base_url = f"http://127.0.0.1:{running.ask()['port']}"
        with child("starters:journaled", base_url=base_url, utilization=utilization) as client:
            client.ask(starts=200, tag="warm-up")
            running.ask(forget=True)
            answer = client.ask(starts=starts, tag="run")
            seen = running.ask(window=window)
    _check(OURS, answer["confirmed"], seen["served"], starts)
    return {**answer, **seen}
