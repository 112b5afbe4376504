"""The machine of a new user: an empty directory, a Space to try things on, and a certificate for it."""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from attrs import frozen

from signalwire_streams.simulator import SimulatedSpace, Tone
from tests.cli.shell import Ran, credentials, end_of, process
from tests.guides.documents import code_of
from tests.ports import free_port

_STRICT = "import warnings; warnings.simplefilter('error')\n"


@frozen
class User:
    """Someone who saves a program of the documents in an empty directory, and runs it.

    Attributes:
        folder: the directory.
        space: the Space that the environment variables name.
        port: a free port, which stands for those in the documents.
    """

    folder: Path
    space: SimulatedSpace
    port: int

    @property
    def environment(self) -> dict[str, str]:
        return credentials(self.space)

    def save(self, title: str, **replaced: str) -> str:
        """Write a program to a file of its name; return what it contains."""
        code = code_of(title)
        for old, new in replaced.items():
            assert old in code
            code = code.replace(old, new)
        (self.folder / title.partition("/")[2]).write_text(code, encoding="utf-8")
        return code

    def start(
        self, title: str, *arguments: str, replaced: dict[str, str] | None = None, **environment: str
    ) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        """Run a program, in which every warning is an error."""
        code = _STRICT + self.save(title, **replaced or {})
        return process(*arguments, code=code, environment=self.environment | environment)

    async def run(self, title: str, *arguments: str, replaced: dict[str, str] | None = None, **environment: str) -> Ran:
        """Run a program to its end."""
        async with self.start(title, *arguments, replaced=replaced, **environment) as child:
            return await end_of(child)

    def python(self, *arguments: str, **environment: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        """Run Python with arguments such as ``-m uvicorn``."""
        everything = self.environment | environment
        return process(*arguments, program=sys.executable, python=(), new=True, environment=everything)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what ``python -m trustme`` writes."""
    folder = tmp_path_factory.mktemp("authority")
    issuer = trustme.CA()
    server = issuer.issue_cert("localhost", "127.0.0.1", "::1")
    server.private_key_pem.write_to_path(str(folder / "server.key"))
    (folder / "server.pem").write_bytes(b"".join(pem.bytes() for pem in server.cert_chain_pems))
    issuer.cert_pem.write_to_path(str(folder / "client.pem"))
    return folder


@pytest.fixture
async def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Path) -> AsyncIterator[Callable[..., Any]]:
    """Create a `User`, for a Space with the given arguments."""
    for name in ("server.pem", "server.key", "client.pem"):
        (tmp_path / name).write_bytes((authority / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    async with AsyncExitStack() as stack:

        async def create(**arguments: Any) -> User:
            usual: dict[str, Any] = {"conferences": 3, "calls": 2, "audio": Tone(seconds=0.5), "real_time": False}
            trust = ssl.create_default_context(cafile=authority / "client.pem")
            space = SimulatedSpace(ssl_context=trust, **usual | arguments)
            return User(tmp_path, await stack.enter_async_context(space), free_port())

        yield create
