"""Target of a command: the stack or cluster it speaks to, named when another could have been meant."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from nigredo.cli.target import NO_STACK, find_target
from nigredo.errors import ConfigurationError, NigredoError
from nigredo.settings import Settings
from nigredo.stack import supervisor_socket as control
from nigredo.stack.home import Home

OTHER = {"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.open(tmp_path / "home", 23_400)
    (home.dir / "run").mkdir(parents=True)
    (home.dir / "stack.json").write_text('{"port_base": 23400}')
    return home


@contextmanager
def answering(home: Home, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a fake supervisor in a home, which reports this environment."""
    ready, ends = threading.Event(), list[Callable[[], None]]()

    async def answer(_: control.Answer) -> control.Answer:
        return {"environment": dict(environment)}

    async def serve() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        server = await control.serve(home, answer)
        ends.append(lambda: loop.call_soon_threadsafe(stop.set) and None)
        ready.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        ends[0]()
        thread.join(10)


def settings(target_environment: Mapping[str, str]) -> Settings:
    return Settings.from_environment(target_environment)


def test_a_stack_and_an_environment_of_two_clusters_are_refused_until_one_is_chosen(home: Home) -> None:
    with pytest.raises(ConfigurationError, match="KAFKA_BOOTSTRAP_SERVERS of the environment name different clusters"):
        find_target(home.dir, OTHER, named=False)

    stack = find_target(home.dir, OTHER, named=True)
    assert stack.describe() == {"home": str(home.dir), "kafka": "127.0.0.1:23403"}
    assert stack.chosen_from == "KAFKA_BOOTSTRAP_SERVERS of the environment"

    cluster = find_target(Path(NO_STACK), OTHER | {"NIGREDO_HOME": str(home.dir)}, named=True)
    assert cluster.describe() == {"home": None, "kafka": "kafka:9092"}
    assert cluster.chosen_from == f"the stack in {home.dir}"


@pytest.mark.parametrize("name", ["KAFKA_BOOTSTRAP_SERVERS", "SCHEMA_REGISTRY_URL", "DATABASE_URL"])
def test_the_variables_of_the_stack_itself_are_no_second_possibility(home: Home, name: str) -> None:
    own = home.part_environment({}, "command", role="admin")[name]

    for text in (own, own.replace("127.0.0.1", "localhost")):
        assert find_target(home.dir, {name: text}, named=False).chosen_from is None


def test_another_database_is_another_cluster(home: Home) -> None:
    for other in ("postgres://db.example.com/fibonacci", "host=127.0.0.1 port=5432 dbname=fibonacci"):
        with pytest.raises(ConfigurationError, match="DATABASE_URL of the environment"):
            find_target(home.dir, {"DATABASE_URL": other}, named=False)


def test_a_folder_that_was_named_and_has_no_stack_is_refused(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for environment, named in (({}, True), ({"NIGREDO_HOME": str(nowhere)}, False)):
        with pytest.raises(ConfigurationError, match="there is no stack in"):
            find_target(nowhere, environment | OTHER, named=named)


def test_without_a_stack_the_environment_holds_and_a_default_address_is_reported(tmp_path: Path) -> None:
    assert find_target(tmp_path, OTHER, named=False).chosen_from is None

    nothing = find_target(tmp_path, {}, named=False)
    assert nothing.describe()["kafka"] == "127.0.0.1:9092"
    assert nothing.chosen_from == f"a stack: there is none in {tmp_path}"


def test_the_settings_are_those_of_the_running_stack_and_not_of_the_command(home: Home) -> None:
    own = {"RATE_LIMIT_PER_HOUR": "50", "WEBHOOK_TIMEOUT_SECONDS": "9", "PGSSLMODE": "prefer"}
    with answering(home, {"RATE_LIMIT_PER_HOUR": "7"}):
        target = find_target(home.dir, own, named=False)
    found = settings(target.part_environment("command", role="nigredo_app"))

    assert target.why_own is None
    assert (found.rate_limit_per_hour, found.webhook_timeout_s) == (7, 5)
    assert found.kafka_bootstrap_servers == "127.0.0.1:23403"
    assert target.environment["PGSSLMODE"] == "prefer"

    target = find_target(home.dir, own, named=False)
    assert "no stack runs in" in (target.why_own or "")
    assert settings(target.part_environment("command", role="nigredo_app")).rate_limit_per_hour == 50


def test_the_command_may_name_endpoints_whose_senders_run_beside_the_stack(home: Home, tmp_path: Path) -> None:
    own = {"WEBHOOK_ENDPOINTS_FILE": str(tmp_path / "own.toml")}
    with answering(home, {"WEBHOOK_ENDPOINTS_FILE": str(tmp_path / "stack.toml")}):
        assert find_target(home.dir, own, named=False).environment["WEBHOOK_ENDPOINTS_FILE"].endswith("own.toml")
        assert find_target(home.dir, {}, named=False).environment["WEBHOOK_ENDPOINTS_FILE"].endswith("stack.toml")


def test_a_copy_of_a_home_is_not_answered_for_although_it_links_to_the_socket(home: Home, tmp_path: Path) -> None:
    copy = Home.open(tmp_path / "copy", 23_400)
    with answering(home, {}):
        shutil.copytree(home.dir, copy.dir, copy_function=lambda source, target: Path(target).hardlink_to(source))

        with pytest.raises(NigredoError, match=f"runs in {home.dir}, of which this folder is a copy"):
            control.ask(copy, {"do": "down"}, deadline_s=10)

        (tmp_path / "link").symlink_to(home.dir)
        assert control.ask(Home.open(tmp_path / "link"), {"do": "status"}, deadline_s=10)
