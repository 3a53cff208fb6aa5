"""Lead routes: `GET /api/leads`, `/api/leads/{id}` and `/api/leads/{id}/trail`, for clients with an API key."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from datetime import timedelta
from typing import Any
from uuid import UUID

import falcon
import falcon.asgi

from ingest.forms.validation import LABEL_MAX, FieldProblem, InvalidForm, label
from ingest.reads.lead_queries import LIMIT_MAX, BadCursor, DatabaseDown, LeadQueries, lead_id_of
from ingest.submissions.lead_ids import issued_within
from ingest.submissions.service import SubmissionService
from ingest.web.answers import is_known
from nigredo.clock import utc_now
from nigredo.control.api_keys import LEADS_READ, verify
from nigredo.observability import metrics

Request = falcon.asgi.Request
Response = falcon.asgi.Response

LIMIT = 20
CACHE_CONTROL = "private, max-age=5"
NOT_YET_S = 30.0
"""Time for which a 404 carries `Retry-After`. A lead not stored by then was refused by the limiter, or waits for a
service that is down, and its client would poll for ever."""
CLOCK_SKEW = timedelta(seconds=5)
NOT_YET_MAX = 10_000
CHALLENGE = ('Bearer realm="nigredo"',)


class RecentKeyedIds:
    """The ids of keyed forms within NOT_YET_S, because such ids contain no time. Bounded."""

    def __init__(self) -> None:
        self._accepted: OrderedDict[UUID, float] = OrderedDict()

    def add(self, lead_id: UUID) -> None:
        """Add a lead that was accepted just now."""
        now = time.monotonic()
        self._accepted[lead_id] = now
        while len(self._accepted) > NOT_YET_MAX or now - next(iter(self._accepted.values())) > NOT_YET_S:
            self._accepted.popitem(last=False)

    def __contains__(self, lead_id: object) -> bool:
        return isinstance(lead_id, UUID) and time.monotonic() - self._accepted.get(lead_id, -NOT_YET_S) < NOT_YET_S


def authorize(request: Request, intake: SubmissionService, scope: str) -> None:
    """Check that the request's API key is known and has the scope.

    Raises falcon's 401 or 403, and DatabaseDown (503) while the keys are not loaded.
    """
    if not intake.control_known:
        raise DatabaseDown("API keys not loaded yet")
    scheme, _, text = (request.get_header("Authorization") or "").partition(" ")
    key = verify(text.strip(), intake.control.api_keys) if scheme.lower() == "bearer" else None
    if key is None:
        metrics.AUTH_FAILURES.of().inc()
        raise falcon.HTTPUnauthorized(description="Send an API key: Authorization: Bearer ngd_…", challenges=CHALLENGE)
    if scope not in key.scopes:
        raise falcon.HTTPForbidden(description=f"This key does not have the scope {scope}.")


def answer_cached(request: Request, response: Response, document: Any) -> None:
    """Answer with JSON that only the client may cache, or with 304 when the client has it cached."""
    content = json.dumps(document, ensure_ascii=False).encode()
    etag = hashlib.sha256(content).hexdigest()[:32]
    response.set_header("ETag", f'"{etag}"')
    response.set_header("Cache-Control", CACHE_CONTROL)
    response.append_header("Vary", "Authorization")
    if is_known(request, etag):
        response.status = falcon.HTTP_304
        return
    response.content_type = falcon.MEDIA_JSON
    response.data = content


async def answer_page(request: Request, response: Response, reads: LeadQueries) -> None:
    """Answer with a page of leads, newest first."""
    problems = [
        FieldProblem(name, "is not a parameter")
        for name in request.params
        if name not in ("limit", "cursor", "status", "source")
    ]
    chosen: dict[str, str | None] = {}
    for name in ("limit", "cursor", "status", "source"):
        values = request.get_param_as_list(name) or []
        # An empty parameter, as an empty field of a search form sends it, filters nothing; an empty limit is an error.
        chosen[name] = (values[0] or (None if name != "limit" else "")) if values else None
        if len(values) > 1:
            problems.append(FieldProblem(name, "is given more than once"))
    labels = {name: text for name in ("status", "source") if (text := chosen[name])}
    problems += [FieldProblem(name, "is too long") for name, text in labels.items() if len(text) > LABEL_MAX]
    limit = _limit(chosen["limit"], problems)
    if problems:
        raise InvalidForm(422, *problems)
    if any(label(text) is None for text in labels.values()):
        # No lead has such a label, and PostgreSQL would refuse a query with a NUL in it.
        answer_cached(request, response, {"items": [], "next_cursor": None})
        return
    try:
        items, more = await reads.page(
            limit=limit, cursor=chosen["cursor"], status=chosen["status"], source=chosen["source"]
        )
    except BadCursor:
        raise InvalidForm(422, FieldProblem("cursor", "is not one that a page came with")) from None
    answer_cached(request, response, {"items": items, "next_cursor": more})


def _limit(text: str | None, problems: list[FieldProblem]) -> int:
    if text is None:
        return LIMIT
    # Plain digits only: Python's `int` accepts much more.
    if text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= LIMIT_MAX:
        return int(text)
    problems.append(FieldProblem("limit", f"must be from 1 to {LIMIT_MAX}"))
    return LIMIT


class LeadRoute:
    """`GET /api/leads/{id}`, and `GET /api/leads/{id}/trail` with all its stages."""

    def __init__(self, intake: SubmissionService, reads: LeadQueries, recent: RecentKeyedIds) -> None:
        self._submissions = intake
        self._reads = reads
        self._recent = recent

    async def on_get(self, request: Request, response: Response, lead_id: str) -> None:
        """Answer with the lead, or 404; with `Retry-After` when the lead may still be in flight."""
        authorize(request, self._submissions, LEADS_READ)
        found = lead_id_of(lead_id)
        self._answer(request, response, found, None if found is None else await self._reads.lead(found))

    on_head = on_get

    async def on_get_trail(self, request: Request, response: Response, lead_id: str) -> None:
        """Answer with every stage of the submission, with positions and times, or 404 as `on_get` does."""
        authorize(request, self._submissions, LEADS_READ)
        found = lead_id_of(lead_id)
        self._answer(request, response, found, None if found is None else await self._reads.trail(found))

    on_head_trail = on_get_trail

    def _answer(self, request: Request, response: Response, lead_id: UUID | None, document: Any) -> None:
        if document is not None:
            answer_cached(request, response, document)
            return
        # By the id itself, because another process or node may have accepted the form.
        within = timedelta(seconds=NOT_YET_S)
        if lead_id is not None and (
            lead_id in self._recent or issued_within(lead_id, within, utc_now(), skew=CLOCK_SKEW)
        ):
            raise falcon.HTTPNotFound(description="Not stored yet, if it was taken.", headers={"Retry-After": "1"})
        raise falcon.HTTPNotFound(description="There is no such lead.")
