"""The decisions of a keeper: from the state of a target and an observation to a new state and actions, without I/O.

"Exactly one stream" has two halves. At most one: the Space refuses a second stream of a name, or nothing is started
while another stream may be running. At least one: a target without a stream that is known to run gets one.
"""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Self, TypeAlias

from attrs import evolve, frozen

from signalwire_streams.keep_streaming._events import (
    KeepEvent,
    KeepStatus,
    StreamingInDoubt,
    StreamingLost,
    StreamingRestarted,
    StreamingStarted,
    TargetAppeared,
    TargetEnded,
    TargetFailing,
)
from signalwire_streams.keep_streaming._settings import InDoubtPolicy, KeepSettings
from signalwire_streams.keep_streaming._state import (
    EndedCallback,
    Fate,
    GetTarget,
    KeepAction,
    KeepDecision,
    KeeperRestarted,
    KeepObservation,
    NameRefused,
    ObservationOfAttempt,
    ResponseLost,
    SaveAttempt,
    SocketClosed,
    SocketOpened,
    StartAccepted,
    StartedCallback,
    StartRejected,
    StartStream,
    StopAnswered,
    StopByName,
    StopBySid,
    StopResult,
    StreamAttempt,
    TargetChecked,
    TargetMissing,
    TargetState,
    WaitUntil,
)

MAX_ATTEMPTS = 8  # that are remembered; a late stream of another one is not recognized
_MAX_DOUBLINGS = 32
_NONE = StreamAttempt(number=0)
_CLOSED = "its socket was closed"
_STOPPED = "it was stopped"
_NOBODYS = "the Space refuses the name, so another keeper's stream has it, or the Space accepts no name twice"
_OTHER = "the Space refuses the name, which a stream with other fields may have"
_UNHEARD = "its socket was not opened in time"
_UNKNOWN = "the response to a start was lost, and the Space may accept a second stream"
_NOT_FOUND = "the Space found no stream by its name, but a late start may still create one"


@frozen(kw_only=True)
class Case:
    """A state and the moment of an observation, with the changes that rules are made of."""

    state: TargetState
    now: float
    settings: KeepSettings
    paused_until: float = -inf
    attempt: StreamAttempt = _NONE  # that the observation is of

    def set(self, **changes: Any) -> Self:  # noqa: ANN401  (fields of several types, checked by the tests)
        return evolve(self, state=evolve(self.state, **changes))

    def change(self, fate: Fate, **changes: Any) -> Self:  # noqa: ANN401  (the same)
        attempt = evolve(self.attempt, fate=fate, **changes)
        attempts = (attempt if each.number == attempt.number else each for each in self.state.attempts)
        return self.set(attempts=tuple(attempts))

    def close(self) -> Self:
        """The stream of the attempt has ended, or was never made: one start makes one stream at most."""
        return self.set(attempts=tuple(each for each in self.state.attempts if each.number != self.attempt.number))

    def turn(self, *fates: Fate, to: Fate) -> Self:
        attempts = (evolve(each, fate=to) if each.fate in fates else each for each in self.state.attempts)
        return self.set(attempts=tuple(attempts))

    def wait(self, seconds: float) -> Self:
        return self.set(next_at=self.now + seconds)

    def report(self, status: KeepStatus, reason: str | None = None) -> Self:
        return self.set(status=status, reason=reason)

    def accept(self, fate: Fate, sid: str) -> Self:
        """A stream of the attempt runs, as far as anybody knows now."""
        if self.attempt.is_unwanted:
            return self.change(Fate.ENDING, sid=sid).wait(0.0)
        return self.change(fate, sid=sid, settles_at=self.now + self.settings.min_lifetime).believe()

    def believe(self) -> Self:
        seconds = self.settings.socket_timeout if self.settings.receives else self.settings.reassert
        is_received = self.settings.receives and self.state.of_fate(Fate.HEARD)
        return self.report(KeepStatus.STREAMING).wait(0.0 if is_received else seconds)

    def fail(self, reason: str) -> Self:
        state, settings = self.state, self.settings
        seconds = min(settings.wait_max, settings.wait_initial * 2 ** min(state.failures, _MAX_DOUBLINGS))
        failed = self.set(failures=state.failures + 1).wait(seconds)
        return failed if state.of_fate(Fate.HEARD) else failed.report(KeepStatus.FAILING, reason)

    def refuse(self, reason: str) -> Self:
        """The stream did not last, which may be its receiver's doing."""
        return self.set(early_ends=self.state.early_ends + 1).fail(reason)

    def end(self, reason: str) -> Self:
        """The stream of the attempt has certainly ended."""
        was_presumed = self.attempt.fate in {Fate.ENDING, Fate.ABANDONED}
        return self.close() if was_presumed else self.close().lose(reason)

    def lose(self, reason: str) -> Self:
        """A stream ended. That counts as failing if it did so soon, and matters unless another one runs."""
        if self.has_stream:
            return self
        lost = self.set(check_due=True)
        if self.now < self.attempt.settles_at:
            return lost.refuse(reason)
        return lost.set(failures=0).wait(0.0).report(KeepStatus.WAITING, reason)

    @property
    def has_stream(self) -> bool:
        # The sid of an accepted start may be that of a stream that the Space refuses in its callback.
        known = (Fate.HEARD,) if self.settings.is_guarded else (Fate.HEARD, Fate.ANSWERED)
        return bool(self.state.of_fate(*known))


