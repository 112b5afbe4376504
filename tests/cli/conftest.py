"""A Space, and a shell with its credentials."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from signalwire_streams._cli import progress
from signalwire_streams.simulator import SimulatedSpace

from .shell import Shell, credentials


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=3, calls=2) as space:
        yield space


@pytest.fixture
def bare_shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell without credentials, whose commands print no progress even on a slow machine."""
    monkeypatch.setattr(progress, "_WRITTEN_EVERY", 600.0)
    for name in ("SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return Shell(capsys, monkeypatch)


@pytest.fixture
def offline_shell(bare_shell: Shell) -> Shell:
    """A shell whose Space does not exist: a command that sent something would fail with 1, not with 2."""
    bare_shell.set(
        {"SIGNALWIRE_SPACE": "http://127.0.0.1:9", "SIGNALWIRE_PROJECT_ID": "p", "SIGNALWIRE_API_TOKEN": "t"}
    )
    return bare_shell


@pytest.fixture
def shell(bare_shell: Shell, space: SimulatedSpace) -> Shell:
    """A shell with the credentials of the Space."""
    bare_shell.set(credentials(space))
    return bare_shell


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the commands run in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
