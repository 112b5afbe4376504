"""A port for what can't choose one itself."""

import socket
from contextlib import suppress
from random import SystemRandom

# Below those that systems give to connections and to servers that ask for any port, such as those of other tests.
_PORTS = range(10_000, 30_000)


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    while True:
        port = SystemRandom().choice(_PORTS)  # tests that run beside this one have the same seed
        with suppress(OSError), socket.create_server(("", port)):
            return port
