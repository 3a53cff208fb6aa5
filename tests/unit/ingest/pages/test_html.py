"""HTML pages: in the reader's language, with the typed fields, and escaped."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.forms.validation import FieldProblem
from ingest.pages.html import FORMS, LANGUAGES, SCRIPT_PATH, TEXTS, THANKS, error_page, form_page, language_of
from ingest.pages.problems import IN_PORTUGUESE, TITLES, Problem
from ingest.web.answers import prefers_html
from ingest.web.security_headers import page_policy


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
        ("en; q=0.3, pt; Q=0.9", "pt"),
        ("pt;q=high", "en"),
    ],
)
def test_a_page_is_in_the_language_the_browser_prefers(accepted: str | None, language: str) -> None:
    assert language_of(accepted) == language


@pytest.mark.parametrize(
    ("accepted", "page"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("text/html", True),
        ("application/json, text/html", False),
        ("*/*", False),
        ("html", False),
        ('text/html;a="' + ";" * 30_000, False),  # Not parsed, because parsing takes quadratic time.
    ],
)
def test_who_names_pages_first_is_a_person(accepted: str, page: bool) -> None:
    assert prefers_html(cast(Any, SimpleNamespace(headers_lower={"accept": accepted}))) is page


@given(st.text(max_size=200))
def test_no_header_breaks_the_choice_of_a_language(accepted: str) -> None:
    assert language_of(accepted) in LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_field_has_its_label_and_the_page_its_language(language: str) -> None:
    page = Elements(FORMS[language, False].content)

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


def test_the_fields_of_another_sites_form_come_back_with_it_and_what_is_wrong_with_them_can_be_mended() -> None:
    typed = {"name": "Ana", "company": "<Ltda>", "fax": "1\n2", "_next": "https://example.com/"}
    page = Elements(form_page("en", typed, [FieldProblem("fax", "has a line break")]))

    hidden = {tag["name"]: tag["value"] for name, tag in page.tags if name == "input" and tag.get("type") == "hidden"}
    assert hidden == {"company": "<Ltda>", "_next": "https://example.com/"}
    (fax,) = [attributes for _, attributes in page.tags if attributes.get("name") == "fax"]
    assert fax["aria-invalid"] == "true"
    assert page.one(str(fax["aria-describedby"]))["class"] == "wrong"
    assert ("a", {"href": f"#{fax['id']}"}) in page.tags
    assert ("label", {"for": fax["id"]}) in page.tags


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=5), st.text(max_size=20))
def test_no_field_of_another_sites_form_becomes_an_element(typed: dict[str, str], wrong: str) -> None:
    page = Elements(form_page("en", typed | {wrong: "x"}, [FieldProblem(wrong, "is wrong")]))

    assert {name for name, _ in page.tags} <= {
        *("html", "head", "meta", "title", "style", "script", "body", "main", "h1", "p", "div", "ul", "li", "a"),
        *("form", "label", "input", "textarea", "button"),
    }
    assert len([name for name, _ in page.tags if name == "script"]) == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_whoever_chose_a_language_stays_in_it(language: str) -> None:
    form, thanks = Elements(FORMS[language, True].content), Elements(THANKS[language, True].content)
    error = Elements(Problem(404, "", "").as_page(language, chosen=True))

    (sent_to,) = [attributes["action"] for name, attributes in form.tags if name == "form"]
    assert sent_to == f"/api/leads?lang={language}"
    assert ("a", {"href": f"/?lang={language}"}) in thanks.tags
    assert ("a", {"href": f"/?lang={language}"}) in error.tags
    assert [attributes["hreflang"] for _, attributes in form.tags if "hreflang" in attributes] == [
        other for other in LANGUAGES if other != language
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_form_that_is_not_taken_for_now_comes_back_whole_with_the_reason(language: str) -> None:
    typed = {"name": "Ana", "email": "ana@example.com", "message": "Oi\ntudo?", "company": "Ltda"}
    content = Problem(503, "Back <at> noon.", "", own_words=True).as_page(language, typed=typed)
    page = Elements(content)

    assert page.area == "\nOi\ntudo?"
    assert page.one("name")["value"] == "Ana"
    assert [tag["value"] for _, tag in page.tags if tag.get("name") == "company"] == ["Ltda"]
    assert "Back &lt;at&gt; noon." in content.decode()
    assert "aria-invalid" not in page.one("name")


def test_a_form_that_cannot_be_read_leads_back_to_where_it_is() -> None:
    page = Elements(Problem(413, "", "").as_page("en", sent_from='https://shop.example/"><b>'))

    assert [tag["href"] for name, tag in page.tags if name == "a"] == ['https://shop.example/"><b>']
    assert "b" not in {name for name, _ in page.tags}


def test_a_page_may_do_what_it_needs_and_be_framed_where_scripts_may_post() -> None:
    style = FORMS["en", False].content.decode().partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

    assert f"style-src 'sha256-{digest}'" in page_policy(())
    assert page_policy(()).endswith("frame-ancestors 'none'")
    assert page_policy(("https://a.example",)).endswith("frame-ancestors 'self' https://a.example")
    # `form-action` would block a redirect to the form's own site.
    assert "form-action" not in page_policy(())


def test_errors_are_in_portuguese_but_what_an_operator_wrote() -> None:
    assert "Back at noon" not in Problem(503, "Back at noon.", "").as_page("pt").decode()
    assert "Back at noon." in Problem(503, "Back at noon.", "", own_words=True).as_page("pt").decode()
    assert set(IN_PORTUGUESE) == set(TITLES)
