"""Pure steps on one record, beside bare code for the same work, so that a change of a few lines shows at once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import fastavro

from bench.load import contact
from bench.measure import Contender, Figures, Result
from bench.run import Run
from nigredo.avro import encoded_submission
from nigredo.avro.codec import Codec
from nigredo.clock import utc_now
from nigredo.rate_limit import window
from schemas.events import Lead, Submission
from schemas.topics import SUBMISSIONS, load_schema
from sinks.webhook.transport import request

CALLS = 20_000
SECRETS = (b"a" * 32, b"b" * 32)


class _OneSchema:
    """A registry with one schema, of submissions."""

    def id_of(self, *_: object) -> int:
        """Return the schema's id."""
        return 1

    def schema_of(self, _: int) -> Any:
        """Return the schema."""
        return load_schema("submissions")


def run(bench: Run) -> None:
    """Measure encoder, decoder, verdict and signing."""
    calls = bench.effort.records(CALLS)
    now = utc_now()
    submission = Submission(
        uuid4(), "192.0.2.1", "192.0.2.1", "Mozilla/5.0", "contact", "site", contact(1), now, 10, 3600, False, None
    )
    for name, title, subject, bare in (
        ("encoder", "Submission to bytes", *_encoders(submission)),
        ("decoder", "Bytes to submission", *_decoders(submission)),
        ("window", "Verdict of one submission", *_windows(submission)),
        ("signing", "Body and two signatures of one delivery", *_signers(submission)),
    ):
        result = Result(f"step: {name}", title, "calls/s", {"calls": calls})
        contenders = [Contender("ours", _timed(subject, calls)), Contender("bare", _timed(bare, calls))]
        bench.alternate(result, contenders)


def _timed(call: Callable[[], object], calls: int) -> Callable[[int], Figures]:
    def measure(_: int) -> Figures:
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return {"rate": calls / (time.perf_counter() - began)}

    return measure


def _encoders(submission: Submission) -> tuple[Callable[[], object], Callable[[], object]]:
    codec = Codec(_OneSchema())
    codec.prepare([SUBMISSIONS])
    schema = fastavro.parse_schema(load_schema("submissions"))
    plain = fastavro.schemaless_reader(io.BytesIO(codec.encode(SUBMISSIONS, submission)[5:]), schema)
    which = ("nigredo.Submission", plain)

    def bare() -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, schema, which)
        return out.getvalue()

    return lambda: encoded_submission.encode_submission(codec, submission), bare


def _decoders(submission: Submission) -> tuple[Callable[[], object], Callable[[], object]]:
    codec = Codec(_OneSchema())
    codec.prepare([SUBMISSIONS])
    value = codec.encode(SUBMISSIONS, submission)
    schema = fastavro.parse_schema(load_schema("submissions"))
    return (
        lambda: codec.decode(SUBMISSIONS, value),
        lambda: fastavro.schemaless_reader(io.BytesIO(value[5:]), schema),
    )


def _windows(submission: Submission) -> tuple[Callable[[], object], Callable[[], object]]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    state = None
    for offset in range(5):
        same = replace(submission, id=uuid4())
        state = window.judge(state, same, at=start + timedelta(seconds=offset), offset=offset).state
    at = start + timedelta(minutes=5)
    times = deque(acceptance.at for acceptance in state.accepted) if state else deque()
    hour = timedelta(hours=1)

    def bare() -> bool:
        while times and at - times[0] >= hour:
            times.popleft()
        accepted = len(times) < submission.limit
        if accepted:
            times.append(at)
            times.pop()
        return accepted

    return lambda: window.judge(state, submission, at=at, offset=99), bare


def _signers(submission: Submission) -> tuple[Callable[[], object], Callable[[], object]]:
    now = utc_now()
    lead = Lead(
        submission.id,
        submission.client_network,
        submission.ip_address,
        submission.user_agent,
        submission.form_id,
        submission.source,
        submission.contact,
        now,
        now,
        False,
        0,
        0,
    )
    document = json.loads(request.body_of(lead))

    def bare() -> str:
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        digests = (hmac.digest(secret, body, hashlib.sha256) for secret in SECRETS)
        return " ".join(base64.b64encode(digest).decode() for digest in digests)

    return lambda: request.headers_of(lead, request.body_of(lead), 1, now, SECRETS), bare
