"""SIGINT and SIGTERM: what `on_signals` does is tested by the workers of a fleet and the command line."""

import asyncio
import signal

from signalwire_streams._signals import ignore_interrupts


def test_ignore_interrupts_ignores_sigint() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        ignore_interrupts()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


async def test_ignore_interrupts_does_nothing_in_another_thread() -> None:
    before = signal.getsignal(signal.SIGINT)
    await asyncio.to_thread(ignore_interrupts)
    assert signal.getsignal(signal.SIGINT) is before
