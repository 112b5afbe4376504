"""How much of the Space's limit a run uses, what the worst window held, and whether one core is enough for that."""

from benchmarks.children import child
from benchmarks.families.starts import StartsNotConfirmedError
from benchmarks.figures import Rounds, Section
from benchmarks.plan import Plan

# Source: https://signalwire.com/docs/platform/rate-limits
_LIMIT, _WINDOW = 13_800, 10.0
_SHARES = (1.0, 0.9)


def measure(plan: Plan) -> list[Section]:
    """Run journaled bulk runs for a little longer than one window, with the pacer on."""
    seconds = plan.pick(full=_WINDOW + 2.0, quick=3.5)
    window = plan.pick(full=_WINDOW, quick=2.0)
    used, worst, cores = Rounds(), Rounds(), Rounds()
    for _ in range(plan.long_rounds):
        for share in _SHARES:
            starts = int(_LIMIT / _WINDOW * share * seconds)
            answer = _run(share, starts, window)
            allowed = _LIMIT * share * window / _WINDOW
            name = f"share={share}: {_LIMIT / _WINDOW * share:,.0f} starts a second"
            used.add(name, answer["steady"] / allowed * 100)
            worst.add(name, answer["busiest"] / allowed * 100)
            cores.add(name, answer["cpu"] / answer["seconds"] * 100)
    about = f"bulk runs with a journal, {seconds:.0f} s each, against a small server that notes when each start comes"
    seen = f"the fullest {window:.0f} s, as the server saw them; 100 is all that the client may send"
    return [
        Section(title="Use of the rate limit", unit="%", series=used.series(), notes=(about,)),
        Section(title="Worst window", unit="%", series=worst.series(), plotted=True, notes=(seen,)),
        Section(title="CPU of the client at that rate", unit="% of one core", series=cores.series(), plotted=True),
    ]


def _run(share: float, starts: int, window: float) -> dict[str, float]:
    with child("benchmarks.answering:serve") as there:
        base_url = f"http://127.0.0.1:{there.ask()['port']}"
        with child("benchmarks.starting.this_client:journaled", base_url=base_url, share=share) as client:
            client.ask(starts=200, tag="warm-up")
            there.ask(forget=True)
            answer = client.ask(starts=starts, tag="run")
            seen = there.ask(window=window)
    if not answer["confirmed"] == seen["served"] == starts:
        raise StartsNotConfirmedError(f"{answer['confirmed']} confirmed, {seen['served']} served, {starts} asked for")
    return {**answer, **seen}
