"""A simulated SignalWire Space in this process, for tests and benchmarks.

It imports nothing of the client half of this package and implements the protocol independently, so that a mistake in
the client cannot go unnoticed.

```python
async with SimulatedSpace(conferences=200, calls=20) as space:
    space.faults.add("reset", on="start", executed=True, times=1)
    ...  # talk to space.base_url with space.project and space.token
    assert space.streams.duplicates() == []
```
"""

from signalwire_streams.simulator._churn import Churn, Lifetime
from signalwire_streams.simulator._connections import Certificates
from signalwire_streams.simulator._dial import BrokenRule, DialReport, Segment, dial_media
from signalwire_streams.simulator._endpoint_messages import EndpointRule
from signalwire_streams.simulator._faults import FaultKind, FaultRule, Faults, FaultSettings
from signalwire_streams.simulator._request_log import ReceivedRequest, RequestLog
from signalwire_streams.simulator._sources import NoFrames, Silence, Sound, Tone, WavFile
from signalwire_streams.simulator._space import SimulatedSpace
from signalwire_streams.simulator._state import Dialect, Stream, StreamRegistry

__all__ = [
    "BrokenRule",
    "Certificates",
    "Churn",
    "DialReport",
    "Dialect",
    "EndpointRule",
    "FaultKind",
    "FaultRule",
    "FaultSettings",
    "Faults",
    "Lifetime",
    "NoFrames",
    "ReceivedRequest",
    "RequestLog",
    "Segment",
    "Silence",
    "SimulatedSpace",
    "Sound",
    "Stream",
    "StreamRegistry",
    "Tone",
    "WavFile",
    "dial_media",
]
