"""A port for what can't choose one itself."""

import atexit
import socket
import sys
from contextlib import suppress
from random import SystemRandom

# Below those that systems give to connections and to servers that ask for any port, such as those of other tests.
_PORTS = range(10_000, 30_000)


def free_port() -> int:
    """Return a port of this machine that nothing listens on, and that no other test is given before this process ends.

    On Linux, a bound socket reserves it: servers reuse an address that nothing listens on, and this function does not.
    """
    while True:
        port = SystemRandom().choice(_PORTS)  # tests that run beside this one have the same seed
        reserving = socket.socket()
        with suppress(OSError):
            reserving.bind(("", port))
            if sys.platform == "linux":
                reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                atexit.register(reserving.close)
            else:
                reserving.close()
            return port
        reserving.close()
