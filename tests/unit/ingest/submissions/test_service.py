"""Submission service: a repeated form is published again only where the limiter learns something from it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

import pytest

from ingest.forms.validation import Form
from ingest.publishing.spool import Entry
from ingest.submissions.deduplication import REPEATS_KEPT
from ingest.submissions.edge_limiter import EdgeLimiter
from ingest.submissions.service import RateLimited, SubmissionService
from nigredo.avro.codec import Codec
from nigredo.errors import DependencyDown
from nigredo.kafka.publisher import AckedPosition
from nigredo.observability.health import Health
from nigredo.settings import Settings
from schemas.events import Contact, Submission
from schemas.topics import SUBMISSIONS, load_schema

CLIENT = IPv4Address("192.0.2.1")
FORM = Form(Contact("Ana", "ana@example.com", "Oi", {}), None, None)


class OneSchema:
    def id_of(self, *_: object) -> int:
        return 1

    def schema_of(self, _: int) -> Any:
        return load_schema("submissions")


class Taking:
    """A publisher that acknowledges every record at once."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.kept: list[Submission] = []

    def send(self, entry: Entry) -> asyncio.Future[AckedPosition]:
        event = self._codec.decode(SUBMISSIONS, entry.value)
        assert isinstance(event, Submission)
        self.kept.append(event)
        future: asyncio.Future[AckedPosition] = asyncio.get_running_loop().create_future()
        future.set_result(AckedPosition(SUBMISSIONS, 0, len(self.kept) - 1))
        return future


def play(tmp_path: Path, story: Callable[[SubmissionService, Taking], Awaitable[None]], **settings: str) -> None:
    """Run a story with a submission service that has no Kafka."""
    secret = tmp_path / "secret"
    secret.write_text("not a secret, but as long as one has to be")

    async def run() -> None:
        codec = Codec(OneSchema())
        codec.prepare([SUBMISSIONS])
        intake = SubmissionService(
            Settings.from_environment({"IDEMPOTENCY_SECRET_FILE": str(secret), **settings}), Health("test")
        )
        outlet, inside = Taking(codec), cast(Any, intake)
        inside._codec, inside._spooling = codec, outlet
        inside._edge = EdgeLimiter(codec, window_s=3600, networks_max=1000)
        await story(intake, outlet)

    asyncio.run(run())


def test_a_form_sent_again_under_its_key_is_not_published_again_once_it_was_kept(tmp_path: Path) -> None:
    async def story(intake: SubmissionService, outlet: Taking) -> None:
        ids = {(await intake.submit(FORM, CLIENT, None, key="k")).lead_id for _ in range(50)}
        assert [one.id for one in outlet.kept] == list(ids)

    play(tmp_path, story)


def test_a_form_that_the_pages_script_sent_with_a_key_is_found_when_the_page_sends_it_without(tmp_path: Path) -> None:
    async def story(intake: SubmissionService, outlet: Taking) -> None:
        first = await intake.submit(FORM, CLIENT, None, key="k", by_hand=True)
        again = await intake.submit(FORM, CLIENT, None, by_hand=True)
        assert again.lead_id == first.lead_id
        assert [one.edge_verdict for one in outlet.kept] == [None, "duplicate"]

    play(tmp_path, story)


def test_a_double_click_without_end_does_not_fill_the_log(tmp_path: Path) -> None:
    async def story(intake: SubmissionService, outlet: Taking) -> None:
        ids = {(await intake.submit(FORM, CLIENT, None, by_hand=True)).lead_id for _ in range(100)}
        assert len(ids) == 1
        assert len(outlet.kept) == 1 + REPEATS_KEPT

    play(tmp_path, story)


def test_what_looked_like_a_programs_form_is_no_first_one_for_a_persons(tmp_path: Path) -> None:
    async def story(intake: SubmissionService, outlet: Taking) -> None:
        hasty = await intake.submit(replace(FORM, took_s=0.5), CLIENT, None, by_hand=True)
        again = await intake.submit(FORM, CLIENT, None, by_hand=True)
        assert again.lead_id != hasty.lead_id
        assert [(one.edge_verdict, one.spam_sign) for one in outlet.kept] == [("spam", "too_fast"), (None, None)]

    play(tmp_path, story)


def test_a_form_that_is_answered_as_taken_is_in_the_log_however_many_programs_sent_before(tmp_path: Path) -> None:
    """A person whose browser filled in the honeypot is refused as spam, and an operator may release the submission."""

    async def story(intake: SubmissionService, outlet: Taking) -> None:
        taken, refused = [], 0
        for _ in range(120):
            try:
                taken.append((await intake.submit(replace(FORM, trapped=True), CLIENT, None)).lead_id)
            except RateLimited as limited:
                assert (limited.allowance.remaining, limited.retry_after_s) == (0, 3600)
                refused += 1
        assert refused == 20
        taken.append((await intake.submit(replace(FORM, took_s=1.5), CLIENT, None)).lead_id)
        taken.append((await intake.submit(FORM, CLIENT, None)).lead_id)
        assert [one.id for one in outlet.kept] == taken

    play(tmp_path, story)


def test_what_looks_like_a_programs_form_from_an_exempt_network_is_kept_without_a_bound(tmp_path: Path) -> None:
    async def story(intake: SubmissionService, outlet: Taking) -> None:
        for _ in range(120):
            await intake.submit(replace(FORM, trapped=True), CLIENT, None)
        assert len(outlet.kept) == 120

    play(tmp_path, story, RATE_LIMIT_EXEMPT="192.0.2.0/24")


def test_a_worker_that_is_not_loaded_yet_lets_a_form_wait_a_moment(tmp_path: Path) -> None:
    async def story(intake: SubmissionService, outlet: Taking) -> None:
        inside = cast(Any, intake)
        edge, inside._edge = inside._edge, None
        early = asyncio.create_task(intake.submit(FORM, CLIENT, None))
        await asyncio.sleep(0)
        assert not early.done()
        inside._edge = edge
        inside._loaded.set()
        assert (await early).lead_id == outlet.kept[0].id

    play(tmp_path, story)


def test_a_worker_that_does_not_get_loaded_says_so_before_long(tmp_path: Path) -> None:
    async def story(intake: SubmissionService, outlet: Taking) -> None:
        cast(Any, intake)._edge = None
        with pytest.raises(DependencyDown, match="not ready yet"):
            async with asyncio.timeout(3):
                await intake.submit(FORM, CLIENT, None)

    play(tmp_path, story)
