"""Distributed runs: many hosts share one Space's limit, and a run survives the loss of a host.

One process can use all of a Space's limit; a fleet is for surviving the loss of a host. It needs Redis and
``pip install 'signalwire-streams[fleet]'``.

>>> async with Fleet("redis://localhost", space="example", project="...") as fleet:  # doctest: +SKIP
...     run = await fleet.submit(requests)
...     async for outcome in fleet.results(run):
...         print(outcome.status)

and on each host, with ``SIGNALWIRE_SPACE``, ``SIGNALWIRE_PROJECT_ID`` and ``SIGNALWIRE_API_TOKEN`` set:

>>> await run_worker("redis://localhost")  # doctest: +SKIP
"""

from importlib.util import find_spec

if not (find_spec("docket") and find_spec("redis")):
    raise ModuleNotFoundError(
        "signalwire_streams.fleet needs more packages: pip install 'signalwire-streams[fleet]'", name="docket"
    )

from signalwire_streams.fleet._fleet import Fleet
from signalwire_streams.fleet._status import FleetStatus, WorkerStatus
from signalwire_streams.fleet._worker import FleetWorker, SecretProvider, run_worker, stop_on_signals

__all__ = [
    "Fleet",
    "FleetStatus",
    "FleetWorker",
    "SecretProvider",
    "WorkerStatus",
    "run_worker",
    "stop_on_signals",
]
