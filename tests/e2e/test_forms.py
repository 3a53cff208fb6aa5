"""What an owner of a site relies on: where the browser goes, whose scripts may post, what is spam, what is a repeat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from uuid import uuid4

import httpx
import pytest

from nigredo.testing import Stack, any_ipv4_client, eventually

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
SITE = "https://www.example.com"


def form(**changes: str) -> dict[str, str]:
    return {"name": "Ana", "email": "ana@example.com", "message": f"Oi {uuid4()}"} | changes


def post(stack: Stack, fields: dict[str, str], address: str | None = None, **headers: str) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers["X-Forwarded-For"] = address or any_ipv4_client()
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
            within_s=60,
            what="the redirect",
        )
        for wrong in (
            other,
            f"{SITE}.evil.example/",
            f"//{SITE}",
            f"{SITE}@evil.example/",
            "javascript:alert(1)",
            f"{SITE}\\@evil.example/",
            f"{SITE}:x@evil.example/",
            f"https:///{SITE.removeprefix('https://')}/",
            f"{SITE}%2eevil.example/",
            "https://www。example.com/",
            "https://www.\N{FULLWIDTH LATIN SMALL LETTER E}xample.com/",
        ):
            assert post(stack, form(_next=wrong), **BROWSER).headers["Location"] == "/thanks"
        page = post(stack, form(_next=f" {SITE}/obrigado?nome=João "), **BROWSER)
        assert page.headers["Location"] == f"{SITE}/obrigado?nome=Jo%C3%A3o"
    answer = post(stack, form(_next=allowed))
    assert answer.status_code == 202


def test_scripts_of_allowed_sites_may_post_and_read_every_answer(stack: Stack) -> None:
    asked = {"Origin": SITE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}

    def preflight() -> httpx.Response:
        return httpx.options(f"{stack.url}/api/leads", headers=asked)

    assert "Access-Control-Allow-Origin" not in preflight().headers
    with changed(stack, f"CORS_ALLOWED_ORIGINS={SITE},https://shop.example"):
        eventually(
            lambda: preflight().headers.get("Access-Control-Allow-Origin") == SITE, within_s=60, what="the permission"
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


@pytest.mark.parametrize(
    ("marks", "sign"), [({"_gotcha": "http://spam.example"}, "honeypot"), ({"_seconds": "0.4"}, "too_fast")]
)
def test_a_program_is_told_that_all_went_well_and_its_form_is_put_aside_with_what_showed_it(
    stack: Stack, marks: dict[str, str], sign: str
) -> None:
    address = any_ipv4_client()

    answer = post(stack, form(**marks), address)

    assert answer.status_code == 202
    honest = post(stack, form(), any_ipv4_client())
    assert set(answer.headers) == set(honest.headers)
    assert answer.headers["RateLimit"] == honest.headers["RateLimit"]
    eventually(lambda: verdicts(stack, address) == [("spam", 1)], within_s=60, what="the verdict spam")
    why = "SELECT reason FROM nigredo.form_submissions WHERE id = %s"
    assert stack.rows(why, answer.json()["id"]) == [(sign,)]
    shown = stack.nigredo("quarantine", "show", answer.json()["id"], "--json")
    assert json.loads(shown.out)["spam_sign"] == sign
    assert f"spam ({sign})" in stack.nigredo("quarantine", "list", "--reason", "spam", "--limit", "1000").out


def test_a_double_click_is_one_lead_and_does_not_count(stack: Stack) -> None:
    address, fields = any_ipv4_client(), form()

    answers = [post(stack, fields, address, Sec_Fetch_Mode="cors") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [202] * 3
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert "r=9;" in answers[-1].headers["RateLimit"]
    eventually(
        lambda: verdicts(stack, address) == [("accepted", 1), ("duplicate", 2)], within_s=60, what="one lead of three"
    )


def test_a_form_sent_again_under_its_key_is_one_lead_and_another_under_it_is_refused(stack: Stack) -> None:
    address, fields, key = any_ipv4_client(), form(), str(uuid4())

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
    eventually(lambda: verdicts(stack, address) == [("accepted", 2)], within_s=60, what="two leads of three")


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
        f"{stack.url}/api/leads{query}", data=form(**fields), headers=headers | {"X-Forwarded-For": any_ipv4_client()}
    )

    assert answer.status_code == 202
    statement = f"SELECT source FROM nigredo.leads WHERE id = '{answer.json()['id']}'"
    assert eventually(lambda: stack.rows(statement), within_s=60, what="the lead's row") == [(source,)]


def test_a_browser_gets_the_form_back_with_what_was_typed(stack: Stack) -> None:
    answer = post(stack, {"name": "Ana <b>", "email": "nowhere", "message": "Olá"}, Accept_Language="pt-BR", **BROWSER)

    assert answer.status_code == 422
    assert answer.headers["Content-Type"].startswith("text/html")
    assert 'value="Ana &lt;b&gt;"' in answer.text
    assert 'aria-describedby="email-wrong"' in answer.text
    assert "não é um endereço de e-mail" in answer.text


def test_multipart_forms_are_taken_and_files_are_refused_by_name(stack: Stack) -> None:
    url, headers = f"{stack.url}/api/leads", {"X-Forwarded-For": any_ipv4_client()}
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
    assert httpx.get(f"{stack.url}{script}").headers["Cache-Control"] == "public, max-age=3600, s-maxage=3600"


@pytest.mark.parametrize(
    ("accepted", "status"),
    [
        ("text/html", 303),
        ("TEXT/HTML", 303),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", 303),
        ("text/html;q=0.9, application/json;q=0.1", 303),
        ("application/json, text/plain, */*", 202),
        ("application/json, text/html", 202),
        ("text/html;q=0.1, application/json", 202),
        ("text/html;q=0, */*", 202),
        ("text/html;q=high", 202),
        ("*/*", 202),
        ("html", 202),
    ],
)
def test_browsers_get_pages_and_programs_json(stack: Stack, accepted: str, status: int) -> None:
    assert post(stack, form(), Accept=accepted).status_code == status
    refused = post(stack, {"name": "Ana"}, Accept=accepted)
    kind = "text/html" if status == 303 else "application/problem+json"
    assert (refused.status_code, refused.headers["Content-Type"].partition(";")[0]) == (422, kind)
    assert refused.headers["Cache-Control"] == "no-store"


class Inputs(HTMLParser):
    """The fields of a page's form, as a browser would send them."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.action = ""
        self._area: str | None = None
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        name = attributes.get("name")
        if tag == "form":
            self.action = attributes["action"] or ""
        if tag in ("input", "textarea") and name:
            self.fields[name] = attributes.get("value") or ""
            self._area = name if tag == "textarea" else None

    def handle_data(self, data: str) -> None:
        if self._area:
            # The first line break within a text area is not part of its text.
            self.fields[self._area] += data.removeprefix("\n")
            self._area = None


