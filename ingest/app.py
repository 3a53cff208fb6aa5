"""The HTTP application: routes, what every answer has in common, and the start and end of a worker."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import falcon
import falcon.asgi

from ingest import counting
from ingest.body import parse_form
from ingest.form import Form, FormRefused, label
from ingest.intake import Allowance, Intake, NotAcknowledged, RateLimited
from ingest.leads import LeadRoute, Recent, answer_page, authorize
from ingest.openapi import DOCUMENT
from ingest.page import FORMS, SCRIPT, SCRIPT_PATH, THANKS, Page, form_page, language_of
from ingest.problems import PROBLEM_JSON, Problem
from ingest.reads import Reads, ReadsDown
from ingest.repeats import KEY_HEADER
from nigredo import metrics
from nigredo.api_keys import LEADS_READ
from nigredo.db import Pool, make_pool
from nigredo.errors import DependencyDown, RecordRefused
from nigredo.health import Health
from nigredo.metric_labels import CREATE, GET, INGEST, LIST, function_of
from nigredo.networks import client_address
from nigredo.settings import Settings
from nigredo.telemetry import configure_logging, get_logger

log = get_logger()

Request = falcon.asgi.Request
Response = falcon.asgi.Response

BODY_DEADLINE_S = 10.0
RETRY_AFTER_S = 5
MAINTENANCE_RETRY_AFTER_S = 300
POOL_CLOSE_S = 2.0
CORS_EXPOSED = "Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id"
CORS_REQUEST_HEADERS = f"Authorization, Content-Type, {KEY_HEADER}"
CORS_MAX_AGE_S = 600
USER_AGENT_MAX = 512
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\xff]")


class Leads:
    """`/api/leads`: POST takes a form, GET reads what was stored."""

    def __init__(self, settings: Settings, intake: Intake, reads: Reads, recent: Recent) -> None:
        self._settings = settings
        self._intake = intake
        self._reads = reads
        self._recent = recent

    async def on_get(self, request: Request, response: Response) -> None:
        """Answer with a page of leads, newest first."""
        authorize(request, self._intake, LEADS_READ)
        await answer_page(request, response, self._reads)

    async def on_post(self, request: Request, response: Response) -> None:
        """Take a form: 202 once Kafka has it, or 303 for a browser."""
        settings = self._intake.control.settings
        if settings.maintenance_mode:
            request.context.maintenance = True
            raise falcon.HTTPServiceUnavailable(
                description=settings.maintenance_text, retry_after=MAINTENANCE_RETRY_AFTER_S
            )
        form = parse_form(request.content_type, await self._body(request))
        agent = user_agent(request)
        form = replace(form, source=form.source or source_of(request))
        counting.note_form(request, form.source)
        taken = await self._intake.take(
            form, request.context.address, agent, key=request.get_header(KEY_HEADER), by_hand=from_browser(request)
        )
        request.context.outcome = taken.outcome
        self._recent.add(taken.lead_id)
        lead_id = request.context.lead_id = str(taken.lead_id)
        tell_allowance(response, taken.allowance)
        if prefers_html(request):
            response.status = falcon.HTTP_303
            response.location = next_of(form, settings)
            return
        response.status = falcon.HTTP_202
        response.location = f"/api/leads/{lead_id}"
        response.media = {"id": lead_id, "status": "accepted"}

    async def _body(self, request: Request) -> bytes:
        most = self._settings.body_max_bytes
        if (request.content_length or 0) > most:
            raise falcon.HTTPContentTooLarge(description=f"The body may have {most} bytes at most.")
        try:
            async with asyncio.timeout(BODY_DEADLINE_S):
                body: bytes = await request.bounded_stream.read(most + 1)
        except TimeoutError:
            raise falcon.HTTPError(falcon.HTTP_408, description="The body did not arrive in time.") from None
        if len(body) > most:
            raise falcon.HTTPContentTooLarge(description=f"The body may have {most} bytes at most.")
        return body


class PageRoute:
    """A page, in the language the client asks for; a cache asks each time whether it still holds."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages

    async def on_get(self, request: Request, response: Response) -> None:
        """Send the page, or 304 to who has it."""
        page = self._pages[language_of(request.get_header("Accept-Language"))]
        response.set_header("Vary", "Accept-Language")
        response.set_header("Cache-Control", "no-cache")
        # Compared as a whole: there is one tag, and no weak ones.
        response.set_header("ETag", page.etag)
        if request.get_header("If-None-Match") == page.etag:
            response.status = falcon.HTTP_304
            return
        response.content_type = falcon.MEDIA_HTML
        response.data = page.content


