"""On what it was measured."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "signalwire-streams",
    "aiohttp",
    "attrs",
    "cattrs",
    "fastapi",
    "httpx",
    "signalwire-sdk",
    "telnyx",
    "twilio",
    "uvicorn",
    "uvloop",
    "websockets",
    "yarl",
)


def facts() -> dict[str, Any]:
    """Give what a reader needs in order to compare with another machine; nothing that names this one."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
