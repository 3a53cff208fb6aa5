"""The schema registry that the settings name."""

from __future__ import annotations

from nigredo.avro.registry import Registry
from nigredo.password_file import read_password
from nigredo.settings import Settings


def open_registry(settings: Settings) -> Registry:
    """Return a client of the registry. Raises ConfigurationError when its password file cannot be used."""
    user, file = settings.schema_registry_username, settings.schema_registry_password_file
    credentials = (user, read_password(file, "SCHEMA_REGISTRY_PASSWORD_FILE")) if user else None
    return Registry(settings.schema_registry_url, credentials=credentials)