Step: TypeAlias = tuple[Case, tuple[KeepAction, ...]]


@frozen
class Observed:
    """What an observation changes; None if a later rule decides that."""

    kind: type[Any]
    apply: Callable[[Case, Any], Case | None]


@frozen
class Planned:
    """What is done next; None if a later rule decides that."""

    apply: Callable[[Case], Step | None]


# --- What observations change


def _ignore_late(case: Case, _: ObservationOfAttempt) -> Case | None:
    return case if case.attempt is _NONE else None


def _check_missing(case: Case, _: TargetMissing) -> Case:
    return case.set(check_due=True)


def _close_ended_target(case: Case, check: TargetChecked) -> Case | None:
    if check.in_progress is not False:
        return None
    return case.set(attempts=(), pending=None, check_due=False).report(KeepStatus.ENDED)


def _finish_check(case: Case, check: TargetChecked) -> Case:
    case = case.set(pending=None)
    # Without an answer it is taken to be in progress. If it is not, a start is rejected, and it is checked again.
    waits = check.in_progress is None and case.state.next_at < case.now + case.settings.wait_initial
    return case.wait(case.settings.wait_initial) if waits else case


def _accept(case: Case, answer: StartAccepted) -> Case:
    # Its socket, or a callback, may have come before its response.
    return case.accept(Fate.ANSWERED, answer.sid) if case.attempt.fate is Fate.SENDING else case


def _refuse_name(case: Case, _: NameRefused) -> Case:
    if case.attempt.fate is Fate.HEARD:  # a gateway sent its start twice, and the second one was refused
        return case
    case = case.close()
    if may_run := case.state.of_fate(Fate.IN_DOUBT, Fate.ANSWERED, Fate.HEARD):
        if any(attempt.settles_at <= case.now for attempt in may_run):  # it lasts: an earlier failure is over
            case = case.set(failures=0)
        if case.has_stream or not any(attempt.is_unwanted for attempt in case.state.attempts):
            return case.believe()
        return case.report(KeepStatus.IN_DOUBT, _OTHER).wait(case.settings.reassert)
    if case.state.of_fate(Fate.ENDING):  # it had the name, and is stopped next
        was_believed = case.state.status is KeepStatus.STREAMING
        return case.report(KeepStatus.WAITING, _CLOSED).wait(0.0) if was_believed else case
    if any(attempt.is_unwanted for attempt in case.state.of_fate(Fate.ABANDONED)):  # it may have started late
        case = case.turn(Fate.ABANDONED, to=Fate.ENDING)
        return case.report(KeepStatus.IN_DOUBT, _OTHER).wait(case.settings.reassert)
    return case.report(KeepStatus.IN_DOUBT, _NOBODYS).wait(case.settings.reassert)


def _reject(case: Case, answer: StartRejected) -> Case:
    was = case.state.status
    case = case.close().set(check_due=case.state.check_due or answer.may_have_ended).fail(answer.reason)
    # A stream that was started again for its name to be rejected keeps running, whatever the Space said of the start.
    lives_on = was is KeepStatus.STREAMING and case.state.of_fate(Fate.ANSWERED, Fate.HEARD)
    return case.report(was) if lives_on else case


