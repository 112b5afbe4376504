"""What a keeper does next, row by row."""

import pytest
from attrs import evolve

from signalwire_streams import InvalidRequestError
from signalwire_streams.keep_streaming import (
    EndedCallback,
    Fate,
    GetTarget,
    KeepAction,
    KeepDecision,
    KeeperRestarted,
    KeepEvent,
    KeepObservation,
    KeepSettings,
    KeepStatus,
    NameRefused,
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
    StreamingInDoubt,
    StreamingLost,
    StreamingRestarted,
    StreamingStarted,
    TargetAppeared,
    TargetChecked,
    TargetEnded,
    TargetFailing,
    TargetListed,
    TargetMissing,
    TargetState,
    TimePassed,
    WaitUntil,
    decide,
)

CONFERENCES = KeepSettings(duplicate_names="refused")
RECEIVED = KeepSettings(duplicate_names="refused", receives=True)
CALLS = KeepSettings(duplicate_names="allowed")
RECEIVED_CALLS = KeepSettings(duplicate_names="allowed", receives=True)
RESTARTED_CALLS = KeepSettings(duplicate_names="allowed", receives=True, in_doubt="restart")


class Target:
    """One target, and the last decision about it."""

    def __init__(self, settings: KeepSettings) -> None:
        self.settings, self.now = settings, 1000.0
        self.last = KeepDecision(state=TargetState())
        self.see(TargetListed())

    def see(self, *observations: KeepObservation, after: float = 0.0) -> "Target":
        self.now += after
        for observation in observations:
            self.last = decide(self.last.state, observation, self.now, self.settings)
        return self

    def run(self, number: int = 1) -> "Target":
        """Have an attempt accepted, and heard as well as it can be."""
        self.see(StartAccepted(attempt=number, sid=f"s{number}"))
        opened = SocketOpened(attempt=number, sid=f"s{number}")
        return self.see(opened if self.settings.receives else StartedCallback(attempt=number, sid=f"s{number}"))

    def fates(self) -> dict[int, Fate]:
        return {attempt.number: attempt.fate for attempt in self.last.state.attempts}

    def actions(self) -> tuple[KeepAction, ...]:
        return self.last.actions

    def events(self) -> tuple[KeepEvent, ...]:
        return self.last.events

    @property
    def wait(self) -> float | None:
        """Seconds until the next decision."""
        [action] = self.last.actions or (None,)
        return action.at - self.now if isinstance(action, WaitUntil) else None


def started(number: int) -> tuple[SaveAttempt, StartStream]:
    return SaveAttempt(attempt=number), StartStream(attempt=number)


class TestStart:
    def test_new_target_is_saved_before_it_is_started(self) -> None:
        target = Target(CONFERENCES)
        assert target.actions() == started(1)
        assert target.events() == (TargetAppeared(),)

    def test_numbers_go_on_from_those_of_the_journal(self) -> None:
        decision = decide(TargetState(last=700), TargetListed(), 0.0, CONFERENCES)
        assert decision.actions == started(701)

    @pytest.mark.parametrize("observation", [TargetListed(), TimePassed()])
    def test_start_under_way_is_waited_for(self, observation: KeepObservation) -> None:
        assert Target(CONFERENCES).see(observation, after=3600.0).actions() == ()

    def test_accepted_start_is_reported_as_running(self) -> None:
        target = Target(CONFERENCES).see(StartAccepted(attempt=1, sid="s1"))
        assert target.events() == (StreamingStarted(),)
        assert target.wait == CONFERENCES.reassert

    def test_socket_may_be_opened_before_its_start_is_answered(self) -> None:
        target = Target(RECEIVED).see(SocketOpened(attempt=1, sid="s1"), StartAccepted(attempt=1, sid="s1"))
        assert target.fates() == {1: Fate.HEARD}

    def test_stream_that_is_received_is_left_alone(self) -> None:
        target = Target(RECEIVED).run().see(TimePassed(), after=3600.0)
        assert target.actions() == ()

    def test_stream_of_a_conference_that_is_received_elsewhere_is_started_again_for_the_space_to_refuse_it(
        self,
    ) -> None:
        target = Target(CONFERENCES).run().see(TimePassed(), after=59.9)
        assert target.wait == pytest.approx(0.1)
        assert target.see(TimePassed(), after=0.1).actions() == started(2)
        target.see(NameRefused(attempt=2))
        assert target.fates() == {1: Fate.HEARD}
        assert target.wait == CONFERENCES.reassert
        assert target.events() == ()

    def test_stream_of_a_call_that_is_received_elsewhere_is_left_alone(self) -> None:
        target = Target(CALLS).see(StartAccepted(attempt=1, sid="s1")).see(TimePassed(), after=3600.0)
        assert target.actions() == ()

    def test_few_attempts_are_remembered(self) -> None:
        """A Space that refuses in callbacks accepts each of them; of those that are lost, nobody hears."""
        target = Target(CONFERENCES)
        for number in range(1, 20):
            target.see(StartAccepted(attempt=number, sid=f"s{number}")).see(TimePassed(), after=60.0)
        assert list(target.fates()) == [1, *range(14, 21)]


