"""One attempt: the request, its deadline, the guard at the connection, and what the answer is."""

from __future__ import annotations

import asyncio
import email.utils
import errno
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from nigredo.clock import utc_now
from nigredo.settings import Network
from schemas.events import Lead
from sinks.webhook.addresses import is_refused
from sinks.webhook.answer import READ_FOR_EXCERPT_BYTES, excerpt_of
from sinks.webhook.request import body_of, headers_of
from sinks.webhook.retry import BLOCKED, DELIVERED, REFUSED, RETRY

ANSWER_MAX_BYTES = 64 * 1024
RETRY_AFTER_MAX_S = 24 * 3600.0
RETRYABLE = frozenset({408, 425, 429})
KEEP_ALIVE_S = 30.0


ADDRESS_REFUSED = "refused to connect: the receiver's address is not public (see WEBHOOK_ALLOWED_NETWORKS)"


class AddressRefused(OSError):
    """The receiver's name leads to an address that nothing may be sent to."""

    def __init__(self) -> None:
        # One text for all addresses of a name: then the client passes this very error on.
        super().__init__(errno.EACCES, ADDRESS_REFUSED)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one attempt. `retry_after_s` is what the receiver asked for."""

    outcome: str
    sent_at: datetime
    duration_ms: int
    status_code: int | None
    error_message: str | None
    retry_after_s: float = 0.0
    answer_excerpt: str | None = None


class Deliverer:
    """Sends leads to one receiver. Make it on the event loop it is used on; `await close()`.

    Certificates are verified, redirects not followed, and neither a proxy nor a netrc of the environment is asked:
    what is signed goes where it was sent.
    """

    def __init__(self, url: str, *, connections_max: int, allowed: Sequence[Network] = ()) -> None:
        """allowed: networks that the receiver may be in although they are not public."""
        self._url = httpx.URL(url)
        # Without httpx's client: what that does for cookies, redirects and authentication is what is not wanted here,
        # and took a third of the time.
        self._transport = AiohttpTransport(trust_env=False)

        def guarded(info: tuple[Any, ...]) -> socket.socket:
            # Here, after the name was resolved: a literal in the URL passes no resolver, and a name may change.
            family, kind, protocol, _, address = info
            if is_refused(address[0], allowed):
                raise AddressRefused
            return socket.socket(family, kind, protocol)

        connector = aiohttp.TCPConnector(
            limit=connections_max,
            keepalive_timeout=KEEP_ALIVE_S,
            ssl=self._transport.ssl_context,
            socket_factory=guarded,
        )
        self._transport.client = aiohttp.ClientSession(
            connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def attempt(
        self, lead: Lead, number: int, keys: Sequence[bytes], *, timeout_s: float, traceparent: str | None = None
    ) -> Attempt:
        """Send a lead once, within one total deadline; never raises but when it is cancelled."""
        sent_at, body = utc_now(), body_of(lead)
        headers = headers_of(lead, body, number, sent_at, keys, traceparent)
        attempt, answer = await self.send(body, headers, sent_at, timeout_s=timeout_s)
        return replace(attempt, answer_excerpt=excerpt_of(answer, lead))

    async def send(
        self, body: bytes, headers: Mapping[str, str], sent_at: datetime, *, timeout_s: float
    ) -> tuple[Attempt, bytes]:
        """Send a signed body once; return what came of it, and how the answer begins. Raises as `attempt` does."""
        began = time.perf_counter()
        status, error, retry_after_s, answer = None, None, 0.0, b""
        try:
            # Around everything: a receiver that drips bytes passes every smaller timeout.
            async with asyncio.timeout(timeout_s):
                request = httpx.Request("POST", self._url, headers=httpx.Headers(headers, "ascii"), content=body)
                response = await self._transport.handle_async_request(request)
                try:
                    status = response.status_code
                    retry_after_s = _retry_after_s(response.headers.get("retry-after"), sent_at)
                    answer = await _read_some(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            error = f"Connection timeout: no whole answer within {timeout_s:g} s"
        except Exception as failure:
            # A receiver may answer anything; not all of it is an error that the client has a name for.
            error = _describe(failure)
        if error is not None and (status is None or not 200 <= status < 300):
            # Taken is taken, whatever becomes of the rest of the answer; anything else needs a whole one to be final.
            status = None
        outcome = BLOCKED if status is None and error == ADDRESS_REFUSED else _outcome(status)
        if status is not None:
            error = None if outcome == DELIVERED else f"HTTP {status}"
        duration_ms = round((time.perf_counter() - began) * 1000)
        return Attempt(outcome, sent_at, duration_ms, status, error, retry_after_s), answer

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


def _outcome(status: int | None) -> str:
    if status is not None and 200 <= status < 300:
        return DELIVERED
    if status is None or status >= 500 or status in RETRYABLE:
        return RETRY
    # Redirects too: following one would send a person's data where nobody agreed to.
    return REFUSED


async def _read_some(response: httpx.Response) -> bytes:
    """Read the answer to its end, so that the connection can be used again; a long one is cut off instead.

    Returns its beginning.
    """
    size, beginning = 0, b""
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if len(beginning) <= READ_FOR_EXCERPT_BYTES:
            beginning += chunk
        if size > ANSWER_MAX_BYTES:
            break
    return beginning


def _retry_after_s(header: str | None, now: datetime) -> float:
    """Return what `Retry-After` asks for in seconds, whether it is written as seconds or as a date; at most a day."""
    if header is None:
        return 0.0
    try:
        asked_s = float(header)
    except ValueError:
        try:
            at = email.utils.parsedate_to_datetime(header)
        except (ValueError, OverflowError):
            return 0.0
        asked_s = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    return min(max(0.0, asked_s), RETRY_AFTER_MAX_S) if asked_s == asked_s else 0.0


def _describe(failure: Exception) -> str:
    """Name a transport error in the words operators search for: the system's own name of it, where it has one."""
    causes: list[BaseException] = []
    cause: BaseException | None = failure
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    # What the client makes of it has the error's number, but not its words.
    if any(isinstance(cause, AddressRefused) for cause in causes):
        return ADDRESS_REFUSED
    for cause in causes:
        # The transport reports a refused connection as a time-out; what lies beneath tells the truth.
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
            return f"{errno.errorcode[cause.errno]}: {os.strerror(cause.errno)}"
    if isinstance(failure, httpx.TimeoutException):
        return "Connection timeout"
    return f"the connection broke: {type(failure).__name__}"