def _doubt(case: Case, answer: ResponseLost) -> Case:
    if case.attempt.fate is not Fate.SENDING:
        return case
    was = case.state
    case = case.change(Fate.IN_DOUBT).fail(answer.reason)
    if was.status is KeepStatus.STREAMING:
        case = case.report(was.status)
    if not case.settings.is_guarded and case.settings.receives:  # a socket resolves the doubt, if it comes
        case = case.wait(max(case.state.next_at - case.now, case.settings.socket_timeout))
    return case


def _hear_socket(case: Case, opened: SocketOpened) -> Case:
    return case.accept(Fate.HEARD, opened.sid)


def _hear_callback(case: Case, started: StartedCallback) -> Case:
    if case.attempt.fate is Fate.ENDING:  # that is final, however late its start is reported
        return case.change(Fate.ENDING, sid=started.sid)
    if case.attempt.fate is Fate.HEARD:
        return case
    return case.accept(Fate.ANSWERED if case.settings.receives else Fate.HEARD, started.sid)


def _presume_ended(case: Case, _: SocketClosed) -> Case:
    return case.change(Fate.ENDING).lose(_CLOSED)


def _close_ended(case: Case, ended: EndedCallback) -> Case:
    return case.end(ended.reason)


def _finish_stop_by_sid(case: Case, answer: StopAnswered) -> Case | None:
    if answer.result is StopResult.FAILED or not isinstance(answer.stop, StopBySid):
        return None
    stopped = [attempt for attempt in case.state.attempts if attempt.sid == answer.stop.sid]
    case = case.set(pending=None)
    return evolve(case, attempt=stopped[0]).end(_STOPPED) if stopped else case


def _finish_stop_by_name(case: Case, answer: StopAnswered) -> Case | None:
    if answer.result is StopResult.FAILED or not isinstance(answer.stop, StopByName):
        return None
    # The start may still be carried out, so it is remembered.
    stopped = case.state.find(answer.stop.attempt)
    case = case.set(pending=None)
    if stopped is not None and stopped.fate is Fate.ENDING and stopped.sid is None:
        case = evolve(case, attempt=stopped).change(Fate.ABANDONED)
    return case.report(KeepStatus.IN_DOUBT, _NOT_FOUND) if answer.result is StopResult.NOT_FOUND else case


def _retry_stop(case: Case, answer: StopAnswered) -> Case:
    return case.set(pending=None).fail(answer.reason)


def _recover(case: Case, restarted: KeeperRestarted) -> Case:
    # The sockets of the previous process are closed, whether or not the Space has noticed. Elsewhere a stream runs on.
    lives_on = case.settings.is_guarded and not case.settings.receives and not restarted.replaces
    case = case.turn(Fate.ANSWERED, Fate.HEARD, to=Fate.ANSWERED if lives_on else Fate.ENDING)
    case = case.turn(Fate.SENDING, to=Fate.IN_DOUBT).report(KeepStatus.WAITING)
    # A stop by name proves nothing, so on a call a start in doubt would be followed by a second one.
    if restarted.replaces and (case.settings.is_guarded or case.settings.in_doubt is not InDoubtPolicy.HOLD):
        case = case.turn(Fate.IN_DOUBT, to=Fate.ENDING)
    attempts = tuple(
        evolve(attempt, settles_at=case.now, is_unwanted=restarted.replaces) for attempt in case.state.attempts
    )
    reported = {"reported": KeepStatus.WAITING, "reported_reason": None}
    return case.set(attempts=attempts, pending=None, check_due=False, failures=0, **reported).wait(0.0)


# --- What is done next


def _await_response(case: Case) -> Step | None:
    return (case, ()) if case.state.pending is not None or case.state.of_fate(Fate.SENDING) else None


def _check_target(case: Case) -> Step | None:
    get = GetTarget()
    return (case.set(pending=get, check_due=False), (get,)) if case.state.check_due else None


def _rest(case: Case) -> Step | None:
    return (case, (WaitUntil(at=case.state.next_at),)) if case.now < case.state.next_at else None


def _stop_second(case: Case) -> Step | None:
    older, *others = case.state.of_fate(Fate.HEARD) or (None,)
    return _stop(case, older) if older is not None and others else None


