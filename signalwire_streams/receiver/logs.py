"""Log lines whose number a client can drive up."""

import asyncio
import logging

from attrs import define, field

_LOG = logging.getLogger("signalwire_streams.receiver")
_INTERVAL = 60.0


@define(eq=False)
class RateLimitedLog:
    """Logs at most `burst` warnings a minute, and counts the others.

    Attributes:
        burst: lines in a minute.
    """

    burst: int
    _began: float = field(init=False, default=float("-inf"))
    _logged: int = field(init=False, default=0)
    _suppressed: int = field(init=False, default=0)

    def warning(self, text: str, *values: object) -> None:
        """Log a warning, unless there were too many in this minute."""
        now = asyncio.get_running_loop().time()
        if now - self._began >= _INTERVAL:
            if self._suppressed:
                text, values = text + " (and %d more such lines since the last one)", (*values, self._suppressed)
            self._began, self._logged, self._suppressed = now, 0, 0
        if self._logged < self.burst:
            self._logged += 1
            _LOG.warning(text, *values)
        else:
            self._suppressed += 1
