"""E-mail addresses: validated by `email_validator`, after removing characters that devices add to them."""

from __future__ import annotations

import re
from functools import lru_cache

from email_validator import EmailNotValidError, validate_email

# The most common kind of local part: a dot-atom in lower case, of a length that fits any domain.
_PLAIN_LOCAL = re.compile(r"(?=.{1,64}\Z)[a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*")
_UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
"""Direction marks and zero-width characters, which a copied address may contain."""
_LOOKALIKES = {
    **{full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)},
    **dict.fromkeys((0x2018, 0x2019, 0x02BC), ord("'")),
}
"""Replacements for the full-width letters of East Asian keyboards, and for the curly apostrophes of phones."""
_CARRIERS = ("docomo.ne.jp", "ezweb.ne.jp", "au.com")
_CARRIERS_LOCAL = re.compile(r"(?=.{1,64}\Z)[a-z0-9][a-z0-9._+/?-]*")
"""Addresses with dots in a row or before the @, against RFC 5321: these carriers gave them out until 2009."""


def normal_email(address: str) -> str | None:
    """Return the normal form of an e-mail address; None for an invalid address."""
    if not address.isascii():
        address = _UNSEEN.sub("", address).translate(_LOOKALIKES).strip()
    local, _, domain = address.rpartition("@")
    if not (_PLAIN_LOCAL.fullmatch(local) and domain.isascii()):
        return _validated(address) or _of_carrier(local, domain.lower())
    # The library leaves such a local part unchanged, so only the domain is validated; cached, because domains repeat.
    normal = _normal_domain(domain)
    return None if normal is None else f"{local}@{normal}"


@lru_cache(maxsize=4096)
def _normal_domain(domain: str) -> str | None:
    address = _validated(f"a@{domain}")
    return None if address is None else address[2:]


def _validated(address: str) -> str | None:
    try:
        return str(validate_email(address, check_deliverability=False).normalized)
    except EmailNotValidError:
        # Not wrapped, because the library's text quotes the address.
        return None


def _of_carrier(local: str, domain: str) -> str | None:
    return f"{local}@{domain}" if domain in _CARRIERS and _CARRIERS_LOCAL.fullmatch(local) else None
