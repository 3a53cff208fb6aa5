"""Output of commands: control characters escaped, results on stdout, the rest on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from nigredo.cli import COMMANDS, nigredo
from nigredo.cli.output import Context, complain, visible


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("João, 日本, 😀 — 'ok' \\n", "João, 日本, 😀 — 'ok' \\n"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nblocked b\r\tc", "a\\nblocked b\\r\\tc"),
        ("\u202etxt.exe\u200b", "\\u202etxt.exe\\u200b"),
        ("\U000e0041\ud800", "\\U000e0041\\ud800"),
    ],
)
def test_whatever_a_terminal_would_obey_or_hide_is_shown(given: str, shown: str) -> None:
    assert visible(given) == shown


def test_a_line_stays_one_line_and_a_document_is_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    name = "x\x1b[31m\nfake"
    Context(Path("home"), as_json=False).result({}, [f"one {name}", "two"])
    assert capsys.readouterr().out == "one x\\x1b[31m\\nfake\ntwo\n"

    Context(Path("home"), as_json=True).result({"name": name}, "")
    assert json.loads(capsys.readouterr().out) == {"name": name}


def test_progress_and_errors_are_escaped_too_and_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Context(Path("home"), as_json=False).tell("\x1b[1mhere")
    complain("wrong:\n  \x1b[1mthere")

    out, err = capsys.readouterr()
    assert out == "\\x1b[1mhere\n"
    assert err == "nigredo: wrong: \\x1b[1mthere\n"


def test_help_imports_no_command_and_no_client_library() -> None:
    program = "import sys, nigredo.cli; sys.argv[1:] = ['--help']; nigredo.cli.main(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert {"Commands:", "webhook", "nigredo.cli"} <= set(loaded)
    heavy = {"psycopg", "rich", "structlog", "httpx", "confluent_kafka", "falcon", "faust", "nigredo.cli.stack"}
    assert not heavy & set(loaded)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_shows_the_help_of_each(name: str) -> None:
    command = nigredo.get_command(click.Context(nigredo), name)

    assert command is not None
    assert (command.name, command.get_short_help_str(200)) == (name, COMMANDS[name][1])


def test_the_group_of_webhooks_has_the_commands_of_all_its_modules() -> None:
    group = nigredo.get_command(click.Context(nigredo), "webhook")

    assert isinstance(group, click.Group)
    assert set(group.commands) == {"failures", "pause", "resume", "rotate-secret", "status", "test", "undelivered"}
