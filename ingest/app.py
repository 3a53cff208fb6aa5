"""HTTP application: the routes, the middleware for every request, and startup and shutdown of a worker."""

from __future__ import annotations

import asyncio
import gc
import html
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from random import getrandbits
from typing import Any
from urllib.parse import urlsplit

import falcon
import falcon.asgi

from ingest.forms.decoding import read_fields, refuse_encoded
from ingest.forms.validation import SHOWN, FieldProblem, Form, InvalidForm, form_of, typed_of
from ingest.pages.html import FORMS, SCRIPT, SCRIPT_PATH, THANKS, Page
from ingest.reads.lead_queries import LeadQueries
from ingest.routes.health import HealthRoute, LiveRoute
from ingest.routes.leads import LeadRoute, RecentKeyedIds, answer_page, authorize
from ingest.routes.openapi import DOCUMENT
from ingest.submissions.deduplication import KEY_HEADER
from ingest.submissions.service import SubmissionService
from ingest.web import instrumentation as counting
from ingest.web.access_log import AccessLog
from ingest.web.answers import (
    METHOD,
    add_error_handlers,
    is_known,
    language_for,
    prefers_html,
    set_rate_limit_headers,
    source_of,
    user_agent,
)
from ingest.web.forwarding import ForwardingNotice
from ingest.web.lazy_body import Application, BodyCutOff, BodyTooLong, LazyBodyMiddleware, read_body
from ingest.web.security_headers import ALWAYS, POLICY, page_policy
from ingest.web.shared_timeout import SharedTimeout
from nigredo.components import CREATE_LEAD, INGEST
from nigredo.control.api_keys import LEADS_READ
from nigredo.networks import as_text, client_address
from nigredo.observability import metrics
from nigredo.observability.health import Health
from nigredo.observability.labels import CREATE, GET, LIST, function_of
from nigredo.observability.logs import configure_logging, get_logger
from nigredo.postgres.pool import Pool, make_pool
from nigredo.settings import Settings

log = get_logger()

Request = falcon.asgi.Request
Response = falcon.asgi.Response

BODY_DEADLINE_S = 10.0
MAINTENANCE_RETRY_AFTER_S = 300
POOL_CLOSE_S = 2.0
LEAVING_SIGNAL = signal.SIGUSR1
"""Sent by the server to its workers INGEST_UNREADY_SECONDS before it stops them."""
STATIC_CACHE_CONTROL = "public, max-age=3600, s-maxage=3600"
CORS_EXPOSED = "ETag, Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id"
CORS_REQUEST_HEADERS = f"Authorization, Content-Type, {KEY_HEADER}"
CORS_MAX_AGE_S = 600


class LeadsResource:
    """`/api/leads`: POST accepts a form, GET lists stored leads."""

    def __init__(
        self, settings: Settings, intake: SubmissionService, reads: LeadQueries, recent: RecentKeyedIds
    ) -> None:
        self._settings = settings
        self._submissions = intake
        self._reads = reads
        self._recent = recent
        self._deadline = SharedTimeout(BODY_DEADLINE_S)

    async def on_get(self, request: Request, response: Response) -> None:
        """Answer with a page of leads, newest first."""
        if "authorization" not in request.headers_lower and prefers_html(request):
            _refuse_form(request.params)
        authorize(request, self._submissions, LEADS_READ)
        await answer_page(request, response, self._reads)

    on_head = on_get

    async def on_post(self, request: Request, response: Response) -> None:
        """Accept a form: 202 once it is durable, 303 for a browser."""
        settings = self._submissions.control.settings
        headers, for_person = request.headers_lower, prefers_html(request)
        if settings.maintenance_mode:
            request.context.maintenance = True
            if for_person:
                # Read, so that the page gives the message back.
                with suppress(InvalidForm):
                    request.context.fields = read_fields(request.content_type, await self._body(request))
            raise falcon.HTTPServiceUnavailable(
                description=settings.maintenance_text, retry_after=MAINTENANCE_RETRY_AFTER_S
            )
        refuse_encoded(headers.get("content-encoding"))
        fields = request.context.fields = read_fields(request.content_type, await self._body(request))
        form = form_of(fields)
        agent = user_agent(request)
        if form.source is None and (source := source_of(request)) is not None:
            form = replace(form, source=source)
        counting.note_form(request, form.source)
        key = headers.get(KEY_HEADER.lower())
        accepted = await self._submissions.submit(
            form,
            request.context.address,
            agent,
            key=key,
            # A browser, by itself or for a script: every browser sends Fetch Metadata or prefers HTML.
            by_hand=for_person or "sec-fetch-mode" in headers,
            request_id=request.context.request_id,
        )
        request.context.outcome = accepted.outcome
        if key is not None:
            self._recent.add(accepted.lead_id)
        lead_id = request.context.lead_id = str(accepted.lead_id)
        set_rate_limit_headers(response, accepted.allowance)
        if for_person:
            response.status = falcon.HTTP_303
            location = response.location = next_of(form, settings) or thanks_for(request)
            response.content_type = falcon.MEDIA_HTML
            response.text = f'<!doctype html><title>See Other</title><a href="{html.escape(location)}">See Other</a>'
            return
        response.status = falcon.HTTP_202
        response.location = f"/api/leads/{lead_id}"
        response.text = f'{{"id": "{lead_id}", "status": "accepted"}}'

    async def _body(self, request: Request) -> bytes:
        max_bytes = self._settings.body_max_bytes
        try:
            if (request.content_length or 0) > max_bytes:
                raise BodyTooLong
            return await self._deadline.wait_for(read_body(request.scope, max_bytes))
        except BodyTooLong:
            raise falcon.HTTPContentTooLarge(description=f"The body may have {max_bytes} bytes at most.") from None
        except TimeoutError:
            raise falcon.HTTPError(falcon.HTTP_408, description="The body did not arrive in time.") from None
        except BodyCutOff:
            # An incomplete message is not stored.
            raise falcon.HTTPBadRequest(description="The body ended before it was whole.") from None


