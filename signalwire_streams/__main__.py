"""The console script ``signalwire-streams``; also run by ``python -m signalwire_streams``."""

import sys

from signalwire_streams._signals import ignore_interrupts

_OF_THE_EXTRA = {"click", "rich", "trustme"}
_USAGE_ERROR = 2
_INTERRUPTED = 130


def main() -> int:
    """Run the command line with the process's arguments. After it returns, the process ignores SIGINT.

    Returns:
        The exit code: 0 success, 1 failure, 2 usage error, 130 interrupted.
    """
    try:
        try:
            return _run()
        finally:
            ignore_interrupts()
    except KeyboardInterrupt:
        ignore_interrupts()
        return _INTERRUPTED


def _run() -> int:
    try:
        # Only the command line needs click and rich, so their absence is reported here.
        from signalwire_streams._cli.main import run  # noqa: PLC0415  (see above)

        return run()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _OF_THE_EXTRA:
            raise
        sys.stderr.write("error: the command line needs more packages: pip install 'signalwire-streams[cli]'\n")
        return _USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
