"""The ports that tests are given."""

import socket
import sys

import pytest

from .ports import free_port


@pytest.mark.skipif(sys.platform != "linux", reason="ports are reserved on Linux only")
def test_reserved_port_can_be_served_and_is_given_to_no_other_test() -> None:
    port = free_port()
    with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
        other.bind(("", port))
    with socket.create_server(("127.0.0.1", port)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