class TestUnheard:
    @pytest.mark.parametrize("settings", [RECEIVED, RECEIVED_CALLS])
    def test_stream_whose_socket_is_not_opened_is_stopped_and_started_again(self, settings: KeepSettings) -> None:
        target = Target(settings).see(StartAccepted(attempt=1, sid="s1"))
        assert target.wait == settings.socket_timeout
        target.see(TimePassed(), after=10.0)
        [failing] = target.events()
        assert isinstance(failing, TargetFailing)
        assert target.see(TimePassed(), after=1.0).actions() == (StopBySid(sid="s1"),)
        stopped = StopAnswered(stop=StopBySid(sid="s1"), result=StopResult.ENDED)
        assert target.see(stopped).actions() == started(2)
        target.see(StartAccepted(attempt=2, sid="s2")).see(TimePassed(), after=10.0)
        assert target.events() == (), "its reason was reported"
        assert target.see(SocketOpened(attempt=2, sid="s2")).events() == (StreamingStarted(),)

    def test_accepted_stream_of_a_target_that_was_never_reported_is_not_reported_either(self) -> None:
        state = TargetState(last=1, attempts=(StreamAttempt(number=1),))
        decision = decide(state, StartAccepted(attempt=1, sid="s1"), 0.0, RECEIVED)
        assert (decision.events, decision.state.reported) == ((TargetAppeared(),), KeepStatus.WAITING)

    def test_callback_does_not_replace_the_socket(self) -> None:
        target = Target(RECEIVED).see(StartedCallback(attempt=1, sid="s1"))
        assert target.fates() == {1: Fate.ANSWERED}
        assert target.wait == RECEIVED.socket_timeout

    def test_unanswered_stream_that_runs_unheard_is_stopped_by_its_name(self) -> None:
        target = Target(RECEIVED).see(ResponseLost(attempt=1, reason="no response")).see(TimePassed(), after=1.0)
        assert target.actions() == started(2)
        target.see(NameRefused(attempt=2)).see(TimePassed(), after=10.0).see(TimePassed(), after=2.0)
        assert target.actions() == (StopByName(attempt=1),)
        target.see(StopAnswered(stop=StopByName(attempt=1), result=StopResult.ENDED))
        assert target.actions() == started(3)
        assert target.fates() == {1: Fate.ABANDONED, 3: Fate.SENDING}


