"""Every field of a start, in every form that a start takes: a field that one of them loses fails here."""

import asyncio
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from attrs import NOTHING, evolve, fields

from signalwire_streams import (
    BulkOutcome,
    BulkStatus,
    CallStream,
    ConferenceStream,
    PlannedRequest,
    StartCallStream,
    StartConferenceStream,
    StreamsClient,
    StreamStatus,
)
from signalwire_streams._cli.main import run as run_command
from signalwire_streams.bulk import _serialization as planning
from signalwire_streams.fleet import _items as records
from signalwire_streams.keep_streaming import StreamTemplate
from signalwire_streams.simulator import SimulatedSpace

Start = StartConferenceStream | StartCallStream

SAMPLES: dict[str, Any] = {
    "url": "wss://rx.example.com/audio",
    "name": "audit",
    "unnamed": True,
    "track": "inbound_track",
    "codec": "L16@24000h",
    "realtime": False,
    "status_callback": "https://rx.example.com/events",
    "status_callback_method": "GET",
    "parameters": {"tenant": "acme", "desk": "7"},
    "authorization_bearer_token": "bearer-1",
}
"""A value for each field that differs from its default; the target comes from the Space."""
ON_CONFERENCES = {"codec", "realtime"}
SECRET = {"parameters", "authorization_bearer_token"}
TARGETS = {StartConferenceStream: "conference_sid", StartCallStream: "call_sid"}


def samples_of(model: type[Start]) -> list[dict[str, Any]]:
    """Return two sets of fields that have each field once at least: a name and unnamed exclude each other."""
    known = {
        name: value for name, value in SAMPLES.items() if model is StartConferenceStream or name not in ON_CONFERENCES
    }
    return [
        {name: value for name, value in known.items() if name != "unnamed"},
        {name: value for name, value in known.items() if name != "name"},
    ]


CASES = [(model, sample) for model in TARGETS for sample in samples_of(model)]
each_form = pytest.mark.parametrize(("model", "sample"), CASES)


def sid_on(space: SimulatedSpace, model: type[Start]) -> str:
    return (space.conference_sids if model is StartConferenceStream else space.call_sids)[0]


def request_of(model: type[Start], sample: dict[str, Any], sid: str) -> Start:
    return model(**sample | {TARGETS[model]: sid})


def with_secrets(planned: PlannedRequest, sample: dict[str, Any]) -> Start:
    return evolve(planned.request, **{name: sample[name] for name in SECRET})


@pytest.mark.parametrize("model", TARGETS)
def test_each_field_has_a_sample(model: type[Start]) -> None:
    """A new field needs a sample here; the other tests then show which form loses it."""
    names = {attribute.name for attribute in fields(model)}
    assert names == {TARGETS[model], *SAMPLES}
    used = {name for case, sample in CASES if case is model for name in sample}
    assert used == names - {TARGETS[model]} - (ON_CONFERENCES if model is StartCallStream else set())
    for attribute in fields(model):
        if attribute.default is not NOTHING and attribute.name in used:
            assert getattr(request_of(model, {"url": SAMPLES["url"]}, "sid"), attribute.name) != SAMPLES[attribute.name]


@pytest.mark.parametrize("model", TARGETS)
def test_each_hidden_field_is_named_as_a_secret(model: type[Start]) -> None:
    """A field that no repr shows is written nowhere, unless only a part of it is hidden, or it is never set."""
    hidden = {attribute.name for attribute in fields(model) if attribute.repr is not True}
    never_set = ON_CONFERENCES if model is StartCallStream else set()
    assert hidden - never_set == planning._SECRET | {"status_callback"}
    assert planning._SECRET == SECRET


def test_template_of_a_keeper_has_each_field_but_those_that_the_keeper_chooses() -> None:
    chosen = {*TARGETS.values(), "name", "unnamed"}
    known = {each.name for model in TARGETS for each in fields(model)}
    assert set(StreamTemplate.__annotations__) == known - chosen


@each_form
async def test_journal_keeps_each_field(
    client: StreamsClient, tmp_path: Path, model: type[Start], sample: dict[str, Any]
) -> None:
    request = request_of(model, sample, "target")
    [planned] = client.create_journal([request], journal=tmp_path / "run.db").requests()
    assert with_secrets(planned, sample) == request
    assert planned.parameters == tuple(sample["parameters"])
    assert planned.bearer_token


@each_form
def test_fleet_keeps_each_field(model: type[Start], sample: dict[str, Any]) -> None:
    request = request_of(model, sample, "target")
    batch = [records.PlannedItem(PlannedRequest.from_request(request), records.Evidence.IN_DOUBT)]
    [read] = records.read_batch(records.write_batch(batch))
    assert with_secrets(read.request, sample) == request
    assert read.earlier is records.Evidence.IN_DOUBT


