"""The guard that keeps tests off the network."""

from __future__ import annotations

import socket

import pytest


def test_a_connection_to_another_machine_fails_the_test() -> None:
    with (
        socket.socket() as client,
        pytest.raises(pytest.fail.Exception, match=r"192\.0\.2\.1.*mark it `demo`"),
    ):
        client.connect(("192.0.2.1", 80))  # RFC 5737: an address that belongs to nobody


def test_processes_of_this_machine_can_talk() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        assert client.getpeername() == server.getsockname()
