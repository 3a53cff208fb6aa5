"""The container files, as far as they can be checked without an engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from nigredo.cli import nigredo
from nigredo.components import PROCESSES
from nigredo.endpoints.secrets import read_secrets
from nigredo.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "nigredo:local"}
SETTINGS = {field.metadata["name"] for field in fields(Settings)}


def test_every_process_has_its_container_and_nothing_else_runs() -> None:
    running = {service["command"][1] for service in OURS.values() if service["command"][0] == "run"}

    assert running == set(PROCESSES)
    assert {tuple(service["command"]) for service in OURS.values()} >= {("migrate",), ("topics", "ensure")}


@pytest.mark.parametrize("name", OURS)
def test_every_command_exists(name: str) -> None:
    answer = CliRunner().invoke(nigredo, [*OURS[name]["command"], "--help"])

    assert answer.exit_code == 0, answer.output


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_and_all_of_them_can_be_read(name: str) -> None:
    environment = {
        variable: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(value))
        for variable, value in OURS[name]["environment"].items()
    }

    assert set(environment) <= SETTINGS
    Settings.from_environment(environment)


def test_nothing_but_ingest_is_published_and_the_parts_are_on_the_inside_alone() -> None:
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["ingest"]
    assert COMPOSE["networks"]["inside"]["internal"] is True
    for part in ("kafka", "postgres", "registry"):
        assert COMPOSE["services"][part]["networks"] == ["inside"]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_is_bounded_and_has_no_rights_that_it_does_not_need(name: str) -> None:
    service = COMPOSE["services"][name]

    assert service["cap_drop"] == ["ALL"]
    assert set(service.get("cap_add", [])) <= {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] <= 512
    assert service["mem_limit"]
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])
    if name not in ("kafka", "registry"):  # These write beside their data, into folders of their image.
        assert service["read_only"] is True


def test_every_secret_volume_network_and_dependency_that_is_used_is_declared() -> None:
    for service in COMPOSE["services"].values():
        for secret in service.get("secrets", []):
            assert (secret["source"] if isinstance(secret, dict) else secret) in COMPOSE["secrets"]
        for network in service["networks"]:
            assert network in COMPOSE["networks"]
        for dependency in service.get("depends_on", {}):
            assert dependency in COMPOSE["services"]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_the_secrets_script_makes_what_compose_reads_for_the_owner_alone(tmp_path: Path) -> None:
    script = shutil.copy(ROOT / "deploy/compose/secrets.sh", tmp_path)

    for _ in range(2):
        subprocess.run([script], check=True, timeout=20)
        made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}

    assert set(made) == {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    assert len(read_secrets(tmp_path / "secrets" / "webhook-fibonacci")) == 1
    password = made["database-nigredo_app"].strip()
    assert made["pgpass-nigredo_app"] == f"postgres:5432:fibonacci:nigredo_app:{password}\n"
    subprocess.run([script], check=True, timeout=20)
    assert made == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}


def test_the_image_is_built_from_files_that_exist_and_does_not_run_as_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]]

    assert all((ROOT / name).exists() for name in copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed
    assert "\nUSER nigredo\n" in text
    assert os.access(ROOT / "deploy/compose/roles.sh", os.X_OK)
