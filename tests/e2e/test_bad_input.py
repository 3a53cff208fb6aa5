"""What people, bots and broken clients send: refused by name, never stored, never a 500."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
import pytest

from nigredo.kafka.topic_reader import TopicReader
from nigredo.testing import Stack, any_client
from schemas.topics import SUBMISSIONS

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="name"\r\nContent-Transfer-Encoding: %s\r\n\r\nAna\r\n--b--\r\n'
GOOD = {"name": "Ana", "email": "ana@example.com", "message": "Oi"}


@dataclass(frozen=True)
class Bad:
    name: str
    body: bytes
    headers: Mapping[str, str]
    status: int
    field: str


def as_json(**fields: object) -> bytes:
    return json.dumps(GOOD | fields).encode()


BAD = [
    Bad("empty body, JSON", b"", JSON, 400, "body"),
    Bad("empty body, form", b"", FORM, 400, "body"),
    Bad("no content type", b"name=Ana", {"Content-Type": ""}, 415, "Content-Type"),
    Bad("wrong content type", b"<a/>", {"Content-Type": "text/xml"}, 415, "Content-Type"),
    Bad("a compressed body", gzip.compress(as_json()), JSON | {"Content-Encoding": "gzip"}, 415, "Content-Encoding"),
    Bad("a charset for a coding", as_json(name=12), JSON | {"Content-Encoding": "utf-8"}, 422, "name"),
    Bad("half a JSON document", b'{"name": "Ana"', JSON, 400, "body"),
    Bad("a list", b"[1]", JSON, 422, "body"),
    Bad("NaN", b'{"name": NaN}', JSON, 400, "body"),
    Bad("a number with thousands of digits", b'{"name": ' + b"9" * 10_000 + b"}", JSON, 422, "name"),
    Bad("deep nesting", b"[" * 30_000, JSON, 400, "body"),
    Bad("deep nesting in a field", b'{"x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", JSON, 400, "body"),
    Bad("invalid UTF-8, JSON", b'{"name": "\xff"}', JSON, 400, "body"),
    Bad("invalid UTF-8, form", b"name=%ff&email=a@example.com&message=x", FORM, 400, "name"),
    Bad("invalid UTF-8 in a field's name", b"%ff=1", FORM, 400, "body"),
    Bad("a number for a name", as_json(name=12), JSON, 422, "name"),
    Bad("null for a name", as_json(name=None), JSON, 422, "name"),
    Bad("a missing name", b"email=ana@example.com&message=Oi", FORM, 422, "name"),
    Bad("spaces for a name", as_json(name="   "), JSON, 422, "name"),
    Bad("the name twice", b"name=A&name=B&email=ana@example.com&message=Oi", FORM, 422, "name"),
    Bad("a line break in the name", as_json(name="Ana\nBcc: x"), JSON, 422, "name"),
    Bad("CR/LF in the address", as_json(email="ana@example.com\r\nBcc: b@example.com"), JSON, 422, "email"),
    Bad("CR/LF in the address, form", b"name=A&email=a%40example.com%0d%0aX&message=Oi", FORM, 422, "email"),
    Bad("no address", as_json(email="ana"), JSON, 422, "email"),
    Bad("a long name", as_json(name="x" * 201), JSON, 422, "name"),
    Bad("controls for a name", as_json(name="\0\x03"), JSON, 422, "name"),
    Bad("too many values", as_json(**{f"f{n}": "x" for n in range(500)}), JSON, 422, "body"),
    Bad("an unknown transfer encoding", PART % b"uu", MULTIPART, 400, "name"),
    Bad("a form in plain text", b"name=Ana\r\nmessage=Oi\r\n", {"Content-Type": "text/plain"}, 415, "Content-Type"),
    Bad("a long message", as_json(message="x" * 10_001), JSON, 422, "message"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_is_refused_by_the_name_of_its_field(stack: Stack, bad: Bad) -> None:
    answer = httpx.post(f"{stack.url}/api/leads", content=bad.body, headers=dict(bad.headers), timeout=10)

    assert answer.status_code == bad.status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == bad.status
    assert problem["title"]
    assert bad.field in [error["field"] for error in problem["errors"]]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_a_body_of_2_mb_is_refused(stack: Stack, announced: bool) -> None:
    body = b"message=" + b"x" * 2_000_000
    content = body if announced else (body[at : at + 8192] for at in range(0, len(body), 8192))
    try:
        answer = httpx.post(f"{stack.url}/api/leads", content=content, headers=FORM, timeout=10)
    except httpx.WriteError:
        pytest.skip("the server closed the connection while the body was still being sent")

    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 413


def test_nothing_of_all_that_reaches_a_topic(stack: Stack) -> None:
    reader = TopicReader(stack.settings(), "test")

    def ends() -> list[tuple[int, int]]:
        return [reader.watermarks(SUBMISSIONS, partition) for partition in reader.partitions(SUBMISSIONS)]

    before = ends()
    for bad in BAD:
        httpx.post(f"{stack.url}/api/leads", content=bad.body, headers=dict(bad.headers), timeout=10)

    assert ends() == before


def test_a_browser_gets_the_form_again_with_what_is_wrong_and_what_was_typed(stack: Stack) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}

    answer = httpx.post(f"{stack.url}/api/leads", data={"name": "<b>"}, headers=browser, timeout=10)

    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("text/html")
    assert 'id="email-wrong"' in answer.text
    assert 'value="&lt;b&gt;"' in answer.text
    assert "<b>" not in answer.text


def test_a_browser_gets_any_other_error_as_a_page(stack: Stack) -> None:
    answer = httpx.get(f"{stack.url}/nothing", headers={"Accept": "text/html"}, timeout=10)

    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert 'href="/"' in answer.text


def test_an_unknown_route_and_a_wrong_method_are_problems_too(stack: Stack) -> None:
    unknown = httpx.get(f"{stack.url}/nothing", timeout=10)
    wrong = httpx.delete(f"{stack.url}/api/leads", timeout=10)

    assert (unknown.status_code, unknown.headers["content-type"]) == (404, "application/problem+json")
    assert (wrong.status_code, wrong.headers["content-type"]) == (405, "application/problem+json")
    assert "POST" in wrong.headers["allow"]


HEAD = b"POST /api/leads HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"


@pytest.mark.parametrize("begun", [b"", b"name=A"], ids=["nothing of it", "some of it"])
def test_a_body_that_never_comes_is_cut_off(stack: Stack, begun: bytes) -> None:
    with socket.create_connection(("127.0.0.1", stack.home.port("ingest")), timeout=20) as connection:
        connection.sendall(HEAD + b"Content-Length: 50\r\n\r\n" + begun)

        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 408")


def test_a_refusal_that_needs_no_body_does_not_wait_for_it(stack: Stack) -> None:
    with socket.create_connection(("127.0.0.1", stack.home.port("ingest")), timeout=5) as connection:
        connection.sendall(HEAD + b"Content-Length: 5000000\r\n\r\n")

        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("framing", ["Content-Length: 5000", "Transfer-Encoding: chunked"])
def test_half_a_form_of_a_client_that_went_away_is_no_form(stack: Stack, framing: str) -> None:
    form = b"name=Ana&email=ana%40example.com&message=Half+a+mess"
    body = form if framing.startswith("Content") else b"%x\r\n%s" % (len(form) + 100, form)
    with socket.create_connection(("127.0.0.1", stack.home.port("ingest")), timeout=20) as connection:
        connection.sendall(HEAD + framing.encode() + b"\r\n\r\n" + body)
        connection.shutdown(socket.SHUT_WR)

        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /health/live HTTP/1.1", 400),
        ("GET /health/live HTTP/1.1\r\nHost: a\r\nHost: b", 400),
        ("GET /health/live HTTP/1.1\r\nHost: a", 200),
        ("GET /health/live HTTP/1.0", 200),
    ],
)
def test_a_request_names_its_host_once_as_http_1_1_wants_it(stack: Stack, head: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", stack.home.port("ingest")), timeout=20) as connection:
        connection.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())

        answer = connection.recv(65536)

    assert answer.split(b" ")[1] == str(status).encode()


def test_a_proxy_that_speaks_http_1_0_is_served(stack: Stack) -> None:
    # What nginx speaks to what is behind it, unless told otherwise.
    form = b"name=Ana&email=ana%40example.com&message=Oi"
    head = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"X-Forwarded-For: %s\r\n" % any_client().encode()
    with socket.create_connection(("127.0.0.1", stack.home.port("ingest")), timeout=20) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(form) + form)

        answer = connection.recv(65536)

    assert answer.partition(b" ")[2].startswith(b"202")
