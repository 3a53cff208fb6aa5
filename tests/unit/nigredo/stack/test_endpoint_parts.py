"""`nigredo up` starts a sender for each endpoint of the settings file."""

from __future__ import annotations

from pathlib import Path

import pytest

from nigredo.endpoints.endpoint import endpoint_of
from nigredo.endpoints.secrets import Secret, write_secrets
from nigredo.errors import ConfigurationError
from nigredo.settings import Settings
from nigredo.stack.artifacts import Artifacts
from nigredo.stack.embedded import GOAL, endpoint_parts, sender_ports, steps
from nigredo.stack.home import PORTS, Home
from nigredo.stack.part import Part
from nigredo.stack.supervisor import needed_by

ENDPOINTS = """
[endpoints.crm]
url = "https://crm.example.com/hook"
secret_file = "{secrets}/crm"
start = "now"
[endpoints.erp]
url = "https://erp.example.com/hook"
secret_file = "{secrets}/erp"
start = "beginning"
"""


def settings_file(folder: Path) -> Path:
    """Return a settings file of two endpoints, and write their secrets."""
    for name in ("crm", "erp"):
        write_secrets(folder / name, [Secret(name.encode() * 10)])
    file = folder / "endpoints.toml"
    file.write_text(ENDPOINTS.format(secrets=folder))
    return file


def test_each_further_endpoint_is_a_part_with_a_port_of_its_own(tmp_path: Path) -> None:
    file = settings_file(tmp_path)
    home = Home(tmp_path / "home", 8080)

    parts = endpoint_parts(home, {"WEBHOOK_ENDPOINTS_FILE": str(file)})

    assert [part.name for part in parts] == ["webhook-sender-crm", "webhook-sender-erp"]
    assert [endpoint_of(Settings.from_environment(part.environment)).name for part in parts] == ["crm", "erp"]
    ports = [port for part in parts for port in part.ports]
    assert ports == [8080 + len(PORTS), 8080 + len(PORTS) + 1]
    assert [part.environment["HEALTH_PORT"] for part in parts] == [str(port) for port in ports]
    assert list(sender_ports(home, ["fibonacci", "crm", "erp"]).values()) == [home.port("webhook-sender"), *ports]
    assert {part.command[-1] for part in parts} == {"webhook-sender"}


def test_nothing_is_sent_to_the_stand_in_before_it_is_there_and_forms_wait_for_neither(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home", 8080)
    home.create(kafka_auth="scram", registry_auth="basic")

    found = steps(home, Artifacts(tmp_path / "cache", (), tmp_path / "registry"), {})

    assert "fibonacci" in needed_by(found, "webhook-sender")
    assert needed_by(found, GOAL) == ["kafka", "topics", "ingest"]


def test_a_further_endpoint_with_wrong_settings_is_a_part_that_says_so_and_the_others_go_on(tmp_path: Path) -> None:
    file = settings_file(tmp_path)
    (tmp_path / "erp").unlink()
    text = file.read_text()
    file.write_text(text.replace("https://crm.example.com/hook", "http://0177.0.0.1/x"))

    crm, erp = endpoint_parts(Home(tmp_path / "home", 8080), {"WEBHOOK_ENDPOINTS_FILE": str(file)})

    with pytest.raises(
        ConfigurationError, match=r"WEBHOOK_ENDPOINTS_FILE: crm: url must write an IPv4 address as four"
    ):
        prepare(crm)
    with pytest.raises(ConfigurationError, match=r"WEBHOOK_ENDPOINTS_FILE: erp: secret_file: .*cannot be read"):
        prepare(erp)
    file.write_text(text)
    prepare(crm)


def test_a_name_that_is_none_is_a_part_that_says_so(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.toml"
    file.write_text('[endpoints."../x"]\nurl = "https://x.example"\nsecret_file = "/s"\nstart = "now"\n')

    (part,) = endpoint_parts(Home(tmp_path / "home", 8080), {"WEBHOOK_ENDPOINTS_FILE": str(file)})

    assert part.name == "webhook-sender-misnamed-1"
    with pytest.raises(ConfigurationError, match="a name is at most 32"):
        prepare(part)


def test_a_file_that_cannot_be_read_stops_no_other_part(tmp_path: Path) -> None:
    assert endpoint_parts(Home(tmp_path / "home", 8080), {"WEBHOOK_ENDPOINTS_FILE": str(tmp_path / "none")}) == []


def prepare(part: Part) -> None:
    """Call the hook that the supervisor calls before each start."""
    assert part.prepare is not None
    part.prepare()


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert endpoint_parts(Home(tmp_path / "home", 8080), {}) == []
