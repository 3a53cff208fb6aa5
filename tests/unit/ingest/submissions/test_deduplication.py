"""Deduplication: the same form twice is one lead, by its key or within seconds."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.forms.validation import Form, InvalidForm
from ingest.submissions import deduplication as module
from ingest.submissions.deduplication import Deduplication
from nigredo.errors import DependencyDown
from nigredo.kafka.publisher import AckedPosition
from schemas.events import Contact

SECRET = b"s" * 32
FORM = Form(Contact("Ana", "ana@example.com", "Oi", {"topic": "a"}), "contact", None)


def another(**changes: str) -> Form:
    return replace(FORM, contact=replace(FORM.contact, **changes))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=255))
def test_every_node_gives_a_keyed_form_the_same_id_and_another_form_another(key: str) -> None:
    lead_id = Deduplication(SECRET).lead_id("192.0.2.1", key, FORM)

    assert Deduplication(SECRET).lead_id("198.51.100.1", key, FORM) == lead_id
    assert Deduplication(SECRET).lead_id("192.0.2.1", key + "x"[: 255 - len(key)], FORM) == lead_id or len(key) < 255
    assert Deduplication(SECRET).lead_id("192.0.2.1", key, another(message="Olá")) != lead_id
    assert Deduplication(b"t" * 32).lead_id("192.0.2.1", key, FORM) != lead_id


def test_a_key_used_for_another_form_is_refused_for_a_day_and_only_for_its_own_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, now = Deduplication(SECRET), [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    found.lead_id("192.0.2.1", "k", FORM)
    found.lead_id("192.0.2.1", "k", FORM)
    found.lead_id("192.0.2.2", "k", another(message="Olá"))

    with pytest.raises(InvalidForm) as refused:
        found.lead_id("192.0.2.1", "k", another(message="Olá"))
    assert refused.value.status == 422

    now[0] += 25 * 3600
    found.lead_id("192.0.2.1", "k", another(message="Olá"))


@pytest.mark.parametrize("key", ["", "x" * 256, "ключ", "a\tb"])
def test_what_can_be_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidForm) as refused:
        Deduplication(SECRET).lead_id("192.0.2.1", key, FORM)
    assert refused.value.status == 400


def test_memory_of_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED_MAX", 10)
    found = Deduplication(SECRET)
    for number in range(50):
        found.lead_id("192.0.2.1", str(number), FORM)

    # The oldest key is evicted, so another form under it is accepted.
    found.lead_id("192.0.2.1", "0", another(message="Olá"))
    with pytest.raises(InvalidForm):
        found.lead_id("192.0.2.1", "49", another(message="Olá"))


def test_the_same_form_within_seconds_is_found_unless_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    async def scenario() -> None:
        found, lead_id = Deduplication(SECRET), uuid4()
        acknowledged: asyncio.Future[AckedPosition] = asyncio.get_running_loop().create_future()
        found.sent("192.0.2.1", FORM, lead_id, acknowledged)

        first = found.first("192.0.2.1", FORM)
        assert first is not None
        assert first.lead_id == lead_id
        assert found.first("192.0.2.2", FORM) is None
        assert found.first("192.0.2.1", another(message="Olá")) is None

        now[0] += 11
        assert found.first("192.0.2.1", FORM) is None
        now[0] -= 11
        acknowledged.set_exception(DependencyDown("gone"))
        assert found.first("192.0.2.1", FORM) is None

    asyncio.run(scenario())


def test_of_one_form_sent_on_and_on_only_the_first_repeats_are_kept() -> None:
    async def scenario() -> list[bool]:
        found = Deduplication(SECRET)
        found.sent("192.0.2.1", FORM, uuid4(), asyncio.get_running_loop().create_future())
        kept = []
        for _ in range(module.REPEATS_KEPT + 5):
            first = found.first("192.0.2.1", FORM)
            assert first is not None
            kept.append(first.keeps_repeat())
        return kept

    assert asyncio.run(scenario()) == [True] * module.REPEATS_KEPT + [False] * 5
