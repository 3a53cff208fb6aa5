"""OpenAPI 3.1 document of the HTTP interface, served at `/openapi.json`: every status, header and media type."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from ingest.forms.decoding import JSON, MULTIPART, PAIRS_MAX, URLENCODED
from ingest.forms.validation import (
    CUT,
    DROPPED,
    EMAIL_MAX,
    EXTRA_FIELDS_MAX,
    EXTRA_VALUE_MAX,
    LABEL_MAX,
    MESSAGE_MAX,
    NAME_MAX,
)
from ingest.pages.html import LANGUAGES
from ingest.pages.problems import PROBLEM_JSON, TITLES
from ingest.reads.lead_queries import LIMIT_MAX
from ingest.submissions.deduplication import KEY_HEADER, KEY_MAX
from ingest.web.security_headers import ALWAYS
from nigredo.control.api_keys import LEADS_READ

Document = dict[str, Any]

UUID = {"type": "string", "format": "uuid"}
TIME = {"type": "string", "format": "date-time"}
NULLABLE_TEXT = {"type": ["string", "null"]}
HTML = {"schema": {"type": "string"}}


def _object(properties: Document, *, required: tuple[str, ...] | None = None, closed: bool = True) -> Document:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties if required is None else required),
        "additionalProperties": not closed,
    }


def _ref(kind: str, name: str) -> Document:
    return {"$ref": f"#/components/{kind}/{name}"}


def _headers(*names: str) -> Document:
    """Return the headers of an answer: these names, and the headers of every answer."""
    return {name: _ref("headers", name) for name in ("X-Request-Id", *ALWAYS, *names)}


def _problem(status: int, *headers: str) -> Document:
    return {
        "description": TITLES[status],
        "headers": _headers("Cache-Control", "Vary", *headers),
        "content": {PROBLEM_JSON: {"schema": _ref("schemas", "Problem")}, "text/html": HTML},
    }


def _problems(*statuses: int) -> Document:
    headers: dict[int, tuple[str, ...]] = {
        401: ("WWW-Authenticate",),
        404: ("Retry-After",),
        429: ("Retry-After", "RateLimit", "RateLimit-Policy"),
        503: ("Retry-After",),
    }
    return {str(status): _problem(status, *CORS, *headers.get(status, ())) for status in statuses}


CORS = ("Access-Control-Allow-Origin", "Access-Control-Expose-Headers")
UNSEEN = r"\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Space and control characters, which are removed, or stripped at both ends of a field."""
TEXT = {"type": "string", "pattern": f"[^{UNSEEN}]"}
LINE = {"type": "string", "pattern": f"^[{UNSEEN}]*[^{UNSEEN}][^\\n\\r]*[{UNSEEN}]*$"}
FORM = _object(
    {
        "name": LINE | {"maxLength": NAME_MAX},
        "email": {"type": "string", "format": "email", "maxLength": EMAIL_MAX},
        "message": TEXT | {"maxLength": MESSAGE_MAX},
        "form_id": {"description": f"The id of the form; cut to {LABEL_MAX} characters."},
        "source": {"description": f"The source of the visit; cut to {LABEL_MAX} characters."},
        "_next": {"description": "The page to redirect a browser to; its origin must be allowed."},
        "_gotcha": {"description": "Honeypot, hidden from people: programs fill it in."},
        "_seconds": {"description": "Seconds it took to fill the form in; ignored when it is not a number."},
    },
    required=("name", "email", "message"),
    closed=False,
) | {
    "maxProperties": PAIRS_MAX,
    "description": f"Up to {EXTRA_FIELDS_MAX} further fields of {EXTRA_VALUE_MAX} characters are stored with the "
    f"lead as text; `{CUT}` names the fields that were too long and were cut, `{DROPPED}` surplus fields not stored.",
}
LEAD = _object(
    {
        "id": UUID,
        "name": {"type": "string"},
        "email": {"type": "string"},
        "message": {"type": "string"},
        "extra": {"type": "object", "additionalProperties": {"type": "string"}},
        "status": {"type": "string"},
        "source": NULLABLE_TEXT,
        "form_id": NULLABLE_TEXT,
        "created_at": TIME,
    }
)
TRAIL = _object(
    {
        "id": UUID,
        "submission": {
            "oneOf": [
                {"type": "null"},
                _object(
                    {
                        "verdict": {"enum": ["accepted", "released", "rate_limited", "spam", "duplicate"]},
                        "reason": NULLABLE_TEXT
                        | {"description": "For spam its sign, honeypot or too_fast; for rate_limited the wait's end."},
                        "submitted_at": TIME,
                        "submission_partition": {"type": "integer"},
                        "submission_offset": {"type": "integer"},
                    }
                ),
            ]
        },
        "lead": {
            "oneOf": [
                {"type": "null"},
                _object(
                    {
                        "created_at": TIME,
                        "stored_at": TIME,
                        "status": {"type": "string"},
                        "lead_partition": {"type": "integer"},
                        "lead_offset": {"type": "integer"},
                    }
                ),
            ]
        },
        "deliveries": {
            "type": "array",
            "items": _object(
                {
                    "endpoint": {"type": "string"},
                    "attempt": {"type": "integer", "minimum": 1},
                    "sent_at": TIME,
                    "success": {"type": "boolean"},
                    "status_code": {"type": ["integer", "null"]},
                    "error_message": NULLABLE_TEXT,
                    "duration_ms": {"type": "integer"},
                }
            ),
        },
    }
)
PROBLEM = _object(
    {
        "type": {
            "const": "about:blank",
            "description": "The status identifies the problem; `errors` names the invalid fields.",
        },
        "title": {"enum": list(TITLES.values())},
        "status": {"enum": list(TITLES)},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "id": UUID | {"description": "With a 503: the lead's id, in case the form was accepted all the same."},
        "error": {"type": "string", "description": "With a 429: `Too many requests`."},
        "errors": {
            "type": "array",
            "items": _object({"field": {"type": "string"}, "detail": {"type": "string"}}),
        },
    },
    required=("type", "title", "status", "detail", "request_id"),
)
HEALTH = _object(
    {
        "status": {"enum": ["ok", "waiting"]},
        "function": {"type": "string"},
        "waiting_for": NULLABLE_TEXT,
        "log_lines_dropped": {
            "type": "integer",
            "minimum": 0,
            "description": "Log lines of this worker that could not be written since its start.",
        },
        "control": _object(
            {
                "worker": {"type": "string", "description": "The id of the worker that answers, for its lifetime."},
                "workers": {"type": "integer", "minimum": 1, "description": "The number of workers at this address."},
                "applied": {
                    "type": "object",
                    "additionalProperties": {"type": "integer", "minimum": 0},
                    "description": "The last offset that this worker has applied, by partition of `nigredo.control`.",
                },
            }
        ),
        "spool": _object(
            {
                "records": {"type": "integer", "minimum": 0},
                "bytes": {"type": "integer", "minimum": 0},
                "oldest_age_s": {"type": "number", "minimum": 0},
                "refused": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "Records that Kafka can never accept, stored for 30 days.",
                },
            }
        )
        | {"description": "Records this worker accepted that are not in Kafka yet; only with `INGEST_SPOOL=on`."},
    },
    required=("status", "function", "waiting_for", "log_lines_dropped", "control"),
)
HEADERS: Document = {
    **{
        name: {
            "description": "Security header for browsers; on a page it allows the page's own style and script.",
            "schema": {"type": "string"},
        }
        for name in ALWAYS
    },
    "Cache-Control": {
        "description": "Which caches may store the answer, and for how long.",
        "schema": {"type": "string"},
    },
    "Vary": {"description": "The request headers that the answer depends on.", "schema": {"type": "string"}},
    "Location": {"description": "The lead, or the page to redirect the browser to.", "schema": {"type": "string"}},
    "Access-Control-Allow-Origin": {
        "description": "The request's origin, when it is in `CORS_ALLOWED_ORIGINS`.",
        "schema": {"type": "string"},
    },
    "Access-Control-Expose-Headers": {
        "description": "The headers that scripts of that origin may read.",
        "schema": {"type": "string"},
    },
    "X-Request-Id": {"description": "The id of this request in the logs.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait before a retry.", "schema": {"type": "integer", "minimum": 1}},
    "RateLimit": {
        "description": 'The remaining quota: `"submissions";r=9;t=3600` (draft-ietf-httpapi-ratelimit-headers).',
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {"description": 'The quota: `"submissions";q=10;w=3600`.', "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "The authentication scheme.", "schema": {"type": "string"}},
    "ETag": {"description": "The tag for `If-None-Match`.", "schema": {"type": "string"}},
}


def _json(schema: Document, *headers: str) -> Document:
    return {
        "description": "OK",
        "headers": _headers(*headers),
        "content": {JSON: {"schema": schema}},
    }


def _cached(schema: Document) -> Document:
    caching = ("ETag", "Cache-Control", "Vary", *CORS)
    return {"200": _json(schema, *caching), "304": {"description": "Not Modified", "headers": _headers(*caching)}}


def _page(operation: str, summary: str) -> Document:
    caching = ("ETag", "Cache-Control", "Vary")
    return {
        "get": {
            "operationId": operation,
            "summary": summary,
            "security": [],
            "parameters": [LANGUAGE],
            "responses": {
                "200": {"description": "OK", "headers": _headers(*caching), "content": {"text/html": HTML}},
                "304": {"description": "Not Modified", "headers": _headers(*caching)},
            }
            | {str(status): _problem(status) for status in (403, 500)},
        }
    }


def _health(operation: str) -> Document:
    return {
        "get": {
            "operationId": operation,
            "summary": "Readiness to accept forms",
            "security": [],
            "responses": {"200": _json(HEALTH), "503": _json(HEALTH) | {"description": "Service Unavailable"}},
        }
    }


def _query(name: str, schema: Document, description: str) -> Document:
    return {"name": name, "in": "query", "schema": schema, "description": description}


LANGUAGE = _query(
    "lang", {"type": "string"}, f"One of {', '.join(LANGUAGES)}; otherwise the language that `Accept-Language` prefers."
)
LEAD_ID = {"name": "lead_id", "in": "path", "required": True, "schema": UUID}
READ = {"security": [{"key": [LEADS_READ]}]}
LABEL = NULLABLE_TEXT | {"maxLength": LABEL_MAX}

POST_LEAD: Document = {
    "operationId": "createLead",
    "summary": "Submit a form",
    "description": "202 once the form is durable; 303 for a client that prefers HTML. The rate limiter behind the "
    "topic has the last word.",
    "security": [],
    "parameters": [
        {
            "name": KEY_HEADER,
            "in": "header",
            "schema": {"type": "string", "minLength": 1, "maxLength": KEY_MAX, "pattern": "^[ -~]*[!-~][ -~]*$"},
            "description": "The same form under the same key is accepted once.",
        },
        _query("utm_source", {"type": "string"}, "The source of the visit, from the page's address."),
        LANGUAGE,
    ],
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": _ref("schemas", "Form")} for kind in (JSON, URLENCODED, MULTIPART)},
    },
    "responses": {
        "202": {
            "description": "Accepted",
            "headers": _headers("Location", "RateLimit", "RateLimit-Policy", *CORS),
            "content": {JSON: {"schema": _object({"id": UUID, "status": {"const": "accepted"}})}},
        },
        "303": {
            "description": "See Other",
            "headers": _headers("Location", "RateLimit", "RateLimit-Policy", *CORS),
            "content": {"text/html": HTML},
        },
        **_problems(400, 403, 408, 413, 415, 422, 429, 500, 503),
    },
}
PATHS: Document = {
    "/api/leads": {
        "post": POST_LEAD,
        "get": {
            "operationId": "listLeads",
            "summary": "Leads, newest first",
            **READ,
            "parameters": [
                _query(
                    "limit",
                    {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": 20},
                    "The number of leads.",
                ),
                _query("cursor", NULLABLE_TEXT, "`next_cursor` of the previous page; empty for the first page."),
                _query("status", LABEL, "Only leads with this status; empty for all."),
                _query("source", LABEL, "Only leads from this source; empty for all."),
            ],
            "responses": _cached(
                _object({"items": {"type": "array", "items": _ref("schemas", "Lead")}, "next_cursor": NULLABLE_TEXT})
            )
            | _problems(401, 403, 422, 500, 503),
        },
    },
    "/api/leads/{lead_id}": {
        "get": {
            "operationId": "getLead",
            "summary": "One lead",
            **READ,
            "parameters": [LEAD_ID],
            "responses": _cached(_ref("schemas", "Lead")) | _problems(401, 403, 404, 500, 503),
        }
    },
    "/api/leads/{lead_id}/trail": {
        "get": {
            "operationId": "getTrail",
            "summary": "Stages of a submission",
            **READ,
            "parameters": [LEAD_ID],
            "responses": _cached(_ref("schemas", "Trail")) | _problems(401, 403, 404, 500, 503),
        }
    },
    "/health": _health("health"),
    "/health/ready": _health("ready"),
    "/health/live": {
        "get": {
            "operationId": "alive",
            "summary": "Liveness of the process, independent of Kafka",
            "security": [],
            "responses": {"200": _json(_object({"status": {"const": "ok"}}))},
        }
    },
    "/": _page("form", "The form"),
    "/thanks": _page("thanks", "The page after an accepted form"),
    "/openapi.json": {
        "get": {
            "operationId": "description",
            "summary": "This document",
            "security": [],
            "responses": {"200": _json({"type": "object"}, "Cache-Control")}
            | {str(status): _problem(status) for status in (403, 500)},
        }
    },
}
DOCUMENT: Document = {
    "openapi": "3.1.0",
    "info": {
        "title": "Nigredo",
        "version": version("nigredo"),
        "summary": "Captures leads and loses none",
        "description": "Every address that answers GET answers HEAD too. OPTIONS returns the methods of an address, "
        "and for a browser the CORS headers. Another method is answered 405, an unknown address 404, both with problem "
        "details; a head over 32 KiB is answered 431 without them.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    },
    "paths": PATHS,
    "components": {
        "schemas": {"Form": FORM, "Lead": LEAD, "Trail": TRAIL, "Problem": PROBLEM},
        "headers": HEADERS,
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "`nigredo keys create`"}},
    },
}
