"""Disasters to the log, the database and the registry: no form that is accepted afterwards is lost in silence.

Each test leaves the stack well, or the next one gets another. `make test-all` runs each disaster in its first timing,
`make test` two of them, and `make chaos ACTIONS=disaster` all of them in every timing.
"""

from __future__ import annotations

import faulthandler
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nigredo.stack.home import Home
from nigredo.testing import Stack
from tests.chaos.disaster_campaign import Stacks, ensure_well, undergo
from tests.chaos.disasters import DISASTERS, Disaster

pytestmark = pytest.mark.embedded
PAGE = Path(__file__).parents[2] / "docs" / "RECOVERY.md"
COMMAND_DEADLINE_S = 180.0
ALWAYS = ("leads-cut", "kafka-put-back")
"""The two that need most of the product: a lost tail, and a log that was set back and written on."""
CASES = [
    pytest.param(disaster, id=disaster.name, marks=[] if disaster.name in ALWAYS else pytest.mark.thorough)
    for disaster in DISASTERS
]


@pytest.fixture(scope="module")
def stacks() -> Iterator[Stacks]:
    home = os.environ.get("NIGREDO_TEST_HOME")
    stacks = Stacks(Stack(Home.open(Path(home))) if home else None)
    yield stacks
    stacks.close()


@pytest.fixture(scope="module", autouse=True)
def _nothing_received_yet() -> None:
    """Not of the shared stack, which these cases do without."""


@pytest.mark.parametrize("disaster", CASES)
def test_no_form_after_it_is_lost_in_silence_and_the_way_back_is_named(stacks: Stacks, disaster: Disaster) -> None:
    # It ends by its own deadlines, also where a busy machine needs minutes; pytest's would leave the stack behind.
    faulthandler.cancel_dump_traceback_later()

    outcome = undergo(stacks.well(), disaster, disaster.timings[0], _tell)

    assert outcome.findings.broken == []


def test_the_commands_of_the_page_work_as_they_are_written(stacks: Stacks) -> None:
    stack = stacks.well()
    ensure_well(stack)
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [words for block in blocks for line in block.splitlines() if (words := shlex.split(line, comments=True))]
    assert lines
    environment = os.environ | {
        "NIGREDO_HOME": str(stack.home.dir),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    for words in lines:
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S, check=False
        )

        assert (done.returncode, done.stderr) == (0, ""), words


def _tell(line: str) -> None:
    """Put progress on stderr, where pytest keeps it for whoever looks at a failure."""
    sys.stderr.write(f"{line}\n")
