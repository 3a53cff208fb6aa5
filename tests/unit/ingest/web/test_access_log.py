from __future__ import annotations

import asyncio
import json
import select

import pytest

from ingest.web.access_log import AccessLog


class Pipe:
    """Records each write as a piece of its own."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def write(self, piece: str) -> None:
        self.pieces.append(piece)


def test_no_more_is_written_at_once_than_a_pipe_takes_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of two workers would mix otherwise: a larger write to a full pipe is split, and another fits in between."""
    monkeypatch.setattr("ingest.web.access_log.OUTPUT", pipe := Pipe())

    async def scenario() -> None:
        log = AccessLog()
        for _ in range(64):
            log.add(
                function="nigredo-create-lead-production",
                request_id="f" * 32,
                ip_address="2001:0db8:1111:2222:3333:4444:5555:6666",
                method="POST",
                route="/api/leads/{lead_id}/trail",
                status_code=202,
                took_s=123.4567,
                lead_id="00000000-0000-4000-8000-000000000000",
            )
        await asyncio.sleep(0)

    asyncio.run(scenario())

    assert max(len(piece.encode()) for piece in pipe.pieces) <= select.PIPE_BUF
    assert [json.loads(line)["status_code"] for piece in pipe.pieces for line in piece.splitlines()] == [202] * 64