def test_another_sites_form_that_comes_back_is_sent_again_with_all_it_held(stack: Stack) -> None:
    headers = BROWSER | {"X-Forwarded-For": any_ipv4_client()}
    fields = form(email="nowhere", company="Ltda", fax="1\x002", form_id="contact", _next=f"{SITE}/danke")
    page = httpx.post(
        f"{stack.url}/api/leads?lang=pt", data=fields, headers=headers | {"Referer": "https://shop.example/x"}
    )

    again = Inputs(page.text)
    again.fields |= {"email": "ana@example.com"}
    headers["Referer"] = str(page.url)
    answer = httpx.post(f"{stack.url}{again.action}", data=again.fields, headers=headers)

    assert answer.status_code == 303
    assert answer.headers["Location"] == "/thanks?lang=pt"
    assert again.fields["_next"] == f"{SITE}/danke"
    query = "SELECT source, form_id, extra FROM nigredo.leads WHERE message = %s"
    row = eventually(lambda: stack.rows(query, fields["message"]), within_s=60, what="the lead's row")
    assert row == [("shop.example", "contact", {"company": "Ltda", "fax": "12"})]


def test_a_message_as_long_as_it_may_be_is_taken_in_every_alphabet(stack: Stack) -> None:
    for letter in ("\N{CJK UNIFIED IDEOGRAPH-6F22}", "\N{GRINNING FACE}"):
        headers = {"X-Forwarded-For": any_ipv4_client()}
        for body in ({"data": form(message=letter * 10_000)}, {"json": form(message=letter * 10_000)}):
            assert httpx.post(f"{stack.url}/api/leads", headers=headers, timeout=20, **body).status_code == 202  # type: ignore[arg-type]


def test_a_slash_at_the_end_of_the_address_loses_no_form(stack: Stack) -> None:
    answer = httpx.post(f"{stack.url}/api/leads/", data=form(), headers={"X-Forwarded-For": any_ipv4_client()})

    assert answer.status_code == 202


