"""Ports of the loopback address."""

from __future__ import annotations

import socket

from vsuite.core.errors import InputError


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Raises an InputError unless a port is 0 or can be bound on 127.0.0.1."""
    if not 0 <= port <= 65535:
        raise InputError(f"port {port}: it is from 0 (any free one) to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"port {port}: {error.strerror}; give another, or 0 for any free one") from error
