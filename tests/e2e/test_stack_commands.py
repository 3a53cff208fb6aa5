"""The stack's own commands, as an operator types them."""

from __future__ import annotations

import getpass
import json
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from nigredo.stack.home import Home
from nigredo.testing import Command, Stack, eventually, free_port_base, run_nigredo, running_stack

PARTS = ["kafka", "postgres", "registry", "fibonacci", "ingest", "rate-limiter", "persister", "webhook-sender"]


def all_ready(stack: Stack) -> Command | None:
    """Return what `nigredo status --json` said, if it says that all is well."""
    command = stack.nigredo("status", "--json")
    return command if command.code == 0 else None


@pytest.mark.embedded
def test_status_lists_every_part_and_says_that_all_are_ready(stack: Stack) -> None:
    command = eventually(lambda: all_ready(stack), within_s=60, what="a stack that is ready")

    document = json.loads(command.out)
    assert document["ready"] is True
    assert sorted(document["parts"]) == sorted(PARTS)
    for part in document["parts"].values():
        assert set(part) == {"pid", "ready", "state", "stopped", "restarts", "waiting_for", "url"}
        assert psutil.pid_exists(part["pid"])
    assert document["parts"]["ingest"]["url"] == stack.url


@pytest.mark.embedded
def test_status_as_text_has_a_line_a_part_and_no_colour(stack: Stack) -> None:
    lines = stack.nigredo("status").out.splitlines()

    assert [line.split()[0] for line in lines[1 : len(PARTS) + 1]] == PARTS
    assert not any("\x1b" in line for line in lines)


def test_env_makes_psql_work_without_a_password_in_sight(stack: Stack) -> None:
    exports = stack.nigredo("env").out
    psql = 'psql -h "$DB_ENDPOINT" -U "$DB_USERNAME" -d fibonacci -Atc "SELECT count(*) >= 0 FROM nigredo.leads"'

    done = subprocess.run(["bash", "-c", f"{exports}\n{psql}"], capture_output=True, text=True, timeout=20, check=False)

    assert (done.stdout.strip(), done.stderr) == ("t", "")
    assert stack.home.secret("database-admin") not in exports
    variables = json.loads(stack.nigredo("env", "--json").out)
    for line in exports.splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        if name != "PATH":
            assert shlex.split(value) == [variables[name]]


