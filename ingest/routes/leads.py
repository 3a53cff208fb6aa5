"""`GET /api/leads`, `/api/leads/{id}` and `/api/leads/{id}/trail`, for who holds an API key."""

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
"""What is not stored by then was refused behind the topic, or waits for something that is down: who asked would ask for
ever."""
CLOCK_SKEW = timedelta(seconds=5)
NOT_YET_MAX = 10_000
CHALLENGE = ('Bearer realm="nigredo"',)


class RecentKeyedIds:
    """The ids of the last half minute that tell no time themselves, as keyed forms have them. Bounded."""

    def __init__(self) -> None:
        self._taken: OrderedDict[UUID, float] = OrderedDict()

    def add(self, lead_id: UUID) -> None:
        """Remember a lead that was taken just now."""
        now = time.monotonic()
        self._taken[lead_id] = now
        while len(self._taken) > NOT_YET_MAX or now - next(iter(self._taken.values())) > NOT_YET_S:
            self._taken.popitem(last=False)

    def __contains__(self, lead_id: object) -> bool:
        return isinstance(lead_id, UUID) and time.monotonic() - self._taken.get(lead_id, -NOT_YET_S) < NOT_YET_S


def authorize(request: Request, intake: SubmissionService, scope: str) -> None:
    """Let a request through whose key is known and has the scope. Raises falcon's 401 or 403."""
    if not intake.control_known:
        raise DatabaseDown("the API keys are not read yet")
    scheme, _, text = (request.get_header("Authorization") or "").partition(" ")
    key = verify(text.strip(), intake.control.api_keys) if scheme.lower() == "bearer" else None
    if key is None:
        metrics.AUTH_FAILURES.of().inc()
        raise falcon.HTTPUnauthorized(description="Send an API key: Authorization: Bearer ngd_…", challenges=CHALLENGE)
    if scope not in key.scopes:
        raise falcon.HTTPForbidden(description=f"This key does not have the scope {scope}.")


def answer_cached(request: Request, response: Response, document: Any) -> None:
    """Answer with JSON that its reader alone may keep, or with 304 when he has it."""
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
        # An empty one, as a form that was not filled in sends it, asks for nothing; an empty number is none.
        chosen[name] = (values[0] or (None if name != "limit" else "")) if values else None
        if len(values) > 1:
            problems.append(FieldProblem(name, "is given more than once"))
    labels = {name: text for name in ("status", "source") if (text := chosen[name])}
    problems += [FieldProblem(name, "is too long") for name, text in labels.items() if len(text) > LABEL_MAX]
    limit = _limit(chosen["limit"], problems)
    if problems:
        raise InvalidForm(422, *problems)
    if any(label(text) is None for text in labels.values()):
        # No lead has such a label, and the database could not even be asked for one with a NUL in it.
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
    # As a person writes it: Python's own `int` reads much more than that.
    if text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= LIMIT_MAX:
        return int(text)
    problems.append(FieldProblem("limit", f"must be from 1 to {LIMIT_MAX}"))
    return LIMIT


class LeadRoute:
    """`GET /api/leads/{id}`, and with `trail` what became of it."""

    def __init__(self, intake: SubmissionService, reads: LeadQueries, recent: RecentKeyedIds) -> None:
        self._submissions = intake
        self._reads = reads
        self._recent = recent

    async def on_get(self, request: Request, response: Response, lead_id: str) -> None:
        """Answer with the lead; 404 for what is none, and when it is only not stored yet, with when to ask again."""
        authorize(request, self._submissions, LEADS_READ)
        found = lead_id_of(lead_id)
        self._answer(request, response, found, None if found is None else await self._reads.lead(found))

    on_head = on_get

    async def on_get_trail(self, request: Request, response: Response, lead_id: str) -> None:
        """Answer with every stage the submission went through, with places and times."""
        authorize(request, self._submissions, LEADS_READ)
        found = lead_id_of(lead_id)
        self._answer(request, response, found, None if found is None else await self._reads.trail(found))

    on_head_trail = on_get_trail

    def _answer(self, request: Request, response: Response, lead_id: UUID | None, document: Any) -> None:
        if document is not None:
            answer_cached(request, response, document)
            return
        # Whoever took it: other processes and nodes have nothing but the id.
        within = timedelta(seconds=NOT_YET_S)
        if lead_id is not None and (
            lead_id in self._recent or issued_within(lead_id, within, utc_now(), skew=CLOCK_SKEW)
        ):
            raise falcon.HTTPNotFound(description="Not stored yet, if it was taken.", headers={"Retry-After": "1"})
        raise falcon.HTTPNotFound(description="There is no such lead.")
