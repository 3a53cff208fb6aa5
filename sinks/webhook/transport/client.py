"""Webhook client: sends one attempt within a total deadline and turns the response into an outcome."""

from __future__ import annotations

import asyncio
import email.utils
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import httpx
from httpx_aiohttp import AiohttpTransport

from nigredo.clock import utc_now
from nigredo.endpoints.receiver_url import secrets_of
from nigredo.networks import Network
from schemas.events import Lead
from sinks.webhook.model import AttemptResult, Outcome
from sinks.webhook.transport.connection import ANSWERING, CONNECTING, CURRENT, RESOLVING, Exchange, make_session
from sinks.webhook.transport.failure import ADDRESS_REFUSED, describe
from sinks.webhook.transport.request import body_of, headers_of
from sinks.webhook.transport.response_excerpt import READ_FOR_EXCERPT_BYTES, excerpt_of

ANSWER_MAX_BYTES = 64 * 1024
RETRY_AFTER_MAX_S = 24 * 3600.0
RETRYABLE = frozenset({408, 425, 429})
ERROR_AT_DEADLINE = {
    RESOLVING: "the receiver's name was not resolved",
    CONNECTING: "no connection",
    ANSWERING: "no whole answer",
}


class Answer:
    """Kept parts of a response, as far as it arrived: `Retry-After`, charset and the first bytes of the body."""

    def __init__(self) -> None:
        self.retry_after_s = 0.0
        self.beginning = b""
        self.charset: str | None = None

    async def read(self, response: httpx.Response, now: datetime) -> None:
        """Read the response to its end, so that the connection can be reused; stops at ANSWER_MAX_BYTES."""
        # One pass over all headers, because each look-up by name costs as much.
        headers = {name.lower(): value.decode("latin-1") for name, value in response.headers.raw}
        self.retry_after_s = _retry_after_s(headers.get(b"retry-after"), now)
        self.charset = response.charset_encoding if b"content-type" in headers else None
        # A compressed body is not decompressed, because a few bytes may become gigabytes, and is of no use as it is.
        readable, size = headers.get(b"content-encoding", "identity").strip().lower() == "identity", 0
        async for chunk in response.aiter_raw():
            size += len(chunk)
            if readable and len(self.beginning) <= READ_FOR_EXCERPT_BYTES:
                self.beginning += chunk
            if size > ANSWER_MAX_BYTES:
                break


class WebhookClient:
    """Sends leads to one receiver. Create and use on the same event loop; call `close` at the end.

    Certificates are verified, redirects are not followed, and proxy and netrc settings of the environment are ignored,
    so that a signed body reaches the configured receiver only.
    """

    def __init__(
        self,
        url: str,
        *,
        connections_max: int,
        allowed: Sequence[Network] = (),
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """allowed: networks that the receiver may be in although they are not public.

        ssl_context: None for the default certificate authorities.
        """
        self._url = httpx.URL(url)
        self._secrets = secrets_of(url)
        self._connections_max = connections_max
        # The transport alone, without httpx's client: cookies, redirects and authentication are not wanted here and
        # took a third of the time.
        self._transport = AiohttpTransport(verify=ssl_context or True, trust_env=False)
        self._transport.client = make_session(self._transport.ssl_context, allowed, connections_max)

    async def attempt(
        self, lead: Lead, number: int, keys: Sequence[bytes], *, timeout_s: float, traceparent: str | None = None
    ) -> AttemptResult:
        """Send a lead once, within one total deadline. Never raises, except when cancelled."""
        sent_at, body = utc_now(), body_of(lead)
        headers = headers_of(lead, body, number, sent_at, keys, traceparent)
        attempt, answer = await self.send(body, headers, sent_at, timeout_s=timeout_s)
        excerpt = excerpt_of(answer.beginning, lead, charset=answer.charset, secrets=self._secrets)
        return replace(attempt, answer_excerpt=excerpt)

    async def send(
        self, body: bytes, headers: Mapping[str, str], sent_at: datetime, *, timeout_s: float
    ) -> tuple[AttemptResult, Answer]:
        """Send a signed body once; return the result and the kept parts of the response. Raises as `attempt` does."""
        began = time.perf_counter()
        answer, failed, exchange = Answer(), None, Exchange()
        try:
            # Around everything, because a receiver that sends byte by byte stays within every smaller timeout.
            async with asyncio.timeout(timeout_s):
                for _ in range(self._connections_max + 1):
                    CURRENT.set(exchange := Exchange())
                    try:
                        await self._exchange(body, headers, sent_at, answer)
                        break
                    except Exception:
                        # Sent again, because the receiver had closed the idle connection, which is no failure. The
                        # webhook-id makes the repetition safe.
                        if not exchange.was_stale:
                            raise
        except TimeoutError:
            failed = f"Connection timeout: {ERROR_AT_DEADLINE[exchange.stage]} within {timeout_s:g} s"
        except Exception as failure:
            # Any exception, because a receiver may send bytes that raise errors unknown to the client library.
            failed = describe(failure)
        status = exchange.status
        outcome = Outcome.BLOCKED if failed == ADDRESS_REFUSED else _outcome(status)
        error = None if outcome == Outcome.DELIVERED else failed if status is None else f"HTTP {status}"
        if failed is not None and status is not None and outcome != Outcome.DELIVERED:
            # A 2xx is final whatever the rest of the response is; any other status is final only with a whole response.
            outcome, status, error = Outcome.RETRY, None, f"{failed} (after HTTP {status})"
        duration_ms = round((time.perf_counter() - began) * 1000)
        return AttemptResult(outcome, sent_at, duration_ms, status, error, answer.retry_after_s), answer

    async def _exchange(self, body: bytes, headers: Mapping[str, str], now: datetime, answer: Answer) -> None:
        """Send the request and read the response as far as it arrives."""
        request = httpx.Request("POST", self._url, headers=httpx.Headers(headers, "ascii"), content=body)
        response = await self._transport.handle_async_request(request)
        try:
            await answer.read(response, now)
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


def _outcome(status: int | None) -> Outcome:
    if status is not None and 200 <= status < 300:
        return Outcome.DELIVERED
    # Redirects too, because following one would send personal data to a receiver that was never agreed on.
    return Outcome.REFUSED if status is not None and 300 <= status < 500 and status not in RETRYABLE else Outcome.RETRY


def _retry_after_s(header: str | None, now: datetime) -> float:
    """Return the wait of a `Retry-After` header, in seconds or as a date; at most RETRY_AFTER_MAX_S, 0 if unusable."""
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
