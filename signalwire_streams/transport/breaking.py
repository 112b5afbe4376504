"""The circuit breaker as a middleware: it fails fast while the Space keeps failing."""

from attrs import define

from signalwire_streams.errors import Phase
from signalwire_streams.models import Event
from signalwire_streams.middleware._circuit_breaker import Breaker
from signalwire_streams.clock import Clock
from signalwire_streams.middleware._logs import log_breaker_closed, log_breaker_opened
from signalwire_streams.transport.middleware import Send
from signalwire_streams._http.messages import Exchange, Outcome


@define(eq=False)
class Break:
    """Lets an exchange through unless the breaker is open."""

    breaker: Breaker
    clock: Clock

    async def __call__(self, exchange: Exchange, send: Send) -> Outcome:
        """Send, or answer at once that it is not tried."""
        admission = self.breaker.admit(self.clock.now())
        if admission.wait:
            exchange.progress.phase = Phase.QUEUED
            return Outcome(event=Event.BREAKER_OPEN, phase=Phase.QUEUED, retry_after=admission.wait)
        try:
            outcome = await send(exchange)
        except BaseException:  # a probe that was cancelled must not keep the breaker waiting for it for ever
            self.breaker.abandon(admission)
            raise
        was_open = self.breaker.is_open
        self.breaker.record(admission, outcome.event, self.clock.now())
        if self.breaker.is_open and not was_open:
            log_breaker_opened(self.breaker.policy, exchange, outcome)
        elif was_open and not self.breaker.is_open:
            log_breaker_closed()
        return outcome
