"""API keys: `ngd_{id}_{secret}`. Only the secret's hash is stored, in the control topic, so that no database is needed.

The secret is 32 random bytes, so a plain SHA-256 cannot be reversed; a slow hash would only slow down the requests.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "ngd"
LEADS_READ = "leads:read"
SCOPES = (LEADS_READ,)
_KEY = re.compile(rf"{PREFIX}_([0-9a-f]{{12}})_([A-Za-z0-9_-]{{43}})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as stored: the hash and the scopes, without the secret."""

    id: str
    name: str
    sha256: str
    scopes: frozenset[str]


def create(name: str, scopes: frozenset[str]) -> tuple[str, ApiKey]:
    """Return the text of a new key, which is shown once, and its stored form."""
    text = f"{PREFIX}_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
    return text, stored_form(text, name, scopes)


def stored_form(text: str, name: str, scopes: frozenset[str]) -> ApiKey:
    """Return the stored form of a key's text. Raises ValueError for a text in another format."""
    found = _KEY.fullmatch(text)
    if found is None:
        raise ValueError("no API key")
    return ApiKey(found[1], name, _hash(found[2]), scopes)


def as_value(key: ApiKey) -> Mapping[str, str]:
    """Return a key as the value of a control entry."""
    return {"name": key.name, "sha256": key.sha256, "scopes": " ".join(sorted(key.scopes))}


def from_value(key_id: str, value: Mapping[str, str]) -> ApiKey:
    """Return the key in the value of a control entry. Raises KeyError for a missing field."""
    return ApiKey(key_id, value["name"], value["sha256"], frozenset(value["scopes"].split()))


def verify(text: str, keys: Mapping[str, ApiKey]) -> ApiKey | None:
    """Return the key of a text if `keys`, by id, has the key; else None. Compares in constant time."""
    found = _KEY.fullmatch(text)
    if found is None or (key := keys.get(found[1])) is None:
        return None
    return key if hmac.compare_digest(_hash(found[2]), key.sha256) else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
