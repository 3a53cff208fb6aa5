"""Pages: in the reader's language, with what was typed, and safe whatever was typed."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.form import FieldProblem
from ingest.page import FORMS, LANGUAGES, SCRIPT_PATH, TEXTS, error_page, form_page, language_of


class Elements(HTMLParser):
    """Collects the tags of a page with their attributes, and the text of the text area."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.area = ""
        self._within_area = False
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within_area = tag == "textarea"

    def handle_endtag(self, tag: str) -> None:
        self._within_area = False

    def handle_data(self, data: str) -> None:
        if self._within_area:
            self.area += data

    def one(self, element_id: str) -> dict[str, str | None]:
        (found,) = [attributes for _, attributes in self.tags if attributes.get("id") == element_id]
        return found


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        (None, "en"),
        ("", "en"),
        ("de, fr;q=0.5", "en"),
        ("pt-BR,pt;q=0.9,en;q=0.8", "pt"),
        ("en;q=0.3, pt;q=0.2", "en"),
        ("en;q=0.3, PT-pt;q=0.9", "pt"),
        ("pt;q=high", "en"),
    ],
)
def test_a_page_is_in_the_language_the_browser_prefers(accepted: str | None, language: str) -> None:
    assert language_of(accepted) == language


@given(st.text(max_size=200))
def test_no_header_breaks_the_choice_of_a_language(accepted: str) -> None:
    assert language_of(accepted) in LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_field_has_its_label_and_the_page_its_language(language: str) -> None:
    page = Elements(FORMS[language].content)

    assert ("html", {"lang": language}) in page.tags
    labelled = {attributes["for"] for tag, attributes in page.tags if tag == "label"}
    assert labelled == {"name", "email", "message", "_gotcha"}
    for name in labelled:
        assert page.one(str(name))["name"] == name
    assert ("script", {"src": SCRIPT_PATH, "defer": None}) in page.tags
    assert set(TEXTS[language]) == set(TEXTS["en"])


def test_what_is_wrong_stands_beside_its_field_in_the_reader_s_language() -> None:
    typed = {"name": "Ana", "email": "ana"}
    content = form_page("pt", typed, [FieldProblem("email", "is not an e-mail address")])
    page = Elements(content)

    email = page.one("email")
    assert email["aria-invalid"] == "true"
    assert email["value"] == "ana"
    assert page.one(str(email["aria-describedby"]))["class"] == "wrong"
    assert "não é um endereço de e-mail" in content.decode()
    assert "aria-invalid" not in page.one("name")


@given(st.text(st.characters(exclude_characters="\r\0"), max_size=60))
def test_whatever_was_typed_comes_back_as_text_and_nothing_else(typed: str) -> None:
    page = Elements(form_page("en", {"name": typed, "message": typed}, [FieldProblem(typed, typed)]))

    shown = typed.encode("utf-8", "replace").decode()
    assert page.one("name")["value"] == shown
    assert page.area == "\n" + shown
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 1


@given(st.text(max_size=60))
def test_an_error_page_holds_no_element_that_was_typed(typed: str) -> None:
    page = Elements(error_page("en", "Wrong", typed, [FieldProblem(typed, typed)]))

    assert {tag for tag, _ in page.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "main"),
        *("h1", "p", "ul", "li", "b", "a"),
    }
