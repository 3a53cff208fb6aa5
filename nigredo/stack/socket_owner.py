"""Users that sockets of this machine belong to, as the kernel's table tells: loopback ports are open to all of them."""

from __future__ import annotations

from pathlib import Path

TABLES = Path("/proc/net")
LISTENING = "0A"
"""The state's number in the kernel's table."""


def owners(port: int, *, listening: bool, tables: Path = TABLES) -> set[int]:
    """Return the ids of the users whose TCP sockets have this local port; empty when none is known.

    listening: of sockets that wait for connections; else of all others.
    """
    found = set()
    for table in ("tcp", "tcp6"):
        if not (tables / table).exists():  # Without IPv6 there is no second one.
            continue
        for line in (tables / table).read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, _, _, _, owner, *_ = line.split()
            if (state == LISTENING) is listening and int(local.rpartition(":")[2], 16) == port:
                found.add(int(owner))
    return found