class TestLoss:
    def test_closed_socket_is_a_hint_so_target_is_checked_and_stream_is_stopped(self) -> None:
        target = Target(RECEIVED).run().see(SocketClosed(attempt=1), after=60.0)
        assert target.actions() == (GetTarget(),)
        assert target.events() == ()
        target.see(TargetChecked(in_progress=True))
        assert target.events() == (StreamingLost(reason="its socket was closed"),)
        assert target.actions() == (StopBySid(sid="s1"),)
        target.see(StopAnswered(stop=StopBySid(sid="s1"), result=StopResult.NOT_FOUND))
        assert target.actions() == started(2)
        assert target.run(2).events() == (StreamingRestarted(),)
        assert target.see(TimePassed()).last.state.status is KeepStatus.STREAMING

    def test_end_callback_needs_no_stop(self) -> None:
        target = Target(CONFERENCES).run().see(EndedCallback(attempt=1, reason="it was stopped"), after=60.0)
        assert target.actions() == (GetTarget(),)
        assert target.see(TargetChecked(in_progress=True)).actions() == started(2)
        assert target.see(StartAccepted(attempt=2, sid="s2")).events() == (StreamingRestarted(),)

    def test_end_callback_after_the_socket_was_closed_is_no_second_loss(self) -> None:
        target = Target(RECEIVED).run().see(SocketClosed(attempt=1), after=60.0)
        target.see(EndedCallback(attempt=1, reason="it was stopped"))
        assert target.see(TargetChecked(in_progress=True)).actions() == started(2)
        assert target.last.state.failures == 0

    def test_stream_that_ends_within_ten_seconds_counts_as_failing(self) -> None:
        target = Target(CONFERENCES)
        for number, wait in enumerate([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0], start=1):
            target.run(number).see(EndedCallback(attempt=number, reason="connection_refused"), after=9.9)
            target.see(TargetChecked(in_progress=True))
            assert target.events()[-1] == TargetFailing(reason="connection_refused", failures=number)
            assert target.wait == wait
            target.see(TimePassed(), after=wait)
        assert target.run(9).see(EndedCallback(attempt=9, reason="it was stopped"), after=10.0).last.state.failures == 0

    def test_start_may_fail_before_it_is_answered(self) -> None:
        target = Target(CONFERENCES).see(EndedCallback(attempt=1, reason="codec_error"))
        target.see(TargetChecked(in_progress=True), StartAccepted(attempt=1, sid="s1"))
        assert target.last.state.status is KeepStatus.FAILING
        assert target.fates() == {}

    def test_stream_that_runs_is_not_lost_by_a_rejection_of_its_next_start(self) -> None:
        target = Target(CONFERENCES).run().see(TimePassed(), after=CONFERENCES.reassert)
        assert target.actions() == started(2)
        target.see(StartRejected(attempt=2, reason="429"), TargetChecked(in_progress=True))
        assert target.events() == ()
        assert target.last.state.status is KeepStatus.STREAMING

    def test_rejected_start_fails_with_its_reason_and_has_the_target_checked(self) -> None:
        target = Target(CONFERENCES).see(StartRejected(attempt=1, reason="403"))
        assert target.actions() == (GetTarget(),)
        target.see(TargetChecked(in_progress=True))
        assert target.events() == (TargetFailing(reason="403", failures=1),)
        assert target.see(TimePassed(), after=1.0).actions() == started(2)

    def test_waits_begin_anew_once_a_refused_name_proves_that_its_stream_lasts(self) -> None:
        """Failures a day apart are not consecutive."""
        target = Target(CONFERENCES).see(StartAccepted(attempt=1, sid="s1"))
        for number in range(2, 20, 2):
            target.see(TimePassed(), after=60.0).see(ResponseLost(attempt=number, reason="cut"))
            assert target.wait == 1.0
            target.see(TimePassed(), after=1.0).see(NameRefused(attempt=number + 1))
            assert target.wait == 60.0

    def test_waits_grow_while_a_stream_has_not_lasted(self) -> None:
        target = Target(CONFERENCES).see(ResponseLost(attempt=1, reason="cut"))
        assert target.wait == 1.0
        target.see(TimePassed(), after=1.0).see(NameRefused(attempt=2))
        target.see(TimePassed(), after=60.0).see(ResponseLost(attempt=3, reason="cut"))
        assert target.wait == 2.0

    def test_waits_begin_anew_when_the_keeper_restarts(self) -> None:
        target = Target(CONFERENCES)
        for number in (1, 2):
            target.see(StartRejected(attempt=number, reason="403"), TargetChecked(in_progress=True))
            assert target.wait is not None
            target.see(TimePassed(), after=target.wait)
        assert target.last.state.failures == 2
        target.see(StartRejected(attempt=3, reason="403"), KeeperRestarted())
        target.see(StartRejected(attempt=4, reason="403"), TargetChecked(in_progress=True))
        assert target.wait == CONFERENCES.wait_initial

    def test_rejected_start_changes_nothing_about_a_stream_that_runs(self) -> None:
        target = Target(CONFERENCES).run().see(TimePassed(), after=60.0).see(StartRejected(attempt=2, reason="403"))
        target.see(TargetChecked(in_progress=True))
        assert target.events() == ()
        assert target.last.state.status is KeepStatus.STREAMING


