"""The resources of the API: conferences and calls."""

from signalwire_streams.resources._calls import Calls
from signalwire_streams.resources._conferences import Conferences
from signalwire_streams.resources._streams import Paginator

__all__ = ["Calls", "Conferences", "Paginator"]