@each_form
async def test_space_receives_each_field(
    client: StreamsClient, space: SimulatedSpace, model: type[Start], sample: dict[str, Any]
) -> None:
    """The simulated Space receives the fields that are sent."""
    request = request_of(model, sample, sid_on(space, model))
    await client.start_streams([request]).report()
    [stream] = space.streams
    assert stream.target_sid == request.target
    for name, value in sample.items():
        assert stream.name is None if name == "unnamed" else getattr(stream, name) == value, name


async def command(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """Run a command, and return the one JSON object that it writes."""
    code = await asyncio.to_thread(run_command, words)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    [line] = captured.out.splitlines()
    return json.loads(line)


def dry(model: type[Start], sample: dict[str, Any]) -> dict[str, Any]:
    """Return what a dry run writes of a request."""
    is_named = "name" in sample
    hidden = {
        "parameters": dict.fromkeys(sample["parameters"], "***"),
        "authorization_bearer_token": "***",
        "name": sample.get("name"),
        "unnamed": not is_named,
    }
    kind = "conference" if model is StartConferenceStream else "call"
    return {"kind": kind, "target": "target", **sample, **hidden}


def as_csv(model: type[Start], sample: dict[str, Any]) -> str:
    cells: dict[str, Any] = {TARGETS[model]: "target", **sample}
    for name, value in cells.pop("parameters").items():
        cells[f"parameters.{name}"] = value
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(cells)
    lines.writerow([str(cell).lower() if isinstance(cell, bool) else cell for cell in cells.values()])
    return text.getvalue()


def as_json(model: type[Start], sample: dict[str, Any]) -> str:
    return json.dumps({TARGETS[model]: "target", **sample})


@each_form
@pytest.mark.parametrize("form", [as_csv, as_json])
async def test_file_of_targets_sets_each_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: type[Start], sample: dict[str, Any], form: Any
) -> None:
    """A dry run writes each, and of a secret that it is there."""
    targets = tmp_path / "targets"
    targets.write_text(form(model, sample), newline="")
    words = await command(capsys, "bulk", "start", str(targets), "--dry-run", "--json")
    assert words == dry(model, sample)


def as_options(sample: dict[str, Any], folder: Path) -> list[str]:
    """Return the options that say each field: named as it is, unless a comment here says why not."""
    words: list[str] = []
    for name, value in sample.items():
        option = f"--{name.replace('_', '-')}"
        if name == "authorization_bearer_token":  # a command line can be read by everyone on the machine
            (folder / "token").write_text(value)
            words += ["--bearer-token-file", str(folder / "token")]
        elif name == "parameters":  # one option for each
            for key, text in value.items():
                words += ["--parameter", f"{key}={text}"]
        elif isinstance(value, bool):
            words += [option if value else option.replace("--", "--no-", 1)]
        else:
            words += [option, value]
    return words


@each_form
async def test_command_line_options_set_each_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: type[Start], sample: dict[str, Any]
) -> None:
    targets = tmp_path / "targets"
    targets.write_text("target\n")
    kind = "conference" if model is StartConferenceStream else "call"
    options = as_options(sample, tmp_path)
    words = await command(capsys, "bulk", "start", str(targets), "--kind", kind, "--dry-run", "--json", *options)
    assert words == dry(model, sample)


@each_form
async def test_single_start_takes_each_option(
    space: SimulatedSpace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: type[Start],
    sample: dict[str, Any],
) -> None:
    """``start-stream`` sends what its options say."""
    monkeypatch.setenv("SIGNALWIRE_SPACE", space.base_url)
    monkeypatch.setenv("SIGNALWIRE_PROJECT_ID", space.project)
    monkeypatch.setenv("SIGNALWIRE_API_TOKEN", space.token)
    group = "conferences" if model is StartConferenceStream else "calls"
    options = as_options(sample, tmp_path)
    await command(capsys, group, "start-stream", sid_on(space, model), "--json", *options)
    [stream] = space.streams
    for name, value in sample.items():
        assert stream.name is None if name == "unnamed" else getattr(stream, name) == value, name


@pytest.mark.parametrize(
    "stream",
    [
        ConferenceStream(conference_sid="target", sid="s", name="n", status=StreamStatus.IN_PROGRESS, account_sid="a"),
        ConferenceStream(
            conference_sid="target", date_updated_text="d", uri="/u", ambiguous=True, already_started=True
        ),
        CallStream(call_sid="target", sid="s", api_version="v", error_code="e"),
    ],
)
def test_fleet_keeps_each_field_of_an_outcome(stream: ConferenceStream | CallStream) -> None:
    """A stream comes back as it was; only keys that nobody knows are left out."""
    model = StartConferenceStream if isinstance(stream, ConferenceStream) else StartCallStream
    request = request_of(model, {"url": SAMPLES["url"]}, "target")
    outcome = BulkOutcome(index=3, item=request, status=BulkStatus.STARTED, stream=evolve(stream, extra={"new": 1}))
    assert records.read_outcome(json.loads(records.write_outcome(outcome)), request) == evolve(outcome, stream=stream)
    assert {attribute.name for attribute in fields(type(stream))} >= records._OMITTED - {
        "call_sid",
        "conference_sid",
    }