class TestDoubt:
    def test_unanswered_start_on_a_conference_is_repeated(self) -> None:
        target = Target(CONFERENCES).see(ResponseLost(attempt=1, reason="no response"))
        assert target.events() == (TargetFailing(reason="no response", failures=1),)
        assert target.see(TimePassed(), after=1.0).actions() == started(2)
        assert target.see(NameRefused(attempt=2)).events() == (StreamingStarted(),)

    def test_unanswered_start_of_a_stream_that_runs_is_no_loss(self) -> None:
        target = Target(CONFERENCES).run().see(TimePassed(), after=60.0)
        target.see(ResponseLost(attempt=2, reason="no response"))
        assert target.events() == ()
        assert target.see(TimePassed(), after=1.0).actions() == started(3)

    def test_unanswered_start_on_a_call_holds_until_it_is_heard(self) -> None:
        target = Target(CALLS).see(ResponseLost(attempt=1, reason="no response")).see(TimePassed(), after=1.0)
        assert target.actions() == ()
        [doubt] = target.events()
        assert isinstance(doubt, StreamingInDoubt)
        assert target.see(TimePassed(), after=3600.0).actions() == ()
        assert target.see(StartedCallback(attempt=1, sid="s1")).events() == (StreamingStarted(),)

    def test_end_of_a_doubt_lets_a_call_start_again(self) -> None:
        target = Target(CALLS).see(ResponseLost(attempt=1, reason="no response")).see(TimePassed(), after=60.0)
        target.see(EndedCallback(attempt=1, reason="it was stopped"), TargetChecked(in_progress=True))
        assert target.see(TimePassed(), after=2.0).actions() == started(2)

    def test_socket_is_waited_for_before_a_call_is_restarted(self) -> None:
        target = Target(RESTARTED_CALLS).see(ResponseLost(attempt=1, reason="no response"))
        assert target.wait == RESTARTED_CALLS.socket_timeout
        target.see(TimePassed(), after=10.0)
        assert target.actions() == (StopByName(attempt=1),)

    @pytest.mark.parametrize("result", [StopResult.ENDED, StopResult.NOT_FOUND])
    def test_stop_by_name_proves_nothing_but_a_call_is_restarted(self, result: StopResult) -> None:
        target = Target(RESTARTED_CALLS).see(ResponseLost(attempt=1, reason="no response"))
        [doubt] = target.see(TimePassed(), after=10.0).events()
        assert isinstance(doubt, StreamingInDoubt)
        target.see(StopAnswered(stop=StopByName(attempt=1), result=result))
        assert target.actions() == started(2)
        assert [type(event) for event in target.events()] == [StreamingInDoubt] * (result is StopResult.NOT_FOUND)
        target.run(2).see(SocketOpened(attempt=1, sid="s1"))
        assert target.actions() == (StopBySid(sid="s1"),)

    def test_stream_that_is_heard_while_it_is_stopped_by_its_name_is_a_stream(self) -> None:
        target = Target(RESTARTED_CALLS).see(ResponseLost(attempt=1, reason="no response"))
        target.see(TimePassed(), after=10.0).see(SocketOpened(attempt=1, sid="s1"))
        target.see(StopAnswered(stop=StopByName(attempt=1), result=StopResult.NOT_FOUND))
        assert target.fates() == {1: Fate.HEARD}

    def test_doubt_that_is_over_before_its_stop_is_answered_stays_over(self) -> None:
        target = Target(RESTARTED_CALLS).see(ResponseLost(attempt=1, reason="no response"))
        target.see(TimePassed(), after=10.0).see(EndedCallback(attempt=1, reason="it was stopped"))
        target.see(StopAnswered(stop=StopByName(attempt=1), result=StopResult.ENDED))
        assert target.fates() == {2: Fate.SENDING}

    def test_response_may_be_lost_of_a_stream_that_is_heard(self) -> None:
        target = Target(RECEIVED).see(SocketOpened(attempt=1, sid="s1"), ResponseLost(attempt=1, reason="no response"))
        assert target.fates() == {1: Fate.HEARD}