def _give_up_unheard(case: Case) -> Step | None:
    if not case.settings.receives:
        return None
    unheard = [Fate.ANSWERED]
    if case.settings.is_guarded and case.state.status is KeepStatus.STREAMING and not case.has_stream:
        unheard.append(Fate.IN_DOUBT)  # the Space refuses the name, so it may be this one that runs
    given_up = case.turn(*unheard, to=Fate.ENDING)
    return _rest(given_up.refuse(_UNHEARD)) if given_up != case else None


def _let_run(case: Case) -> Step | None:
    # What is received elsewhere is started again from time to time, if that is safe.
    may_have_ended = case.settings.is_guarded and not case.settings.receives
    return (case, ()) if case.has_stream and not may_have_ended else None


def _stop_by_sid(case: Case) -> Step | None:
    ending = [attempt for attempt in case.state.of_fate(Fate.ENDING) if attempt.sid is not None]
    return _stop(case, ending[0]) if ending else None


def _stop_by_name(case: Case) -> Step | None:
    ending = [attempt for attempt in case.state.of_fate(Fate.ENDING) if attempt.sid is None]
    return _stop(case, ending[0]) if ending else None


def _stop(case: Case, attempt: StreamAttempt) -> Step:
    stop = StopByName(attempt=attempt.number) if attempt.sid is None else StopBySid(sid=attempt.sid)
    return case.set(pending=stop), (stop,)


def _hold(case: Case) -> Step | None:
    is_held = case.settings.in_doubt is InDoubtPolicy.HOLD and _is_risky(case)
    return (case.report(KeepStatus.IN_DOUBT, _UNKNOWN), ()) if is_held else None


def _stop_doubtful(case: Case) -> Step | None:
    doubtful = case.report(KeepStatus.IN_DOUBT, _UNKNOWN).turn(Fate.IN_DOUBT, to=Fate.ENDING)
    return _stop_by_name(doubtful) if _is_risky(case) else None


def _is_risky(case: Case) -> bool:
    return not case.settings.is_guarded and bool(case.state.of_fate(Fate.IN_DOUBT))


def _await_receiver(case: Case) -> Step | None:
    return (case, (WaitUntil(at=case.paused_until),)) if case.now < case.paused_until else None


def _start(case: Case) -> Step:
    attempt = StreamAttempt(number=case.state.last + 1)
    # The first one is kept: if the Space refuses names in callbacks that are lost, it is the one that runs.
    first, others = case.state.attempts[:1], case.state.attempts[1:]
    case = case.set(last=attempt.number, attempts=(*first, *others[2 - MAX_ATTEMPTS :], attempt))
    return case, (SaveAttempt(attempt=attempt.number), StartStream(attempt=attempt.number))


RULES: Mapping[str, Observed | Planned] = {
    # What observations change
    "a late observation of an older attempt changes nothing": Observed(ObservationOfAttempt, _ignore_late),
    "a target missing from a list is checked": Observed(TargetMissing, _check_missing),
    "a completed target is forgotten": Observed(TargetChecked, _close_ended_target),
    "a target that was checked is kept": Observed(TargetChecked, _finish_check),
    "an accepted start is believed to run": Observed(StartAccepted, _accept),
    "a refused name means that a stream runs": Observed(NameRefused, _refuse_name),
    "a rejected start is closed": Observed(StartRejected, _reject),
    "a start without a response is in doubt": Observed(ResponseLost, _doubt),
    "an open socket is a stream": Observed(SocketOpened, _hear_socket),
    "a callback reports a stream": Observed(StartedCallback, _hear_callback),
    "a closed socket is a hint": Observed(SocketClosed, _presume_ended),
    "a callback reports an end": Observed(EndedCallback, _close_ended),
    "a stop by sid is proof": Observed(StopAnswered, _finish_stop_by_sid),
    "a stop by name proves nothing": Observed(StopAnswered, _finish_stop_by_name),
    "a stop that failed is repeated": Observed(StopAnswered, _retry_stop),
    "after a restart of the keeper nothing is certain": Observed(KeeperRestarted, _recover),
    # What is done next
    "a request under way is waited for": Planned(_await_response),
    "a target that may have ended is checked": Planned(_check_target),
    "nothing is done before its time": Planned(_rest),
    "of two streams the older one is stopped": Planned(_stop_second),
    "what may still run is stopped first": Planned(_stop_by_sid),
    "a stream that is not heard is given up": Planned(_give_up_unheard),
    "a stream that runs is left alone": Planned(_let_run),
    "without its sid it is stopped by its name": Planned(_stop_by_name),
    "a doubt holds, if a second stream would not be refused": Planned(_hold),
    "or else the stream is stopped by its name": Planned(_stop_doubtful),
    "while a receiver rejects all streams, nothing is started": Planned(_await_receiver),
    "a target without a stream gets one": Planned(_start),
}
"""The first rule that applies decides: one for what an observation changes, then one for what is done next."""


