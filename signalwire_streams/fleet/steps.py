"""The steps that scripts take in Redis, spelt as commands: one at a time, or many of a kind as one."""

from collections.abc import Sequence
from typing import Any

from attrs import frozen

from signalwire_streams.fleet._redis import Command, command


@frozen
class Step:
    """What is to be done for one start.

    Attributes:
        source: the script; one that is written for many.
        shared: the keys that starts of one run share.
        own: this start's own key.
        values: what it takes beside.
    """

    source: str
    shared: tuple[str, ...]
    own: str
    values: tuple[object, ...]


def script(source: str, keys: Sequence[str], *values: object) -> Command:
    """Spell the run of a script."""
    return command("eval", source, len(keys), *keys, *map(str, values))


def joined(steps: Sequence[Step]) -> list[tuple[Command, list[int]]]:
    """Spell steps as few commands, each with the places of the steps that it takes, in the order of its answers."""
    places: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for place, step in enumerate(steps):
        places.setdefault((step.source, step.shared), []).append(place)
    commands = []
    for (source, shared), mine in places.items():
        keys = [*shared, *(steps[place].own for place in mine)]
        values = [value for place in mine for value in steps[place].values]
        commands.append((script(source, keys, *values), mine))
    return commands


def reply_of(reply: Any) -> str:  # noqa: ANN401  (Redis gives bytes or text)
    """Give the word that a script answered."""
    return reply.decode() if isinstance(reply, bytes) else str(reply)
