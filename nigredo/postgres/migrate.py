"""Schema migrations: apply the numbered SQL files of `migrations/`, each once, in its own transaction, forward only."""

from __future__ import annotations

import hashlib
from importlib import resources

import psycopg

from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown, StartRefused
from nigredo.postgres.pool import describe
from nigredo.settings import Settings

LOCK_KEY = 0x6E69_6772_6564_6F00
"""Advisory lock key, `nigredo` in ASCII: of several starting processes only one migrates at a time."""
LOCK_WAIT_S = 60
STATEMENT_LOCK_WAIT_S = 5
"""A migration that does not get its table lock within this time gives up and retries, so that statements of the running
version never queue behind it for longer."""
TRIES = 6

BOOKKEEPING = """
CREATE SCHEMA IF NOT EXISTS nigredo;
CREATE TABLE IF NOT EXISTS nigredo.migrations (
    name        text        PRIMARY KEY,
    sha256      text        NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now()
);
"""
GRANTS = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nigredo_app') THEN
        GRANT USAGE ON SCHEMA nigredo TO nigredo_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA nigredo TO nigredo_app;
    END IF;
END $$;
"""
"""Rights of the role `nigredo_app`, under which the processes run: change rows, not tables. A role of another name
needs the same grants."""


def migrate(settings: Settings) -> list[str]:
    """Apply the missing migrations; return the names of the applied files.

    The database role must own the schema `nigredo` or have the right to create it. Raises DependencyDown when the
    database does not answer or another session holds a lock for too long, and StartRefused when a file differs from the
    one applied under its name.
    """
    try:
        with psycopg.connect(
            settings.database_url,
            application_name=settings.function("migrate"),
            connect_timeout=max(1, round(settings.db_pool_timeout_s)),
            autocommit=True,
        ) as connection:
            connection.execute(f"SET lock_timeout = '{LOCK_WAIT_S}s'".encode())
            connection.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
            connection.execute(f"SET lock_timeout = '{STATEMENT_LOCK_WAIT_S}s'".encode())
            return _apply_missing(connection)
    except psycopg.Error as error:
        raise DependencyDown(f"the database cannot be migrated: {describe(error)}") from error


def _apply_missing(connection: psycopg.Connection) -> list[str]:
    connection.execute(BOOKKEEPING)
    applied: dict[str, str] = dict(connection.execute("SELECT name, sha256 FROM nigredo.migrations").fetchall())
    done = []
    for file in sorted(resources.files("nigredo.postgres.migrations").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".sql"):
            continue
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if applied.get(file.name, digest) != digest:
            raise StartRefused(f"migration {file.name} was changed after it was applied; add a new file instead")
        if file.name not in applied:
            _apply(connection, file.name, content, digest)
            done.append(file.name)
    if done:
        connection.execute(GRANTS)
    return done


def _apply(connection: psycopg.Connection, name: str, content: bytes, digest: str) -> None:
    """Apply one file; retry when a lock is not available, because an operator's long query may hold it."""
    backoff = Backoff(first_s=0.5, longest_s=5.0)
    for attempt in range(1, TRIES + 1):
        try:
            with connection.transaction():
                connection.execute(content)
                connection.execute("INSERT INTO nigredo.migrations (name, sha256) VALUES (%s, %s)", [name, digest])
            return
        except psycopg.errors.LockNotAvailable:
            if attempt == TRIES:
                raise
            connection.execute("SELECT pg_sleep(%s)", [backoff.next_wait_s()])
