"""One attempt, and what its outcome means for the lead."""

from __future__ import annotations

import asyncio
import email.utils
import errno
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
from httpx_aiohttp import AiohttpTransport

from nigredo.clock import utc_now
from schemas.events import Lead
from sinks.webhook.request import body_of, headers_of
from sinks.webhook.retry import DELIVERED, REFUSED, RETRY

ANSWER_MAX_BYTES = 64 * 1024
RETRY_AFTER_MAX_S = 3600.0
RETRYABLE = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one attempt. `retry_after_s` is what the receiver asked for."""

    outcome: str
    sent_at: datetime
    duration_ms: int
    status_code: int | None
    error_message: str | None
    retry_after_s: float = 0.0


class Deliverer:
    """Sends leads to one receiver. Make it on the event loop it is used on; `await close()`."""

    def __init__(self, url: str, secrets: Sequence[bytes], *, timeout_s: float, connections_max: int) -> None:
        self._url = url
        self._secrets = secrets
        self._timeout_s = timeout_s
        limits = httpx.Limits(max_connections=connections_max, max_keepalive_connections=connections_max)
        self._client = httpx.AsyncClient(
            transport=AiohttpTransport(limits=limits, trust_env=False),
            timeout=timeout_s,
            follow_redirects=False,
            # Neither a proxy nor a netrc of the environment is asked: what is signed goes where it was sent.
            trust_env=False,
        )

    async def attempt(self, lead: Lead, number: int) -> Attempt:
        """Send a lead once, within one total deadline; never raises but when it is cancelled."""
        sent_at, began = utc_now(), time.perf_counter()
        body = body_of(lead)
        status, error, retry_after_s = None, None, 0.0
        try:
            # Around everything: a receiver that drips bytes passes every smaller timeout.
            async with asyncio.timeout(self._timeout_s):
                headers = headers_of(lead, body, number, sent_at, self._secrets)
                async with self._client.stream("POST", self._url, content=body, headers=dict(headers)) as response:
                    status = response.status_code
                    retry_after_s = _retry_after_s(response.headers.get("retry-after"), sent_at)
                    await _read_some(response)
        except TimeoutError:
            error = f"Connection timeout: no whole answer within {self._timeout_s:g} s"
        except Exception as failure:
            # A receiver may answer anything; not all of it is an error that the client has a name for.
            error = _describe(failure)
        if error is not None and (status is None or not 200 <= status < 300):
            # Taken is taken, whatever becomes of the rest of the answer; anything else needs a whole one to be final.
            status = None
        outcome = _outcome(status)
        if status is not None:
            error = None if outcome == DELIVERED else f"HTTP {status}"
        duration_ms = round((time.perf_counter() - began) * 1000)
        return Attempt(outcome, sent_at, duration_ms, status, error, retry_after_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _outcome(status: int | None) -> str:
    if status is not None and 200 <= status < 300:
        return DELIVERED
    if status is None or status >= 500 or status in RETRYABLE:
        return RETRY
    # Redirects too: following one would send a person's data where nobody agreed to.
    return REFUSED


async def _read_some(response: httpx.Response) -> None:
    """Read the answer to its end, so that the connection can be used again; a long one is cut off instead."""
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > ANSWER_MAX_BYTES:
            return


def _retry_after_s(header: str | None, now: datetime) -> float:
    """Return what `Retry-After` asks for in seconds, whether it is written as seconds or as a date; at most an hour."""
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
    cause: BaseException | None = failure
    while cause is not None:
        # The transport reports a refused connection as a time-out; what lies beneath tells the truth.
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
            return f"{errno.errorcode[cause.errno]}: {os.strerror(cause.errno)}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(failure, httpx.TimeoutException):
        return "Connection timeout"
    return f"the connection broke: {type(failure).__name__}"
