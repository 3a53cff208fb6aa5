"""Security headers: constant for programs' answers, and for pages the policy that their style and script need."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache

from ingest.pages.html import STYLE

POLICY = "Content-Security-Policy"
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    POLICY: "default-src 'none'; frame-ancestors 'none'",
}
"""Of every answer. To ourselves a page's address is told whole: it may say where the person came from."""
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
# Without `form-action`: browsers hold a form's redirect to it too, which leads to the site that the form is from.
_PAGE = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; frame-ancestors "
)


@lru_cache(maxsize=4)
def page_policy(sites: tuple[str, ...]) -> str:
    """Return the Content-Security-Policy of a page. sites: origins that may show it in a frame.

    Browsers that know `frame-ancestors` look at it and not at `X-Frame-Options`, which cannot name sites.
    """
    return _PAGE + (" ".join(("'self'", *sites)) if sites else "'none'")
