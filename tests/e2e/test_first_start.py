"""A start takes what a machine gives: forms are accepted whatever else is broken, and nothing that passes ends it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from nigredo.endpoints.secrets import Secret, write_secrets
from nigredo.stack.home import Home
from nigredo.testing import START_DEADLINE_S, Command, Stack, eventually, free_port_base, run_nigredo

pytestmark = pytest.mark.embedded

FROZEN_S = 6.0
PROXIES = {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
NO_PROXIES = {"NO_PROXY": "", "no_proxy": ""}


def endpoints_file(folder: Path, url: str) -> Path:
    """Return a settings file with one further endpoint."""
    write_secrets(folder / "crm", [Secret(b"crm" * 10)])
    file = folder / "endpoints.toml"
    file.write_text(f'[endpoints.crm]\nurl = "{url}"\nsecret_file = "{folder}/crm"\nstart = "now"\n')
    return file


def up(stack: Stack, folder: Path) -> Command:
    """Start the stack beside what may be wrong on a stranger's machine."""
    environment = PROXIES | NO_PROXIES | {"WEBHOOK_ENDPOINTS_FILE": str(folder / "endpoints.toml")}
    arguments = ("--home", str(stack.home.dir), "up", "--detach", "--port-base", str(stack.home.port_base))
    return run_nigredo(*arguments, environment=environment, deadline_s=START_DEADLINE_S)


def accepted(stack: Stack) -> str:
    """Post a form until it is accepted, and return the lead's id: a busy machine may answer 503 for a moment."""
    answer = eventually(lambda: found if (found := stack.post()).status_code == 202 else None, within_s=60, what="202")
    return str(answer.json()["id"])


def freeze_kafka_at_its_start(home: Path) -> None:
    """Stop the broker's process for some seconds as soon as there is one, in the middle of its start."""
    file = home / "run" / "kafka.pid"
    pid = eventually(lambda: int((file.read_text() or "0").split()[0]) if file.exists() else 0, within_s=300, what="it")
    for _ in range(2):
        time.sleep(1.5)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(FROZEN_S / 2)
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the settings file lies."""
    return tmp_path_factory.mktemp("settings")


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Troubled]:
    """Two first starts at once in a folder that was there, with a broker that stands still and a wrong endpoint."""
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o755)
    stack = Stack(Home.open(home, free_port_base()))
    endpoints_file(folder, "http://0177.0.0.1/x")
    freezing = threading.Thread(target=freeze_kafka_at_its_start, args=(home,))
    freezing.start()
    try:
        with ThreadPoolExecutor(2) as two:
            commands = list(two.map(lambda _: up(stack, folder), range(2)))
        freezing.join()
        yield Troubled(stack, *sorted(commands, key=lambda command: -command.code))
    finally:
        stack.nigredo("down")


@dataclass(frozen=True, slots=True)
class Troubled:
    """A stack in trouble; what the command said that started it, and what the one beside it."""

    stack: Stack
    started: Command
    refused: Command


def test_forms_are_accepted_and_what_is_not_ready_is_said_with_an_exit_code_of_its_own(troubled: Troubled) -> None:
    stack, command = troubled.stack, troubled.started

    assert command.code == 3, command.err
    assert command.err == (
        "nigredo: webhook-sender-crm is not ready, it waits: WEBHOOK_ENDPOINTS_FILE: crm: url must write an IPv4 "
        "address as four decimal numbers, such as 192.0.2.1\n"
    )
    lead_id = accepted(stack)
    eventually(lambda: stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", lead_id), within_s=60, what="a row")
    status = stack.nigredo("status")
    assert status.code == 1
    assert "webhook-sender-crm  waiting" in status.out


def test_of_two_starts_at_once_one_is_refused(troubled: Troubled) -> None:
    assert troubled.refused.code == 1
    assert troubled.refused.err.startswith("nigredo: a stack already runs in")


def test_a_folder_that_was_there_keeps_its_mode_and_what_is_ours_in_it_is_closed(troubled: Troubled) -> None:
    home = troubled.stack.home.dir

    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir() if path.is_dir()} == {0o700}


def test_an_endpoint_that_is_mended_comes_up_without_a_restart(troubled: Troubled, folder: Path) -> None:
    stack = troubled.stack

    endpoints_file(folder, f"{stack.fibonacci_url}/public/nigredo-event")

    eventually(lambda: stack.nigredo("status").code == 0, within_s=60, every_s=0.5, what="a stack that is ready")


def test_forms_are_accepted_by_a_start_without_postgresql(troubled: Troubled, folder: Path) -> None:
    stack = troubled.stack
    assert stack.nigredo("down").code == 0
    data, away = stack.home.dir / "postgres", stack.home.dir / "postgres.away"
    data.rename(away)
    data.write_text("not a data folder")
    try:
        command = up(stack, folder)

        assert command.code == 3, command.err
        waiting = {line.split()[1] for line in command.err.splitlines()}
        assert {"persister", "postgres", "registry", "schemas", "tables"} <= waiting
        lead_id = accepted(stack)
    finally:
        data.unlink()
        away.rename(data)
    eventually(lambda: stack.nigredo("status").code == 0, within_s=120, every_s=1, what="a stack that is ready")
    eventually(lambda: stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", lead_id), within_s=60, what="its row")


def test_down_during_a_start_ends_it_and_leaves_nothing_running(troubled: Troubled) -> None:
    stack = troubled.stack
    assert stack.nigredo("down").code == 0
    first = stack.home.dir / "run" / "kafka.pid"
    command = [sys.executable, "-m", "nigredo.cli", "--home", str(stack.home.dir), "up", "--detach"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as starting:
        eventually(first.exists, within_s=60, what="a part")
        family = stack.family()

        assert stack.nigredo("down").code == 0

        _, said = starting.communicate(timeout=60)
    assert starting.returncode == 1
    assert said.splitlines()[-1] == "nigredo: stopped before it was done"
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_a_home_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "file").touch()

    for home, says in (
        (tmp_path, "has a logs of its own"),
        (tmp_path / "open", "every user"),
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "file" / "inside", "is not a folder"),
    ):
        command = run_nigredo("--home", str(home), "up")
        assert command.code == 1
        assert says in command.err
        assert len(command.err.splitlines()) == 1
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o777
    assert not (tmp_path / "secrets").exists()
