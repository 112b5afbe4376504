"""What the Space holds: conferences, participants, calls, streams (pure; no I/O, the clock is given)."""

import random
from collections.abc import Callable
from typing import Final

from attrs import define, field

from signalwire_streams.simulator._routes import TargetKind
from signalwire_streams.simulator.streams import Stream, StreamBook

__all__ = ["IN_PROGRESS", "Call", "Conference", "Participant", "SpaceState", "new_sid"]

IN_PROGRESS: Final = "in-progress"
_NOT_YET_STARTED: Final = frozenset({"queued", "ringing"})


@define(eq=False, kw_only=True)
class Call:
    """A call leg. Those that belong to a conference's participants carry its sid."""

    sid: str
    ordinal: int
    status: str
    from_number: str
    to_number: str
    direction: str
    created_at: float
    updated_at: float
    started_at: float | None = None
    ended_at: float | None = None
    parent_call_sid: str | None = None
    conference_sid: str | None = None


@define(eq=False, kw_only=True)
class Participant:
    """A call leg's seat in a conference."""

    call_sid: str
    conference_sid: str
    ordinal: int
    created_at: float
    updated_at: float
    status: str = IN_PROGRESS
    muted: bool = False
    hold: bool = False


@define(eq=False, kw_only=True)
class Conference:
    """A conference room; `status` is init, in-progress or completed."""

    sid: str
    ordinal: int
    friendly_name: str
    status: str
    created_at: float
    updated_at: float
    participants: list[Participant] = field(factory=list)


def new_sid(source: random.Random) -> str:
    """Draw a version 4 UUID; SignalWire's sids are UUIDs (https://signalwire.com/docs/compatibility-api/)."""
    bits = source.getrandbits(128) & ~(0xF << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@define(eq=False)
class SpaceState:
    """The Space's resources, each kept in the order of its creation."""

    _random: random.Random
    _clock: Callable[[], float]
    conferences: dict[str, Conference] = field(factory=dict, init=False)
    calls: dict[str, Call] = field(factory=dict, init=False)
    streams: StreamBook = field(factory=StreamBook, init=False)
    _ordinal: int = field(default=0, init=False)

    def add_conference(self, *, status: str, friendly_name: str | None, participants: int) -> Conference:
        """Open a conference with so many participants, each on a call leg of its own."""
        now, sid = self._clock(), new_sid(self._random)
        ordinal = self._next_ordinal()
        conference = Conference(
            sid=sid,
            ordinal=ordinal,
            friendly_name=f"conference-{ordinal}" if friendly_name is None else friendly_name,
            status=status,
            created_at=now,
            updated_at=now,
        )
        self.conferences[sid] = conference
        leg_status = "completed" if status == "completed" else IN_PROGRESS
        for _ in range(participants):
            call = self.add_call(status=leg_status, direction="inbound", conference_sid=sid)
            conference.participants.append(
                Participant(
                    call_sid=call.sid,
                    conference_sid=sid,
                    ordinal=call.ordinal,
                    created_at=now,
                    updated_at=now,
                    status=leg_status,
                )
            )
        return conference

    def add_call(
        self,
        *,
        status: str = IN_PROGRESS,
        from_number: str | None = None,
        to_number: str | None = None,
        direction: str = "outbound",
        parent_call_sid: str | None = None,
        conference_sid: str | None = None,
    ) -> Call:
        """Place a call leg; numbers that are not given are drawn from the fictitious 555-01xx range."""
        now, sid = self._clock(), new_sid(self._random)
        call = Call(
            sid=sid,
            ordinal=self._next_ordinal(),
            status=status,
            from_number=from_number if from_number is not None else self._draw_number(),
            to_number=to_number if to_number is not None else self._draw_number(),
            direction=direction,
            created_at=now,
            updated_at=now,
            started_at=None if status in _NOT_YET_STARTED else now,
            ended_at=None if status in {*_NOT_YET_STARTED, IN_PROGRESS} else now,
            parent_call_sid=parent_call_sid,
            conference_sid=conference_sid,
        )
        self.calls[sid] = call
        return call

    def find_target(self, kind: TargetKind, sid: str | None) -> Conference | Call | None:
        """Find what a stream can be started on."""
        return self.calls.get(sid or "") if kind == "call" else self.conferences.get(sid or "")

    def start_stream(self, stream: Stream) -> Stream:
        """Enter a stream; the caller has checked it."""
        self.streams.add(stream)
        return stream

    def stop_stream(self, stream: Stream) -> None:
        """End a stream that lives."""
        self.streams.stop([stream], self._clock())

    def end_conference(self, sid: str) -> None:
        """Complete a conference: its streams stop, its participants and their call legs are completed."""
        now = self._clock()
        conference = self.conferences[sid]
        conference.status, conference.updated_at = "completed", now
        self.streams.stop(self.streams.alive_on(sid), now)
        for participant in conference.participants:
            participant.status, participant.updated_at = "completed", now
            self.end_call(participant.call_sid)

    def end_call(self, sid: str) -> None:
        """Complete a call: its streams stop."""
        now = self._clock()
        call = self.calls[sid]
        call.status, call.updated_at, call.ended_at = "completed", now, now
        self.streams.stop(self.streams.alive_on(sid), now)

    def draw_sid(self) -> str:
        """Draw the next sid of the seeded row."""
        return new_sid(self._random)

    def now(self) -> float:
        """Read the Space's clock, in POSIX seconds."""
        return self._clock()

    def _next_ordinal(self) -> int:
        self._ordinal += 1
        return self._ordinal

    def _draw_number(self) -> str:
        return f"+1{self._random.randrange(201, 990)}55501{self._random.randrange(100):02}"
