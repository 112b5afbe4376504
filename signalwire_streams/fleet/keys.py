"""What things are called in Redis. All that belongs to one project of one Space begins with the same words."""

from re import fullmatch

from attrs import frozen

from signalwire_streams.errors import InvalidRequestError

BATCH = 25
"""Starts per task: 1 of each would make the engine the bottleneck, and many would be in doubt when a host dies."""

_VERSION = 1
_LONGEST = 64


@frozen
class Keys:
    """The names of one project's things.

    Attributes:
        origin: the Space's address.
        project: the Project ID.
    """

    origin: str
    project: str

    @property
    def prefix(self) -> str:
        """What all names begin with; the engine calls this project's queue so, and ours go on with ``our``."""
        return f"sws-fleet-{_VERSION}:{self.origin.partition('://')[2]}:{self.project}"

    @property
    def workers(self) -> str:
        """The set of workers."""
        return f"{self.prefix}:our:workers"

    @property
    def runs(self) -> str:
        """The runs, by when they are forgotten."""
        return f"{self.prefix}:our:runs"

    def worker(self, name: str) -> str:
        """What one worker tells of itself."""
        return f"{self.prefix}:our:worker:{name}"

    def run(self, run: str) -> str:
        """A run's facts and counts."""
        return f"{self.prefix}:our:run:{run}"

    def of(self, run: str, plan: str) -> "RunKeys":
        """Give the names of one run's things."""
        return RunKeys(self.run(run), plan)


@frozen
class RunKeys:
    """The names of one run's things.

    All but its facts have the name of its plan as well, which no other run has: one of the same name that is submitted
    when this one is forgotten must not take what is left of it for its own.

    Attributes:
        facts: the run's facts and counts.
        plan: the name of its plan.
    """

    facts: str
    plan: str

    def requests(self, batch: int) -> str:
        """The requests of a batch."""
        return f"{self.facts}:{self.plan}:requests:{batch}"

    def marks(self, batch: int) -> str:
        """The marks of a batch's starts."""
        return f"{self.facts}:{self.plan}:marks:{batch}"

    def lease(self, batch: int) -> str:
        """Who works on a batch."""
        return f"{self.facts}:{self.plan}:lease:{batch}"

    @property
    def outcomes(self) -> str:
        """The run's outcomes, in the order of their ends."""
        return f"{self.facts}:{self.plan}:outcomes"

    @property
    def undone(self) -> str:
        """Which of its streams were stopped again."""
        return f"{self.facts}:{self.plan}:undone"


def check_run(run: object) -> str:
    """Check the name of a run: it becomes a part of its streams' names.

    Raises:
        InvalidRequestError: it can't be one.
    """
    if not isinstance(run, str) or not fullmatch(r"[0-9A-Za-z_-]{1,64}", run):
        raise InvalidRequestError("a run's name has 1 to 64 letters, digits, '-' or '_': choose such a one")
    return run


def next_run(run: str) -> str:
    """Call the run that goes on with another: ``nightly-r2`` after ``nightly``, ``nightly-r3`` after that.

    Raises:
        InvalidRequestError: that would be too long.
    """
    found = fullmatch(r"(.+)-r([1-9][0-9]{0,3})", run)
    following = f"{run}-r2" if found is None else f"{found[1]}-r{int(found[2]) + 1}"
    if len(following) > _LONGEST:
        raise InvalidRequestError(f"{following!r} is too long for a run's name: say what the new run is to be called")
    return following
