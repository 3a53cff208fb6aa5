"""Endpoints from the environment and the settings file; all problems of the file are reported at once."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from nigredo.endpoints.endpoint import Endpoint, endpoint_of, read_endpoints
from nigredo.errors import ConfigurationError
from nigredo.settings import Settings

LEAD_ID = UUID(int=7)


def settings(tmp_path: Path, text: str | None = None, **environment: str) -> Settings:
    if text is not None:
        file = tmp_path / "endpoints.toml"
        file.write_text(text)
        environment["WEBHOOK_ENDPOINTS_FILE"] = str(file)
    return Settings.from_environment(environment)


CRM = """
[endpoints.crm]
url = "https://crm.example.com/hook"
secret_file = "/run/secrets/crm"
start = "now"
rate_per_second = 2.5
in_flight_max = 3
timeout_seconds = 1
enabled = false
"""


def test_without_a_file_the_environment_gives_the_only_endpoint(tmp_path: Path) -> None:
    found = read_endpoints(settings(tmp_path, FIBONACCI_WEBHOOK_URL="https://f.example.com/x"))

    assert list(found) == ["fibonacci"]
    assert found["fibonacci"].url == "https://f.example.com/x"
    assert found["fibonacci"].timeout_s is None
    assert found["fibonacci"].start == "beginning"


def test_a_file_adds_endpoints_with_their_own_group_part_and_keys(tmp_path: Path) -> None:
    given = settings(tmp_path, CRM, NIGREDO_ENV="prod")

    fibonacci, crm = read_endpoints(given).values()

    assert crm == Endpoint(
        name="crm", url="https://crm.example.com/hook", secret_file=Path("/run/secrets/crm"), rate_per_s=2.5,
        in_flight_max=3, timeout_s=1.0, enabled=False, start="now",
    )  # fmt: skip
    assert (crm.function(given), crm.part) == ("nigredo-webhook-sender-prod-crm", "webhook-sender-crm")
    assert (fibonacci.function(given), fibonacci.part) == ("nigredo-webhook-sender-prod", "webhook-sender")
    assert crm.key(LEAD_ID) == f"{LEAD_ID}:crm".encode()
    assert fibonacci.key(LEAD_ID) == str(LEAD_ID).encode()


def test_the_file_may_change_the_first_one_too(tmp_path: Path) -> None:
    found = read_endpoints(settings(tmp_path, '[endpoints.fibonacci]\nrate_per_second = 5\nstart = "now"'))

    assert (found["fibonacci"].rate_per_s, found["fibonacci"].start) == (5.0, "now")


def test_a_process_is_for_one_endpoint(tmp_path: Path) -> None:
    assert endpoint_of(settings(tmp_path, CRM, WEBHOOK_ENDPOINT="crm")).name == "crm"
    with pytest.raises(ConfigurationError, match="there is no endpoint 'erp'; there is fibonacci, crm"):
        endpoint_of(settings(tmp_path, CRM, WEBHOOK_ENDPOINT="erp"))


def test_every_problem_of_the_file_is_reported_at_once(tmp_path: Path) -> None:
    wrong = """
[endpoints.Crm]
url = "ftp://x"
secret_file = "/s/crm"
start = "later"
rate_per_second = -1
in_flight_max = true
colour = "red"
[endpoints.erp]
enabled = "yes"
secret_file = "/s/crm"
[endpoints]
flat = 1
"""
    with pytest.raises(ConfigurationError) as refused:
        read_endpoints(settings(tmp_path, wrong.replace("[endpoints]\nflat = 1", "[endpoints.flat]\nurl = ''")))

    reported = "\n".join(refused.value.problems)
    for part in (
        "'Crm': a name is at most",
        "Crm: unknown colour",
        "Crm: url must be an http:// or https:// URL",
        'Crm: start must be "now" or "beginning"',
        "Crm: rate_per_second must be from 0",
        "Crm: in_flight_max must not be empty",
        "erp: needs url, start",
        "erp: enabled must be true or false",
        "erp: has the secret_file of Crm",
        "flat: needs secret_file, start",
    ):
        assert part in reported


@pytest.mark.parametrize("text", ["not toml", "", "endpoints = 1", "[endpoints]", "[endpoints.a]\n[other]"])
def test_a_file_in_another_format_is_reported_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="WEBHOOK_ENDPOINTS_FILE"):
        read_endpoints(settings(tmp_path, text))