def _report(state: TargetState, settings: KeepSettings) -> tuple[TargetState, tuple[KeepEvent, ...]]:
    """Return the events of what has changed since the last ones.

    While a target is checked, it may just have ended. A stream that is received here is reported once it is heard.
    """
    status, before, reason = state.status, state.reported, state.reason
    is_unheard = status is KeepStatus.STREAMING and settings.receives and not state.of_fate(Fate.HEARD)
    if before is not None and (state.check_due or isinstance(state.pending, GetTarget) or is_unheard):
        return state, ()
    if is_unheard:
        status = KeepStatus.WAITING
    events: list[KeepEvent] = []
    if before is None:
        events.append(TargetAppeared())
    if (status, reason) != (before, state.reported_reason):
        if before is KeepStatus.STREAMING and status is not KeepStatus.ENDED:
            events.append(StreamingLost(reason=reason))
        if status is KeepStatus.STREAMING:
            events.append(StreamingRestarted() if state.has_streamed else StreamingStarted())
        elif status is KeepStatus.IN_DOUBT:
            events.append(StreamingInDoubt(reason=reason))
        elif status is KeepStatus.FAILING:
            events.append(TargetFailing(reason=reason, failures=state.failures))
        elif status is KeepStatus.ENDED:
            events.append(TargetEnded())
    has_streamed = state.has_streamed or status is KeepStatus.STREAMING
    return evolve(state, reported=status, reported_reason=reason, has_streamed=has_streamed), tuple(events)


def stopping(state: TargetState, settings: KeepSettings) -> TargetState:
    """Return the state of a target whose streams are all stopped, since its keeper ends or does not keep it any more.

    A stop by name proves nothing of a start that may still be carried out. Where that matters, it stays in doubt.
    """
    holds = not settings.is_guarded and settings.in_doubt is InDoubtPolicy.HOLD
    attempts = (
        evolve(each, fate=Fate.IN_DOUBT if holds and each.sid is None else Fate.ENDING) for each in state.attempts
    )
    return evolve(state, attempts=tuple(attempts))


def unproven(state: TargetState) -> tuple[StreamAttempt, ...]:
    """Return the attempts whose streams may run though they were stopped, since only a stop by sid is proof."""
    return tuple(attempt for attempt in state.attempts if attempt.sid is None)


def decide(
    state: TargetState,
    observation: KeepObservation,
    now: float,
    settings: KeepSettings,
    *,
    paused_until: float = -inf,
) -> KeepDecision:
    """Decide what follows an observation of a target.

    Args:
        state: that of the last decision; at first a `TargetState` with the number after which its attempts begin.
        observation: what the list, a response, a socket or a callback told of this target, in the order of arrival.
        now: seconds, by the clock of all times in the state.
        settings: those of conferences, or those of calls.
        paused_until: the time before which nothing is started.

    Returns:
        The new state, which the journal may store later unless an action says otherwise; actions and events.
    """
    case = Case(state=state, now=now, settings=settings, paused_until=paused_until)
    return decide_by(RULES, case, observation)


def decide_by(rules: Mapping[str, Observed | Planned], case: Case, observation: KeepObservation) -> KeepDecision:
    if case.state.status is KeepStatus.ENDED:
        return KeepDecision(state=case.state)
    if isinstance(observation, ObservationOfAttempt):
        case = evolve(case, attempt=case.state.find(observation.attempt) or _NONE)
    observed = [rule for rule in rules.values() if isinstance(rule, Observed) and isinstance(observation, rule.kind)]
    case = next((changed for rule in observed if (changed := rule.apply(case, observation)) is not None), case)
    actions: tuple[KeepAction, ...] = ()
    if case.state.status is not KeepStatus.ENDED:
        planned = [rule for rule in rules.values() if isinstance(rule, Planned)]
        case, actions = next((step for rule in planned if (step := rule.apply(case)) is not None), (case, actions))
    state, events = _report(case.state, case.settings)
    return KeepDecision(state=state, actions=actions, events=events)
