"""Names, ids and tokens that are generated: as many random digits as keep them unique, or unguessable."""

from re import fullmatch
from typing import Any

from signalwire_streams import StartConferenceStream, StreamsClient
from signalwire_streams.fleet import Fleet, FleetWorker
from signalwire_streams.fleet._status import read_run
from signalwire_streams.receiver import MediaReceiver
from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"


async def test_name_of_a_start_has_24_random_digits(client: StreamsClient, space: SimulatedSpace) -> None:
    stream = await client.conferences.start_stream(space.conference_sids[0], url=URL)
    assert fullmatch("sws-[0-9a-f]{24}", stream.name or "")


async def test_run_has_eight_random_digits_in_the_names_of_its_streams(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Any
) -> None:
    one, other, *_ = space.conference_sids
    for target, options in ((one, {}), (other, {"journal": tmp_path / "run.db"})):
        run = client.start_streams([StartConferenceStream(conference_sid=target, url=URL)], **options)
        [outcome] = [outcome async for outcome in run]
        assert outcome.stream is not None
        assert fullmatch(f"sws-[0-9a-f]{{8}}-{target}", outcome.stream.name or "")


async def test_run_of_a_fleet_has_eight_random_digits_and_its_plan_twelve(
    client: StreamsClient, space: SimulatedSpace, request: Any
) -> None:
    url = f"memory://{id(request)}"
    async with Fleet(url, space=space.base_url, project=space.project) as fleet:
        run = await fleet.submit([])
        record = await read_run(fleet._open(), fleet._keys, run)
    assert fullmatch("[0-9a-f]{8}", run)
    assert record is not None
    assert fullmatch("[0-9a-f]{12}", record.keys.plan)
    assert fullmatch(".+-[0-9]+-[0-9a-f]{4}", FleetWorker(url, client).name)


async def test_stream_that_is_opened_has_a_token_of_32_random_bytes() -> None:
    stream = MediaReceiver()._pending_streams.add("conference", None)
    assert fullmatch("[0-9A-Za-z_-]{43}", stream.token)
    assert fullmatch("sws-[0-9a-f]{16}", stream.name)
