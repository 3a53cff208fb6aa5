"""Sample lead of `make run` and `nigredo up --sample`: posted, followed through the stack and timed at each step."""

from __future__ import annotations

import http.client
import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg

from nigredo.backoff import Backoff
from nigredo.errors import NigredoError
from nigredo.stack.home import Home

DEADLINE_S = 120.0
POST_TIMEOUT_S = 10.0
POLL_S = 0.005
FIELDS = {
    "name": "Ana Sample",
    "email": "ana@example.com",
    "message": "A sample lead, to see the way.",
    "source": "sample",
}
QUERY = """
SELECT s.verdict, s.submission_partition, s.submission_offset, l.lead_partition, l.lead_offset,
       w.status_code, w.success
FROM nigredo.leads l
JOIN nigredo.form_submissions s ON s.id = l.id
LEFT JOIN nigredo.webhook_logs w ON w.lead_id = l.id AND w.success
WHERE l.id = %s
"""


def show_sample(home: Home, tell: Callable[[str], None]) -> None:
    """Post a form and print each step with the milliseconds since the post.

    Raises NigredoError when the form is not accepted, or a step is missing after `DEADLINE_S`.
    """
    began = time.monotonic()

    def ms() -> str:
        return f"{(time.monotonic() - began) * 1000:.0f} ms"

    lead_id = _post(home)
    tell(f"\nA sample lead:\n  {'accepted':<17}{lead_id}, {ms()}")
    row: tuple[Any, ...] | None = None
    stored = None
    while row is None or row[5] is None:
        if time.monotonic() - began > DEADLINE_S:
            missing = "row" if row is None else "delivery"
            raise NigredoError(f"the sample lead has no {missing} after {DEADLINE_S:g} s; see {home.dir / 'logs'}")
        # Reconnect when the database restarts meanwhile.
        with (
            suppress(psycopg.OperationalError),
            psycopg.connect(home.conninfo("admin"), autocommit=True, connect_timeout=2) as database,
        ):
            while (row is None or row[5] is None) and time.monotonic() - began <= DEADLINE_S:
                row = database.execute(QUERY, [lead_id]).fetchone()
                if row is not None and stored is None:
                    stored = ms()
                time.sleep(POLL_S)
        time.sleep(POLL_S)
    verdict, partition, offset, lead_partition, lead_offset, status_code, _ = row
    tell(f"  {'submission':<17}nigredo.submissions, partition {partition}, offset {offset}: {verdict}")
    tell(f"  {'lead':<17}nigredo.leads, partition {lead_partition}, offset {lead_offset}")
    tell(f"  {'row':<17}nigredo.leads in PostgreSQL, {stored}")
    tell(f"  {'delivered':<17}{home.url('fibonacci')}/public/nigredo-event answered {status_code}, logged {ms()}\n")


def _post(home: Home) -> str:
    """Post the form until it is accepted and return the lead's id; retries 503 and broken connections."""
    # A random documentation network, so that samples never reach the rate limit.
    client = f"2001:db8:{secrets.randbelow(65536):x}:{secrets.randbelow(65536):x}::1"
    headers = {"Content-Type": "application/json", "X-Forwarded-For": client}
    backoff, deadline, reason = Backoff(longest_s=2.0), time.monotonic() + DEADLINE_S, "no answer"
    while time.monotonic() < deadline:
        # Not urllib, which would use a proxy from the environment.
        connection = http.client.HTTPConnection("127.0.0.1", home.port("ingest"), timeout=POST_TIMEOUT_S)
        try:
            connection.request("POST", "/api/leads", json.dumps(FIELDS), headers)
            answer = connection.getresponse()
            if answer.status == http.client.ACCEPTED:
                return str(json.load(answer)["id"])
            reason = f"{answer.status} {answer.reason}"
            if answer.status != http.client.SERVICE_UNAVAILABLE:
                break
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = type(error).__name__
        finally:
            connection.close()
        time.sleep(backoff.next_wait_s())
    raise NigredoError(f"the sample lead was not accepted: {reason}; see {home.log_file('ingest')}")
