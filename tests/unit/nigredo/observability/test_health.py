"""Health listener: a probe that closes the connection early is not logged, a failed answer is."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nigredo.observability.health import Health, HealthServer
from nigredo.testing import eventually, free_port_base

RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@contextmanager
def listening(port: int, health: Health, answer: bytes, released: threading.Event) -> Iterator[None]:
    """Run a listener whose `/metrics` answers only after `released` is set."""

    def exposition() -> bytes:
        released.wait(20)
        return answer

    server = HealthServer(health, "127.0.0.1", port, exposition)
    server.start()
    try:
        yield
    finally:
        released.set()
        server.stop()


def answering() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


def test_a_probe_that_hangs_up_early_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    port, released = free_port_base(), threading.Event()
    # More bytes than socket buffers hold for a client that does not read.
    with listening(port, Health("test"), b"x" * 20_000_000, released):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            eventually(answering, within_s=10, what="the request in flight")
        released.set()
        eventually(lambda: not answering(), within_s=20, what="the end of the request")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/health/live")
        assert connection.getresponse().status == 200

    written = capsys.readouterr()
    assert written.err + written.out == ""


def test_what_breaks_an_answer_leaves_one_line_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    health, port, released = Health("test"), free_port_base(), threading.Event()

    def broken() -> dict[str, str]:
        raise ValueError("ana@example.com")

    health.add_details(broken)
    with listening(port, health, b"", released):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/health")
        with pytest.raises(http.client.RemoteDisconnected):
            connection.getresponse()
        eventually(lambda: not answering(), within_s=10, what="the end of the request")

    written = capsys.readouterr()
    assert "ValueError" in written.err + written.out
    assert "Traceback" not in written.err + written.out
    assert "ana@example.com" not in written.err + written.out