@pytest.mark.parametrize("path", ["/", "/thanks", "/health", "/health/live", "/openapi.json"])
def test_what_is_got_can_be_asked_after(stack: Stack, path: str) -> None:
    got, asked = httpx.get(stack.url + path), httpx.head(stack.url + path)

    assert (asked.status_code, asked.content) == (got.status_code, b"")
    assert asked.headers["Content-Length"] == str(len(got.content))


def test_a_person_may_choose_the_language(stack: Stack) -> None:
    chosen = httpx.get(f"{stack.url}/?lang=pt", headers={"Accept-Language": "en"})
    unknown = httpx.get(f"{stack.url}/?lang=xx", headers={"Accept-Language": "en"})

    assert 'lang="pt"' in chosen.text.partition("<head>")[0]
    assert 'lang="en"' in unknown.text.partition("<head>")[0]


def test_a_browsers_form_that_is_not_taken_for_now_comes_back_whole(stack: Stack) -> None:
    address = any_ipv4_client()
    fields = form(message="Olá, o que é <isto>?", company="Ltda", _next=f"{SITE}/danke")
    for _ in range(10):
        assert post(stack, form(), address).status_code == 202

    limited = post(stack, fields, address, **BROWSER)

    assert limited.status_code == 429
    assert int(limited.headers["Retry-After"]) > 0
    page = Inputs(limited.text).fields
    assert page | fields == page
    assert "Too many requests" in limited.text


def test_a_form_without_a_method_comes_back_to_be_sent_by_post(stack: Stack) -> None:
    url, fields = f"{stack.url}/api/leads", form(company="Ltda")

    page = httpx.get(url, params=fields, headers=BROWSER)
    program = httpx.get(url, params=fields)

    assert (page.status_code, program.status_code) == (422, 401)
    assert Inputs(page.text).fields | fields == Inputs(page.text).fields
    assert "has not been sent yet" in page.text
    assert "API key" in httpx.get(url, headers=BROWSER).text


def test_a_form_in_plain_text_comes_back_to_be_sent_and_a_scripts_json_is_taken(stack: Stack) -> None:
    url, headers = f"{stack.url}/api/leads", {"Content-Type": "text/plain;charset=UTF-8"}
    fields = form()

    page = httpx.post(url, content="".join(f"{n}={v}\r\n" for n, v in fields.items()), headers=BROWSER | headers)
    beacon = httpx.post(url, content=json.dumps(fields), headers=headers | {"X-Forwarded-For": any_ipv4_client()})

    assert (page.status_code, beacon.status_code) == (415, 202)
    assert Inputs(page.text).fields | fields == Inputs(page.text).fields


def test_what_the_visitor_neither_wrote_nor_sees_costs_no_lead_and_is_marked(stack: Stack) -> None:
    hidden = {"h-captcha-response": "a" * 2_532, "signature": "s" * 12_000, "utm_content": "c"}
    answer = post(stack, form(**hidden, **{f"f{n}": "x" for n in range(50)}))

    assert answer.status_code == 202
    statement = f"SELECT extra FROM nigredo.leads WHERE id = '{answer.json()['id']}'"
    ((extra,),) = eventually(lambda: stack.rows(statement), within_s=60, what="the lead's row")
    assert extra["signature"] == "s" * 2_000
    assert (extra["_cut"], extra["_dropped"]) == ("signature", "f48, f49")
    assert "h-captcha-response" not in extra


def test_every_answer_has_the_headers_that_keep_a_browser_safe(stack: Stack) -> None:
    answers = [
        httpx.get(stack.url),
        httpx.get(f"{stack.url}/nothing", headers=BROWSER),
        post(stack, form()),
        post(stack, form(), **BROWSER),
        post(stack, {}),
        httpx.get(f"{stack.url}/health"),
        httpx.get(f"{stack.url}/openapi.json"),
        httpx.get(f"{stack.url}/nothing"),
    ]
    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        page = answer.headers["Content-Type"].startswith("text/html")
        assert ("style-src" in answer.headers["Content-Security-Policy"]) is page
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    kept = httpx.get(stack.url, headers={"If-None-Match": answers[0].headers["ETag"]})
    assert kept.status_code == 304
    assert kept.headers["Content-Security-Policy"] == answers[0].headers["Content-Security-Policy"]
