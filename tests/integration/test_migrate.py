"""Migrations: once, in order, never changed afterwards, and enough for the operations runbook's own statements."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import psycopg
import pytest

from nigredo.errors import StartRefused
from nigredo.postgres import migrate as module
from nigredo.postgres.migrate import migrate
from nigredo.testing import Stack

# The runbook's statements as they stand there; those that change something are undone by the test.
RUNBOOK = [
    "SELECT query, mean_exec_time, calls FROM pg_stat_statements WHERE query LIKE '%nigredo%'"
    " ORDER BY mean_exec_time DESC LIMIT 10",
    "CREATE INDEX CONCURRENTLY idx_leads_email ON nigredo.leads(email)",
    "CREATE INDEX CONCURRENTLY idx_leads_created_at ON nigredo.leads(created_at DESC)",
    "ANALYZE nigredo.leads",
    "ANALYZE nigredo.form_submissions",
    "SELECT id, lead_id, status_code, error_message, sent_at FROM nigredo.webhook_logs WHERE success = false"
    " ORDER BY sent_at DESC LIMIT 20",
    "SELECT DISTINCT lead_id FROM nigredo.webhook_logs WHERE success = false AND sent_at > NOW() - INTERVAL '1 hour'",
    "SELECT count(*) FROM pg_stat_activity WHERE datname = 'fibonacci'",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'fibonacci' AND state = 'idle'"
    " AND state_change < NOW() - INTERVAL '10 minutes'",
    "SELECT ip_address, submission_count, window_start FROM nigredo.rate_limits"
    " WHERE window_start > NOW() - INTERVAL '1 hour' ORDER BY submission_count DESC LIMIT 20",
    "DELETE FROM nigredo.rate_limits WHERE ip_address = '192.168.1.100'",
    "SELECT * FROM nigredo.webhook_logs WHERE success = false ORDER BY sent_at DESC LIMIT 10",
    "SELECT schemaname, tablename, attname, n_distinct, correlation FROM pg_stats WHERE schemaname = 'nigredo'"
    " AND tablename IN ('leads', 'form_submissions') ORDER BY abs(correlation) DESC",
    "CREATE INDEX CONCURRENTLY idx_leads_status ON nigredo.leads(status)",
    "CREATE INDEX CONCURRENTLY idx_leads_source ON nigredo.leads(source)",
    "VACUUM ANALYZE nigredo.leads",
    "VACUUM ANALYZE nigredo.form_submissions",
    "VACUUM ANALYZE nigredo.webhook_logs",
    "VACUUM ANALYZE nigredo.rate_limits",
    "SELECT schemaname, tablename, pg_size_pretty(pg_total_relation_size(schemaname||'.'||tablename)) AS size"
    " FROM pg_tables WHERE schemaname = 'nigredo' ORDER BY pg_total_relation_size(schemaname||'.'||tablename) DESC",
    "EXPLAIN ANALYZE SELECT * FROM nigredo.leads WHERE status = 'new' ORDER BY created_at DESC LIMIT 20",
    "CREATE INDEX CONCURRENTLY idx_leads_status_created ON nigredo.leads(status, created_at DESC)",
    "SELECT count(*) FROM pg_stat_activity",
    "SELECT 1",
]
INDEXES = ["email", "created_at", "status", "source", "status_created"]


def test_the_runbooks_statements_run_as_the_operators_role(stack: Stack) -> None:
    with stack.database("admin") as database:
        try:
            for statement in RUNBOOK:
                database.execute(statement.encode())
        finally:
            for index in INDEXES:
                database.execute(f"DROP INDEX IF EXISTS nigredo.idx_leads_{index}".encode())


@pytest.mark.embedded
def test_nobody_who_can_log_in_is_a_superuser(stack: Stack) -> None:
    assert stack.rows("SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin AND rolname <> 'bootstrap'") == []
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(stack.home.conninfo("admin").replace("user=admin", "user=bootstrap"), connect_timeout=2)


def test_the_processes_role_may_change_rows_and_not_tables(stack: Stack) -> None:
    with stack.database("nigredo_app") as database:
        assert database.execute("SELECT count(*) FROM nigredo.leads").fetchone()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.execute("DROP TABLE nigredo.leads")


def test_migrating_again_applies_nothing(stack: Stack) -> None:
    assert migrate(stack.settings(role="admin")) == []
    command = stack.nigredo("migrate")
    assert (command.code, command.out.strip()) == (0, "nothing to apply")


def test_a_file_changed_after_it_was_applied_is_refused(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with resources.as_file(resources.files("nigredo.postgres.migrations")) as folder:
        shutil.copytree(folder, tmp_path / "migrations")
    first = tmp_path / "migrations" / "0001_tables.sql"
    first.write_text(first.read_text() + "-- and one more thought\n")
    monkeypatch.setattr(module.resources, "files", lambda _: tmp_path / "migrations")

    with pytest.raises(StartRefused, match=r"0001_tables\.sql was changed"):
        migrate(stack.settings(role="admin"))
