"""Owners of TCP sockets, read from the kernel's table."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from nigredo.stack.socket_owner import owners

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def tables(folder: Path, *lines: tuple[str, str, int], table: str = "tcp6") -> Path:
    text = "".join(f"   0: {local} 0:0 {state} 0:0 00:0 0 {uid} 0 1 1 0 100 0\n" for local, state, uid in lines)
    (folder / table).write_text(HEADER + text, encoding="ascii")
    return folder


def test_listeners_and_connections_of_a_port_are_told_apart_in_both_tables(tmp_path: Path) -> None:
    loopback6, loopback = "0000000000000000FFFF00000100007F:1F93", "0100007F:1F93"
    tables(tmp_path, (loopback6, "0A", 1000), (loopback6, "01", 1001))

    assert owners(8083, listening=True, tables=tmp_path) == {1000}
    assert owners(8083, listening=False, tables=tmp_path) == {1001}
    assert owners(8084, listening=True, tables=tmp_path) == set()
    tables(tmp_path, (loopback, "0A", 1002), ("00000000:1F93", "06", 0), table="tcp")
    assert owners(8083, listening=True, tables=tmp_path) == {1000, 1002}
    assert owners(8083, listening=False, tables=tmp_path) == {1001, 0}


def test_a_socket_of_this_process_belongs_to_its_user() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert owners(server.getsockname()[1], listening=True) == {os.geteuid()}
        assert owners(client.getsockname()[1], listening=False) == {os.geteuid()}
