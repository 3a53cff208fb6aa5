"""A stack that the release before the move to rooms has made starts under this code and goes on."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from nigredo.stack.home import Home
from nigredo.testing import Stack, eventually, free_port_base, run_nigredo

pytestmark = [pytest.mark.embedded, pytest.mark.thorough]

BEFORE = "c5901db35752cb2188ec6c0aa3669d75941e36ae"
ROOT = Path(__file__).parents[2]
FORMS = 12
START_WITHIN_S = 400.0
WITHIN_S = 60.0


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Return a folder with the code of the release before."""
    packed = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(tmp_path / "earlier", filter="data")
    return tmp_path / "earlier"


def test_a_home_of_the_release_before_starts_with_its_leads_and_goes_on(earlier: Path, tmp_path: Path) -> None:
    stack = Stack(Home.open(tmp_path / "home", free_port_base()))
    up = ("--home", str(stack.home.dir), "up", "--detach", "--port-base", str(stack.home.port_base))

    def by_earlier_code(*arguments: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(earlier)}
        command = [sys.executable, "-m", "nigredo.cli", *arguments]
        subprocess.run(command, cwd=earlier, env=environment, check=True, timeout=START_WITHIN_S, capture_output=True)

    def handled() -> set[str]:
        delivered = {entry["headers"]["webhook-id"] for entry in stack.received() if entry["status"] < 300}
        return delivered & {str(row[0]) for row in stack.rows("SELECT id FROM nigredo.leads")}

    by_earlier_code(*up)
    try:
        before = {stack.post().json()["id"] for _ in range(FORMS)}
        eventually(lambda: before <= handled(), within_s=WITHIN_S, what="rows and webhooks of the earlier code")
        by_earlier_code("--home", str(stack.home.dir), "down")

        started = run_nigredo(*up, deadline_s=START_WITHIN_S)

        assert (started.code, started.err) == (0, "")
        after = {stack.post().json()["id"] for _ in range(FORMS)}
        eventually(lambda: after <= handled(), within_s=WITHIN_S, what="rows and webhooks of this code")
        # The receiver remembers over restarts too: each lead came once.
        assert Counter(entry["headers"]["webhook-id"] for entry in stack.received()) == Counter(before | after)
        assert before | after == {str(row[0]) for row in stack.rows("SELECT id FROM nigredo.leads")}
        assert stack.nigredo("status").code == 0
        assert stack.nigredo("webhook", "status").code == 0
    finally:
        run_nigredo("--home", str(stack.home.dir), "down")
