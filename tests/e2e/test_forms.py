"""What an owner of a site relies on: where the browser goes, whose scripts may post, what is spam, what is a repeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import httpx
import pytest

from nigredo.testing import Stack, eventually

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
SITE = "https://www.example.com"


def form(**changes: str) -> dict[str, str]:
    return {"name": "Ana", "email": "ana@example.com", "message": f"Oi {uuid4()}"} | changes


def an_address() -> str:
    number = uuid4().int
    return f"198.19.{number % 256}.{number // 256 % 256}"


def post(stack: Stack, fields: dict[str, str], address: str | None = None, **headers: str) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers["X-Forwarded-For"] = address or an_address()
    return httpx.post(f"{stack.url}/api/leads", data=fields, headers=headers, timeout=10)


@contextmanager
def changed(stack: Stack, assignment: str) -> Iterator[None]:
    assert stack.nigredo("config", "set", assignment).code == 0
    try:
        yield
    finally:
        assert stack.nigredo("config", "unset", assignment.partition("=")[0]).code == 0


def verdicts(stack: Stack, address: str) -> list[tuple[str, int]]:
    statement = "SELECT verdict, count(*) FROM nigredo.form_submissions WHERE ip_address = %s GROUP BY 1 ORDER BY 1"
    return stack.rows(statement, address)


def test_a_browser_goes_where_the_form_says_if_that_is_allowed(stack: Stack) -> None:
    allowed, other = f"{SITE}/danke?x=1", "https://evil.example/"
    assert post(stack, form(_next=allowed), **BROWSER).headers["Location"] == "/thanks"
    with changed(stack, f"REDIRECT_ALLOWED_ORIGINS={SITE}"):
        eventually(
            lambda: post(stack, form(_next=allowed), **BROWSER).headers["Location"] == allowed,
            within_s=5,
            what="the redirect",
        )
        for wrong in (
            other,
            f"{SITE}.evil.example/",
            f"//{SITE}",
            f"{SITE}@evil.example/",
            "javascript:alert(1)",
        ):
            assert post(stack, form(_next=wrong), **BROWSER).headers["Location"] == "/thanks"
    answer = post(stack, form(_next=allowed))
    assert answer.status_code == 202


def test_scripts_of_allowed_sites_may_post_and_read_every_answer(stack: Stack) -> None:
    asked = {"Origin": SITE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}

    def preflight() -> httpx.Response:
        return httpx.options(f"{stack.url}/api/leads", headers=asked)

    assert "Access-Control-Allow-Origin" not in preflight().headers
    with changed(stack, f"CORS_ALLOWED_ORIGINS={SITE},https://shop.example"):
        eventually(
            lambda: preflight().headers.get("Access-Control-Allow-Origin") == SITE, within_s=5, what="the permission"
        )
        permitted = preflight().headers
        assert "POST" in permitted["Access-Control-Allow-Methods"]
        assert "content-type" in permitted["Access-Control-Allow-Headers"].lower()
        assert "idempotency-key" in permitted["Access-Control-Allow-Headers"].lower()
        for answer in (post(stack, form(), Origin=SITE), post(stack, {"name": "Ana"}, Origin=SITE)):
            assert answer.headers["Access-Control-Allow-Origin"] == SITE
            assert "Origin" in answer.headers["Vary"]
            assert "retry-after" in answer.headers["Access-Control-Expose-Headers"].lower()
        stranger = post(stack, form(), Origin="https://evil.example")
        # Whoever is not allowed may not read the answer; a plain form of any site still arrives.
        assert stranger.status_code == 202
        assert "Access-Control-Allow-Origin" not in stranger.headers


@pytest.mark.parametrize("marks", [{"_gotcha": "http://spam.example"}, {"_seconds": "0.4"}])
def test_a_program_is_told_that_all_went_well_and_its_form_is_put_aside(stack: Stack, marks: dict[str, str]) -> None:
    address = an_address()

    answer = post(stack, form(**marks), address)

    assert answer.status_code == 202
    eventually(lambda: verdicts(stack, address) == [("spam", 1)], within_s=20, what="the verdict spam")


def test_a_double_click_is_one_lead_and_does_not_count(stack: Stack) -> None:
    address, fields = an_address(), form()

    answers = [post(stack, fields, address, Sec_Fetch_Mode="cors") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [202] * 3
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert "r=9;" in answers[-1].headers["RateLimit"]
    eventually(
        lambda: verdicts(stack, address) == [("accepted", 1), ("duplicate", 2)], within_s=20, what="one lead of three"
    )


def test_a_form_sent_again_under_its_key_is_one_lead_and_another_under_it_is_refused(stack: Stack) -> None:
    address, fields, key = an_address(), form(), str(uuid4())

    first = post(stack, fields, address, Idempotency_Key=key)
    again = post(stack, fields, address, Idempotency_Key=key)
    other = post(stack, form(), address, Idempotency_Key=key)
    fresh = post(stack, fields, address, Idempotency_Key=str(uuid4()))

    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert other.status_code == 422
    assert other.json()["errors"][0]["field"] == "Idempotency-Key"
    # Another key says that it is meant as another message.
    assert fresh.status_code == 202
    assert fresh.json()["id"] != first.json()["id"]
    eventually(lambda: verdicts(stack, address) == [("accepted", 2)], within_s=20, what="two leads of three")


@pytest.mark.parametrize(
    ("fields", "headers", "query", "source"),
    [
        ({"source": "fair"}, {"Referer": "https://a.example/"}, "", "fair"),
        ({"utm_source": "letter"}, {"Referer": "https://a.example/"}, "", "letter"),
        ({}, {"Referer": "https://a.example/"}, "?utm_source=radio", "radio"),
        ({}, {"Referer": "https://a.example/x?utm_source=tv"}, "", "tv"),
        ({}, {"Referer": "https://a.example/x?y=1"}, "", "a.example"),
        ({}, {"Referer": "https://[broken"}, "", None),
        ({}, {}, "", None),
    ],
)
def test_a_lead_knows_where_it_came_from(
    stack: Stack, fields: dict[str, str], headers: dict[str, str], query: str, source: str | None
) -> None:
    answer = httpx.post(
        f"{stack.url}/api/leads{query}", data=form(**fields), headers=headers | {"X-Forwarded-For": an_address()}
    )

    assert answer.status_code == 202
    statement = f"SELECT source FROM nigredo.leads WHERE id = '{answer.json()['id']}'"
    assert eventually(lambda: stack.rows(statement), within_s=20, what="the lead's row") == [(source,)]


def test_a_browser_gets_the_form_back_with_what_was_typed(stack: Stack) -> None:
    answer = post(stack, {"name": "Ana <b>", "email": "nowhere", "message": "Olá"}, Accept_Language="pt-BR", **BROWSER)

    assert answer.status_code == 422
    assert answer.headers["Content-Type"].startswith("text/html")
    assert 'value="Ana &lt;b&gt;"' in answer.text
    assert 'aria-describedby="email-wrong"' in answer.text
    assert "não é um endereço de e-mail" in answer.text


def test_multipart_forms_are_taken_and_files_are_refused_by_name(stack: Stack) -> None:
    url, headers = f"{stack.url}/api/leads", {"X-Forwarded-For": an_address()}
    parts = [(name, (None, value)) for name, value in form().items()]

    taken = httpx.post(url, files=parts, headers=headers)
    refused = httpx.post(url, files=[*parts, ("cv", ("cv.pdf", b"%PDF"))], headers=headers)

    assert taken.status_code == 202
    assert refused.status_code == 422
    assert refused.json()["errors"] == [{"field": "cv", "detail": "is a file, and files are not taken"}]


def test_pages_are_light_and_cached_as_the_runbook_says(stack: Stack) -> None:
    page = httpx.get(stack.url, headers={"Accept-Language": "pt"})
    script = page.text.partition('src="')[2].partition('"')[0]

    assert 'lang="pt"' in page.text
    assert page.headers["Cache-Control"] == "no-cache"
    assert len(page.content) < 8_000
    known = httpx.get(stack.url, headers={"Accept-Language": "pt", "If-None-Match": page.headers["ETag"]})
    assert (known.status_code, known.content) == (304, b"")
    assert "immutable" in httpx.get(f"{stack.url}{script}").headers["Cache-Control"]
