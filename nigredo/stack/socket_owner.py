"""Owners of local TCP sockets, from the kernel's table, because every user of the machine can reach a loopback port."""

from __future__ import annotations

from pathlib import Path

TABLES = Path("/proc/net")
LISTENING = "0A"
"""Number of the state LISTEN in the kernel's table."""


def owners(port: int, *, listening: bool, tables: Path = TABLES) -> set[int]:
    """Return the ids of the users whose TCP sockets have this local port; empty when there is none.

    listening: look at listening sockets only; otherwise at all others.
    """
    found = set()
    for table in ("tcp", "tcp6"):
        if not (tables / table).exists():  # A kernel without IPv6 has no tcp6.
            continue
        for line in (tables / table).read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, _, _, _, owner, *_ = line.split()
            if (state == LISTENING) is listening and int(local.rpartition(":")[2], 16) == port:
                found.add(int(owner))
    return found
