"""Receivers of many kinds, correct and broken: a status line with 2xx means that the lead is delivered."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.server
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import aiohttp.web
import pytest
import uvloop

from sinks.webhook.model import AttemptResult, Outcome
from sinks.webhook.transport.client import WebhookClient
from sinks.webhook.transport.status_line import INTERIM_MAX, FloodOfInterimAnswers, StatusLine
from tests.support.attempts import KEYS, LEAD, LOOPBACK

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TLS = ssl.create_default_context()
"""Created once, because it loads all certificate authorities."""
STATUS = b"HTTP/1.1 200 OK\r\n"
DEADLINE_S = 60.0
"""Deadline of attempts that end by themselves; generous, because a busy machine may be slow."""


@asynccontextmanager
async def receiver(play: Play) -> AsyncIterator[int]:
    """Serve each connection with `play`; yields the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await play(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def saying(*packets: bytes, then: str = "close") -> Play:
    """Answer a request with these packets, and then close, reset or hold the connection."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}}")
        for number, packet in enumerate(packets):
            if number:
                await asyncio.sleep(0.05)
            writer.write(packet)
            await writer.drain()
        if then == "hold":
            await reader.read()
        if then == "reset":
            await asyncio.sleep(0.05)
            writer.transport.abort()

    return play


async def attempts(play: Play, number: int = 1, timeout_s: float = DEADLINE_S) -> list[AttemptResult]:
    async with receiver(play) as port:
        deliverer = WebhookClient(f"http://127.0.0.1:{port}/hook", connections_max=2, allowed=LOOPBACK, ssl_context=TLS)
        try:
            return [await deliverer.attempt(LEAD, each + 1, KEYS, timeout_s=timeout_s) for each in range(number)]
        finally:
            await deliverer.close()


def attempt(play: Play, timeout_s: float = DEADLINE_S) -> AttemptResult:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(attempts(play, timeout_s=timeout_s))[0]


@pytest.mark.parametrize(
    "packets",
    [
        pytest.param([STATUS + b"X-Big: " + b"x" * 8300 + b"\r\n\r\n"], id="a header of 8,300 bytes"),
        pytest.param([STATUS + b"X-Big: " + b"x" * 200_000 + b"\r\n\r\n"], id="a header of 200,000 bytes"),
        pytest.param([STATUS + b"".join(b"X-%d: y\r\n" % n for n in range(135)) + b"\r\n"], id="135 headers"),
        pytest.param([STATUS + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n"], id="5,000 headers"),
        pytest.param([b"HTTP/1.1 200 " + b"O" * 9000 + b"K\r\nContent-Length: 0\r\n\r\n"], id="a reason of 9 KB"),
        pytest.param([b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"], id="no reason"),
        pytest.param([b"HTTP/1.1 200 \xc3\xa9\xff\r\nContent-Length: 0\r\n\r\n"], id="a reason that is not ASCII"),
        pytest.param([STATUS + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nbad"], id="a broken chunk beside the head"),
        pytest.param([STATUS + b"Transfer-Encoding: chunked\r\n\r\n", b"xyz\r\nbad"], id="a broken chunk"),
        pytest.param([STATUS + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"], id="a chunk cut off"),
        pytest.param([STATUS + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"], id="two transfer encodings"),
        pytest.param([STATUS + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"], id="chunked not last"),
        pytest.param([STATUS + b"Transfer-Encoding: nonsense\r\n\r\nok"], id="an unknown transfer encoding"),
        pytest.param(
            [STATUS + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n"], id="two framings"
        ),
        pytest.param([STATUS + b"Content-Length: 9\r\n\r\nok"], id="a Content-Length too large"),
        pytest.param([STATUS + b"Content-Length: 1\r\n\r\nok"], id="a Content-Length too small"),
        pytest.param([STATUS + b"Content-Length: -1\r\n\r\nok"], id="a negative Content-Length"),
        pytest.param([STATUS + b"Content-Length: two\r\n\r\nok"], id="a Content-Length that is no number"),
        pytest.param([STATUS + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok"], id="two Content-Lengths"),
        pytest.param([STATUS + b"Content-Length: 2, 2\r\n\r\nok"], id="a list of Content-Lengths"),
        pytest.param([STATUS + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok"], id="gzip that is none"),
        pytest.param([STATUS + b"Content-Encoding: br, nope\r\nContent-Length: 2\r\n\r\nok"], id="unknown encodings"),
        pytest.param([STATUS], id="nothing after the status line"),
        pytest.param([STATUS + b"Content-Le"], id="cut off in a header"),
        pytest.param([STATUS + b"no colon here\r\n\r\n"], id="a header without a colon"),
        pytest.param([STATUS + b": no name\r\n\r\n"], id="a header without a name"),
        pytest.param([STATUS + b"X-A: a\0b\r\n\r\n"], id="a NUL in a header"),
        pytest.param([STATUS + b"X-A: a\r\n folded\r\nContent-Length: 0\r\n\r\n"], id="a folded header"),
        pytest.param([STATUS + b"X-\xff: y\r\nContent-Length: 0\r\n\r\n"], id="a header's name that is not ASCII"),
        pytest.param([b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"], id="bare line feeds"),
        pytest.param([b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], id="empty lines first"),
        pytest.param([b"HTTP/1.0 200 OK\r\n\r\nok"], id="HTTP/1.0 without a length"),
        pytest.param([b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n"], id="HTTP/2 in letters"),
        pytest.param([b"http/1.1 200 ok\r\nContent-Length: 0\r\n\r\n"], id="lower case"),
        pytest.param([b"HTTP/1.1  200  OK\r\nContent-Length: 0\r\n\r\n"], id="two spaces"),
        pytest.param([b"HTTP/1.1 204 No Content\r\n\r\nbut some"], id="a body after 204"),
        pytest.param([b"HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\nbut some"], id="204 with a length"),
        pytest.param([b"HTTP/1.1 204 No Content\r\n\r\n", b"late"], id="late bytes after 204"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n" + STATUS + b"Content-Length: 0\r\n\r\n"], id="100 first"),
        pytest.param(
            [b"HTTP/1.1 100 Continue\r\n\r\n", STATUS, b"X-A: b\r\n", b"Content-Length: 0\r\n\r\n"],
            id="100 first, then piece by piece",
        ),
        pytest.param(
            [b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" * 5 + STATUS + b"Content-Length: 0\r\n\r\n"],
            id="early hints",
        ),
        pytest.param([bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\n\r\n"], id="byte by byte"),
        pytest.param([b"HTTP/1.1 226 IM Used\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"], id="226 with a Location"),
    ],
)
@pytest.mark.parametrize("then", ["close", "reset"])
def test_a_2xx_status_line_means_delivered_whatever_follows(packets: Sequence[bytes], then: str) -> None:
    made = attempt(saying(*packets, then=then))

    assert (made.outcome, made.error_message) == (Outcome.DELIVERED, None)
    assert made.status_code in (200, 204, 226)
    assert made.duration_ms < 1000 * DEADLINE_S / 2  # No slot is held until the deadline.


@pytest.mark.parametrize("packets", [[STATUS], [STATUS + b"X-A: b\r\n"], [STATUS + b"Content-Length: 9\r\n\r\n"]])
def test_a_2xx_status_line_means_delivered_though_the_rest_does_not_arrive_in_time(packets: Sequence[bytes]) -> None:
    made = attempt(saying(*packets, then="hold"), timeout_s=1.5)

    assert (made.outcome, made.status_code) == (Outcome.DELIVERED, 200)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (101, Outcome.RETRY),
        (199, Outcome.RETRY),
        (304, Outcome.REFUSED),
        (404, Outcome.REFUSED),
        (418, Outcome.REFUSED),
        (429, Outcome.RETRY),
        (500, Outcome.RETRY),
        (511, Outcome.RETRY),
        (600, Outcome.RETRY),
        (999, Outcome.RETRY),
    ],
)
def test_a_large_head_does_not_change_the_outcome_of_other_statuses(status: int, outcome: Outcome) -> None:
    head = b"HTTP/1.1 %d X\r\nX-Big: " % status + b"x" * 9000 + b"\r\nContent-Length: 0\r\n\r\n"

    assert attempt(saying(head)).outcome == outcome


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        (b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "the answer is no HTTP"),
        (b"Content-Length: 9\r\n\r\nok", "ECONNRESET: the answer broke off"),
        (b"X-Cut: o", "ECONNRESET: the receiver closed the connection"),
    ],
)
def test_only_a_whole_response_refuses_a_lead_for_good(rest: bytes, says: str) -> None:
    made = attempt(saying(b"HTTP/1.1 404 Not Found\r\n" + rest))

    assert (made.outcome, made.status_code) == (Outcome.RETRY, None)
    assert made.error_message is not None
    assert made.error_message.startswith(says)
    assert made.error_message.endswith("(after HTTP 404)")


def test_retry_after_counts_though_the_response_breaks_off() -> None:
    made = attempt(saying(b"HTTP/1.1 503 Oh\r\nRetry-After: 7\r\nContent-Length: 9\r\n\r\nok"))

    assert (made.outcome, made.error_message) == (Outcome.RETRY, "ECONNRESET: the answer broke off (after HTTP 503)")
    assert made.retry_after_s == 7


def test_the_parser_s_message_is_reported_without_the_receiver_s_bytes() -> None:
    made = attempt(saying(b"220 mail.example.com ana@example.com\r\n\r\n"))

    assert made.error_message is not None
    assert made.error_message.startswith("the answer is no HTTP: ")
    assert "example" not in made.error_message


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 P\r\nX: y\r\n\r\n", b"HTTP/1.1 1", b"X: y\r\n"]
)
def test_a_flood_before_the_response_neither_blocks_the_loop_nor_outlives_the_deadline(interim: bytes) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}}")
        for _ in range(10_000):
            writer.write(interim * 10_000)
            await writer.drain()

    async def scenario() -> tuple[AttemptResult, float]:
        longest_s, ended = 0.0, asyncio.Event()

        async def measure() -> None:
            nonlocal longest_s
            while not ended.is_set():
                began = time.thread_time()
                await asyncio.sleep(0.001)
                longest_s = max(longest_s, time.thread_time() - began)

        measuring = asyncio.create_task(measure())
        made = (await attempts(flood, timeout_s=1.0))[0]
        ended.set()
        await measuring
        return made, longest_s

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        made, longest_s = runner.run(scenario())

    assert (made.outcome, made.status_code) == (Outcome.RETRY, None)
    # Processor time, because other processes do not add to it.
    assert longest_s < 0.5


def test_interim_responses_alone_are_not_a_response() -> None:
    made = attempt(saying(b"HTTP/1.1 102 Processing\r\n\r\n" * 3))

    assert (made.outcome, made.status_code) == (Outcome.RETRY, None)
    assert made.error_message == "ECONNRESET: the receiver closed the connection before it answered"


# --- reused connections ---------------------------------------------------------------------------------------------


def answering_once_a_connection(requests: list[int], how: str) -> Play:
    """Answer the first request of each connection, and close or reset the connection at the second one."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}}")
        requests.append(1)
        writer.write(STATUS + b"Content-Length: 2\r\n\r\nok")
        await writer.drain()
        await reader.read(1)
        if how == "reset":
            writer.transport.abort()

    return play


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_connection_that_the_receiver_closes_while_it_is_reused_is_not_a_failure(how: str) -> None:
    requests: list[int] = []

    made = asyncio.run(attempts(answering_once_a_connection(requests, how), number=3))

    assert [each.outcome for each in made] == [Outcome.DELIVERED] * 3
    assert len(requests) == 3


