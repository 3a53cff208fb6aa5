"""Embedded schema registry: Apicurio with the Confluent API, stored in the embedded PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping

from nigredo.stack.artifacts import Artifacts
from nigredo.stack.home import REGISTRY_USER, Home, write_private
from nigredo.stack.part import Part, http_waiting_for
from nigredo.stack.parts.java import JVM_GRACE_S, JavaProgram
from nigredo.stack.parts.postgres import database_answers


def registry_part(home: Home, artifacts: Artifacts, environment: Mapping[str, str]) -> Part:
    """Return the registry of a stack."""
    port, folder = home.port("registry"), home.dir / "registry"
    configuration = folder / "registry.properties"
    program = str(artifacts.registry_dir / "quarkus-run.jar")
    java = JavaProgram(
        "registry",
        folder,
        artifacts.cache,
        ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
        (
            f"-Dquarkus.config.locations={configuration}",
            # The default is /tmp/vertx-cache, which every user may write to.
            f"-Dvertx.cacheDirBase={folder / 'vertx-cache'}",
            "-jar",
            program,
        ),
        program,
    )

    def prepare() -> None:
        java.prepare()
        write_private(configuration, "".join(f"{name}={value}\n" for name, value in _settings(home).items()))

    def waiting_for() -> str | None:
        reason = http_waiting_for(port, "/apis/ccompat/v7/subjects", basic_auth=home.registry_credentials)
        # Without its database the registry answers late or never, and reports no reason.
        return reason if reason is None or database_answers(home) else "PostgreSQL, which does not answer"

    return Part(
        "registry",
        java.command,
        environment,
        waiting_for,
        ports=(port,),
        url=home.url("registry"),
        prepare=prepare,
        ended=java.ended,
        grace_s=JVM_GRACE_S,
    )


def _settings(home: Home) -> dict[str, object]:
    return {
        "config_ordinal": 500,  # Overrides the caller's environment.
        "quarkus.http.host": "127.0.0.1",
        "quarkus.http.port": home.port("registry"),
        # An unused second listener, which by default opens port 9000 on every interface.
        "quarkus.management.host": "127.0.0.1",
        "quarkus.management.port": 0,
        # Every user of the machine and every page in its browsers reaches the port, so every path asks for a password.
        "quarkus.http.auth.basic": "true",
        "quarkus.http.auth.permission.all.paths": "/*",
        "quarkus.http.auth.permission.all.policy": "authenticated",
        "quarkus.http.cors.enabled": "false",
        "quarkus.security.users.embedded.plain-text": "true",
        f"quarkus.security.users.embedded.users.{REGISTRY_USER}": home.secret("registry"),
        f"quarkus.security.users.embedded.roles.{REGISTRY_USER}": "sr-admin",
        "apicurio.storage.kind": "sql",
        "apicurio.storage.sql.kind": "postgresql",
        "apicurio.datasource.url": f"jdbc:postgresql://127.0.0.1:{home.port('postgres')}/apicurio",
        "apicurio.datasource.username": "apicurio",
        "apicurio.datasource.password": home.secret("database-apicurio"),
    }
