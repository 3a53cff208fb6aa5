"""Errors as RFC 9457 problem details for programs, and as a small page for people in a browser."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

from ingest.form import FieldProblem
from ingest.page import page

PROBLEM_JSON = "application/problem+json"
TITLES = {
    400: "The request cannot be read",
    403: "Not allowed",
    404: "There is nothing here",
    405: "Not allowed here",
    408: "The request took too long",
    413: "The request is too large",
    415: "Content type not supported",
    422: "The form cannot be accepted",
    429: "Too many requests",
    500: "Something went wrong",
    503: "Not taken for now",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One error answer. `type` stays `about:blank`: the status says it all, `errors` names the fields."""

    status: int
    detail: str
    request_id: str
    errors: Sequence[FieldProblem] = ()

    def as_json(self) -> bytes:
        """Return the body for programs."""
        document: dict[str, object] = {
            "type": "about:blank",
            "title": TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
            "request_id": self.request_id,
        }
        if self.status == 429:
            # The member that clients of the system before this one look at.
            document["error"] = TITLES[429]
        if self.errors:
            document["errors"] = [{"field": error.field, "detail": error.detail} for error in self.errors]
        return json.dumps(document).encode()

    def as_page(self) -> bytes:
        """Return the body for people."""
        items = "".join(f"<li><b>{html.escape(e.field)}</b> {html.escape(e.detail)}</li>" for e in self.errors)
        content = Template(
            '<h1>$title</h1><p role="alert">$detail</p>$items<p><a href="/">Back to the form</a></p>'
        ).substitute(
            title=html.escape(TITLES.get(self.status, "Error")),
            detail=html.escape(self.detail),
            items=f"<ul>{items}</ul>" if items else "",
        )
        return page(TITLES.get(self.status, "Error"), content)