class TestNames:
    @pytest.mark.parametrize("settings", [CONFERENCES, RECEIVED, CALLS, RECEIVED_CALLS])
    def test_refusal_of_a_stream_that_is_heard_is_of_another_one(self, settings: KeepSettings) -> None:
        target = Target(settings).run().see(NameRefused(attempt=1))
        assert (target.fates(), target.last.state.status) == ({1: Fate.HEARD}, KeepStatus.STREAMING)

    def test_name_that_nobody_of_us_has_is_told(self) -> None:
        target = Target(CONFERENCES).see(NameRefused(attempt=1))
        [doubt] = target.events()
        assert isinstance(doubt, StreamingInDoubt)
        assert target.wait == CONFERENCES.reassert
        target.see(TimePassed(), after=60.0).see(StartAccepted(attempt=2, sid="s2"))
        assert target.events() == (StreamingStarted(),)

    def test_refusal_may_come_in_a_callback(self) -> None:
        target = Target(CONFERENCES).run().see(TimePassed(), after=60.0)
        target.see(StartAccepted(attempt=2, sid="s2"), NameRefused(attempt=2))
        assert target.fates() == {1: Fate.HEARD}

    def test_doubt_stays_while_the_name_is_refused(self) -> None:
        target = Target(RECEIVED).see(ResponseLost(attempt=1, reason="no response")).see(TimePassed(), after=1.0)
        target.see(NameRefused(attempt=2)).see(TimePassed(), after=10.0).see(TimePassed(), after=2.0)
        target.see(StopAnswered(stop=StopByName(attempt=1), result=StopResult.NOT_FOUND), NameRefused(attempt=3))
        assert target.last.state.status is KeepStatus.IN_DOUBT
        assert target.wait == RECEIVED.reassert

    def test_names_are_constant_unless_they_can_be_used_once(self) -> None:
        assert CONFERENCES.stream_name("kept", "CF1", 1) == CONFERENCES.stream_name("kept", "CF1", 7) == "kept-CF1"
        assert evolve(CONFERENCES, names="once").stream_name("kept", "CF1", 7) == "kept-CF1-7"

    def test_names_that_can_be_used_once_do_not_protect(self) -> None:
        assert CONFERENCES.is_guarded
        assert not evolve(CONFERENCES, names="once").is_guarded
        assert not CALLS.is_guarded