class PageRoute:
    """A page in the language that the client prefers; a cache revalidates the page each time."""

    def __init__(self, pages: Mapping[tuple[str, bool], Page], intake: SubmissionService) -> None:
        self._pages = pages
        self._submissions = intake

    async def on_get(self, request: Request, response: Response) -> None:
        """Answer with the page, or 304 when the client has it cached."""
        page = self._pages[language_for(request)]
        response.set_header("Vary", "Accept-Language")
        response.set_header("Cache-Control", "no-cache")
        response.set_header("ETag", f'"{page.etag}"')
        # With a 304 too, because a cache updates its stored headers from the 304.
        response.set_header(POLICY, page_policy(self._submissions.control.settings.cors_allowed_origins))
        if is_known(request, page.etag):
            response.status = falcon.HTTP_304
            return
        response.content_type = falcon.MEDIA_HTML
        response.data = page.content

    on_head = on_get


class OpenApiRoute:
    """`/openapi.json`: the OpenAPI document."""

    async def on_get(self, _: Request, response: Response) -> None:
        """Answer with the OpenAPI document."""
        response.set_header("Cache-Control", "no-cache")
        response.media = DOCUMENT

    on_head = on_get


class ScriptRoute:
    """The form's script; its name changes with its content."""

    async def on_get(self, _: Request, response: Response) -> None:
        """Answer with the script; caches may store it for the hour that the runbook allows static files."""
        response.set_header("Cache-Control", STATIC_CACHE_CONTROL)
        response.content_type = falcon.MEDIA_JS
        response.data = SCRIPT

    on_head = on_get


class RequestMiddleware:
    """Opens and closes the worker's clients, prepares each request, and logs and counts each answer."""

    def __init__(self, settings: Settings, intake: SubmissionService, pool: Pool) -> None:
        self._trusted_proxies = settings.trusted_proxies
        self._forwarding = ForwardingNotice(settings.trusted_proxies)
        self._submissions = intake
        self._pool = pool
        self._access_log = AccessLog()
        self._functions = {component: settings.function(component) for component in (CREATE, LIST, GET)}

    async def process_startup(self, *_: Any) -> None:
        """Start connecting to Kafka and the database."""
        asyncio.get_running_loop().add_signal_handler(LEAVING_SIGNAL, self._submissions.leave)
        await self._submissions.open()
        await self._pool.open()

    async def process_shutdown(self, *_: Any) -> None:
        """Flush the submissions in flight, and close the database pool."""
        await self._submissions.close()
        await self._pool.close(timeout=POOL_CLOSE_S)

    async def process_request(self, request: Request, response: Response) -> None:
        """Set the request's id and client address; refuse a blocked address with 403 before the body is read."""
        request.context.began = time.perf_counter()
        # Need not be secret, only distinct: a random number that costs no system call.
        request.context.request_id = f"{getrandbits(128):032x}"
        request.context.lead_id = None
        counting.begin(request)
        response.set_header("X-Request-Id", request.context.request_id)
        for name, value in ALWAYS.items():
            response.set_header(name, value)
        # Not Falcon's `remote_addr`, which trusts the headers of any proxy.
        peer, _ = request.scope.get("client") or ("", 0)
        # Read as one mapping, here and elsewhere, because Falcon raises an exception for each missing header.
        headers = request.headers_lower
        self._forwarding.look(peer, headers, request.context.began)
        address = client_address(peer, headers.get("x-forwarded-for"), headers.get("forwarded"), self._trusted_proxies)
        request.context.address, request.context.ip_address = address, as_text(address)
        if self._submissions.control.blocked.cover(address) and not request.path.startswith("/health"):
            metrics.IP_BLOCK_REJECTIONS.of().inc()
            log.info(
                "request from blocked address refused",
                request_id=request.context.request_id,
                ip_address=request.context.ip_address,
            )
            raise falcon.HTTPForbidden(description="Requests from your address are not taken.")
        # The server turns a missing header into an empty one, and Falcon shows only the last of several.
        hosts = [value for name, value in request.scope["headers"] if name == b"host"]
        if request.scope["http_version"] == "1.1" and (len(hosts) != 1 or not hosts[0]):
            raise falcon.HTTPBadRequest(description="Send one Host header (RFC 9112, 3.2).")

    def _answer_cors(self, request: Request, response: Response) -> None:
        """Set the CORS headers for scripts of allowed origins, on errors too (Fetch standard)."""
        origin = request.headers_lower.get("origin")
        if not origin or not request.path.startswith("/api/"):
            return
        response.append_header("Vary", "Origin")
        if origin.lower() not in self._submissions.control.settings.cors_allowed_origins:
            return
        response.set_header("Access-Control-Allow-Origin", origin)
        response.set_header("Access-Control-Expose-Headers", CORS_EXPOSED)
        if request.method == "OPTIONS" and request.get_header("Access-Control-Request-Method"):
            response.set_header("Access-Control-Allow-Methods", response.get_header("Allow") or "")
            response.set_header("Access-Control-Allow-Headers", CORS_REQUEST_HEADERS)
            response.set_header("Access-Control-Max-Age", str(CORS_MAX_AGE_S))

    async def process_response(self, request: Request, response: Response, *_: Any) -> None:
        """Write the access line and count the request; health probes are left out."""
        self._answer_cors(request, response)
        if response.content_type == falcon.MEDIA_HTML:
            response.set_header(POLICY, page_policy(self._submissions.control.settings.cors_allowed_origins))
        if request.path.startswith("/health"):
            return
        status = response.status_code
        took_s = time.perf_counter() - request.context.began
        function = self._functions[function_of(request.uri_template or "", request.method)]
        counting.count(request, function, status, took_s)
        self._access_log.add(
            function=function,
            request_id=request.context.request_id,
            ip_address=request.context.ip_address,
            method=request.method,
            route=request.uri_template or "unknown",
            status_code=status,
            took_s=took_s,
            lead_id=request.context.lead_id,
        )