class OpenApiRoute:
    """`/openapi.json`."""

    async def on_get(self, _: Request, response: Response) -> None:
        """Send the description of this interface."""
        response.set_header("Cache-Control", "no-cache")
        response.media = DOCUMENT


class ScriptRoute:
    """The form's script; its name changes with its content."""

    async def on_get(self, _: Request, response: Response) -> None:
        """Send it, for good."""
        response.set_header("Cache-Control", "public, max-age=31536000, immutable")
        response.content_type = falcon.MEDIA_JS
        response.data = SCRIPT


class HealthRoute:
    """`/health`, `/health/ready`: whether forms can be taken now."""

    def __init__(self, function: str, intake: Intake) -> None:
        self._function = function
        self._intake = intake

    async def on_get(self, _: Request, response: Response) -> None:
        """Answer 200 when ready, else 503 with what is missing."""
        reason = await self._intake.check()
        response.status = falcon.HTTP_200 if reason is None else falcon.HTTP_503
        status = "ok" if reason is None else "waiting"
        response.media = {"status": status, "function": self._function, "waiting_for": reason}


class LiveRoute:
    """`/health/live`: whether the process answers at all, whatever Kafka does."""

    async def on_get(self, _: Request, response: Response) -> None:
        """Answer 200."""
        response.media = {"status": "ok"}


class Lifecycle:
    """Opens and closes with the worker what it needs, and writes one line a request."""

    def __init__(self, settings: Settings, intake: Intake, pool: Pool) -> None:
        self._trusted_proxies = settings.trusted_proxies
        self._intake = intake
        self._pool = pool
        self._functions = {component: settings.function(component) for component in (CREATE, LIST, GET)}

    async def process_startup(self, *_: Any) -> None:
        """Begin to connect."""
        self._intake.open()
        await self._pool.open()

    async def process_shutdown(self, *_: Any) -> None:
        """Finish what was begun."""
        await self._intake.close()
        await self._pool.close(timeout=POOL_CLOSE_S)

    async def process_request(self, request: Request, response: Response) -> None:
        """Give the request its id and its client's address; refuse a blocked one before its body is read."""
        request.context.began = time.perf_counter()
        request.context.request_id = str(uuid4())
        request.context.lead_id = None
        counting.begin(request)
        response.set_header("X-Request-Id", request.context.request_id)
        response.set_header("X-Content-Type-Options", "nosniff")
        address = request.context.address = client_address(
            request.remote_addr,
            request.get_header("X-Forwarded-For"),
            request.get_header("Forwarded"),
            self._trusted_proxies,
        )
        if self._intake.control.blocked.cover(address) and not request.path.startswith("/health"):
            metrics.IP_BLOCK_REJECTIONS.of().inc()
            raise falcon.HTTPForbidden(description="Requests from your address are not taken.")

    def _answer_cors(self, request: Request, response: Response) -> None:
        """Let scripts of allowed sites read the answer, an error's too (the Fetch standard's CORS protocol)."""
        origin = request.get_header("Origin")
        if not origin or not request.path.startswith("/api/"):
            return
        response.append_header("Vary", "Origin")
        if origin.lower() not in self._intake.control.settings.cors_allowed_origins:
            return
        response.set_header("Access-Control-Allow-Origin", origin)
        response.set_header("Access-Control-Expose-Headers", CORS_EXPOSED)
        if request.method == "OPTIONS" and request.get_header("Access-Control-Request-Method"):
            response.set_header("Access-Control-Allow-Methods", response.get_header("Allow") or "")
            response.set_header("Access-Control-Allow-Headers", CORS_REQUEST_HEADERS)
            response.set_header("Access-Control-Max-Age", str(CORS_MAX_AGE_S))

    async def process_response(self, request: Request, response: Response, _: Any, succeeded: bool) -> None:
        """Write the canonical line and count the request; health probes are not news."""
        self._answer_cors(request, response)
        if request.path.startswith("/health"):
            return
        status = int(str(response.status).split()[0])
        took_s = time.perf_counter() - request.context.began
        function = self._functions[function_of(request.uri_template or "", request.method)]
        counting.count(request, function, status, took_s)
        write = log.error if status >= 500 and not succeeded else log.info
        write(
            "request",
            function=function,
            request_id=request.context.request_id,
            method=request.method,
            route=request.uri_template or "unknown",
            status_code=status,
            duration_ms=round(took_s * 1000, 1),
            lead_id=request.context.lead_id,
        )


