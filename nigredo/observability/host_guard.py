"""Names under which a listener lets itself be asked: a web page whose name leads here (DNS rebinding) gets nothing.

A browser sends the page's own name as `Host`. An address is no name that a stranger's DNS could point at us, so probes
of an orchestrator and scrapers go on working.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address

REFUSED = "this listener is not asked under that name; HEALTH_ALLOWED_HOSTS adds one"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""With every answer: nothing of it runs, is framed, kept, or told to another site."""


def may_ask(host: str | None, allowed: Collection[str] = ()) -> bool:
    """Say whether a request with this `Host` header is answered.

    allowed: further names, in lower case. A request without the header comes from no browser.
    """
    if not host:
        return True
    name = _name(host.strip().lower())
    if name == "localhost" or name.endswith(".localhost") or name in allowed:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _name(host: str) -> str:
    """Return a host without its port, and without the brackets of an IPv6 address."""
    if host.startswith("["):
        address, _, rest = host[1:].partition("]")
        return address if not rest or rest.startswith(":") else host
    return host.partition(":")[0].removesuffix(".")