def test_a_new_connection_that_breaks_is_a_failure_and_not_repeated_at_once() -> None:
    connections: list[int] = []

    async def play(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        connections.append(1)
        await reader.readuntil(b"}}")

    made = attempt(play)

    assert made.outcome == Outcome.RETRY
    assert len(connections) == 1


@pytest.mark.parametrize(
    "stray", [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 20", b"\r\n", b"garbage"]
)
@pytest.mark.parametrize("apart", [False, True])
def test_bytes_after_a_response_do_not_pass_for_the_next_response(stray: bytes, apart: bool) -> None:
    """Two responses to one request must not make the next lead count as delivered."""
    answered: list[int] = []
    ended = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}}")
        if not answered:
            answered.append(1)
            writer.write(STATUS + b"Content-Length: 2\r\n\r\nok" + (b"" if apart else stray))
            if apart:
                await asyncio.sleep(0.05)
                writer.write(stray)
            await writer.drain()
            try:
                await reader.readuntil(b"}}")
            finally:
                ended.set()
        writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async def scenario() -> list[AttemptResult]:
        async with receiver(play) as port:
            deliverer = WebhookClient(
                f"http://127.0.0.1:{port}/hook", connections_max=1, allowed=LOOPBACK, ssl_context=TLS
            )
            try:
                first = await deliverer.attempt(LEAD, 1, KEYS, timeout_s=DEADLINE_S)
                if apart:
                    await asyncio.wait_for(ended.wait(), DEADLINE_S)
                return [first, await deliverer.attempt(LEAD, 2, KEYS, timeout_s=DEADLINE_S)]
            finally:
                await deliverer.close()

    made = asyncio.run(scenario())

    assert [each.status_code for each in made] == [200, 500]


