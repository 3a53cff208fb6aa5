"""Guard against DNS rebinding: a listener only answers requests whose `Host` is an address or an allowed name.

A browser sends the host name of the page as `Host`, so a foreign name that resolves to this listener is refused.
Addresses are always allowed because no foreign DNS record can forge them; probes and scrapers use addresses.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address

REFUSED = "unknown Host; HEALTH_ALLOWED_HOSTS adds host names"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Headers of every answer: a browser must not run, frame or cache it, or send its URL as a referrer."""


def may_ask(host: str | None, allowed: Collection[str] = ()) -> bool:
    """Return whether a request with this `Host` header may be answered.

    allowed: further host names, in lower case. A request without the header is allowed because no browser omits it.
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
    """Return a host without its port, without a final dot and without the brackets of an IPv6 address."""
    if host.startswith("["):
        address, _, rest = host[1:].partition("]")
        return address if not rest or rest.startswith(":") else host
    return host.partition(":")[0].removesuffix(".")
