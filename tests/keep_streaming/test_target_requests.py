"""What is sent for an attempt, and what responses and callbacks say about it."""

from collections.abc import AsyncIterator
from math import inf
from typing import Any

import pytest

from signalwire_streams import ClientStateError, Clock, InvalidRequestError, StreamsClient, StreamsError
from signalwire_streams.callbacks import CallStreamChanged, StreamFailed, StreamStarted, StreamStopped
from signalwire_streams.keep_streaming import (
    EndedCallback,
    Fate,
    KeepSettings,
    NameRefused,
    ResponseLost,
    StartAccepted,
    StartedCallback,
    StartRejected,
    StopByName,
    StopBySid,
    StopResult,
    StreamAttempt,
    TargetState,
)
from signalwire_streams.keep_streaming._target_requests import TargetRequests, observation_of
from signalwire_streams.keep_streaming._template import attempt_of, fingerprint, request_for
from signalwire_streams.models import SignedTokens, TargetKind
from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"
CONFERENCE, CALL = TargetKind.CONFERENCE, TargetKind.CALL


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=2, calls=1, participants=0) as running:
        yield running


@pytest.fixture
async def client(space: SimulatedSpace) -> AsyncIterator[StreamsClient]:
    async with StreamsClient(
        base_url=space.base_url, project=space.project, token=space.token, clock=Clock.fake()
    ) as client:
        yield client


def requests_of(client: StreamsClient, kind: TargetKind = CONFERENCE) -> TargetRequests:
    streams: Any = client._conference_streams if kind is CONFERENCE else client._call_streams
    duplicates = "refused" if kind is CONFERENCE else "allowed"
    return TargetRequests(kind=kind, settings=KeepSettings(duplicate_names=duplicates), streams=streams, reads=streams)


def request_on(sid: str, kind: TargetKind = CONFERENCE, **fields: Any) -> Any:
    return attempt_of(
        request_for(kind, sid, {"url": URL, **fields}, is_received=False), number=7, name=f"audit-{sid}", token=None
    )


