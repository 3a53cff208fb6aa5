"""Passwords in files: secrets are kept there because other users can see environments and argument lists."""

from __future__ import annotations

from pathlib import Path

from nigredo.errors import ConfigurationError


def read_password(path: Path | None, setting: str) -> str:
    """Return the password in a file. Raises ConfigurationError, which names the setting and shows no file content.

    setting: the environment variable that names the file.
    """
    if path is None:
        raise ConfigurationError(f"{setting}: is not set")
    try:
        password = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{setting}: cannot be read ({error.strerror or type(error).__name__})") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{setting}: cannot be read (not UTF-8)") from None
    if not password:
        raise ConfigurationError(f"{setting}: the file is empty")
    return password
