"""Thousands of connections that drip their bytes: everybody else is served, and in the end they are cut."""

from __future__ import annotations

import asyncio
import resource
import time
from statistics import median

import httpx
import pytest

from nigredo.testing import Stack, any_client
from tests.support.nodes import FORM, another_node

SLOW = 5000
HEADER_TIMEOUT_S = 6
DRIP_EVERY_S = 1.0
CUT_WITHIN_S = 120
NORMAL = 50

HEAD = b"POST /api/leads HTTP/1.1\r\nHost: x\r\n"
WHOLE_HEAD = HEAD + b"Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n{"


async def drip(port: int, head: bytes, opened: list[float], got: list[bytes], spread_s: float) -> float:
    """Hold a connection open a byte at a time until it is cut; return how long that took."""
    await asyncio.sleep(spread_s)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    opened.append(began)
    writer.write(head)
    cut = asyncio.create_task(reader.read(4096))
    try:
        while not cut.done():
            writer.write(b"x")
            await asyncio.wait({cut}, timeout=DRIP_EVERY_S)
        got.append(cut.result())
    except ConnectionError:
        cut.cancel()
    finally:
        writer.close()
    return time.monotonic() - began


async def attack(url: str, port: int) -> tuple[list[float], list[int], list[float], list[bytes]]:
    """Return how long normal requests took, what they were answered, how long slow ones lived, what those read."""
    opened: list[float] = []
    got: list[bytes] = []
    heads = [HEAD, WHOLE_HEAD]
    slow = [
        asyncio.create_task(drip(port, heads[number % 2], opened, got, 3 * number / SLOW)) for number in range(SLOW)
    ]
    deadline = time.monotonic() + CUT_WITHIN_S
    while len(opened) < SLOW:
        assert time.monotonic() < deadline, f"{len(opened)} connections are open"
        await asyncio.sleep(0.05)
    took, statuses = [], []
    async with httpx.AsyncClient(timeout=30) as client:
        for _ in range(NORMAL):
            began = time.monotonic()
            answer = await client.post(f"{url}/api/leads", json=FORM, headers={"X-Forwarded-For": any_client()})
            took.append(time.monotonic() - began)
            statuses.append(answer.status_code)
    lived = await asyncio.wait_for(asyncio.gather(*slow), CUT_WITHIN_S)
    return took, statuses, lived, got


def test_five_thousand_slow_connections_leave_everybody_else_served(stack: Stack) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * SLOW:
        pytest.skip(f"the limit on open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with another_node(stack, INGEST_HEADER_TIMEOUT_SECONDS=str(HEADER_TIMEOUT_S)) as node:
            took, statuses, lived, got = asyncio.run(attack(node.url, node.port))
            assert node.post().status_code == 202
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert statuses == [202] * NORMAL
    # Who waits for the slow ones, waits until they are cut. The load itself takes its part of the machine.
    assert median(took) < HEADER_TIMEOUT_S / 4, f"slowest: {sorted(took)[-5:]}"
    assert sorted(took)[NORMAL * 9 // 10] < HEADER_TIMEOUT_S, f"slowest: {sorted(took)[-5:]}"
    assert max(lived) < CUT_WITHIN_S / 2
    # A head is cut without a word; a body that does not come is told so.
    answered = [answer for answer in got if answer]
    assert answered
    assert {answer.split(b"\r\n")[0] for answer in answered} == {b"HTTP/1.1 408 Request Timeout"}