class TestStart:
    async def test_nothing_is_sent_once_its_time_is_over(self, space: SimulatedSpace, client: StreamsClient) -> None:
        """This process may have been suspended since the time was checked, and the lease may be another host's."""
        [sid, *_] = space.conference_sids
        late = client._clock.now()
        answer = await requests_of(client).start(request_on(sid), 7, deadline_at=late)
        assert isinstance(answer, StartRejected)
        assert "deadline passed before it was sent" in answer.reason
        stopped = await requests_of(client).stop(sid, StopBySid(sid="s"), "", deadline_at=late)
        assert stopped.result is StopResult.FAILED
        assert space.requests.count() == 0

    async def test_accepted_start_has_its_sid(self, space: SimulatedSpace, client: StreamsClient) -> None:
        [sid, *_] = space.conference_sids
        observed = await requests_of(client).start(request_on(sid), 7)
        [stream] = space.streams.active()
        assert observed == StartAccepted(attempt=7, sid=stream.sid)

    @pytest.mark.parametrize("executed", [False, True])
    @pytest.mark.parametrize("fault", ["disconnect", "502", "empty", "garbage", "503"])
    async def test_lost_response_is_not_sent_again(
        self, space: SimulatedSpace, client: StreamsClient, fault: str, executed: bool
    ) -> None:
        space.faults.add(fault, on="start-conference-stream", executed=executed)
        observed = await requests_of(client).start(request_on(space.conference_sids[0]), 7)
        assert isinstance(observed, ResponseLost)
        assert "stop it" not in observed.reason  # the keeper does
        assert space.requests.count("start-conference-stream") == 1

    @pytest.mark.parametrize("kind", [CONFERENCE, CALL])
    async def test_throttled_start_is_rejected_at_once(
        self, space: SimulatedSpace, client: StreamsClient, kind: TargetKind
    ) -> None:
        space.faults.add("throttle", on=f"start-{kind}-stream")
        sid = space.conference_sids[0] if kind is CONFERENCE else space.call_sids[0]
        observed = await requests_of(client, kind).start(request_on(sid, kind), 7)
        assert isinstance(observed, StartRejected)
        assert observed.reason.startswith("HTTP 429")  # its target is the event's
        assert space.requests.count(f"start-{kind}-stream") == 1

    @pytest.mark.parametrize(("kind", "kind_of_answer"), [(CONFERENCE, ResponseLost), (CALL, StartRejected)])
    async def test_start_that_is_refused_for_now_may_run_where_another_one_is_safe(
        self, space: SimulatedSpace, client: StreamsClient, kind: TargetKind, kind_of_answer: type[object]
    ) -> None:
        space.faults.add("503-api", on=f"start-{kind}-stream")
        sid = space.conference_sids[0] if kind is CONFERENCE else space.call_sids[0]
        observed = await requests_of(client, kind).start(request_on(sid, kind), 7)
        assert isinstance(observed, kind_of_answer)
        assert space.requests.count(f"start-{kind}-stream") == 1

    async def test_refused_connection_sends_nothing(self, space: SimulatedSpace, client: StreamsClient) -> None:
        async with space.refuse_connections():
            observed = await requests_of(client).start(request_on(space.conference_sids[0]), 7)
        assert isinstance(observed, StartRejected)
        assert space.requests.count("start-conference-stream") == 0

    async def test_duplicate_name_is_refused(self, space: SimulatedSpace, client: StreamsClient) -> None:
        space.duplicate_names = "http-error"
        requests, request = requests_of(client), request_on(space.conference_sids[0])
        await requests.start(request, 6)
        assert await requests.start(request, 7) == NameRefused(attempt=7)

    async def test_start_on_an_ended_target_is_rejected(self, space: SimulatedSpace, client: StreamsClient) -> None:
        [sid, *_] = space.conference_sids
        space.end_conference(sid)
        assert isinstance(await requests_of(client).start(request_on(sid), 7), StartRejected)

    async def test_start_without_a_sid_is_not_certain(self, space: SimulatedSpace, client: StreamsClient) -> None:
        space.faults.add("missing-sid", on="start-conference-stream")
        observed = await requests_of(client).start(request_on(space.conference_sids[0]), 7)
        assert isinstance(observed, ResponseLost)

    async def test_token_that_can_not_be_made_sends_nothing(self, space: SimulatedSpace, client: StreamsClient) -> None:
        tokens = SignedTokens("k" * 32, claims=lambda request: {"name": request.name})
        request = request_on(space.conference_sids[0], authorization_bearer_token=tokens)
        observed = await requests_of(client).start(request, 7)
        assert isinstance(observed, StartRejected)
        assert space.requests.count() == 0

    async def test_middleware_that_fails_after_sending_leaves_a_doubt(self, space: SimulatedSpace) -> None:
        async def lose(request: Any, send: Any) -> Any:
            await send(request)
            raise StreamsError("lost on the way")

        async with StreamsClient(
            base_url=space.base_url, project=space.project, token=space.token, middlewares=[lose]
        ) as client:
            observed = await requests_of(client).start(request_on(space.conference_sids[0]), 7)
        assert observed == ResponseLost(attempt=7, reason="lost on the way")

    async def test_closed_client_raises(self, space: SimulatedSpace, client: StreamsClient) -> None:
        await client.aclose()
        requests, sid = requests_of(client), space.conference_sids[0]
        with pytest.raises(ClientStateError):
            await requests.start(request_on(sid), 7)
        with pytest.raises(ClientStateError):
            await requests.stop(sid, StopBySid(sid="s1"), "audit")

    async def test_policy_of_the_client_still_retries_other_starts(
        self, space: SimulatedSpace, client: StreamsClient
    ) -> None:
        space.faults.add("503-api", on="start-conference-stream", times=2)
        [first, second] = space.conference_sids
        await requests_of(client).start(request_on(first), 7)
        await client.conferences.start_stream(second, url=URL)
        assert space.requests.count("start-conference-stream") == 3


class TestStop:
    async def test_streams_are_stopped_by_sid_and_by_name(self, space: SimulatedSpace, client: StreamsClient) -> None:
        requests = requests_of(client)
        [first, second] = space.conference_sids
        accepted: Any = await requests.start(request_on(first), 7)
        await requests.start(request_on(second), 8)
        by_sid, by_name = StopBySid(sid=accepted.sid), StopByName(attempt=8)
        assert (await requests.stop(first, by_sid, "other")).result is StopResult.ENDED
        assert (await requests.stop(second, by_name, f"audit-{second}")).result is StopResult.ENDED
        assert space.streams.active() == []
        assert (await requests.stop(first, by_sid, "other")).result is StopResult.ENDED  # it had ended before

    async def test_sid_that_is_not_known_any_more_has_ended(self, space: SimulatedSpace, client: StreamsClient) -> None:
        answer = await requests_of(client).stop(space.conference_sids[0], StopBySid(sid="gone"), "audit")
        assert answer.result is StopResult.ENDED

    async def test_name_that_is_not_found_proves_nothing(self, space: SimulatedSpace, client: StreamsClient) -> None:
        answer = await requests_of(client).stop(space.conference_sids[0], StopByName(attempt=7), "audit")
        assert answer.result is StopResult.NOT_FOUND

    @pytest.mark.parametrize("stop", [StopBySid(sid="s1"), StopByName(attempt=7)])
    async def test_page_of_a_proxy_is_no_answer(
        self, space: SimulatedSpace, client: StreamsClient, stop: StopBySid | StopByName
    ) -> None:
        space.faults.add("status", on="stop-conference-stream", status=404, body="html")
        answer = await requests_of(client).stop(space.conference_sids[0], stop, "audit")
        assert answer.result is StopResult.FAILED


