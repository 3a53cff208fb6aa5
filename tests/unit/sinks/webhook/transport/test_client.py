"""Webhook client: the outcome of each status, hang, flood, broken connection and forbidden address."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from sinks.webhook.model import AttemptResult, Outcome
from sinks.webhook.transport.client import ANSWER_MAX_BYTES, WebhookClient, _retry_after_s
from tests.support.attempts import KEYS, LEAD, LOOPBACK, NOON

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def attempt(answer: Answer, *, timeout_s: float = 60.0) -> AttemptResult:
    """Make one attempt against a receiver that answers each request with `answer`."""

    async def scenario() -> AttemptResult:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"}}")
                await answer(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        deliverer = WebhookClient(f"http://127.0.0.1:{port}/hook", connections_max=2, allowed=LOOPBACK)
        try:
            return await deliverer.attempt(LEAD, 1, KEYS, timeout_s=timeout_s)
        finally:
            await deliverer.close()
            server.close()

    return asyncio.run(scenario())


def saying(status: int, headers: str = "", body: bytes = b"") -> Answer:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)
        await writer.drain()

    return answer


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.DELIVERED),
        (204, Outcome.DELIVERED),
        (299, Outcome.DELIVERED),
        (301, Outcome.REFUSED),
        (400, Outcome.REFUSED),
        (401, Outcome.REFUSED),
        (404, Outcome.REFUSED),
        (410, Outcome.REFUSED),
        (408, Outcome.RETRY),
        (425, Outcome.RETRY),
        (429, Outcome.RETRY),
        (500, Outcome.RETRY),
        (503, Outcome.RETRY),
    ],
)
def test_each_status_means_delivered_retry_or_refused(status: int, outcome: Outcome) -> None:
    made = attempt(saying(status))

    assert (made.outcome, made.status_code) == (outcome, status)
    assert made.error_message == (None if outcome == Outcome.DELIVERED else f"HTTP {status}")


def test_a_redirect_is_not_followed() -> None:
    made = attempt(saying(302, "Location: http://127.0.0.1:1/elsewhere\r\n"))

    assert (made.outcome, made.status_code) == (Outcome.REFUSED, 302)


def test_retry_after_is_honoured_in_seconds_and_as_a_date() -> None:
    assert attempt(saying(429, "Retry-After: 7\r\n")).retry_after_s == 7
    assert _retry_after_s("Tue, 24 Nov 2026 12:00:30 GMT", NOON) == 30
    for nonsense in ("soon", "-5", "nan", "", "Tue, 99 Nov", "Mon, 01 Jan 99999999999 00:00:00 GMT"):
        assert _retry_after_s(nonsense, NOON) == 0
    assert _retry_after_s("1e9", NOON) == 86_400


def test_a_receiver_that_hangs_times_out_at_the_deadline() -> None:
    async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    began = time.monotonic()
    made = attempt(hang, timeout_s=0.3)

    assert (made.outcome, made.status_code) == (Outcome.RETRY, None)
    assert made.error_message is not None
    assert made.error_message.startswith("Connection timeout")
    assert time.monotonic() - began < 30


def test_a_receiver_that_sends_byte_by_byte_times_out_at_the_deadline() -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Oh\r\n")
        for number in range(1000):
            writer.write(b"x-%d: y\r\n" % number)
            await writer.drain()
            await asyncio.sleep(0.02)

    made = attempt(drip, timeout_s=0.3)

    assert made.outcome == Outcome.RETRY
    assert made.duration_ms < 30_000


def test_an_endless_response_is_cut_off_and_counts_by_its_status() -> None:
    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        for _unused in range(100):
            writer.write(b"x" * ANSWER_MAX_BYTES)
            await writer.drain()

    assert attempt(flood).outcome == Outcome.DELIVERED


def test_a_2xx_counts_even_when_the_response_never_ends() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        await reader.read()

    made = attempt(half, timeout_s=1.5)

    assert (made.outcome, made.status_code, made.error_message) == (Outcome.DELIVERED, 200, None)


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"\0" * 99, b"HTTP/1.1 200", b"HTTP/1.1 2000 OK\r\n\r\n"])
def test_a_response_that_is_not_http_is_retried(answer: bytes) -> None:
    async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    assert attempt(nonsense).outcome == Outcome.RETRY


def test_a_broken_connection_is_retried() -> None:
    async def slam(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    made = attempt(slam)

    assert (made.outcome, made.status_code) == (Outcome.RETRY, None)


def test_an_unreachable_receiver_is_reported_by_the_system_s_error_code() -> None:
    async def scenario() -> AttemptResult:
        deliverer = WebhookClient("http://127.0.0.1:1/hook", connections_max=1, allowed=LOOPBACK)
        try:
            return await deliverer.attempt(LEAD, 1, KEYS, timeout_s=60)
        finally:
            await deliverer.close()

    made = asyncio.run(scenario())

    assert made.outcome == Outcome.RETRY
    assert made.error_message is not None
    assert "ECONNREFUSED" in made.error_message


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/hook",
        "http://localhost:{port}/hook",
        "http://[::1]:{port}/hook",
        "http://[::ffff:127.0.0.1]:{port}/hook",
    ],
)
def test_no_connection_is_opened_to_an_address_that_is_not_public(url: str) -> None:
    """Literals and names alike, because the address is checked at the time of the connection."""
    connected = []

    async def scenario() -> AttemptResult:
        server = await asyncio.start_server(lambda *_: connected.append(True), ["127.0.0.1"], 0)
        deliverer = WebhookClient(url.format(port=server.sockets[0].getsockname()[1]), connections_max=1)
        try:
            return await deliverer.attempt(LEAD, 1, KEYS, timeout_s=60)
        finally:
            await deliverer.close()
            server.close()

    made = asyncio.run(scenario())

    assert (made.outcome, made.status_code) == (Outcome.BLOCKED, None)
    assert made.error_message is not None
    assert "WEBHOOK_ALLOWED_NETWORKS" in made.error_message
    assert connected == []


def test_the_connection_is_reused() -> None:
    connections = []

    async def scenario() -> list[AttemptResult]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(True)
            for _ in range(3):
                await reader.readuntil(b"}}")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        deliverer = WebhookClient(f"http://127.0.0.1:{port}/hook", connections_max=2, allowed=LOOPBACK)
        try:
            return [await deliverer.attempt(LEAD, number, KEYS, timeout_s=60) for number in (1, 2, 3)]
        finally:
            await deliverer.close()
            server.close()

    assert [made.outcome for made in asyncio.run(scenario())] == [Outcome.DELIVERED] * 3
    assert len(connections) == 1


def test_the_start_of_the_response_is_kept_with_the_lead_s_words_masked() -> None:
    made = attempt(saying(422, body=b'{"error":"ana@example.com is no customer, dear ANA"}'))

    assert made.answer_excerpt == '{"error":"*** is no customer, dear ***"}'


def test_the_request_carries_the_record_s_trace_and_the_attempt_number() -> None:
    seen = bytearray()

    async def scenario() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.extend(await reader.readuntil(b"}}"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        deliverer = WebhookClient(f"http://127.0.0.1:{port}/hook", connections_max=2, allowed=LOOPBACK)
        try:
            await deliverer.attempt(LEAD, 3, KEYS, timeout_s=60, traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
        finally:
            await deliverer.close()
            server.close()

    asyncio.run(scenario())
    head = seen.partition(b"\r\n\r\n")[0].lower()

    assert f"traceparent: 00-{'a' * 32}-{'b' * 16}-01".encode() in head
    assert b"nigredo-attempt: 3" in head
    assert b"user-agent: nigredo-webhook/1" in head
