"""What a start costs: CPU time of the client, and how many one process makes in a second."""

from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.children import Child, ChildError, Contender, line_up
from benchmarks.figures import Rounds, Section
from benchmarks.plan import Plan
from benchmarks.servers import Server, server

HAND = "hand-written aiohttp"
SINGLE = "this client, one at a time"

_EVERYWHERE = (
    (HAND, "benchmarks.starting.by_hand:plain"),
    ("hand-written aiohttp, tuned", "benchmarks.starting.by_hand:tuned"),
    (SINGLE, "benchmarks.starting.this_client:single"),
    ("this client, bulk", "benchmarks.starting.this_client:bulk"),
    ("this client, bulk with journal", "benchmarks.starting.this_client:journaled"),
)
_PEERS = (
    ("hand-written aiohttp, header for auth=", "benchmarks.starting.by_hand:with_header"),
    ("twilio (async)", "benchmarks.starting.with_twilio:single"),
    ("signalwire-sdk 3.0.2 in threads", "benchmarks.starting.with_signalwire_sdk:threads"),
    ("telnyx (async)", "benchmarks.starting.with_telnyx:single"),
    ("httpx by hand", "benchmarks.starting.with_httpx:plain"),
)


class StartsNotConfirmedError(Exception):
    """A contender did not start what it was told to, so that its figure would be of something else."""


def ask(name: str, child: Child, there: Server, *, starts: int, tag: str) -> dict[str, float]:
    """Let a child start streams, and check with the server that each was one request."""
    before = there.served()
    answer = child.ask(starts=starts, tag=tag)
    served = there.served() - before
    if not answer["confirmed"] == served == starts:
        raise StartsNotConfirmedError(f"{name}: {answer['confirmed']} confirmed, {served} served, {starts} asked for")
    return answer


def measure(plan: Plan) -> list[Section]:
    """Let all contenders start the same streams in turns."""
    contenders = [
        Contender(_on(name, loop), target, loop) for loop in plan.loops for name, target in _contenders(loop, plan)
    ]
    rounds, passes, starts = plan.pick(full=(7, 2, 600), quick=(3, 1, 300))
    costs, rates = Rounds(), Rounds()
    with server() as there, ExitStack() as stack:
        children, notes = line_up(stack, contenders, base_url=there.base_url)
        for number in range(-1, rounds):  # the first round warms up, and opens the connections
            spent = dict.fromkeys(children, (0.0, 0.0))
            # Short turns: what slows the machine for a second then slows all contenders, not one.
            for turn in range(passes):
                for name, child in list(children.items()):
                    try:
                        answer = ask(name, child, there, starts=starts, tag=f"{number}-{turn}")
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
    about = f"{starts * passes} starts a round, from 16 workers; the other side is {there.name}"
    sections = []
    for loop in plan.loops:
        names = [name for contender in contenders if contender.loop == loop and (name := contender.name) in children]
        sections += _sections(loop, names, costs, rates, (about, *notes))
    return sections


def _contenders(loop: str, plan: Plan) -> Sequence[tuple[str, str]]:
    return (*_EVERYWHERE, *_PEERS) if loop == plan.loops[0] else _EVERYWHERE


def _on(name: str, loop: str) -> str:
    return name if loop == "asyncio" else f"{name}, {loop}"


def _sections(loop: str, names: list[str], costs: Rounds, rates: Rounds, notes: tuple[str, ...]) -> list[Section]:
    hand, single = _on(HAND, loop), _on(SINGLE, loop)
    return [
        Section(
            title=f"CPU per start, {loop}",
            unit="µs",
            series=costs.series(names),
            yardstick=hand,
            ours=single,
            plotted=True,
            notes=notes,
        ),
        Section(title=f"Starts per second of one process, {loop}", unit="1/s", series=rates.series(names)),
    ]
