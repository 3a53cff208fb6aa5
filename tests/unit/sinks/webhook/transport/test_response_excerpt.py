"""Response excerpt: the lead's words are masked in every notation, and the length is bounded."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from urllib.parse import quote_plus
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import Contact, Lead
from sinks.webhook.transport.response_excerpt import EXCERPT_MAX_BYTES, excerpt_of

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def lead(name: str = "João Ng", message: str = "Por favor, liguem", **extra: str) -> Lead:
    contact = Contact(name, "joao.ng@example.com", message, extra)
    return Lead(uuid4(), "192.0.2.1", "192.0.2.1", None, None, None, contact, NOON, NOON, False, 0, 0)


def test_a_response_without_personal_data_is_kept_unchanged() -> None:
    assert excerpt_of(b'{"error":"quota exceeded"}', lead()) == '{"error":"quota exceeded"}'
    assert excerpt_of(b"", lead()) is None


@pytest.mark.parametrize("written", [str, str.upper, escape, quote_plus, json.dumps, lambda text: text[:-1] + "!"])
def test_the_lead_s_words_are_masked_in_every_notation(written: object) -> None:
    asked = lead(phone="+55 11 98765-4321")
    answer = f"no: {written('João Ng')} {written('joao.ng@example.com')} {written('98765-4321')}"  # type: ignore[operator]

    kept = excerpt_of(answer.encode(), asked) or ""

    assert kept.startswith("no: ")
    for private in ("joão", "ng", "joao", "example", "98765", "4321"):
        assert private not in kept.casefold().replace("\\u00e3", "ã")


@pytest.mark.parametrize("said", ["jo@xy.io", "JO@XY.IO", "11 98 76 54"])
def test_a_field_of_short_words_is_masked_as_a_whole(said: str) -> None:
    contact = Contact("Ana", "jo@xy.io", "Oi", {"phone": "11 98 76 54"})

    assert excerpt_of(f'{{"no":"{said}"}}'.encode(), replace(lead(), contact=contact)) == '{"no":"***"}'


@pytest.mark.parametrize("said", ["Joao", "Joa\u0303o", "JO\u00c3O"])
def test_a_name_is_masked_with_and_without_its_accents(said: str) -> None:
    assert excerpt_of(f"no {said} here".encode(), lead()) == "no *** here"


def test_only_the_start_of_a_response_is_kept() -> None:
    kept = excerpt_of("é€".encode() * 1000, lead()) or ""

    assert len(kept.encode()) <= EXCERPT_MAX_BYTES
    assert kept == ("é€" * 200)[: len(kept)]


@given(st.integers(0, 6000), st.text(alphabet="ab", min_size=30, max_size=60))
def test_a_word_that_is_cut_off_is_not_shown(before: int, secret: str) -> None:
    kept = excerpt_of((" " * before + secret + " end").encode(), lead(message=secret)) or ""

    assert secret[:2] not in kept


def test_undecodable_bytes_are_shown_as_replacement_characters() -> None:
    assert excerpt_of(b"\xff\xfb ok", lead()) == "\ufffd\ufffd ok"
