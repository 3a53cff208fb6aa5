"""Our processes beside parts that somebody else runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nigredo.stack.home import Home
from nigredo.stack.processes import PROCESSES
from nigredo.testing import Stack, eventually, running_stack, started


@pytest.mark.embedded
def test_a_stack_works_on_a_kafka_registry_and_postgres_that_it_did_not_start(tmp_path: Path) -> None:
    with running_stack() as host:
        for process in PROCESSES:
            assert host.nigredo("stop", process).code == 0
        # The same ports and the same passwords, in a home that has nothing else of the first.
        guest = Stack(Home.open(tmp_path / "guest", host.home.port_base))
        shutil.copytree(host.home.dir / "secrets", guest.home.dir / "secrets")

        with started(guest, "--external", "kafka,registry,postgres"):
            assert sorted(guest.status()["parts"]) == sorted(PROCESSES)
            lead_id = guest.post().json()["id"]
            stored = "SELECT 1 FROM nigredo.leads WHERE id = %s"
            eventually(lambda: guest.rows(stored, lead_id), within_s=20, what="the lead's row")
            eventually(
                lambda: lead_id in [hook["headers"]["webhook-id"] for hook in guest.received()],
                within_s=20,
                what="the lead's webhook",
            )
        assert host.status()["parts"]["kafka"]["ready"], "what the guest did not start it must not stop"
