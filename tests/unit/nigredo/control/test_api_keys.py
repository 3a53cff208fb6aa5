"""API keys: only a created key is accepted, and the stored form grants no access."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nigredo.control.api_keys import LEADS_READ, as_value, create, from_value, verify


def test_a_key_is_recognised_by_its_text_alone_and_survives_storage() -> None:
    text, key = create("analytics", frozenset([LEADS_READ]))
    stored = from_value(key.id, as_value(key))

    assert stored == key
    assert verify(text, {key.id: stored}) == key
    assert verify(text, {}) is None
    secret = text.split("_", 2)[2]
    assert secret not in str(as_value(key))


@given(st.integers(0, 60), st.characters(min_codepoint=33, max_codepoint=126))
def test_one_character_off_is_another_key(place: int, character: str) -> None:
    text, key = create("analytics", frozenset([LEADS_READ]))
    changed = text[:place] + character + text[place + 1 :]

    assert (verify(changed, {key.id: key}) is None) == (changed != text)


@given(st.text(max_size=80))
def test_no_text_breaks_the_look_up(text: str) -> None:
    _, key = create("analytics", frozenset([LEADS_READ]))

    assert verify(text, {key.id: key}) is None
