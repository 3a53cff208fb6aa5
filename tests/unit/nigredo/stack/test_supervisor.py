"""Supervisor: retries transient errors, ends a start only for permanent ones, and isolates the parts."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import KafkaError, KafkaException

from nigredo.cli.stack import not_ready, table
from nigredo.errors import ConfigurationError, DependencyDown, NigredoError, StartRefused
from nigredo.stack.artifacts import Artifacts
from nigredo.stack.home import Home
from nigredo.stack.part import READY, Part
from nigredo.stack.parts import registry
from nigredo.stack.supervised import Supervised, describe, last_words, seen
from nigredo.stack.supervisor import StartFailed, Step, Supervisor, Watch, needed_by

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]
DEADLINE_S = 60.0
PASSING = [
    DependencyDown("Kafka does not answer"),
    TimeoutError(),
    KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)),
    KafkaException(KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE)),
    psycopg.OperationalError("the database system is starting up"),
    OSError(28, "No space left on device"),
    RuntimeError("of whatever kind"),
]


def part(name: str, command: list[str] = SLEEPS, looks: Callable[[], str | None] = lambda: READY) -> Part:
    """Return a part that runs a small program."""
    return Part(name, command, dict(os.environ), looks, grace_s=5.0)


def fails_first(errors: list[BaseException]) -> Callable[[], None]:
    """Return work that raises these errors one after another, and then succeeds."""
    left = list(errors)

    def work() -> None:
        if left:
            raise left.pop(0)

    return work


def supervised(tmp_path: Path, steps: list[Step], body: Callable[[Supervisor], Awaitable[Any]]) -> Any:
    """Run a supervisor of these steps, whose goal is `ingest`, and return the result of `body`."""
    home = Home(tmp_path / "home", 8080)
    home.claim()

    async def run() -> Any:
        supervisor = Supervisor(home, steps, "ingest")
        supervisor.begin()
        try:
            return await asyncio.wait_for(body(supervisor), DEADLINE_S)
        finally:
            await supervisor.stop()

    return asyncio.run(run())


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_an_answer_that_may_pass_delays_the_start_and_does_not_end_it(tmp_path: Path, error: Exception) -> None:
    steps = [Step("topics", fails_first([error, error])), Step("ingest", part("ingest"), needs=("topics",))]

    async def body(supervisor: Supervisor) -> None:
        await supervisor.until_accepting(DEADLINE_S)
        await supervisor.until_settled(DEADLINE_S)
        assert supervisor.status()["ready"]

    supervised(tmp_path, steps, body)


@pytest.mark.parametrize("error", [StartRefused("a person must decide"), ConfigurationError("LIMIT: is wrong")])
def test_what_never_passes_ends_the_start_at_once_with_its_reason(tmp_path: Path, error: Exception) -> None:
    steps = [Step("topics", fails_first([error] * 100)), Step("ingest", part("ingest"), needs=("topics",))]

    with pytest.raises(StartFailed, match=f"topics: {error}"):
        supervised(tmp_path, steps, lambda supervisor: supervisor.until_accepting(DEADLINE_S))


def test_a_process_that_says_its_settings_cannot_work_ends_the_start_with_its_words(tmp_path: Path) -> None:
    refuses = [sys.executable, "-c", "import sys; sys.exit(print('nigredo: LIMIT: is wrong', file=sys.stderr) or 2)"]
    steps = [Step("ingest", replace(part("ingest", refuses, lambda: "start"), refusal=2))]

    with pytest.raises(StartFailed, match=r"ingest: .*LIMIT: is wrong; see .*ingest\.log"):
        supervised(tmp_path, steps, lambda supervisor: supervisor.until_accepting(DEADLINE_S))


def test_a_start_that_takes_too_long_says_what_it_waits_for_and_what_to_do(tmp_path: Path) -> None:
    steps = [Step("kafka", part("kafka", looks=lambda: "a broker")), Step("ingest", part("ingest"), needs=("kafka",))]

    with pytest.raises(StartFailed, match=r"waiting for: kafka: a broker\. Run the command again: .*logs"):
        supervised(tmp_path, steps, lambda supervisor: supervisor.until_accepting(0.5))


def test_forms_are_accepted_although_nothing_else_comes_up(tmp_path: Path) -> None:
    def refuse() -> None:
        raise ConfigurationError("WEBHOOK_ENDPOINTS_FILE: crm: url is wrong")

    refused = replace(part("webhook-sender-crm"), prepare=refuse)
    steps = [
        Step("ingest", part("ingest")),
        Step("postgres", part("postgres", ["/bin/false"], lambda: "start")),
        Step("tables", fails_first([]), needs=("postgres",)),
        Step("persister", part("persister"), needs=("tables",)),
        Step("webhook-sender-crm", refused),
        Step("webhook-sender", part("webhook-sender", looks=lambda: "a schema"), awaits=("tables",)),
    ]

    async def body(supervisor: Supervisor) -> dict[str, Any]:
        await supervisor.until_accepting(DEADLINE_S)
        # Long before the deadline, because everything left is in trouble.
        await supervisor.until_settled(DEADLINE_S)
        return supervisor.status()

    status = supervised(tmp_path, steps, body)

    assert (status["ready"], status["accepting"]) == (False, True)
    waiting = {name: each["waiting_for"] for name, each in (status["parts"] | status["steps"]).items()}
    assert waiting["ingest"] is None
    assert "it ended with 1" in waiting["postgres"] or waiting["postgres"] == "start"
    assert waiting["tables"] == "postgres"
    assert waiting["persister"] == "tables"
    assert waiting["webhook-sender"] == "a schema"
    assert waiting["webhook-sender-crm"] == "WEBHOOK_ENDPOINTS_FILE: crm: url is wrong"


def test_a_part_that_was_refused_comes_up_once_its_settings_are_mended(tmp_path: Path) -> None:
    check = fails_first([ConfigurationError("wrong")] * 2)
    steps = [Step("ingest", part("ingest")), Step("sender", replace(part("sender"), prepare=check))]

    async def body(supervisor: Supervisor) -> bool:
        await supervisor.until_accepting(DEADLINE_S)
        return await seen(lambda: supervisor.ready)

    assert supervised(tmp_path, steps, body)


def test_a_part_that_ends_within_milliseconds_is_started_again_and_again(tmp_path: Path) -> None:
    steps = [Step("ingest", part("ingest", ["/bin/true"], lambda: "start"))]

    async def body(supervisor: Supervisor) -> None:
        ingest = supervisor.parts["ingest"]
        await seen(lambda: ingest.restarts >= 5)
        assert supervisor.status()["troubles"] == []
        assert ingest.in_trouble

    supervised(tmp_path, steps, body)


def test_a_failing_readiness_check_does_not_end_the_part(tmp_path: Path) -> None:
    answers = [RuntimeError("a password"), KafkaException(KafkaError(KafkaError._RESOLVE)), OSError(24, "Too many")]

    def look() -> str | None:
        if answers:
            raise answers.pop(0)
        return READY

    async def body(supervisor: Supervisor) -> int:
        await supervisor.until_accepting(DEADLINE_S)
        return supervisor.parts["ingest"].restarts

    assert supervised(tmp_path, [Step("ingest", part("ingest", looks=look))], body) == 0


def test_a_part_that_was_stopped_before_its_turn_stays_stopped(tmp_path: Path) -> None:
    gate = threading.Event()
    steps = [
        Step("ingest", part("ingest")),
        Step("gate", lambda: gate.wait(DEADLINE_S)),
        Step("sender", part("sender"), needs=("gate",)),
    ]

    async def body(supervisor: Supervisor) -> None:
        sender = supervisor.parts["sender"]
        assert supervisor.status()["parts"]["sender"]["waiting_for"] == "gate"
        await sender.stop()
        gate.set()
        await seen(lambda: supervisor.status()["steps"]["gate"]["done"])
        assert supervisor.status()["parts"]["sender"]["state"] == "stopped"
        assert sender.pid is None
        await sender.start()
        await sender.until_ready(DEADLINE_S)
        assert await seen(lambda: supervisor.ready)

    supervised(tmp_path, steps, body)


def test_a_part_that_an_operator_stopped_is_shown_as_stopped_by_that_person(tmp_path: Path) -> None:
    steps = [Step("ingest", part("ingest")), Step("sender", part("sender", looks=lambda: "a topic"))]

    async def body(supervisor: Supervisor) -> list[dict[str, Any]]:
        found = [supervisor.status()]
        await supervisor.parts["sender"].stop("ana")
        with pytest.raises(NigredoError, match="sender was stopped by ana"):
            await supervisor.parts["sender"].until_ready(DEADLINE_S)
        return [*found, supervisor.status()]

    waiting, stopped = supervised(tmp_path, steps, body)

    assert waiting["parts"]["sender"]["state"] == "waiting"
    assert "stopped" not in "".join(table(waiting))
    assert stopped["parts"]["sender"]["stopped"]["by"] == "ana"
    assert stopped["parts"]["sender"]["stopped"]["at"].endswith("+00:00")
    (line,) = (line for line in table(stopped) if line.startswith("sender"))
    assert re.fullmatch(r"sender +stopped +- +\d+  stopped by ana at [\d :-]+ UTC: `nigredo start sender`", line)
    (reported,) = (line for line in not_ready(stopped) if line.startswith("sender"))
    assert reported.startswith("sender is stopped by ana at ")


def test_a_trouble_of_a_watch_is_reported_until_it_is_gone_and_a_failed_check_is_none(
    tmp_path: Path,
) -> None:
    answers: list[str | Exception | None] = [None]

    def look() -> str | None:
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    async def body(supervisor: Supervisor) -> None:
        assert await seen(lambda: supervisor.ready)
        answers[0] = "schemas: a conflict"
        assert await seen(lambda: not supervisor.ready)
        assert supervisor.status()["troubles"] == ["schemas: a conflict"]
        answers[0] = DependencyDown("the registry does not answer")
        assert await seen(lambda: supervisor.ready)

    async def run() -> None:
        home = Home(tmp_path / "home", 8080)
        home.claim()
        watch = Watch("schema ids", look, after="ingest", every_s=0.01, part="ingest")
        supervisor = Supervisor(home, [Step("ingest", part("ingest"))], "ingest", [watch])
        supervisor.begin()
        try:
            await asyncio.wait_for(body(supervisor), DEADLINE_S)
        finally:
            await supervisor.stop()

    asyncio.run(run())


def test_a_watch_checks_a_new_process_of_its_part_at_once(tmp_path: Path) -> None:
    asked: list[int | None] = []

    async def body(supervisor: Supervisor) -> None:
        assert await seen(lambda: len(asked) == 1)
        await supervisor.parts["ingest"].stop()
        await supervisor.parts["ingest"].start()
        assert await seen(lambda: len(asked) == 2)
        assert asked[0] != asked[1]

    async def run() -> None:
        home = Home(tmp_path / "home", 8080)
        home.claim()
        watch = Watch("pid", lambda: asked.append(supervisor.parts["ingest"].pid), "ingest", 3600, part="ingest")
        supervisor = Supervisor(home, [Step("ingest", part("ingest"))], "ingest", [watch])
        supervisor.begin()
        try:
            await asyncio.wait_for(body(supervisor), DEADLINE_S)
        finally:
            await supervisor.stop()

    asyncio.run(run())


def test_status_of_a_supervisor_of_an_earlier_release_is_shown(tmp_path: Path) -> None:
    ready = {"pid": 7, "ready": True, "restarts": 0, "waiting_for": None, "url": "http://here"}
    document = {"parts": {"ingest": ready, "sender": ready | {"ready": False, "waiting_for": "start"}}, "steps": {}}

    assert [line.split() for line in table(document)[1:]] == [
        ["ingest", "ready", "7", "0", "http://here"],
        ["sender", "waiting", "7", "0", "waits:", "start"],
    ]


@pytest.mark.parametrize(("answers", "reason"), [(False, "PostgreSQL, which does not answer"), (True, "start")])
def test_a_registry_without_its_database_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, answers: bool, reason: str
) -> None:
    monkeypatch.setattr(registry, "database_answers", lambda home: answers)
    monkeypatch.setattr(registry, "http_waiting_for", lambda *_, **__: "start")
    home = Home(tmp_path, 8080)

    assert registry.registry_part(home, Artifacts(tmp_path, (), tmp_path), {}).waiting_for() == reason


def test_a_command_that_waits_for_a_part_learns_that_it_is_still_starting(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> str:
        try:
            await supervisor.parts["ingest"].until_ready(0.2)
        except Exception as error:
            return str(error)
        return ""

    said = supervised(tmp_path, [Step("ingest", part("ingest", looks=lambda: "a topic"))], body)

    assert "is still starting: a topic; `nigredo status` shows it" in said


def test_a_log_that_cannot_be_bounded_is_reported_and_bounding_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]

    def copyfile(*_: Any) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("nigredo.stack.supervisor.LOG_MAX_BYTES", -1)
    monkeypatch.setattr("nigredo.stack.supervisor.LOG_CHECK_S", 0.05)
    monkeypatch.setattr("shutil.copyfile", copyfile)

    async def body(supervisor: Supervisor) -> None:
        trouble = "logs are not bounded: ingest: No space left on device"
        assert await seen(lambda: supervisor.status()["troubles"] == [trouble])
        full[0] = False
        assert await seen(lambda: supervisor.status()["troubles"] == [])

    supervised(tmp_path, [Step("ingest", part("ingest"))], body)


def test_a_supervision_that_ended_is_reported_and_a_restart_starts_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(supervisor: Supervisor) -> None:
        ingest = supervisor.parts["ingest"]
        await supervisor.until_accepting(DEADLINE_S)

        async def breaks() -> None:
            raise RuntimeError

        monkeypatch.setattr(ingest, "_supervise", breaks)
        await ingest.stop()
        await ingest.start()
        assert await seen(lambda: "its supervision ended" in str(ingest.reason))
        monkeypatch.undo()
        await ingest.stop()
        await ingest.start()
        await ingest.until_ready(DEADLINE_S)

    supervised(tmp_path, [Step("ingest", part("ingest"))], body)


def test_what_forms_need_is_what_ingest_needs_and_no_more() -> None:
    steps = [
        Step("kafka", fails_first([])),
        Step("postgres", fails_first([])),
        Step("topics", fails_first([]), needs=("kafka",)),
        Step("ingest", fails_first([]), needs=("topics",)),
    ]

    assert needed_by(steps, "ingest") == ["kafka", "topics", "ingest"]


def test_the_last_words_of_a_process_are_its_reason(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for text, words in (
        ("", None),
        ("Traceback\nKeyError: 'ana@example.com'\n", None),
        ("x\nnigredo: LIMIT: is wrong\n", "LIMIT: is wrong"),
        ('x\n{"message": "stopped", "error": "offsets are lost"}\n', "offsets are lost"),
        ('{"message": "another", "error": "offsets are lost"}\n', None),
    ):
        log.write_text(text)
        assert last_words(log) == words
    assert last_words(tmp_path / "none") is None


def test_another_librarys_text_is_not_repeated() -> None:
    assert describe(psycopg.OperationalError("password=secret")) == "OperationalError"
    assert describe(OSError(28, "No space left on device", "/x/y")) == "No space left on device: /x/y"


def test_a_supervised_part_has_no_process_after_its_end(tmp_path: Path) -> None:
    """The process id may be reused by another program, which would be signalled."""

    async def body(supervisor: Supervisor) -> None:
        ingest: Supervised = supervisor.parts["ingest"]
        assert await seen(lambda: ingest.restarts > 0)
        assert await seen(lambda: ingest.process is None)

    supervised(tmp_path, [Step("ingest", part("ingest", ["/bin/true"], lambda: "start"))], body)


def test_a_part_whose_port_is_taken_says_so_and_comes_up_once_it_is_free(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        steps = [Step("ingest", part("ingest")), Step("persister", replace(part("persister"), ports=(port,)))]

        async def body(supervisor: Supervisor) -> None:
            said = f"port {port}, for persister, is in use by another program; end it or choose --port-base"
            persister = supervisor.parts["persister"]
            assert await seen(lambda: persister.reason == said)
            taken.close()
            assert await seen(lambda: supervisor.ready)

        supervised(tmp_path, steps, body)