class TestTarget:
    def test_target_missing_from_a_list_is_checked(self) -> None:
        target = Target(RECEIVED).run().see(TargetMissing())
        assert target.actions() == (GetTarget(),)
        assert target.see(TargetChecked(in_progress=True)).actions() == ()

    def test_completed_target_is_forgotten(self) -> None:
        target = Target(RECEIVED).run().see(SocketClosed(attempt=1), TargetChecked(in_progress=False))
        assert target.events() == (TargetEnded(),)
        assert target.last.state.status is KeepStatus.ENDED
        assert target.see(StartedCallback(attempt=1, sid="s1"), TargetListed()).actions() == ()

    def test_check_without_a_response_is_as_if_it_lived(self) -> None:
        target = Target(CONFERENCES).run().see(EndedCallback(attempt=1, reason="it was stopped"), after=60.0)
        assert target.see(TargetChecked(in_progress=None)).wait == 1.0
        assert target.see(TimePassed(), after=1.0).actions() == started(2)

    def test_check_without_a_response_brings_nothing_forward(self) -> None:
        target = Target(CONFERENCES).run().see(TargetMissing(), TargetChecked(in_progress=None))
        assert target.wait == CONFERENCES.reassert


class TestStops:
    def test_of_two_streams_the_older_one_is_stopped(self) -> None:
        target = (
            Target(RESTARTED_CALLS).see(ResponseLost(attempt=1, reason="no response")).see(TimePassed(), after=10.0)
        )
        target.see(StopAnswered(stop=StopByName(attempt=1), result=StopResult.NOT_FOUND)).run(2)
        stop = StopBySid(sid="s1")
        assert target.see(SocketOpened(attempt=1, sid="s1")).actions() == (stop,)
        target.see(SocketClosed(attempt=1), StopAnswered(stop=stop, result=StopResult.ENDED))
        assert target.fates() == {2: Fate.HEARD}
        assert target.events() == ()

    def test_stop_that_fails_is_repeated_after_a_wait(self) -> None:
        target = Target(RECEIVED).run().see(SocketClosed(attempt=1), TargetChecked(in_progress=True), after=60.0)
        target.see(StopAnswered(stop=StopBySid(sid="s1"), result=StopResult.FAILED, reason="503"))
        assert target.events() == (TargetFailing(reason="503", failures=1),)
        assert target.see(TimePassed(), after=1.0).actions() == (StopBySid(sid="s1"),)

    def test_stop_by_name_that_fails_is_repeated(self) -> None:
        target = (
            Target(RESTARTED_CALLS).see(ResponseLost(attempt=1, reason="no response")).see(TimePassed(), after=10.0)
        )
        target.see(StopAnswered(stop=StopByName(attempt=1), result=StopResult.FAILED, reason="503"))
        assert target.see(TimePassed(), after=2.0).actions() == (StopByName(attempt=1),)


