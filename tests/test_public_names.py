"""The public face."""

import subprocess
import sys

import signalwire_streams


def test_names_are_sorted_and_there() -> None:
    """Every public name exists, and the list is in order."""
    names = signalwire_streams.__all__

    assert names == sorted(names, key=lambda name: (name.islower(), name))
    assert all(hasattr(signalwire_streams, name) for name in names)
    assert {
        "StreamsClient",
        "StartConferenceStream",
        "StartCallStream",
        "StreamsError",
        "ApiError",
        "BadRequestError",
        "AuthenticationError",
        "PermissionDeniedError",
        "NotFoundError",
        "UnprocessableError",
        "RateLimitedError",
        "ServerError",
        "TransportError",
        "StreamOutcomeUnknown",
        "MalformedResponseError",
        "InvalidRequestError",
        "Track",
        "Codec",
        "StreamStatus",
    } <= set(names)


def test_importing_the_package_imports_no_more_than_it_needs() -> None:
    """The command line, the simulator and the extras stay unloaded until they are asked for."""
    code = (
        "import sys, signalwire_streams\n"
        "extras = {'click', 'rich', 'signalwire_streams.cli', 'signalwire_streams.simulator'}\n"
        "print(sorted(extras & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603

    assert shown.stdout.strip() == "[]"
