"""Endpoints of webhooks: `fibonacci` from the environment, further ones from the TOML file WEBHOOK_ENDPOINTS_FILE.

    [endpoints.crm]
    url = "https://crm.example.com/hooks/nigredo"
    secret_file = "/run/secrets/webhook-crm"
    start = "now"              # or "beginning": the first lead that a new endpoint gets
    rate_per_second = 20       # optional from here on; the default is the setting for all endpoints
    in_flight_max = 32
    timeout_seconds = 3
    enabled = true

Each endpoint has its own process and consumer group, so that a failing receiver does not affect the others.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from nigredo.endpoints.keys import FIRST_ENDPOINT, key_of, sender_group, sender_part
from nigredo.errors import ConfigurationError
from nigredo.settings import Settings

NOW, BEGINNING = "now", "beginning"
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
"""Valid names of endpoints: they become parts of the names of topics, groups and parts of the stack."""

_PARSED_AS = {
    "url": ("url", "FIBONACCI_WEBHOOK_URL"),
    "secret_file": ("secret_file", "WEBHOOK_SECRET_FILE"),
    "rate_per_second": ("rate_per_s", "WEBHOOK_RATE_PER_SECOND"),
    "in_flight_max": ("in_flight_max", "WEBHOOK_IN_FLIGHT_MAX"),
    "timeout_seconds": ("timeout_s", "WEBHOOK_TIMEOUT_SECONDS"),
}
"""Field of `Endpoint` and setting whose parser applies, by key of the file."""
_REQUIRED = ("url", "secret_file", "start")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A receiver of webhooks, with the settings of its deliveries."""

    name: str
    url: str
    secret_file: Path
    rate_per_s: float
    """Attempts per second, over all processes of the endpoint; 0 for no limit."""
    in_flight_max: int
    timeout_s: float | None
    """Deadline of one attempt; None for the current value of WEBHOOK_TIMEOUT_SECONDS."""
    enabled: bool
    start: str

    @property
    def part(self) -> str:
        """Name of the endpoint's process, as shown by `nigredo status`."""
        return sender_part(self.name)

    def function(self, settings: Settings) -> str:
        """Return the endpoint's full name: log field `function`, consumer group."""
        return sender_group(settings, self.name)

    def key(self, lead_id: UUID) -> bytes:
        """Return the key of a lead in a topic of all endpoints; no endpoint's tombstone removes another's record."""
        return key_of(lead_id, self.name)


def read_endpoints(settings: Settings) -> Mapping[str, Endpoint]:
    """Return every endpoint by name, `fibonacci` first.

    Raises ConfigurationError with every problem of the settings file.
    """
    found, problems = examine_endpoints(settings)
    _refuse([problem for found_in_one in problems.values() for problem in found_in_one])
    return found


def examine_endpoints(settings: Settings) -> tuple[Mapping[str, Endpoint], Mapping[str, Sequence[str]]]:
    """Return every endpoint by name, as far as valid, and the problems of each endpoint by name.

    Raises ConfigurationError when the settings file cannot be read or is not TOML.
    """
    first = Endpoint(
        name=FIRST_ENDPOINT,
        url=settings.webhook_url,
        secret_file=settings.webhook_secret_file,
        rate_per_s=settings.webhook_rate_per_s,
        in_flight_max=settings.webhook_in_flight_max,
        timeout_s=None,
        enabled=True,
        start=BEGINNING,
    )
    found, problems = {FIRST_ENDPOINT: first}, dict[str, list[str]]()
    for name, given in _tables(settings.webhook_endpoints_file).items():
        problems[name], found[name] = _parsed(name, given, first)
    owners: dict[Path, str] = {}
    for name, endpoint in found.items():
        owner = owners.setdefault(endpoint.secret_file, name)
        if owner != name:
            text = f"{name}: has the secret_file of {owner}; one receiver could impersonate the other"
            problems.setdefault(name, []).append(text)
    return found, problems


def endpoint_of(settings: Settings) -> Endpoint:
    """Return the endpoint that this process delivers to. Raises ConfigurationError."""
    return _one(settings, settings.webhook_endpoint, "WEBHOOK_ENDPOINT: there is no endpoint {name!r}; there is {all}")


def named(settings: Settings, name: str) -> Endpoint:
    """Return the endpoint named by an operator. Raises ConfigurationError."""
    return _one(settings, name, "there is no endpoint {name}; there is {all}")


def _one(settings: Settings, name: str, unknown: str) -> Endpoint:
    """Return one endpoint; problems of the others are ignored. Raises ConfigurationError."""
    found, problems = examine_endpoints(settings)
    if name not in found:
        raise ConfigurationError(unknown.format(name=name, all=", ".join(found)))
    _refuse(problems.get(name, ()))
    return found[name]


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigurationError(*(f"WEBHOOK_ENDPOINTS_FILE: {problem}" for problem in problems))


def _tables(file: Path | None) -> Mapping[str, Any]:
    if file is None:
        return {}
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"WEBHOOK_ENDPOINTS_FILE: {file} cannot be read ({type(error).__name__})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"WEBHOOK_ENDPOINTS_FILE: {file} is not valid TOML: {error}") from None
    tables = document.pop("endpoints", None)
    if document or not isinstance(tables, dict) or not tables:
        raise ConfigurationError(f"WEBHOOK_ENDPOINTS_FILE: {file} must hold tables [endpoints.NAME] and nothing else")
    return tables


def _parsed(name: str, given: Any, first: Endpoint) -> tuple[list[str], Endpoint]:
    """Return the problems of one table, and the endpoint as far as valid."""
    problems: list[str] = []
    if not NAME.fullmatch(name):
        problems.append(f"{name!r}: a name is at most 32 lower-case letters, digits and inner hyphens")
    if not isinstance(given, dict):
        return [*problems, f"{name}: must be a table"], replace(first, name=name)
    known = {*_PARSED_AS, "enabled", "start"}
    if unknown := sorted(set(given) - known):
        problems.append(f"{name}: unknown {', '.join(unknown)}; allowed are {', '.join(sorted(known))}")
    # No field is required of `fibonacci`, because the environment already gives all its fields.
    if missing := [field for field in _REQUIRED if field not in given and name != FIRST_ENDPOINT]:
        problems.append(f"{name}: needs {', '.join(missing)}")
    values: dict[str, Any] = {}
    for key, (field, setting) in _PARSED_AS.items():
        if key in given:
            try:
                if isinstance(given[key], bool) or not str(given[key]).strip():
                    raise ConfigurationError(f"{setting}: must not be empty")
                values[field] = Settings.parse(setting, str(given[key]))
            except ConfigurationError as error:
                problems += [f"{name}: {key} {text.removeprefix(f'{setting}: ')}" for text in error.problems]
    enabled, start = given.get("enabled", True), given.get("start", first.start)
    if not isinstance(enabled, bool):
        problems.append(f"{name}: enabled must be true or false")
    if start not in (NOW, BEGINNING):
        problems.append(f'{name}: start must be "{NOW}" or "{BEGINNING}"')
    return problems, replace(first, name=name, enabled=enabled is not False, start=str(start), **values)
