"""Security headers: constant for JSON answers; pages get the policy that their style and script need."""

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
"""Headers of every answer. Same-origin requests send the full `Referer`, because it may name a campaign."""
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
# No `form-action`: browsers apply it to the redirect after a form too, which leads to the form's own site.
_PAGE = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; frame-ancestors "
)


@lru_cache(maxsize=4)
def page_policy(sites: tuple[str, ...]) -> str:
    """Return the Content-Security-Policy of a page. sites: origins that may show the page in a frame.

    Browsers that support `frame-ancestors` ignore `X-Frame-Options`, which cannot name sites.
    """
    return _PAGE + (" ".join(("'self'", *sites)) if sites else "'none'")
