"""A failed setup of the database reports its reason in one line, without the text of a statement."""

from __future__ import annotations

from pathlib import Path

import pytest

from nigredo.errors import DependencyDown
from nigredo.stack.home import Home
from nigredo.stack.parts import postgres

FULL = 'FATAL:  could not write to file "pg_wal/xlogtemp.27776": No space left on device'


def test_a_failed_setup_reports_the_reason_of_the_program(tmp_path: Path) -> None:
    home = Home(tmp_path, 8080)
    (tmp_path / "logs").mkdir()
    home.log_file("postgres").write_text("FATAL:  of an earlier time\n")

    with pytest.raises(
        DependencyDown, match=r"set up: could not write .*: No space left on device; see .*postgres\.log"
    ):
        postgres._run(home, ["sh", "-c", f"echo '2026-11-30 {FULL}'; echo 'child process exited'; exit 1"])
    with pytest.raises(DependencyDown, match=r"cannot be set up; see"):
        postgres._run(home, ["sh", "-c", "echo \"ERROR: syntax error at or near 'secret'\"; exit 1"])