def _refuse_form(fields: Mapping[str, Any]) -> None:
    """Refuse a form that was sent by GET, because its `method="post"` is missing.

    A browser may repeat a GET at any time, so the form is given back to be sent by POST. Raises InvalidForm with 422.
    """
    if not fields.keys().isdisjoint(SHOWN):
        raise InvalidForm(422, FieldProblem(METHOD, "must be post"), typed=typed_of(fields))


def next_of(form: Form, settings: Settings) -> str | None:
    """Return the redirect target that a form names; None when there is none or its origin is not allowed."""
    if form.next_url is None or not form.next_url.isprintable():
        return None
    try:
        parts = urlsplit(form.next_url)
    except ValueError:
        return None
    origin = f"{parts.scheme}://{parts.netloc}"
    # ASCII only, because some letters of other alphabets become ASCII letters in lower case.
    return form.next_url if origin.isascii() and origin.lower() in settings.redirect_allowed_origins else None


def thanks_for(request: Request) -> str:
    """Return the path of the thanks page, in the language of the form."""
    language, chosen = language_for(request)
    return f"/thanks?lang={language}" if chosen else "/thanks"


def make_app(settings: Settings, intake: SubmissionService) -> falcon.asgi.App[Any, Any]:
    """Return the application, which opens and closes the submission service."""
    pool, recent = make_pool(settings, CREATE_LEAD), RecentKeyedIds()
    reads = LeadQueries(pool)
    app = falcon.asgi.App(middleware=[RequestMiddleware(settings, intake, pool)])
    # A form whose `action` ends with a slash is accepted too.
    app.req_options.strip_url_path_trailing_slash = True
    add_error_handlers(app)
    app.add_route("/api/leads", LeadsResource(settings, intake, reads, recent))
    one = LeadRoute(intake, reads, recent)
    app.add_route("/api/leads/{lead_id}", one)
    app.add_route("/api/leads/{lead_id}/trail", one, suffix="trail")
    health = HealthRoute(settings, intake)
    app.add_route("/health", health)
    app.add_route("/health/ready", health)
    app.add_route("/health/live", LiveRoute())
    app.add_route("/", PageRoute(FORMS, intake))
    app.add_route("/thanks", PageRoute(THANKS, intake))
    app.add_route("/openapi.json", OpenApiRoute())
    app.add_route(SCRIPT_PATH, ScriptRoute())
    return app


def create() -> Application:
    """Return the application of one worker process, configured from the environment."""
    settings = Settings.from_environment(os.environ)
    configure_logging(settings.function(CREATE_LEAD))
    metrics.start(INGEST, settings)
    # Imported objects stay for good, and a request makes hardly any cycles: by Python's defaults the garbage collector
    # takes an eighth of the time and doubles the 99th percentile.
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    return LazyBodyMiddleware(make_app(settings, SubmissionService(settings, Health(settings.function(CREATE_LEAD)))))
