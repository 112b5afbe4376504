"""The documented filters of the three lists (pure).

https://signalwire.com/docs/compatibility-api/ documents the names and the enumerations. That fields which it does not
name are ignored, and that a value outside an enumeration is a 422, is our reading.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import eq, gt, lt
from typing import Any, Final, TypeVar

from signalwire_streams.simulator.dates import day_of, read_day, read_moment
from signalwire_streams.simulator.paging import INVALID_ARGUMENT, BadQuery
from signalwire_streams.simulator._state import Call, Conference, Participant

__all__ = ["select_calls", "select_conferences", "select_participants"]

_Item = TypeVar("_Item")
Test = Callable[[_Item], bool]
Filter = Callable[[str], Test[_Item]]
Comparison = Callable[[Any, Any], bool]

_COMPARISONS: Final[Mapping[str, Comparison]] = {"": eq, "<": lt, ">": gt}
_LONGEST_FRIENDLY_NAME: Final = 64


def _refuse(message: str) -> BadQuery:
    return BadQuery(422, INVALID_ARGUMENT, message)


def _one_of(name: str, choices: Iterable[str], read: Callable[[_Item], str]) -> Filter[_Item]:
    allowed = tuple(choices)

    def parse(value: str) -> Test[_Item]:
        if value not in allowed:
            raise _refuse(f"{name} must be one of {', '.join(allowed)}")
        return lambda item: read(item) == value

    return parse


def _equal(read: Callable[[_Item], str | None]) -> Filter[_Item]:
    return lambda value: lambda item: read(item) == value


def _boolean(name: str, read: Callable[[_Item], bool]) -> Filter[_Item]:
    def spell(item: _Item) -> str:
        return "true" if read(item) else "false"

    as_text: Filter[_Item] = _one_of(name, ("true", "false"), spell)
    return lambda value: as_text(value.lower())


def _friendly_name(value: str) -> Test[Conference]:
    if len(value) > _LONGEST_FRIENDLY_NAME:
        raise _refuse(f"FriendlyName must have at most {_LONGEST_FRIENDLY_NAME} characters")
    return lambda conference: conference.friendly_name == value


def _days(name: str, read: Callable[[Conference], float]) -> dict[str, Filter[Conference]]:
    def on(compare: Comparison) -> Filter[Conference]:
        def parse(value: str) -> Test[Conference]:
            day = read_day(value)
            if day is None:
                raise _refuse(f"{name} must be a date, YYYY-MM-DD")
            return lambda conference: compare(day_of(read(conference)), day)

        return parse

    return {f"{name}{sign}": on(compare) for sign, compare in _COMPARISONS.items()}


def _times(name: str, read: Callable[[Call], float | None]) -> dict[str, Filter[Call]]:
    def on(compare: Comparison) -> Filter[Call]:
        def parse(value: str) -> Test[Call]:
            moment, day = read_moment(value), read_day(value)
            if moment is None and day is None:
                raise _refuse(f"{name} must be a time in RFC 2822 format or a date, YYYY-MM-DD")

            def test(call: Call) -> bool:
                then = read(call)
                if then is None:
                    return False
                return compare(day_of(then), day) if day is not None else compare(int(then), moment)

            return test

        return parse

    return {f"{name}{sign}": on(compare) for sign, compare in _COMPARISONS.items()}


_CONFERENCES: Final[dict[str, Filter[Conference]]] = {
    "Status": _one_of("Status", ("init", "in-progress", "completed"), lambda item: item.status),
    "FriendlyName": _friendly_name,
    **_days("DateCreated", lambda conference: conference.created_at),
    **_days("DateUpdated", lambda conference: conference.updated_at),
}
_CALLS: Final[dict[str, Filter[Call]]] = {
    "Status": _one_of(
        "Status",
        ("queued", "ringing", "in-progress", "canceled", "completed", "busy", "failed", "no-answer"),
        lambda item: item.status,
    ),
    "From": _equal(lambda call: call.from_number),
    "To": _equal(lambda call: call.to_number),
    "ParentCallSid": _equal(lambda call: call.parent_call_sid),
    **_times("StartTime", lambda call: call.started_at),
    **_times("EndTime", lambda call: call.ended_at),
}
_PARTICIPANTS: Final[dict[str, Filter[Participant]]] = {
    "Muted": _boolean("Muted", lambda participant: participant.muted),
    "Hold": _boolean("Hold", lambda participant: participant.hold),
}


def select_conferences(conferences: Iterable[Conference], query: Mapping[str, str]) -> list[Conference]:
    """Give the conferences that a query asks for."""
    return _select(conferences, query, _CONFERENCES)


def select_calls(calls: Iterable[Call], query: Mapping[str, str]) -> list[Call]:
    """Give the calls that a query asks for."""
    return _select(calls, query, _CALLS)


def select_participants(participants: Iterable[Participant], query: Mapping[str, str]) -> list[Participant]:
    """Give a conference's participants that a query asks for."""
    return _select(participants, query, _PARTICIPANTS)


def _select(items: Iterable[_Item], query: Mapping[str, str], filters: Mapping[str, Filter[_Item]]) -> list[_Item]:
    tests = [filters[name](value) for name, value in query.items() if name in filters]
    return [item for item in items if all(test(item) for test in tests)]
