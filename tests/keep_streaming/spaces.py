"""Keepers and Spaces that the model checker puts together, and how many faults it tries."""

from random import Random
from typing import Any

from attrs import frozen

from signalwire_streams.keep_streaming import KeepSettings
from tests.keep_streaming.model import MAX_STARTS, Faults, Model, Result, Space

EACH = Faults(
    lost_responses=2,
    kills=1,
    lost_journals=1,
    drops=1,
    half_open=1,
    repeats=1,
    late=1,
    torn_lists=1,
    rejections=1,
    ends=1,
)
"""The bound: so many of each at most."""


DOCUMENTED = Space()


@frozen(kw_only=True)
class Setup:
    """A keeper and its Space.

    Attributes:
        settings: the keeper's, whose times are all of one length.
        space: how the Space behaves.
        at_most_one: whether there may never be two streams.
        at_least_one: whether there has to be one, or an event that says that nobody can know.
        without: faults after which nothing can be promised, so that they are not tried.
        replaces: whether a keeper that begins again wants other streams.
    """

    settings: KeepSettings
    space: Space = DOCUMENTED
    at_most_one: bool = True
    at_least_one: bool = True
    without: tuple[str, ...] = ()
    replaces: bool = False

    def check(self, faults: Faults, *, starts: int = MAX_STARTS, **changes: Any) -> Result:
        return self._model(**changes).check(faults._replace(**dict.fromkeys(self.without, 0)), starts=starts)

    def walk(self, steps: int, seed: int) -> Result:
        random = Random(seed)  # noqa: S311  (no secret depends on it)
        # One that ends after its journal was lost can't tell what it left.
        without = dict.fromkeys((*self.without, "ends", "stops"), 0)
        endless = Faults(*(steps for _ in Faults._fields))._replace(**without)
        return self._model().walk(endless, steps, random)

    def _model(self, **changes: Any) -> Model:
        promises: Any = {"at_most_one": self.at_most_one, "at_least_one": self.at_least_one, "replaces": self.replaces}
        return Model(self.settings, self.space, **promises, **changes)


def settings(duplicate_names: str, **changes: Any) -> KeepSettings:
    times: dict[str, Any] = dict.fromkeys(
        ("socket_timeout", "reassert", "min_lifetime", "wait_initial", "wait_max"), 1.0
    )
    return KeepSettings(duplicate_names=duplicate_names, **times, **changes)


def faults(total: int, **each: int) -> Faults:
    return Faults(total=total, **each) if each else EACH._replace(total=total)


_JOURNAL = ("lost_journals",)  # without it nobody refuses a second stream
_NAMED = settings("refused")
_RECEIVED = settings("refused", receives=True)
_RELIABLE = Space(refuses=None, loses_callbacks=False)

CONFERENCES = {
    f"refused in the {refuses}, {where}": Setup(settings=kept, space=Space(refuses=refuses))
    for refuses in ("response", "callback")
    for where, kept in (("received elsewhere", _NAMED), ("received here", _RECEIVED))
}
OTHERS = {
    "another keeper's stream": Setup(settings=_NAMED, space=Space(has_foreign=True)),
    "another keeper's stream, received here": Setup(settings=_RECEIVED, space=Space(has_foreign=True)),
    "names are not found": Setup(settings=_NAMED, space=Space(finds_names=False)),
    "names are not found, received here": Setup(settings=_RECEIVED, space=Space(finds_names=False)),
    "names once": Setup(
        settings=settings("refused", names="once"),
        space=Space(is_reusable=False, loses_callbacks=False),
        without=_JOURNAL,
    ),
    "names once, received here": Setup(
        settings=settings("refused", names="once", receives=True), space=Space(is_reusable=False), without=_JOURNAL
    ),
    "names once, believed to be reusable": Setup(settings=_NAMED, space=Space(is_reusable=False), at_least_one=False),
    "names once, believed to be reusable, received here": Setup(
        settings=_RECEIVED, space=Space(is_reusable=False), at_least_one=False
    ),
    "calls that hold": Setup(settings=settings("allowed"), space=_RELIABLE, without=_JOURNAL),
    "calls that hold, received here": Setup(
        settings=settings("allowed", receives=True), space=Space(refuses=None), without=_JOURNAL
    ),
    "calls that hold and need not": Setup(
        settings=settings("allowed", receives=True), space=Space(refuses="callback"), without=_JOURNAL
    ),
    "calls that restart": Setup(
        settings=settings("allowed", in_doubt="restart"), space=_RELIABLE, at_most_one=False, without=_JOURNAL
    ),
    "calls that restart, received here": Setup(
        settings=settings("allowed", in_doubt="restart", receives=True),
        space=Space(refuses=None),
        at_most_one=False,
        without=_JOURNAL,
    ),
}
