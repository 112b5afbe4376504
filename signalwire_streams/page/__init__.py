"""A page that shows live streams and bulk runs in a browser, and plays a stream's audio."""

from signalwire_streams.page._live_page import LivePage

__all__ = ["LivePage"]
