"""Containers of Kafka, the registry and PostgreSQL, at the ports and with the roles of a stack.

A test session that asks for them ends at once where no container engine answers.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import docker
import docker.errors
import psycopg
import yaml
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from nigredo.stack.embedded import EXTERNAL
from nigredo.stack.home import DATABASE, Home
from nigredo.stack.parts.postgres import role_statements
from nigredo.testing import Stack, eventually, free_port_base, started

START_DEADLINE_S = 120.0


def engine_answers() -> bool:
    """Return whether a container engine answers here."""
    try:
        return bool(docker.from_env(timeout=5).ping())
    except docker.errors.DockerException:
        return False


@contextmanager
def stack_on_containers() -> Iterator[Stack]:
    """Run the three parts as containers and the product's processes beside them, in a temporary home."""
    compose = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())
    with tempfile.TemporaryDirectory(prefix="nigredo-test-") as folder:
        stack = Stack(Home.open(Path(folder), free_port_base()))
        stack.home.create()
        external = ",".join(EXTERNAL)
        with running_containers(stack.home, compose), started(stack, "--external", external):
            yield stack


@contextmanager
def running_containers(home: Home, compose: dict[str, Any]) -> Iterator[None]:
    """Run the three parts with the images and settings of `docker-compose.yml`; remove them afterwards."""
    services = compose["services"]
    password = secrets.token_urlsafe(24)
    with ExitStack() as running:
        network = running.enter_context(Network())
        postgres = _container(services["postgres"], network, "postgres").with_bind_ports(5432, home.port("postgres"))
        postgres.with_env("POSTGRES_USER", "bootstrap").with_env("POSTGRES_DB", "postgres")
        postgres.with_env("POSTGRES_PASSWORD", password).with_command(services["postgres"]["command"])
        running.enter_context(postgres)
        _make_roles(home, password)
        kafka = _container(services["kafka"], network, "kafka").with_bind_ports(9092, home.port("kafka"))
        for name, value in services["kafka"]["environment"].items():
            kafka.with_env(name, value)
        kafka.with_env("KAFKA_ADVERTISED_LISTENERS", f"PLAINTEXT://127.0.0.1:{home.port('kafka')}")
        running.enter_context(kafka)
        registry = _container(services["registry"], network, "registry").with_bind_ports(8080, home.port("registry"))
        for name, value in services["registry"]["environment"].items():
            registry.with_env(name, value)
        registry.with_env("APICURIO_DATASOURCE_PASSWORD", home.secret("database-apicurio"))
        running.enter_context(registry)
        yield


def _container(service: dict[str, Any], network: Network, alias: str) -> DockerContainer:
    return DockerContainer(service["image"]).with_network(network).with_network_aliases(alias)


def _make_roles(home: Home, password: str) -> None:
    """Create the roles and databases that the embedded cluster is created with."""

    def connect(database: str) -> psycopg.Connection | None:
        try:
            return psycopg.connect(
                host="127.0.0.1",
                port=home.port("postgres"),
                user="bootstrap",
                password=password,
                dbname=database,
                autocommit=True,
                connect_timeout=2,
            )
        except psycopg.OperationalError:
            return None

    with eventually(lambda: connect("postgres"), within_s=START_DEADLINE_S, what="PostgreSQL") as connection:
        for statement in role_statements(home):
            connection.execute(statement.encode())
    with eventually(lambda: connect(DATABASE), within_s=START_DEADLINE_S, what=DATABASE) as connection:
        connection.execute("CREATE EXTENSION pg_stat_statements")