def next_of(form: Form, settings: Settings) -> str:
    """Return where a browser goes after the form: where the form says, if its origin is allowed."""
    if form.next_url is not None and form.next_url.isascii() and form.next_url.isprintable():
        parts = urlsplit(form.next_url)
        if f"{parts.scheme}://{parts.netloc}".lower() in settings.redirect_allowed_origins:
            return form.next_url
    return "/thanks"


def source_of(request: Request) -> str | None:
    """Return where a form came from that does not say: the campaign in the page's address, or the page's host."""
    if campaign := request.get_param("utm_source"):
        return label(campaign)
    if not request.referer:
        return None
    try:
        parts = urlsplit(request.referer)
        campaigns = parse_qs(parts.query).get("utm_source") or [parts.hostname or ""]
    except ValueError:
        return None
    return label(campaigns[0])


def tell_allowance(response: Response, allowance: Allowance) -> None:
    """Say what the limit leaves, in the headers of the IETF's draft on them (draft-ietf-httpapi-ratelimit-headers)."""
    response.set_header("RateLimit-Policy", f'"submissions";q={allowance.limit};w={allowance.window_s}')
    response.set_header("RateLimit", f'"submissions";r={allowance.remaining};t={allowance.reset_s}')


def user_agent(request: Request) -> str | None:
    """Return what the client says it is, without what cannot be stored, and cut."""
    return _UNPRINTABLE.sub("", request.user_agent or "")[:USER_AGENT_MAX] or None


def from_browser(request: Request) -> bool:
    """Say whether a browser sent this, by itself or for a script: all of them send Fetch Metadata, or want HTML."""
    return request.get_header("Sec-Fetch-Mode") is not None or prefers_html(request)


def prefers_html(request: Request) -> bool:
    """Say whether a person in a browser waits for the answer. A client that takes anything is a program."""
    return "html" in request.accept and request.client_prefers(("text/html", "application/json")) == "text/html"


def answer_problem(request: Request, response: Response, problem: Problem) -> None:
    """Answer with problem details, or with a page where a person reads it."""
    response.status = falcon.code_to_http_status(problem.status)
    response.set_header("Vary", "Accept")
    if prefers_html(request):
        response.content_type = falcon.MEDIA_HTML
        response.data = problem.as_page(language_of(request.get_header("Accept-Language")))
    else:
        response.content_type = PROBLEM_JSON
        response.data = problem.as_json()


def _request_id(request: Request) -> str:
    return str(getattr(request.context, "request_id", ""))


async def _form_refused(request: Request, response: Response, error: FormRefused, _: Any) -> None:
    if error.typed is not None and prefers_html(request):
        # The form again, with what was typed: nobody writes a message twice.
        response.status = falcon.code_to_http_status(error.status)
        response.set_header("Vary", "Accept, Accept-Language")
        response.content_type = falcon.MEDIA_HTML
        response.data = form_page(language_of(request.get_header("Accept-Language")), error.typed, error.problems)
        return
    fields = "; ".join(f"{problem.field} {problem.detail}" for problem in error.problems)
    answer_problem(request, response, Problem(error.status, fields, _request_id(request), error.problems))


