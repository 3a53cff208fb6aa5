"""The embedded schema registry: Apicurio with the Confluent API, stored in the embedded PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping

from nigredo.stack.artifacts import Artifacts
from nigredo.stack.home import Home
from nigredo.stack.java import JVM_GRACE_S, JavaProgram
from nigredo.stack.part import Part, http_waiting_for


def registry_part(home: Home, artifacts: Artifacts, environment: Mapping[str, str]) -> Part:
    """Describe the registry of a stack."""
    port = home.port("registry")
    program = str(artifacts.registry_dir / "quarkus-run.jar")
    java = JavaProgram(
        "registry",
        home.dir / "registry",
        artifacts.cache,
        ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
        (
            "-Dquarkus.http.host=127.0.0.1",
            f"-Dquarkus.http.port={port}",
            # A second listener that we have no use for; left alone it takes port 9000 of every interface.
            "-Dquarkus.management.host=127.0.0.1",
            "-Dquarkus.management.port=0",
            "-jar",
            program,
        ),
        program,
    )
    return Part(
        "registry",
        java.command,
        dict(environment)
        | {
            "APICURIO_STORAGE_KIND": "sql",
            "APICURIO_STORAGE_SQL_KIND": "postgresql",
            "APICURIO_DATASOURCE_URL": f"jdbc:postgresql://127.0.0.1:{home.port('postgres')}/apicurio",
            "APICURIO_DATASOURCE_USERNAME": "apicurio",
            "APICURIO_DATASOURCE_PASSWORD": home.secret("database-apicurio"),
        },
        lambda: http_waiting_for(port, "/apis/ccompat/v7/subjects"),
        ports=(port,),
        url=home.url("registry"),
        prepare=java.prepare,
        ended=java.ended,
        grace_s=JVM_GRACE_S,
    )
