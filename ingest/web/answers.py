"""Answers: the `RateLimit` headers, content negotiation, and every error as problem details or as a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import falcon
import falcon.asgi
from falcon import mediatypes

from ingest.forms.validation import InvalidForm, label, typed_of
from ingest.pages.html import LANGUAGES, TEXTS, form_page, language_of
from ingest.pages.problems import PROBLEM_JSON, Problem
from ingest.reads.lead_queries import DatabaseDown
from ingest.submissions.quota import Quota
from ingest.submissions.service import NotAcknowledged, RateLimited
from nigredo.errors import DependencyDown, RecordRefused
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings

log = get_logger()

Request = falcon.asgi.Request
Response = falcon.asgi.Response

RETRY_AFTER_S = 5
DETAILS = {404: "There is no such address.", 405: "This address does not take this kind of request."}
USER_AGENT_MAX = 512
METHOD = "method"
"""The field that a `FieldProblem` names when a form was sent by GET."""
DEFAULT_MAINTENANCE_TEXT = Settings.default("MAINTENANCE_TEXT")
MEDIA_TYPES = (falcon.MEDIA_JSON, PROBLEM_JSON, "text/html")
"""Media types of answers. JSON is first, so that a tie means a program: no browser names JSON."""
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\xff]")


def set_rate_limit_headers(response: Response, allowance: Quota) -> None:
    """Set `RateLimit` and `RateLimit-Policy` from the remaining quota (draft-ietf-httpapi-ratelimit-headers)."""
    response.set_header("RateLimit-Policy", f'"submissions";q={allowance.limit};w={allowance.window_s}')
    response.set_header("RateLimit", f'"submissions";r={allowance.remaining};t={allowance.reset_s}')


def user_agent(request: Request) -> str | None:
    """Return the `User-Agent` without unprintable characters, cut to USER_AGENT_MAX; None when nothing is left."""
    return _UNPRINTABLE.sub("", request.headers_lower.get("user-agent", ""))[:USER_AGENT_MAX] or None


def prefers_html(request: Request) -> bool:
    """Say whether the client prefers HTML, as browsers do. A client that accepts `*/*` alone is a program."""
    accepted = request.headers_lower.get("accept", "").lower()
    # No browser sends a quoted string here, and Falcon's parser takes seconds for one full of semicolons.
    if "html" not in accepted or '"' in accepted:
        return False
    try:
        return mediatypes.best_match(MEDIA_TYPES, accepted) == "text/html"
    except ValueError:
        return False


def language_for(request: Request) -> tuple[str, bool]:
    """Return the language of a page, and whether the reader chose it by the parameter `lang`."""
    chosen = request.get_param("lang")
    return (chosen, True) if chosen in LANGUAGES else (language_of(request.get_header("Accept-Language")), False)


def source_of(request: Request) -> str | None:
    """Return the source of a form without one: the campaign in the page's address, else the referring host."""
    if request.query_string and (campaign := request.get_param("utm_source")):
        return label(campaign)
    referer = request.headers_lower.get("referer")
    if not referer:
        return None
    try:
        parts = urlsplit(referer)
        campaigns = parse_qs(parts.query).get("utm_source") or [parts.hostname or ""]
    except ValueError:
        return None
    return label(campaigns[0])


def is_known(request: Request, etag: str) -> bool:
    """Say whether `If-None-Match` names this tag, given without quotes (RFC 9110, 13.1.2)."""
    # A proxy that compresses makes a tag weak; `If-None-Match` compares weakly (RFC 9110, 8.8.3.2).
    known = request.if_none_match or []
    return known == ["*"] or etag in known


def answer_problem(request: Request, response: Response, problem: Problem) -> None:
    """Answer with problem details, or for a browser with a page, which gives back a form that was not accepted."""
    _begin_error(response, problem.status)
    if prefers_html(request):
        language, chosen = language_for(request)
        fields = getattr(request.context, "fields", None)
        typed = None if fields is None else _typed(request, typed_of(fields))
        sent_from = _sent_from(request)
        response.content_type = falcon.MEDIA_HTML
        response.data = problem.as_page(language, chosen=chosen, typed=typed, sent_from=sent_from)
    else:
        response.content_type = PROBLEM_JSON
        response.data = problem.as_json()


def _begin_error(response: Response, status: int) -> None:
    response.status = falcon.code_to_http_status(status)
    response.set_header("Vary", "Accept, Accept-Language")
    # No cache stores an error: a missing lead may be stored soon, and a refused client may be accepted later.
    response.set_header("Cache-Control", "no-store")


