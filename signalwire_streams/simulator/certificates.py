"""Certificates for wss on one's own machine: an authority that nobody else trusts, made for one run."""

import ssl
from typing import Self

from attrs import field, frozen

__all__ = ["Certificates"]


@frozen
class Certificates:
    """An authority that exists for as long as this object does, and a server that it vouches for.

    It needs trustme, which ``signalwire-streams[cli]`` and ``signalwire-streams[pytest]`` bring along.

    Attributes:
        server: what a WebSocket or callback server shows.
        trust: what accepts it; give it to a `SimulatedSpace`.
        authority: the authority's certificate in PEM, for a Space in another process.
    """

    server: ssl.SSLContext = field(repr=False)
    trust: ssl.SSLContext = field(repr=False)
    authority: bytes = field(repr=False)

    @classmethod
    def make(cls, *hosts: str) -> Self:
        """Make them.

        Args:
            hosts: names and addresses of the server; this machine's own if left out.

        Raises:
            ModuleNotFoundError: trustme is not installed.
        """
        # It brings a cryptography library along, which nobody needs who has certificates of his own.
        import trustme  # noqa: PLC0415

        authority = trustme.CA()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*(hosts or ("localhost", "127.0.0.1", "::1"))).configure_cert(server)
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        return cls(server, trust, authority.cert_pem.bytes())
