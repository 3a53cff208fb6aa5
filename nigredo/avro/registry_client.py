"""Factory of the schema registry's client, from the settings."""

from __future__ import annotations

from nigredo.avro.registry import Registry
from nigredo.password_file import read_password
from nigredo.settings import Settings


def open_registry(settings: Settings) -> Registry:
    """Return a client of the configured registry. Raises ConfigurationError when the password file is unusable."""
    user, file = settings.schema_registry_username, settings.schema_registry_password_file
    credentials = (user, read_password(file, "SCHEMA_REGISTRY_PASSWORD_FILE")) if user else None
    return Registry(settings.schema_registry_url, credentials=credentials)
