"""A page that shows live streams, bulk runs and keepers in a browser, and plays a stream's audio."""

from signalwire_streams.page._live_page import LivePage

__all__ = ["LivePage"]
