"""The record that a keeper has of each target's attempts, and the protocol of the stores that have the records."""

import json
import secrets
from collections.abc import Mapping
from typing import Protocol, Self, TypeAlias, TypeVar

from attrs import field, frozen
from attrs.validators import instance_of

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.keep_streaming._state import Fate, StreamAttempt, TargetState
from signalwire_streams.models import TargetKind

Target: TypeAlias = tuple[TargetKind, str]
"""The kind and the sid of a conference or call."""

_Value = TypeVar("_Value")
_BASE_BITS = 48  # JSON readers in other languages have integers of 53 bits


def new_state() -> TargetState:
    """Return the state of a target that appears.

    Its attempts begin at a random number. So no attempt has the number of one that a lost journal recorded, or of one
    that was forgotten with the target.
    """
    return TargetState(last=secrets.randbits(_BASE_BITS))


@frozen(kw_only=True)
class KeptTarget:
    """A target's record.

    Attributes:
        state: what a keeper that restarts has to know of it.
        fingerprints: those of the requests of its attempts, by number.
    """

    state: TargetState
    fingerprints: Mapping[int, str] = field(factory=dict)

    def encode(self) -> str:
        state = self.state
        content: dict[str, object] = {
            "last": state.last,
            "attempts": [
                [attempt.number, attempt.fate, attempt.sid, self.fingerprints.get(attempt.number)]
                for attempt in state.attempts
            ],
            "has_streamed": state.has_streamed,
        }
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read a record; raise ValueError, TypeError or LookupError for any other text."""
        content = json.loads(text)
        attempts = tuple(
            StreamAttempt(number=_checked(number, int), fate=Fate(fate), sid=sid and _checked(sid, str))
            for number, fate, sid, _ in content["attempts"]
        )
        state = TargetState(
            last=_checked(content["last"], int),
            attempts=attempts,
            has_streamed=_checked(content["has_streamed"], bool),
        )
        known = {number: _checked(text, str) for number, *_, text in content["attempts"] if text is not None}
        return cls(state=state, fingerprints=known)


def _checked(value: object, kind: type[_Value]) -> _Value:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    return value


@frozen
class KeeperOwner:
    """The keeper that owns a journal."""

    origin: str = field(validator=instance_of(str))
    project: str = field(validator=instance_of(str))
    name: str = field(validator=instance_of(str))
    names: str = field(default="reusable", validator=instance_of(str))  # the names that its attempts have

    def check(self, path: object, known: "KeeperOwner") -> None:
        for noun, its, ours in (("Space", known.origin, self.origin), ("project", known.project, self.project)):
            if its != ours:
                raise InvalidRequestError(
                    f"{path} belongs to the {noun} {its}: use it there, and name another file for {ours}"
                )
        if known.name != self.name:
            raise InvalidRequestError(
                f"{path} belongs to the keeper named {known.name!r}: pass name={known.name!r}, or name another file "
                f"for {self.name!r}"
            )
        self.check_names(path, known.names, instead="name another file")

    def check_names(self, place: object, known: str, *, instead: str) -> None:
        """Check that the names of the streams that a journal has are formed as this keeper's are."""
        if known != self.names:
            raise InvalidRequestError(
                f"{place} has streams that were started with names={known!r}, which are formed differently: pass "
                f"names={known!r}, or stop them first (on_exit='stop') and {instead}"
            )


class LeaseLostError(Exception):
    """Another keeper has taken over, or may do so soon, so nothing may be sent; never raised to a user."""


class KeeperStore(Protocol):
    """The records of one keeper, which no other keeper changes as long as this one may act.

    Attributes:
        targets: the records that an earlier keeper left, as of the last `acquire` that returned True.
        is_lost: whether another keeper may have acted since the last `acquire`.
    """

    targets: dict[Target, KeptTarget]
    is_lost: bool

    @property
    def obstacle(self) -> str | None:
        """Why nothing may be sent now; None if it may."""

    async def acquire(self) -> bool:
        """Wait until this keeper may act. Return whether another one may have acted since the last time."""

    async def permit(self) -> float:
        """Wait until a request may be sent. Return when it has to have ended, on the client's clock.

        Raises:
            LeaseLostError: another keeper has taken over, or this one ends.
        """

    async def save(self, target: Target, kept: KeptTarget) -> None:
        """Write a target's record, and return once it is safe.

        Raises:
            LeaseLostError: as `permit`.
        """

    def save_later(self, target: Target, kept: KeptTarget) -> None:
        """Write a target's record with the next ones, if it has changed."""

    def forget(self, target: Target) -> None:
        """Remove the record of a target that has ended."""

    def stop_waiting(self) -> None:
        """Have what waits for a permission fail from now on."""

    async def aclose(self) -> None:
        """Write what is pending, and let another keeper act."""