def test_secrets_are_in_no_argument_list_and_no_log(stack: Stack) -> None:
    names = (
        "api-key",
        "database-admin",
        "database-apicurio",
        "database-nigredo_app",
        "idempotency",
        "webhook-fibonacci",
    )
    secrets = [stack.home.secret(name) for name in names]
    supervisor = psutil.Process(int((stack.home.dir / "run" / "owner").read_text()))
    arguments = [" ".join(process.cmdline()) for process in [supervisor, *supervisor.children(recursive=True)]]
    logs = [log.read_text(errors="replace") for log in (stack.home.dir / "logs").glob("*.log")]

    assert all(secrets)
    assert not [text for text in arguments + logs for secret in secrets if secret in text]
    for path in (stack.home.dir / "secrets").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_a_part_that_is_killed_is_started_again(stack: Stack) -> None:
    before = stack.status()["parts"]["persister"]

    psutil.Process(before["pid"]).kill()

    def again() -> bool:
        now = stack.status()["parts"]["persister"]
        return bool(now["ready"] and now["pid"] != before["pid"] and now["restarts"] == before["restarts"] + 1)

    eventually(again, within_s=60, every_s=0.2, what="the persister, ready again")
    lead_id = stack.post().json()["id"]
    eventually(lambda: stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", lead_id), within_s=60, what="its work")


def test_a_stopped_part_stays_stopped_and_the_rest_goes_on(stack: Stack) -> None:
    assert stack.nigredo("stop", "webhook-sender").code == 0
    try:
        parts = stack.status()["parts"]
        assert parts["webhook-sender"]["pid"] is None
        assert parts["webhook-sender"]["state"] == "stopped"
        assert parts["webhook-sender"]["stopped"]["by"] == getpass.getuser()
        status = stack.nigredo("status")
        assert (status.code, "stopped by" in status.out) == (1, True)
        lead_id = stack.post().json()["id"]
        eventually(lambda: stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", lead_id), within_s=60, what="a row")
        assert lead_id not in [hook["headers"]["webhook-id"] for hook in stack.received()]
    finally:
        assert stack.nigredo("start", "webhook-sender").code == 0
    eventually(
        lambda: lead_id in [hook["headers"]["webhook-id"] for hook in stack.received()],
        within_s=60,
        what="the delivery, once the sender is back",
    )
    eventually(lambda: all_ready(stack), within_s=60, what="a stack that is ready again")


@pytest.mark.embedded
def test_postgres_may_be_restarted_under_load_and_forms_are_taken_meanwhile(stack: Stack) -> None:
    assert stack.nigredo("stop", "postgres").code == 0
    try:
        answers = [stack.post() for _ in range(5)]
        assert [answer.status_code for answer in answers] == [202] * 5
    finally:
        assert stack.nigredo("start", "postgres").code == 0
    for answer in answers:
        lead_id = answer.json()["id"]
        eventually(
            lambda i=lead_id: stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", i), within_s=60, what="a row"
        )


@pytest.mark.embedded
def test_kafka_down_is_a_503_that_says_when_to_come_back_and_nothing_hangs(stack: Stack) -> None:
    assert stack.nigredo("stop", "kafka").code == 0
    try:
        answer = stack.post()
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["status"] == 503
        assert answer.elapsed.total_seconds() < 5
    finally:
        assert stack.nigredo("start", "kafka").code == 0
    answer = eventually(
        lambda: found if (found := stack.post()).status_code == 202 else None, within_s=60, what="a 202 again"
    )
    lead_id = answer.json()["id"]
    eventually(lambda: stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", lead_id), within_s=60, what="its row")
    eventually(lambda: stack.status()["ready"], within_s=60, every_s=0.2, what="everything ready again")


def test_a_second_up_on_the_same_home_is_told_in_one_line(stack: Stack) -> None:
    for arguments in (["up"], ["up", "--detach"]):
        command = stack.nigredo(*arguments)
        assert command.code == 1
        assert command.err.startswith("nigredo: a stack already runs in")
        assert len(command.err.splitlines()) == 1


def test_a_port_in_use_is_told_in_one_line_and_nothing_is_left_running(tmp_path: Path) -> None:
    base = free_port_base()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + 3))
        taken.listen()

        command = run_nigredo("--home", str(tmp_path / "home"), "up", "--port-base", str(base))

    assert command.code == 1
    assert command.err.splitlines()[-1] == (
        f"nigredo: port {base + 3}, for kafka, is in use by another program; end it or choose --port-base"
    )
    assert not list((tmp_path / "home" / "run").glob("*.pid"))


@pytest.mark.embedded
def test_a_copied_home_is_another_home_and_ends_nothing_of_the_stack_it_was_copied_from(
    stack: Stack, tmp_path: Path
) -> None:
    before = {name: part["pid"] for name, part in stack.status()["parts"].items()}
    (tmp_path / "run").mkdir()
    for file in (stack.home.dir / "run").glob("*"):
        if file.is_file():
            shutil.copy2(file, tmp_path / "run")
    shutil.copy2(stack.home.dir / "stack.json", tmp_path)
    (tmp_path / "run" / "control").hardlink_to(stack.home.dir / "run" / "control")

    status = run_nigredo("--home", str(tmp_path), "status")
    assert (status.code, status.out) == (1, "")
    assert f"runs in {stack.home.dir}, of which this folder is a copy" in status.err
    (tmp_path / "run" / "control").unlink()
    down = run_nigredo("--home", str(tmp_path), "down", "--json")
    assert (down.code, json.loads(down.out)["ended"]) == (0, [])

    assert {name: part["pid"] for name, part in stack.status()["parts"].items()} == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["down"], "there is no stack in"),
        (["ip", "block", "192.0.2.1"], "there is no stack in"),
        (["status"], "no stack runs in"),
        (["env"], "there is no stack in"),
        (["stop", "kafka"], "no stack runs in"),
        (["run", "nothing"], "'nothing' is not one of"),
        (["no-such-command"], "No such command"),
        (["up", "--port-base", "80"], "the port base must be from 1024"),
    ],
)
def test_what_cannot_be_done_is_one_line_on_stderr_and_not_exit_code_0(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    command = run_nigredo("--home", str(tmp_path / "home"), *arguments)

    assert command.code != 0
    assert says in command.err
    assert len(command.err.splitlines()) == 1
    assert command.out == ""


@pytest.mark.embedded
def test_an_unknown_part_is_refused_by_name(stack: Stack) -> None:
    command = stack.nigredo("restart", "kafak")

    assert command.code == 1
    assert "there is no part 'kafak'; there are kafka, postgres" in command.err


def test_a_wrong_setting_is_told_before_anything_starts(tmp_path: Path) -> None:
    home = tmp_path / "home"

    wrong = {"RATE_LIMIT_PER_HOUR": "0", "WEBHOOK_ENABLED": "maybe"}
    command = run_nigredo("--home", str(home), "up", environment=wrong)

    assert command.code == 1
    assert "RATE_LIMIT_PER_HOUR: must be a whole number from 1 to 200" in command.err
    assert "WEBHOOK_ENABLED: must be true or false" in command.err
    assert not (home / "logs").exists()


@pytest.mark.embedded
def test_ctrl_c_ends_everything_and_the_next_start_has_the_data() -> None:
    with running_stack() as stack:
        lead_id = stack.post().json()["id"]
        eventually(lambda: stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", lead_id), within_s=60, what="a row")
        family = stack.family()

        family[0].send_signal(signal.SIGINT)

        _, alive = psutil.wait_procs(family, timeout=60)
        assert alive == []
        assert stack.nigredo("up", "--detach").code == 0
        assert stack.rows("SELECT name FROM nigredo.leads WHERE id = %s", lead_id) == [("Ana",)]
        # Delivered before the end, or after the next start.
        eventually(
            lambda: lead_id in [hook["headers"]["webhook-id"] for hook in stack.received()],
            within_s=60,
            what="the webhook",
        )


def test_a_home_deep_in_the_tree_still_gets_its_control_socket(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*(["a-folder-with-a-long-name"] * 6))
    (deep / "run").mkdir(parents=True)

    command = run_nigredo("--home", str(Home.open(deep).dir), "status")

    assert "no stack runs in" in command.err


def test_a_command_without_what_to_do_shows_its_help_as_it_is_written() -> None:
    command = run_nigredo("keys")

    assert (command.code, command.out) == (2, "")
    assert command.err.startswith("Usage: nigredo keys")
    assert "\n  rotate " in command.err


def test_a_command_that_needs_kafka_says_so_when_it_is_away(stack: Stack) -> None:
    environment = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9", "SCHEMA_REGISTRY_URL": stack.registry_url}

    command = run_nigredo("ip", "list", environment=environment)

    assert command.code != 0
    assert command.err == "nigredo: Kafka does not answer\n"
