"""Log lines that cannot be written are dropped and counted, and the work continues."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import falcon
import falcon.asgi
import falcon.testing
import pytest
import structlog

from ingest.submissions.quota import Quota
from ingest.submissions.service import RateLimited
from ingest.web.access_log import AccessLog
from ingest.web.answers import add_error_handlers
from nigredo.errors import DependencyDown
from nigredo.observability import logs as telemetry
from nigredo.observability.log_output import LogOutput

PROCESS = """
import logging, sys
from nigredo.observability import logs as telemetry
telemetry.configure_logging("test")
for number in range({lines}):
    telemetry.get_logger().info("a line", number=number)
    logging.getLogger("library").warning("its line %d", number)
telemetry.OUTPUT.write("one\\ntwo\\n")
open({result!r}, "w").write(str(telemetry.OUTPUT.dropped))
"""


def output(descriptor: int | None, **how: float) -> LogOutput:
    return LogOutput(descriptor, dropped=lambda _: None, **how)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(end)


def test_lines_are_written_whole_whatever_characters_they_hold(pipe: tuple[int, int]) -> None:
    out = output(pipe[1])

    out.write("olá\n")
    out.write("half a character \ud800\n")

    assert os.read(pipe[0], 1000).decode() == "olá\nhalf a character \\ud800\n"
    assert out.dropped == 0


def test_lines_are_dropped_and_counted_when_the_reader_is_gone(pipe: tuple[int, int]) -> None:
    reported: list[int] = []
    out = LogOutput(pipe[1], dropped=reported.append)
    os.close(pipe[0])

    out.write("one\n")
    out.write("two\nthree\n")

    assert out.dropped == 3
    assert reported == [1, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_lines_are_dropped_and_counted_when_the_disk_is_full() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        out = output(full.fileno())
        out.write("one\n")

    assert out.dropped == 1


def test_a_reader_that_stands_still_is_waited_for_once_and_not_line_by_line(pipe: tuple[int, int]) -> None:
    out, line = output(pipe[1], patience_s=0.2), "x" * 1023 + "\n"

    began = time.monotonic()
    for _ in range(500):  # Several times the capacity of a pipe.
        out.write(line)

    assert time.monotonic() - began < 10
    assert out.dropped > 0
    held = os.read(pipe[0], 500 * 1024)
    assert len(held) == (500 - out.dropped) * 1024
    out.write("again\n")
    assert os.read(pipe[0], 1000) == b"again\n"


def test_a_line_after_one_that_was_cut_off_begins_on_a_line_of_its_own(pipe: tuple[int, int]) -> None:
    out = output(pipe[1], patience_s=0.0)
    out.write("x" * 10_000_000 + "\n")
    assert out.dropped == 1
    while not os.read(pipe[0], 1 << 20).endswith(b"x") or _is_readable(pipe[0]):
        pass

    out.write("next\n")

    assert os.read(pipe[0], 1000) == b"\nnext\n"


def _is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


@pytest.mark.parametrize(
    ("redirect", "dropped"), [("2>&-", 103), ("2>/dev/full", 103), ("2>/dev/null", 0), ("2>&1 | true", None)]
)
def test_a_process_works_and_ends_well_whatever_became_of_its_log(
    redirect: str, dropped: int | None, tmp_path: Path
) -> None:
    result = tmp_path / "result"
    script = tmp_path / "process.py"
    # 100 lines of the product, one of the library, whose repetitions are suppressed, and two at the end.
    script.write_text(PROCESS.format(lines=100, result=str(result)))

    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" "$1" {redirect}', sys.executable, str(script)], timeout=60
    )

    assert done.returncode == 0
    counted = int(result.read_text())
    # A pipe accepts lines until its reader has ended.
    assert counted == dropped if dropped is not None else counted <= 103


@pytest.fixture
def broken_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[LogOutput]:
    """Replace this process's log by a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(telemetry.OUTPUT, "_descriptor", writer)
    monkeypatch.setattr(telemetry.OUTPUT, "dropped", 0)
    handlers, level = logging.root.handlers[:], logging.root.level
    telemetry.configure_logging("test")
    yield telemetry.OUTPUT
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    os.close(writer)


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (lambda: RateLimited(Quota(10, 3600, 0, 60), 60), 429),
        (lambda: DependencyDown("Kafka"), 503),
        (lambda: falcon.HTTPForbidden(), 403),
        (lambda: KeyError("x"), 500),
    ],
)
def test_ingest_answers_the_same_with_and_without_its_log(
    raised: Callable[[], Exception], status: int, broken_log: LogOutput
) -> None:
    class Route:
        async def on_get(self, request: falcon.asgi.Request, _: falcon.asgi.Response) -> None:
            request.context.ip_address = "192.0.2.1"
            request.context.maintenance = False
            raise raised()

    app = falcon.asgi.App()
    add_error_handlers(app)
    app.add_route("/", Route())

    answer = falcon.testing.TestClient(app).simulate_get("/")

    assert answer.status_code == status
    assert json.loads(answer.content)["status"] == status
    assert broken_log.dropped == (0 if status == 403 else 1)


def test_access_lines_are_counted_as_dropped_one_by_one(broken_log: LogOutput) -> None:
    async def scenario() -> None:
        log = AccessLog()
        for _ in range(20):
            log.add(function="f", request_id="r", ip_address="a", method="GET", route="/", status_code=200, took_s=0,
                    lead_id=None)  # fmt: skip
        log.write()

    asyncio.run(scenario())

    assert broken_log.dropped == 20
