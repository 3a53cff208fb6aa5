"""E-mail addresses: judged by `email_validator`, after what people and their devices write in them unasked."""

from __future__ import annotations

import re
from functools import lru_cache

from email_validator import EmailNotValidError, validate_email

# A local part as nearly everybody has one: a dot-atom in lower case, of a length that fits any domain.
_PLAIN_LOCAL = re.compile(r"(?=.{1,64}\Z)[a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*")
_UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
"""Marks of direction and of width zero, which come along with an address that was copied."""
_LOOKALIKES = {
    **{full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)},
    **dict.fromkeys((0x2018, 0x2019, 0x02BC), ord("'")),
}
"""Full-width letters of an East Asian keyboard, and what phones make of an apostrophe."""
_CARRIERS = ("docomo.ne.jp", "ezweb.ne.jp", "au.com")
_CARRIERS_LOCAL = re.compile(r"(?=.{1,64}\Z)[a-z0-9][a-z0-9._+/?-]*")
"""Addresses with dots in a row or before the @, against RFC 5321: these carriers gave them out until 2009."""


def normal_email(address: str) -> str | None:
    """Return an e-mail address in its normal form; None when it is none."""
    if not address.isascii():
        address = _UNSEEN.sub("", address).translate(_LOOKALIKES).strip()
    local, _, domain = address.rpartition("@")
    if not (_PLAIN_LOCAL.fullmatch(local) and domain.isascii()):
        return _judged(address) or _of_carrier(local, domain.lower())
    # The library leaves such a local part as it is, and domains come again and again: its judgement is remembered.
    normal = _normal_domain(domain)
    return None if normal is None else f"{local}@{normal}"


@lru_cache(maxsize=4096)
def _normal_domain(domain: str) -> str | None:
    address = _judged(f"a@{domain}")
    return None if address is None else address[2:]


def _judged(address: str) -> str | None:
    try:
        return str(validate_email(address, check_deliverability=False).normalized)
    except EmailNotValidError:
        # Its own text quotes the address.
        return None


def _of_carrier(local: str, domain: str) -> str | None:
    return f"{local}@{domain}" if domain in _CARRIERS and _CARRIERS_LOCAL.fullmatch(local) else None
