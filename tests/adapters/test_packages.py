"""The frameworks are imported when an adapter is, and not before."""

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("framework", ["pipecat", "livekit"])
def test_adapter_without_its_framework_says_what_to_install(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"signalwire_streams.adapters.{framework}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == framework]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(ModuleNotFoundError, match=rf"^{framework}\S* is missing: pip install '.*\[{framework}\]'$"):
        importlib.import_module(module)


def test_package_imports_no_framework() -> None:
    code = "import signalwire_streams.adapters, signalwire_streams.receiver, sys; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert not {"pipecat", "livekit"} & set(shown.stdout.split())
