"""What a caller talks to: conferences and calls."""

from signalwire_streams.resources.calls import Calls
from signalwire_streams.resources.conferences import Conferences
from signalwire_streams.resources.listing import Listing

__all__ = ["Calls", "Conferences", "Listing"]