class TestStopAll:
    @pytest.mark.parametrize("kind", [CONFERENCE, CALL])
    @pytest.mark.parametrize("count", [7, 8])
    async def test_name_is_stopped_too_if_an_attempt_may_have_been_forgotten(
        self, space: SimulatedSpace, client: StreamsClient, kind: TargetKind, count: int
    ) -> None:
        """Eight are remembered. On a call each stream was stopped before the next one was started."""
        space.duplicate_names = "allow"
        requests, sid = requests_of(client, kind), (space.conference_sids if kind is CONFERENCE else space.call_sids)[0]
        attempts = []
        for number in range(count):
            answer = await requests.start(request_on(sid, kind), number)
            assert isinstance(answer, StartAccepted)
            attempts.append(StreamAttempt(number=number, fate=Fate.ENDING, sid=answer.sid))
        assert await requests.stop_all(sid, attempts, "audit", deadline_at=inf) == ()
        by_name = [request.path for request in space.requests if request.path.endswith(f"/audit-{sid}")]
        assert len(by_name) == (kind is CONFERENCE and count == 8)
        assert space.requests.count(f"stop-{kind}-stream") == count + len(by_name)
        assert space.streams.active() == []


class TestGet:
    async def test_target_in_progress_is_returned(self, space: SimulatedSpace, client: StreamsClient) -> None:
        [sid, *_] = space.conference_sids
        item: Any = await requests_of(client).get(sid)
        assert item.sid == sid

    async def test_ended_and_unknown_targets_are_none(self, space: SimulatedSpace, client: StreamsClient) -> None:
        [sid, *_] = space.conference_sids
        space.end_conference(sid)
        assert await requests_of(client).get(sid) is None
        assert await requests_of(client).get("unknown") is None

    async def test_page_of_a_proxy_proves_nothing(self, space: SimulatedSpace, client: StreamsClient) -> None:
        space.faults.add("status", on="get-conference", status=404, body="html")
        with pytest.raises(StreamsError):
            await requests_of(client).get(space.conference_sids[0])

    async def test_list_has_full_pages(self, space: SimulatedSpace, client: StreamsClient) -> None:
        listed = [item.sid async for item in requests_of(client).list()]
        assert listed == space.conference_sids
        assert space.requests[-1].query == {"Status": "in-progress", "PageSize": "1000"}


class TestCallback:
    STATE = TargetState(
        attempts=(
            StreamAttempt(number=6, fate=Fate.HEARD, sid="s6"),
            StreamAttempt(number=7, fate=Fate.ANSWERED, sid="s7"),
        )
    )

    @pytest.mark.parametrize(
        ("event", "observed"),
        [
            (StreamStarted(stream_sid="s9", extra={"keep_attempt": "9"}), StartedCallback(attempt=9, sid="s9")),
            (StreamStarted(stream_sid="s7"), StartedCallback(attempt=7, sid="s7")),
            (StreamStopped(stream_sid="s7"), EndedCallback(attempt=7, reason="it was stopped")),
            (StreamFailed(extra={"keep_attempt": "7"}, error="lost"), EndedCallback(attempt=7, reason="lost")),
            (
                StreamStopped(stream_sid="s6", extra={"keep_attempt": "6"}),
                EndedCallback(attempt=6, reason="it was stopped"),
            ),
            (StreamFailed(extra={"keep_attempt": "6"}, error="lost"), EndedCallback(attempt=6, reason="lost")),
            (StreamFailed(stream_sid="of a repeated start", extra={"keep_attempt": "6"}, error="lost"), None),
            (StreamFailed(extra={"keep_attempt": "8"}, error="Duplicated stream name"), NameRefused(attempt=8)),
            (StreamFailed(stream_sid="s7", error="Duplicated stream name"), None),
            (StreamStopped(stream_sid="s8", stream_name="audit-room"), None),
            (StreamStopped(stream_name="audit-room"), None),
            (StreamStarted(extra={"keep_attempt": "7"}), None),
            (StreamStarted(stream_sid="s9", extra={"keep_attempt": "x"}), None),
            (CallStreamChanged(state="streaming"), None),
        ],
    )
    def test_callback_is_of_the_attempt_that_its_url_or_its_sid_names(self, event: Any, observed: object) -> None:
        assert observation_of(event, self.STATE) == observed