async def _rate_limited(request: Request, response: Response, error: RateLimited, _: Any) -> None:
    log.info(
        "rate limit exceeded",
        request_id=_request_id(request),
        ip_address=str(request.context.address),
        user_agent=user_agent(request),
    )
    tell_allowance(response, error.allowance)
    response.set_header("Retry-After", str(error.retry_after_s))
    minutes = -(-error.retry_after_s // 60)
    detail = f"You have sent us several messages already. Please try again in {minutes} min."
    answer_problem(request, response, Problem(429, detail, _request_id(request)))


async def _dependency_down(request: Request, response: Response, error: DependencyDown, _: Any) -> None:
    log.error("submission not taken", error=str(error), request_id=_request_id(request))
    response.set_header("Retry-After", str(RETRY_AFTER_S))
    detail = "Your message could not be taken just now. Please send it again in a moment."
    lead_id = str(error.lead_id) if isinstance(error, NotAcknowledged) else None
    answer_problem(request, response, Problem(503, detail, _request_id(request), lead_id=lead_id))


async def _reads_down(request: Request, response: Response, error: ReadsDown, _: Any) -> None:
    log.error("leads cannot be read", error=str(error), request_id=_request_id(request))
    response.set_header("Retry-After", str(RETRY_AFTER_S))
    detail = "Leads cannot be read just now; forms are taken all the same."
    answer_problem(request, response, Problem(503, detail, _request_id(request)))


async def _record_refused(request: Request, response: Response, error: RecordRefused, _: Any) -> None:
    log.error("submission refused by Kafka", error=str(error), request_id=_request_id(request))
    answer_problem(request, response, Problem(413, "The form is too large to be stored.", _request_id(request)))


async def _http_error(request: Request, response: Response, error: falcon.HTTPError, _: Any) -> None:
    response.set_headers(error.headers or {})
    detail = error.description or error.title or ""
    answer_problem(request, response, Problem(error.status_code, detail, _request_id(request)))


async def _unexpected(request: Request, response: Response, error: Exception, _: Any) -> None:
    # The class alone: an exception's text may quote what a person typed.
    log.error("request failed", error=type(error).__name__, request_id=_request_id(request))
    answer_problem(request, response, Problem(500, "The request could not be handled.", _request_id(request)))


def make_app(settings: Settings, intake: Intake) -> falcon.asgi.App[Any, Any]:
    """Return the application. The intake is opened and closed with it."""
    pool, recent = make_pool(settings, "create-lead"), Recent()
    reads = Reads(pool)
    app = falcon.asgi.App(middleware=[Lifecycle(settings, intake, pool)])
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(falcon.HTTPError, _http_error)
    app.add_error_handler(FormRefused, _form_refused)
    app.add_error_handler(RateLimited, _rate_limited)
    app.add_error_handler(DependencyDown, _dependency_down)
    app.add_error_handler(ReadsDown, _reads_down)
    app.add_error_handler(RecordRefused, _record_refused)
    app.add_route("/api/leads", Leads(settings, intake, reads, recent))
    one = LeadRoute(intake, reads, recent)
    app.add_route("/api/leads/{lead_id}", one)
    app.add_route("/api/leads/{lead_id}/trail", one, suffix="trail")
    health = HealthRoute(settings.function("create-lead"), intake)
    app.add_route("/health", health)
    app.add_route("/health/ready", health)
    app.add_route("/health/live", LiveRoute())
    app.add_route("/", PageRoute(FORMS))
    app.add_route("/thanks", PageRoute(THANKS))
    app.add_route("/openapi.json", OpenApiRoute())
    app.add_route(SCRIPT_PATH, ScriptRoute())
    return app


def create() -> falcon.asgi.App[Any, Any]:
    """Return the application of a server's worker process, set up from the environment."""
    settings = Settings.from_environment(os.environ)
    configure_logging(settings.function("create-lead"))
    metrics.start(INGEST, settings)
    # What was imported stays for good, and a request makes hardly any cycles: looking for them at Python's own pace
    # takes an eighth of the time and doubles the 99th percentile.
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    return make_app(settings, Intake(settings, Health(settings.function("create-lead"))))
