"""PostgreSQL refuses to run as root; started by root, its user passes folders that are root's alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nigredo.errors import ConfigurationError
from nigredo.stack.home import Home, postgres_bin
from nigredo.stack.parts import postgres

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="is about root")


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is root's alone, with PostgreSQL's programs in it, as a checkout in /root has them."""
    tmp_path.chmod(0o700)
    shutil.copytree(postgres_bin().parent, tmp_path / "pg", symlinks=True)
    monkeypatch.setattr(postgres, "postgres_bin", lambda: tmp_path / "pg" / postgres_bin().name)
    return tmp_path


def test_a_cluster_is_made_in_a_folder_that_is_roots_alone(closed: Path) -> None:
    home = Home(closed / "home", 8080)
    home.create()

    part = postgres.postgres_part(home, os.environ)
    assert part.prepare is not None
    part.prepare()

    data = home.dir / "postgres"
    assert (data / "PG_VERSION").exists()
    assert data.stat().st_uid != 0


def test_the_user_of_postgresql_keeps_one_right_of_root_at_most(closed: Path) -> None:
    prefix = postgres.unprivileged_prefix(Home(closed / "home", 8080))

    done = subprocess.run([*prefix, "cat", "/proc/self/status"], capture_output=True, text=True, check=True)

    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert "0" not in status["Uid"].split()
    assert int(status["CapEff"], 16).bit_count() == 1
    assert status["CapEff"] == status["CapPrm"]


def test_where_its_user_cannot_pass_a_line_says_what_to_do(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_can_run", lambda _: False)

    with pytest.raises(ConfigurationError, match="put both below a folder that everybody may pass, such as /opt"):
        postgres.unprivileged_prefix(Home(closed / "home", 8080))
