"""Our processes beside parts that somebody else runs, and a sender for each endpoint of a file."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nigredo.components import PROCESSES
from nigredo.endpoints.secrets import Secret, write_secrets
from nigredo.stack.home import Home
from nigredo.testing import Stack, eventually, running_stack, started

pytestmark = pytest.mark.embedded
EXTERNAL = ("--external", "kafka,registry,postgres")


@pytest.fixture(scope="module")
def host() -> Iterator[Stack]:
    with running_stack() as found:
        for process in PROCESSES:
            assert found.nigredo("stop", process).code == 0
        yield found


@pytest.fixture
def guest(host: Stack, tmp_path: Path) -> Stack:
    """The same ports and the same passwords, in a home that has nothing else of the first."""
    found = Stack(Home.open(tmp_path / "guest", host.home.port_base))
    shutil.copytree(host.home.dir / "secrets", found.home.dir / "secrets")
    return found


def test_a_stack_works_on_a_kafka_registry_and_postgres_that_it_did_not_start(host: Stack, guest: Stack) -> None:
    with started(guest, *EXTERNAL):
        assert sorted(guest.status()["parts"]) == sorted(PROCESSES)
        lead_id = guest.post().json()["id"]
        stored = "SELECT 1 FROM nigredo.leads WHERE id = %s"
        eventually(lambda: guest.rows(stored, lead_id), within_s=60, what="the lead's row")
        eventually(
            lambda: lead_id in [hook["headers"]["webhook-id"] for hook in guest.received()],
            within_s=60,
            what="the lead's webhook",
        )
    assert host.status()["parts"]["kafka"]["ready"], "what the guest did not start it must not stop"


@pytest.mark.thorough
def test_each_endpoint_of_a_file_has_its_sender_and_a_dead_one_changes_nothing_for_the_others(
    guest: Stack, tmp_path: Path
) -> None:
    urls = {"crm": f"{guest.fibonacci_url}/public/nigredo-event", "gone": "http://127.0.0.1:9/hook"}
    lines = []
    for name, url in urls.items():
        write_secrets(tmp_path / name, [Secret(secrets.token_bytes(32))])
        lines += [f"[endpoints.{name}]", f'url = "{url}"', f'secret_file = "{tmp_path / name}"', 'start = "now"']
    file = tmp_path / "endpoints.toml"
    file.write_text("\n".join(lines))

    environment = {"WEBHOOK_ENDPOINTS_FILE": str(file)}

    with started(guest, *EXTERNAL, environment=environment):
        parts = guest.status()["parts"]
        assert sorted(parts) == sorted([*PROCESSES, "webhook-sender-crm", "webhook-sender-gone"])
        assert all(part["ready"] for part in parts.values())
        ids = {guest.post().json()["id"] for _ in range(12)}
        rows = "SELECT endpoint, success, count(DISTINCT lead_id) FROM nigredo.webhook_logs GROUP BY 1, 2"

        def told() -> dict[tuple[str, bool], int]:
            return {(endpoint, success): count for endpoint, success, count in guest.rows(rows)}

        eventually(lambda: told().get(("crm", True)) == len(ids), within_s=60, what="the leads of the one")
        eventually(lambda: told().get(("gone", False), 0) >= 10, within_s=60, what="attempts at the other")
        eventually(lambda: told().get(("fibonacci", True), 0) >= len(ids), within_s=60, what="those of the stand-in")
        assert not {("gone", True), ("crm", False), ("fibonacci", False)} & set(told())
        crm = guest.nigredo("webhook", "status", "--endpoint", "crm", "--json", environment=environment)
        gone = guest.nigredo("webhook", "status", "--endpoint", "gone", "--json", environment=environment)
        assert (crm.code, json.loads(crm.out)["failed_10m"]) == (0, 0)
        assert [json.loads(status.out)["breaker"] for status in (crm, gone)] == ["closed", "open"]
        assert (gone.code, json.loads(gone.out)["failed_share_10m"]) == (1, 1.0)
