"""The README and the guides, and the blocks of code in them."""

import re
from pathlib import Path
from typing import Any

from attrs import frozen

import signalwire_streams

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = Path(signalwire_streams.__file__).parent / "guides"
AGENTS = GUIDES.parent / "AGENTS.md"
DOCUMENTS = {path.stem: path for path in (README, AGENTS, *sorted(GUIDES.glob("*.md"))) if path.exists()}

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@frozen
class Block:
    """A fenced block of a document.

    Attributes:
        document: name of the document, such as ``README`` or ``bulk``.
        language: what stands behind the opening fence.
        text: what it contains.
    """

    document: str
    language: str
    text: str

    @property
    def title(self) -> str:
        """The file that the block names in its first line, behind the document: ``README/start.py``."""
        return f"{self.document}/{self.text.splitlines()[0].removeprefix('# ')}"


def blocks_of(document: str) -> list[Block]:
    text = DOCUMENTS[document].read_text(encoding="utf-8")
    return [Block(document, language, block) for language, block in _BLOCK.findall(text)]


def prose_of(document: str) -> str:
    """Return a document without its blocks."""
    return _BLOCK.sub("", DOCUMENTS[document].read_text(encoding="utf-8"))


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


def code_of(title: str) -> str:
    """Return the program with a title, such as ``README/start.py``."""
    [code] = [block.text for block in BLOCKS if block.language == "python" and block.title == title]
    return code


def run_code(title: str, **scope: Any) -> dict[str, Any]:
    """Run a program as a module is run when it is imported; return its names."""
    scope["__name__"] = title
    exec(compile(code_of(title), title, "exec"), scope)  # noqa: S102
    return scope
