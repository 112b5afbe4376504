"""SIGINT and SIGTERM; workers of a fleet and the command line are tested with signals of their own."""

import asyncio
import signal
from collections.abc import Iterator

import pytest

from signalwire_streams._signals import ignore_interrupts, on_signals
from tests.waiting import until

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_on_signals_calls_the_function_with_each_signal_while_its_block_runs() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    received: list[signal.Signals] = []
    with on_signals(received.append):
        for number in SIGNALS:
            signal.raise_signal(number)
            await until(lambda number=number: number in received)  # type: ignore[misc]
    assert received == [signal.SIGINT, signal.SIGTERM]
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.default_int_handler, signal.SIG_DFL]


async def test_on_signals_changes_nothing_in_another_thread() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    ran: list[list[object]] = []

    async def run() -> None:
        with on_signals(lambda _: None):
            ran.append([signal.getsignal(number) for number in SIGNALS])

    await asyncio.to_thread(asyncio.run, run())
    assert ran == [before]


def test_ignore_interrupts_ignores_sigint() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ignore_interrupts()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


async def test_ignore_interrupts_does_nothing_in_another_thread() -> None:
    before = signal.getsignal(signal.SIGINT)
    await asyncio.to_thread(ignore_interrupts)
    assert signal.getsignal(signal.SIGINT) is before
