"""Settings: read once, every problem reported at once, no value shown."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from nigredo.errors import ConfigurationError
from nigredo.settings import Settings


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    settings = Settings.from_environment({})

    assert settings.rate_limit_per_hour == 10
    assert settings.rate_limit_window_s == 3600
    assert settings.webhook_timeout_s == 5
    assert settings.webhook_enabled is True
    assert settings.trusted_proxies == ()
    assert (settings.db_pool_max, settings.db_pool_idle_s, settings.db_pool_timeout_s) == (10, 30, 2)
    assert settings.function("rate-limiter") == "nigredo-rate-limiter-dev"


def test_values_are_read_as_their_types() -> None:
    settings = Settings.from_environment(
        {
            "NIGREDO_ENV": "prod",
            "RATE_LIMIT_PER_HOUR": "20",
            "WEBHOOK_ENABLED": "FALSE",
            "TRUSTED_PROXIES": "10.0.0.0/8, ::1/128",
            "WEBHOOK_SECRET_FILE": "/run/secrets/hook",
        }
    )

    assert settings.rate_limit_per_hour == 20
    assert settings.webhook_enabled is False
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert settings.webhook_secret_file == Path("/run/secrets/hook")
    assert settings.function("persister") == "nigredo-persister-prod"


def test_every_problem_is_reported_at_once_without_the_value() -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings.from_environment(
            {"RATE_LIMIT_PER_HOUR": "201", "WEBHOOK_TIMEOUT_SECONDS": "s3cret", "SCHEMA_REGISTRY_URL": "ftp://s3cret"}
        )

    assert len(refused.value.problems) == 3
    assert (
        Settings.from_environment({"FIBONACCI_WEBHOOK_URL": "https://host/hook/"}).webhook_url == "https://host/hook/"
    )
    with pytest.raises(ConfigurationError):
        Settings.from_environment({"FIBONACCI_WEBHOOK_URL": "https://me:s3cret@host/hook"})
    assert "RATE_LIMIT_PER_HOUR: must be a whole number from 1 to 200" in refused.value.problems
    assert "s3cret" not in str(refused.value)


def test_a_request_that_could_give_up_before_its_producer_is_refused() -> None:
    Settings.from_environment({"INGEST_ACK_TIMEOUT_SECONDS": "1.8", "INGEST_ANSWER_WITHIN_SECONDS": "3"})

    with pytest.raises(ConfigurationError) as refused:
        Settings.from_environment({"INGEST_ACK_TIMEOUT_SECONDS": "2.5"})

    (problem,) = refused.value.problems
    assert problem.startswith("INGEST_ACK_TIMEOUT_SECONDS: must be shorter than INGEST_ANSWER_WITHIN_SECONDS by 1.2")


def test_a_spool_too_small_for_its_workers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="INGEST_SPOOL_MAX_BYTES"):
        Settings.from_environment({"INGEST_SPOOL_MAX_BYTES": "200000", "INGEST_WORKERS": "2"})


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "https://*.example.com",
        "https://me@example.com",
        "https://example.com:99999",
        "https://exa mple.com",
        "https://example.com\\x",
        "https://example.com/page",
        "https://exämple.com",
        "ftp://example.com",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="origins such as"):
        Settings.parse("CORS_ALLOWED_ORIGINS", origin)


def test_origins_are_kept_as_browsers_send_them() -> None:
    written = "HTTPS://www.Example.com:443/, http://localhost:8000, http://[::1]:80"

    found = Settings.parse("REDIRECT_ALLOWED_ORIGINS", written)

    assert found == ("https://www.example.com", "http://localhost:8000", "http://[::1]")
