"""Confirmation of a change by every worker of ingest, or a report that it is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from nigredo.cli import obeyed
from nigredo.cli.obeyed import LATE, NotRunning, Obeyed, report_change, until_obeyed
from nigredo.cli.output import Context
from nigredo.cli.target import Target
from nigredo.control.admin import ControlAdmin
from nigredo.settings import Settings

URL = "http://ingest"
WRITTEN = {1: 7, 3: 2}
OBEYS = {"1": 7, "3": 5}


def health(applied: Mapping[str, int], *, worker: str = "a", workers: int = 1) -> dict[str, Any]:
    return {"waiting_for": None, "control": {"worker": worker, "workers": workers, "applied": applied}}


def asking(answers: list[dict[str, Any] | None], *, within_s: float = 5.0) -> Obeyed:
    """Return the result of asking a fake ingest with these answers, of which the last one repeats."""

    def repeating() -> Iterator[dict[str, Any] | None]:
        yield from answers
        while True:
            yield answers[-1]

    each = repeating()
    return until_obeyed(URL, WRITTEN, lambda _: next(each), within_s=within_s)


def test_a_change_is_confirmed_once_all_of_it_is_applied() -> None:
    assert asking([health({}), health({"1": 7}), None, health(OBEYS)]) == Obeyed()


@pytest.mark.parametrize("applied", [{}, {"1": 7}, {"1": 6, "3": 2}])
def test_a_worker_that_answers_and_does_not_obey_is_reported(applied: dict[str, int]) -> None:
    assert asking([health(applied)], within_s=0.0) == Obeyed(LATE, late=True)


def test_each_of_several_workers_must_obey() -> None:
    first, second = health(OBEYS, workers=2), health(OBEYS, worker="b", workers=2)

    assert asking([first, first, second]) == Obeyed()
    assert asking([first], within_s=0.0) == Obeyed(
        "confirmed by 1 of the workers of ingest at http://ingest; no other one answered"
    )
    assert asking([first, health({}, worker="b", workers=2), first], within_s=0.3).late


def test_a_worker_that_waits_says_for_what() -> None:
    waits = health({}) | {"waiting_for": "nigredo.control to be read"}

    assert asking([waits], within_s=0.0) == Obeyed(f"{LATE}: it waits for nigredo.control to be read", late=True)


@pytest.mark.parametrize("answer", [None, {"status": "ok"}, {"waiting_for": None, "control": None}])
def test_an_ingest_that_does_not_report_leaves_the_change_unconfirmed(answer: dict[str, Any] | None) -> None:
    found = asking([answer], within_s=0.0)

    assert (found.why or "").startswith("not confirmed by ingest")
    assert not found.late


def test_an_ingest_that_does_not_run_is_not_waited_for() -> None:
    def ask(_: str) -> None:
        raise NotRunning

    assert "does not run at http://ingest" in (until_obeyed(URL, WRITTEN, ask, within_s=3600).why or "")


class Here(Context):
    """Context of a command without a stack."""

    @property
    def target(self) -> Target:  # type: ignore[override] # read only, as in the class itself
        return Target(None, None, {"NIGREDO_URL": URL} if self.named else {}, None)


@pytest.mark.parametrize(
    ("named", "found", "code"),
    [
        (True, Obeyed(), 0),
        (True, Obeyed(LATE, late=True), 1),
        (True, Obeyed("not confirmed by x"), 0),
        (False, None, 0),
    ],
)
def test_the_result_is_printed_in_any_case_and_the_doubt_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, named: bool, found: Obeyed | None, code: int
) -> None:
    monkeypatch.setattr(obeyed, "until_obeyed", lambda *_: found)
    changes = ControlAdmin(Settings.from_environment({}), "ana")
    changes.written = dict(WRITTEN)

    try:
        report_change(Here(Path("x"), as_json=True, named=named), changes, {"maintenance": True}, "done")
        ended = 0
    except click.exceptions.Exit as done:
        ended = done.exit_code

    out, err = capsys.readouterr()
    assert ended == code
    assert out == f'{{"maintenance": true, "confirmed": {"true" if found == Obeyed() else "false"}}}\n'
    assert bool(err) == (found != Obeyed())
    if not named:
        assert "NIGREDO_URL" in err