def _request_id(request: Request) -> str:
    return str(getattr(request.context, "request_id", ""))


def _typed(request: Request, typed: Mapping[str, str]) -> Mapping[str, str]:
    """Add the source to the typed fields, because the next request will come from our own page."""
    if not {"source", "utm_source"} & typed.keys() and (source := source_of(request)) is not None:
        return {**typed, "source": source}
    return typed


def _sent_from(request: Request) -> str | None:
    """Return the page whose form was sent, by the `Referer`; used for a link only."""
    referer = request.headers_lower.get("referer", "") if request.method == "POST" else ""
    return referer if referer.startswith(("http://", "https://")) and referer.isprintable() else None


async def _form_refused(request: Request, response: Response, error: InvalidForm, _: Any) -> None:
    if error.typed is not None and prefers_html(request):
        # The form again with the typed fields, so that the person need not write the message twice.
        language, chosen = language_for(request)
        typed = _typed(request, error.typed)
        # The site's form is at fault, and its reader cannot correct that.
        form_at_fault = error.problems[0].field in ("Content-Type", METHOD)
        notice, problems = (TEXTS[language]["not yet"], ()) if form_at_fault else ("", error.problems)
        _begin_error(response, error.status)
        response.content_type = falcon.MEDIA_HTML
        response.data = form_page(language, typed, problems, chosen=chosen, notice=notice)
        return
    # Without fields the answer is an error page that lists the problems, and not the form again.
    request.context.fields = None
    fields = "; ".join(f"{problem.field} {problem.detail}" for problem in error.problems)
    answer_problem(request, response, Problem(error.status, fields, _request_id(request), error.problems))


async def _rate_limited(request: Request, response: Response, error: RateLimited, _: Any) -> None:
    log.info(
        "rate limit exceeded",
        request_id=_request_id(request),
        ip_address=request.context.ip_address,
        user_agent=user_agent(request),
    )
    set_rate_limit_headers(response, error.allowance)
    response.set_header("Retry-After", str(error.retry_after_s))
    minutes = -(-error.retry_after_s // 60)
    detail = f"You have sent us several messages already. Please try again in {minutes} min."
    answer_problem(request, response, Problem(429, detail, _request_id(request)))


async def _dependency_down(request: Request, response: Response, error: DependencyDown, _: Any) -> None:
    log.error("submission not taken", error=str(error), request_id=_request_id(request))
    response.set_header("Retry-After", str(RETRY_AFTER_S))
    detail = "Your message could not be taken just now. Please send it again in a moment."
    lead_id = request.context.lead_id = str(error.lead_id) if isinstance(error, NotAcknowledged) else None
    answer_problem(request, response, Problem(503, detail, _request_id(request), lead_id=lead_id))


async def _reads_down(request: Request, response: Response, error: DatabaseDown, _: Any) -> None:
    log.error("lead query failed", error=str(error), request_id=_request_id(request))
    response.set_header("Retry-After", str(RETRY_AFTER_S))
    detail = "Leads cannot be read just now; forms are taken all the same."
    answer_problem(request, response, Problem(503, detail, _request_id(request)))


async def _record_refused(request: Request, response: Response, error: RecordRefused, _: Any) -> None:
    log.error("submission refused by Kafka", error=str(error), request_id=_request_id(request))
    answer_problem(request, response, Problem(413, "The form is too large to be stored.", _request_id(request)))


async def _http_error(request: Request, response: Response, error: falcon.HTTPError, _: Any) -> None:
    response.set_headers(error.headers or {})
    detail = error.description or DETAILS.get(error.status_code) or error.title or ""
    own_words = request.context.maintenance and detail != DEFAULT_MAINTENANCE_TEXT
    answer_problem(request, response, Problem(error.status_code, detail, _request_id(request), own_words=own_words))


async def _unexpected(request: Request, response: Response, error: Exception, _: Any) -> None:
    # The class alone: an exception's text may quote what a person typed.
    log.error("request failed", error=type(error).__name__, request_id=_request_id(request))
    answer_problem(request, response, Problem(500, "The request could not be handled.", _request_id(request)))


def add_error_handlers(app: falcon.asgi.App[Any, Any]) -> None:
    """Register a handler for every error that a route may raise."""
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(falcon.HTTPError, _http_error)
    app.add_error_handler(InvalidForm, _form_refused)
    app.add_error_handler(RateLimited, _rate_limited)
    app.add_error_handler(DependencyDown, _dependency_down)
    app.add_error_handler(DatabaseDown, _reads_down)
    app.add_error_handler(RecordRefused, _record_refused)