class TestRestartOfTheKeeper:
    def test_stream_of_a_conference_that_is_received_elsewhere_goes_on(self) -> None:
        target = Target(CONFERENCES).run().see(KeeperRestarted())
        assert target.actions() == started(2)
        assert target.see(NameRefused(attempt=2)).events() == (StreamingRestarted(),)

    @pytest.mark.parametrize("settings", [RECEIVED, CALLS, RECEIVED_CALLS])
    def test_other_streams_are_stopped_first(self, settings: KeepSettings) -> None:
        target = Target(settings).run().see(KeeperRestarted())
        assert target.actions() == (StopBySid(sid="s1"),)

    def test_start_under_way_is_in_doubt(self) -> None:
        assert Target(CONFERENCES).see(KeeperRestarted()).actions() == started(2)
        target = Target(CALLS).see(KeeperRestarted())
        assert target.actions() == ()
        assert target.last.state.status is KeepStatus.IN_DOUBT

    def test_call_in_doubt_is_held_though_its_stream_is_to_be_replaced(self) -> None:
        """A stop by its name would prove nothing."""
        assert Target(CALLS).see(KeeperRestarted(replaces=True)).actions() == ()
        assert Target(RESTARTED_CALLS).see(KeeperRestarted(replaces=True)).actions() == (StopByName(attempt=1),)

    def test_refused_name_may_be_that_of_a_stream_that_was_started_late_and_is_to_be_replaced(self) -> None:
        target = Target(CONFERENCES).see(ResponseLost(attempt=1, reason="no response"), KeeperRestarted(replaces=True))
        stop = StopByName(attempt=1)
        for attempt in (2, 3):  # as often as the name is refused
            assert target.actions() == (stop,)
            target.see(StopAnswered(stop=stop, result=StopResult.NOT_FOUND))
            assert target.actions() == started(attempt)
            target.see(NameRefused(attempt=attempt))
            assert target.wait == CONFERENCES.reassert
            target.see(TimePassed(), after=CONFERENCES.reassert)

    def test_request_under_way_is_forgotten(self) -> None:
        target = Target(RECEIVED).run().see(TargetMissing(), KeeperRestarted())
        assert target.actions() == (StopBySid(sid="s1"),)

    def test_times_of_another_clock_are_forgotten(self) -> None:
        target = Target(CONFERENCES).run()
        target.now = 5.0
        target.see(KeeperRestarted(), NameRefused(attempt=2), EndedCallback(attempt=1, reason="it was stopped"))
        assert target.see(TargetChecked(in_progress=True)).actions() == started(3)


class TestLateObservations:
    @pytest.mark.parametrize(
        "late",
        [
            StartAccepted(attempt=1, sid="s1"),
            NameRefused(attempt=1),
            StartRejected(attempt=1, reason="403"),
            ResponseLost(attempt=1, reason="no response"),
            SocketOpened(attempt=1, sid="s1"),
            SocketClosed(attempt=1),
            StartedCallback(attempt=1, sid="s1"),
            EndedCallback(attempt=1, reason="it was stopped"),
        ],
        ids=lambda late: type(late).__name__,
    )
    def test_late_observation_of_an_older_attempt_changes_nothing(self, late: KeepObservation) -> None:
        target = Target(CONFERENCES).run().see(EndedCallback(attempt=1, reason="it was stopped"), after=60.0)
        target.see(TargetChecked(in_progress=True)).run(2)
        before = target.last.state
        assert target.see(late).last.state == before
        assert target.events() == ()

    def test_start_that_is_reported_after_the_end_of_its_socket_is_no_stream(self) -> None:
        target = Target(RECEIVED).run().see(SocketClosed(attempt=1), StartedCallback(attempt=1, sid="s1"))
        assert target.fates() == {1: Fate.ENDING}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"duplicate_names": "ignored"}, "duplicate_names 'ignored' is unknown: write one of 'refused', 'allowed'"),
        ({"names": "twice"}, "names 'twice' is unknown: write one of 'reusable', 'once'"),
        ({"in_doubt": "guess"}, "in_doubt 'guess' is unknown: write one of 'hold', 'restart'"),
        ({"wait_initial": 90.0}, "wait_initial must be at most wait_max, which is 60.0, not 90.0: pass both"),
        ({"wait_initial": 0.0}, "wait_initial must be a number of seconds above 0"),
        ({"reassert": 0}, "reassert must be a number of seconds above 0"),
    ],
)
def test_impossible_settings_are_rejected(settings: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"duplicate_names": "refused", **settings}
    with pytest.raises(InvalidRequestError, match=message):
        KeepSettings(**given)  # type: ignore[arg-type]


def test_late_callback_tells_the_sid_of_a_stream_that_is_to_be_stopped() -> None:
    state = TargetState(last=1, attempts=(StreamAttempt(number=1, fate=Fate.ENDING),), next_at=0.0)
    decision = decide(state, StartedCallback(attempt=1, sid="late"), 1.0, CALLS)
    assert decision.actions == (StopBySid(sid="late"),)
    assert [attempt.fate for attempt in decision.state.attempts] == [Fate.ENDING]
