"""What a Space was created with, as its parts read it."""

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Literal, get_args

from attrs import define, field
from attrs.validators import ge, in_

from signalwire_streams.simulator._faults import Faults
from signalwire_streams.simulator._request_log import RequestLog
from signalwire_streams.simulator._sources import Sound
from signalwire_streams.simulator._state import new_sid

Dialect = Literal["signalwire", "twilio"]
DuplicateNames = Literal["stream-error", "http-error", "allow"]


@define(eq=False, kw_only=True)
class SpaceSettings:
    """The arguments of `SimulatedSpace`, which describes them, and what follows from its seed."""

    conferences: int = field(default=0, validator=ge(0))
    calls: int = field(default=0, validator=ge(0))
    participants: int = field(default=2, validator=ge(0))
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    rate_limit: int | None = 13_800
    window: float = 10.0
    limit_headers: bool = True
    retry_after: float | None = None
    advertised_limit: int | None = None
    duplicate_names: DuplicateNames = field(default="stream-error", validator=in_(get_args(DuplicateNames)))
    streams_by_name: bool = True
    long_september: bool = False
    log_requests: bool = True
    audio: Sound | None = None
    real_time: bool = True
    dialect: Dialect = "signalwire"
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    bidirectional: bool = False
    callbacks: bool = False
    allow_ws: bool = False
    clock: Callable[[], float] = field(default=time.time, repr=False)
    monotonic: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    project: str = field(init=False)
    token: str = field(init=False, repr=False)
    signing_key: str = field(init=False, repr=False)
    requests: RequestLog = field(init=False, repr=False)
    faults: Faults = field(init=False, repr=False)
    _random: random.Random = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311  (reproducible, and protects nothing)
        self.project = new_sid(self._random)
        self.token = f"PT{self._random.getrandbits(192):048x}"
        self.signing_key = f"PSK_{self._random.getrandbits(128):032x}"
        self.requests = RequestLog(self.log_requests)
        self.faults = Faults(random.Random(f"faults {self.seed}"))  # noqa: S311  (the same)