# --- response excerpt -----------------------------------------------------------------------------------------------


def body(content: bytes, *headers: str) -> Play:
    head = "".join(f"{header}\r\n" for header in (*headers, f"Content-Length: {len(content)}"))
    return saying(b"HTTP/1.1 422 No\r\n" + head.encode() + b"\r\n" + content)


def test_a_response_is_decoded_with_its_declared_charset() -> None:
    declared = body("não, Ana".encode("latin-1"), "Content-Type: text/plain; charset=ISO-8859-1")

    assert attempt(declared).answer_excerpt == "não, ***"
    for charset in ("nonsense", "base64", "utf-16", "punycode", '"', "\xff"):
        assert attempt(body(b"no, Ana", f"Content-Type: text/plain; charset={charset}")).outcome == Outcome.REFUSED


@pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_the_lead_is_masked_in_an_undeclared_charset_too(charset: str) -> None:
    kept = attempt(body("no, Ana, ana@example.com".encode(charset))).answer_excerpt or ""

    assert "no" in kept
    assert "na" not in kept.replace("no", "")


def test_a_compressed_response_is_neither_decompressed_nor_kept() -> None:
    made = attempt(body(gzip.compress(b"\0" * 10_000_000), "Content-Encoding: gzip"))

    assert (made.outcome, made.answer_excerpt) == (Outcome.REFUSED, None)


