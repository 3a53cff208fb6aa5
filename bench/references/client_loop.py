"""HTTP client's limit: a loop that posts one body with a fixed number in flight and does nothing else.

Arguments: `httpx-aiohttp` or `aiohttp`, URL, requests in flight, number of requests. Reads the body from stdin.
Prints the requests per second.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

HEADERS = {"content-type": "application/json"}


async def run(client: str, url: str, in_flight: int, count: int, body: bytes) -> float:
    """Return requests per second."""
    if client == "aiohttp":
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session:

            async def post() -> None:
                async with session.post(url, data=body, headers=HEADERS) as response:
                    await response.read()

            return await paced(post, in_flight, count)
    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    async with httpx.AsyncClient(transport=AiohttpTransport(limits=limits), timeout=5.0) as bare:

        async def post_by_httpx() -> None:
            await bare.post(url, content=body, headers=HEADERS)

        return await paced(post_by_httpx, in_flight, count)


async def paced(post: Callable[[], Awaitable[None]], in_flight: int, count: int) -> float:
    """Post `count` times, a tenth of it before the clock starts."""
    for many in (count // 10, count):
        left = iter(range(many))

        async def worker(numbers: object = left) -> None:
            for _ in numbers:  # type: ignore[attr-defined]
                await post()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(in_flight)))
    return count / (time.perf_counter() - began)


def main() -> None:
    """Run with the arguments of the command line."""
    client, url, in_flight, count = sys.argv[1:]
    print(asyncio.run(run(client, url, int(in_flight), int(count), sys.stdin.buffer.read())))


if __name__ == "__main__":
    main()