class TestTemplate:
    def test_attempt_has_its_number_in_parameter_and_callback(self) -> None:
        request = request_on("room", parameters={"a": "b"}, status_callback="https://rx.example.com/cb")
        assert request.parameters == {"a": "b", "keep_attempt": "7", "keep_target": request.target}
        assert request.status_callback == "https://rx.example.com/cb?keep_attempt=7"
        assert (request.conference_sid, request.name) == ("room", "audit-room")

    @pytest.mark.parametrize(
        ("callback", "sent"),
        [
            ("https://rx.example.com/cb?a=b", "https://rx.example.com/cb?a=b&keep_attempt=7"),
            ("https://rx.example.com/cb?", "https://rx.example.com/cb?keep_attempt=7"),
            ("https://rx.example.com/cb#part", "https://rx.example.com/cb?keep_attempt=7"),
            ("https://rx.example.com?a=%20b#c?d", "https://rx.example.com?a=%20b&keep_attempt=7"),
            ("HTTPS://me:hush@rx.example.com:8443/a;b", "https://me:hush@rx.example.com:8443/a;b?keep_attempt=7"),
        ],
    )
    def test_callback_keeps_its_query_and_loses_its_fragment(self, callback: str, sent: str) -> None:
        assert request_on("room", CALL, status_callback=callback).status_callback == sent

    def test_token_of_the_template_is_rejected_where_each_stream_gets_one(self) -> None:
        fields = {"url": URL, "authorization_bearer_token": "hush"}
        with pytest.raises(InvalidRequestError, match="omit authorization_bearer_token") as caught:
            request_for(CONFERENCE, "room", fields, is_received=True)
        assert "hush" not in str(caught.value)

    def test_own_token_replaces_none_of_the_template_unless_there_is_one(self) -> None:
        template = request_for(
            CONFERENCE, "room", {"url": URL, "authorization_bearer_token": "mine"}, is_received=False
        )
        assert attempt_of(template, number=1, name="n", token=None).authorization_bearer_token == "mine"
        assert attempt_of(template, number=1, name="n", token="own").authorization_bearer_token == "own"

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            (URL, "the template is .*: write the fields of a start, such as {'url'"),
            ({}, "has no url: write"),
            ({"url": URL, "name": "mine"}, "has a field 'name': omit it"),
            ({"url": URL, 1: 2}, "has a field '1': omit it"),
            ({"url": "http://example.com"}, "wss"),
            ({"url": URL, "parameters": {"keep_attempt": "1"}}, "leave no room for 'keep_attempt'"),
            (
                {"url": URL, "status_callback": "https://a.example/?keep_attempt"},
                "the keeper adds: rename yours",
            ),
            ({"url": URL, "parameters": {"keep_target": "1"}}, "leave no room for .* and 'keep_target'"),
            ({"url": URL, "parameters": dict.fromkeys(map(str, range(98)), "1")}, "pass at most 97 others"),
            ({"url": URL, "parameters": {str(n): "" for n in range(99)}}, "pass at most 97 others"),
        ],
    )
    def test_wrong_template_is_one_sentence(self, template: object, message: str) -> None:
        with pytest.raises(InvalidRequestError, match=message):
            request_for(CONFERENCE, "room", template, is_received=False)

    def test_template_may_have_two_parameters_less_than_a_start(self) -> None:
        parameters = dict.fromkeys(map(str, range(97)), "1")
        request = request_for(CONFERENCE, "room", {"url": URL, "parameters": parameters}, is_received=False)
        assert len(attempt_of(request, number=1, name="n", token=None).parameters) == 99

    def test_codec_of_a_call_is_rejected(self) -> None:
        with pytest.raises(InvalidRequestError, match="codec is for conference streams only"):
            request_for(CALL, "call", {"url": URL, "codec": "PCMU"}, is_received=False)

    def test_fingerprint_is_of_fields_that_are_no_secret(self) -> None:
        def of(**fields: Any) -> str:
            return fingerprint(request_for(CONFERENCE, "room", {"url": URL, **fields}, is_received=False))

        assert of() == fingerprint(request_for(CONFERENCE, "other", {"url": URL}, is_received=False))
        assert of(codec="PCMU") != of() != of(parameters={"a": "1"})
        assert of(parameters={"a": "1"}) == of(parameters={"a": "2"})
        assert of(authorization_bearer_token="a") == of(authorization_bearer_token="b")