# --- widely used servers --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def standard_library(protocol: str) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = protocol

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("protocol", ["HTTP/1.0", "HTTP/1.1"])
def test_leads_are_delivered_to_the_standard_library_s_server(protocol: str) -> None:
    async def scenario(port: int) -> list[AttemptResult]:
        deliverer = WebhookClient(f"http://127.0.0.1:{port}/hook", connections_max=2, allowed=LOOPBACK, ssl_context=TLS)
        try:
            return [await deliverer.attempt(LEAD, number, KEYS, timeout_s=DEADLINE_S) for number in range(1, 5)]
        finally:
            await deliverer.close()

    with standard_library(protocol) as port:
        assert [each.outcome for each in asyncio.run(scenario(port))] == [Outcome.DELIVERED] * 4


@pytest.mark.parametrize("keep_alive", [0.0, 60.0])
def test_leads_are_delivered_to_aiohttp_s_server(keep_alive: float) -> None:
    async def taken(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        await request.read()
        response = aiohttp.web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b"ok")
        return response

    async def scenario() -> list[AttemptResult]:
        app = aiohttp.web.Application()
        app.router.add_post("/hook", taken)
        runner = aiohttp.web.AppRunner(app, keepalive_timeout=keep_alive)
        await runner.setup()
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        deliverer = WebhookClient(
            f"http://127.0.0.1:{runner.addresses[0][1]}/hook", connections_max=2, allowed=LOOPBACK, ssl_context=TLS
        )
        try:
            return [await deliverer.attempt(LEAD, number, KEYS, timeout_s=DEADLINE_S) for number in range(1, 5)]
        finally:
            await deliverer.close()
            await runner.cleanup()

    assert [each.outcome for each in asyncio.run(scenario())] == [Outcome.DELIVERED] * 4


# --- status line alone ----------------------------------------------------------------------------------------------


def test_too_many_interim_responses_are_refused() -> None:
    line = StatusLine()
    line.feed(b"HTTP/1.1 100 Continue\r\n\r\n" * INTERIM_MAX)

    with pytest.raises(FloodOfInterimAnswers):
        line.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
