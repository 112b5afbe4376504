"""A client that finds the Space and its credentials in the environment."""

import inspect
from typing import Any

import aiohttp
import pytest

from signalwire_streams import InvalidRequestError, StreamsClient
from signalwire_streams._client import ClientOptions
from signalwire_streams.simulator import SimulatedSpace

NAMES = ("SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN")


def environment_of(space: SimulatedSpace) -> dict[str, str]:
    return dict(zip(NAMES, (space.base_url, space.project, space.token), strict=True))


@pytest.mark.parametrize(
    "missing", [NAMES, NAMES[:1], NAMES[1:], (NAMES[0], NAMES[2])], ids=lambda names: f"{len(names)} missing"
)
@pytest.mark.parametrize("empty", [False, True], ids=["not set", "empty"])
def test_missing_environment_variables_are_all_named(missing: tuple[str, ...], empty: bool) -> None:
    """The refusal names each variable that is not set, or is empty, and none that is."""
    environment = {name: "example" for name in NAMES if name not in missing}
    if empty:
        environment |= dict.fromkeys(missing, "")
    with pytest.raises(InvalidRequestError) as caught:
        StreamsClient.from_env(environment)
    assert str(caught.value) == f"set {', '.join(missing)} in the environment (see your Space's API page)"


@pytest.mark.parametrize("name", ["space", "project", "token", "base_url"])
def test_option_set_by_environment_is_rejected(name: str) -> None:
    """Neither of the two is silently ignored."""
    untyped: Any = StreamsClient.from_env
    with pytest.raises(InvalidRequestError, match=f"omit {name}, or write StreamsClient"):
        untyped(dict.fromkeys(NAMES, "example"), **{name: "x"})


async def test_client_from_environment_takes_options(space: SimulatedSpace) -> None:
    """Everything else that a client takes is passed on, and what it does not take is refused as by any function."""
    async with aiohttp.ClientSession() as session:
        async with StreamsClient.from_env(environment_of(space), session=session, connections=1) as client:
            await client.conferences.get(space.conference_sids[0])
        assert not session.closed
    untyped: Any = StreamsClient.from_env
    with pytest.raises(TypeError, match="conections"):
        untyped(environment_of(space), conections=1)


def test_options_of_environment_are_those_of_client() -> None:
    """An option that is added to the one is added to the other."""
    taken = set(inspect.signature(StreamsClient).parameters) - {"space", "project", "token", "base_url"}
    assert set(ClientOptions.__annotations__) == taken


async def test_from_env_with_mapping_reads_only_the_mapping(space: SimulatedSpace) -> None:
    """Where a mapping is handed over, it alone is looked at."""
    async with StreamsClient.from_env(environment_of(space)) as client:
        assert (await client.conferences.get(space.conference_sids[0])).sid == space.conference_sids[0]


async def test_from_env_without_mapping_reads_process_environment(
    space: SimulatedSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is handed over, the process's own environment is looked at."""
    for name, value in environment_of(space).items():
        monkeypatch.setenv(name, value)
    async with StreamsClient.from_env() as client:
        assert repr(client) == f"StreamsClient({space.base_url!r}, project={space.project!r})"
        assert (await client.calls.get(space.call_sids[0])).sid == space.call_sids[0]
