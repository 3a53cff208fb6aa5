"""Reading leads over HTTP: who may, page by page, one by one, and what became of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from nigredo.testing import Stack, any_ipv4_client, eventually
from tests.support.nodes import FORM, another_node


def post(stack: Stack, **fields: str) -> str:
    form = {"name": "Ana", "email": "ana@example.com", "message": "Oi"} | fields
    headers = {"X-Forwarded-For": any_ipv4_client()}
    answer = httpx.post(f"{stack.url}/api/leads", json=form, headers=headers, timeout=10)
    assert answer.status_code == 202
    return str(answer.json()["id"])


class Reader:
    """A client with an API key."""

    def __init__(self, stack: Stack, key: str) -> None:
        self._url = f"{stack.url}/api/leads"
        self.headers = {"Authorization": f"Bearer {key}"}

    def get(self, path: str = "", **parameters: Any) -> httpx.Response:
        return httpx.get(self._url + path, params=parameters, headers=self.headers, timeout=10)

    def stored(self, lead_id: str) -> dict[str, Any]:
        """Return a lead once it is stored."""

        def look() -> httpx.Response | None:
            answer = self.get(f"/{lead_id}")
            return answer if answer.status_code == 200 else None

        found: dict[str, Any] = eventually(look, within_s=60, what="the lead over HTTP").json()
        return found


def create_key(stack: Stack, *arguments: str) -> dict[str, Any]:
    done = stack.nigredo("keys", "create", "tests", "--json", *arguments)
    assert done.code == 0, done.err
    created: dict[str, Any] = json.loads(done.out)
    return created


@pytest.fixture(scope="module")
def reader(stack: Stack) -> Iterator[Reader]:
    created = create_key(stack)
    reader = Reader(stack, created["key"])
    eventually(lambda: reader.get(limit=1).status_code == 200, within_s=60, what="the new key")
    yield reader
    assert stack.nigredo("keys", "revoke", created["id"]).code == 0


def test_without_a_key_nothing_is_told(stack: Stack) -> None:
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eA=="}):
        for path in ("", f"/{uuid4()}", f"/{uuid4()}/trail"):
            answer = httpx.get(f"{stack.url}/api/leads{path}", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_lead_is_read_as_it_was_sent(stack: Stack, reader: Reader) -> None:
    lead_id = post(stack, name="João", message="Olá,\nvocês", company="Ltda", source="fair", form_id="contact")

    lead = reader.stored(lead_id)

    assert lead == lead | {
        "id": lead_id,
        "name": "João",
        "email": "ana@example.com",
        "message": "Olá,\nvocês",
        "extra": {"company": "Ltda"},
        "status": "new",
        "source": "fair",
        "form_id": "contact",
    }
    assert lead["created_at"].endswith("Z")


def test_pages_hold_every_lead_once_newest_first(stack: Stack, reader: Reader) -> None:
    source = f"pages-{uuid4()}"
    ids = [post(stack, source=source) for _ in range(7)]
    for lead_id in ids:
        reader.stored(lead_id)

    found, cursor = [], None
    for _ in range(4):
        page = reader.get(limit=2, source=source, **({"cursor": cursor} if cursor else {})).json()
        found += page["items"]
        cursor = page["next_cursor"]

    assert cursor is None
    assert [lead["id"] for lead in found] == ids[::-1]
    assert reader.get(source=source, status="new", limit=100).json()["items"] == found
    assert reader.get(source=source, status="done").json() == {"items": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"status": "a" * 101}, "status"),
        ({"order": "name"}, "order"),
        ({"limit": [1, 2]}, "limit"),
    ],
)
def test_a_question_that_cannot_be_is_refused_by_its_parameter(
    reader: Reader, parameters: dict[str, Any], field: str
) -> None:
    answer = reader.get(**parameters)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


def test_what_is_no_lead_is_404_and_what_is_not_stored_yet_says_when_to_come_back(stack: Stack, reader: Reader) -> None:
    for unknown in (str(uuid4()), "test-id", "0"):
        answer = reader.get(f"/{unknown}")
        assert answer.status_code == 404
        assert "Retry-After" not in answer.headers
    assert stack.nigredo("stop", "persister").code == 0
    try:
        lead_id = post(stack)
        answer = reader.get(f"/{lead_id}")
        assert (answer.status_code, answer.headers["Retry-After"]) == (404, "1")
        assert reader.get(f"/{lead_id}/trail").headers["Retry-After"] == "1"
    finally:
        assert stack.nigredo("start", "persister").code == 0
    assert reader.stored(lead_id)["id"] == lead_id


def test_a_node_and_a_worker_that_did_not_take_a_lead_know_too_that_it_may_come(stack: Stack, reader: Reader) -> None:
    def asked(url: str, lead_id: str) -> tuple[int, str | None]:
        answer = httpx.get(f"{url}/api/leads/{lead_id}", headers=reader.headers, timeout=10)
        return answer.status_code, answer.headers.get("Retry-After")

    with another_node(stack, INGEST_WORKERS="2") as node:
        assert stack.nigredo("stop", "persister").code == 0
        try:
            lead_id = node.post().json()["id"]
            # Each connection is another worker's, by chance.
            assert {asked(node.url, lead_id) for _ in range(8)} == {(404, "1")}
            assert asked(stack.url, lead_id) == (404, "1")
            assert asked(node.url, str(uuid4())) == (404, None)
        finally:
            assert stack.nigredo("start", "persister").code == 0
        assert reader.stored(lead_id)["id"] == lead_id


def test_the_id_of_a_keyed_form_is_known_to_be_on_its_way_where_it_was_taken(stack: Stack, reader: Reader) -> None:
    assert stack.nigredo("stop", "persister").code == 0
    try:
        headers = {"X-Forwarded-For": any_ipv4_client(), "Idempotency-Key": str(uuid4())}
        lead_id = httpx.post(f"{stack.url}/api/leads", json=FORM, headers=headers, timeout=10).json()["id"]
        answer = reader.get(f"/{lead_id}")
        assert (answer.status_code, answer.headers["Retry-After"]) == (404, "1")
    finally:
        assert stack.nigredo("start", "persister").code == 0
    assert reader.stored(lead_id)["id"] == lead_id


def test_the_trail_tells_every_stage_with_its_place_and_time(stack: Stack, reader: Reader) -> None:
    lead_id = post(stack)

    def delivered() -> dict[str, Any] | None:
        answer = reader.get(f"/{lead_id}/trail")
        found: dict[str, Any] | None = answer.json() if answer.status_code == 200 else None
        return found if found and found["deliveries"] and found["lead"] else None

    trail = eventually(delivered, within_s=60, what="a delivery in the trail")

    assert trail["submission"]["verdict"] == "accepted"
    assert trail["submission"]["submission_offset"] >= 0
    assert trail["lead"]["lead_offset"] >= 0
    attempt = trail["deliveries"][0]
    assert (attempt["endpoint"], attempt["attempt"], attempt["success"]) == ("fibonacci", 1, True)
    times = [trail["lead"]["created_at"], attempt["sent_at"]]
    assert times == sorted(times)


def test_a_reader_who_has_it_gets_304(stack: Stack, reader: Reader) -> None:
    lead_id = post(stack)
    reader.stored(lead_id)
    first = reader.get(f"/{lead_id}")

    again = httpx.get(first.url, headers=reader.headers | {"If-None-Match": first.headers["ETag"]})

    assert (again.status_code, again.content) == (304, b"")
    tag = first.headers["ETag"]
    for known, status in ((f"W/{tag}", 304), (f'"x",{tag}', 304), (f'{tag} , "x"', 304), ("*", 304), ('"x"', 200)):
        asked = httpx.get(first.url, headers=reader.headers | {"If-None-Match": known})
        assert asked.status_code == status, known
    assert "private" in first.headers["Cache-Control"]


def test_a_rotated_key_works_through_the_overlap_and_a_revoked_one_does_not(stack: Stack) -> None:
    old = create_key(stack)
    eventually(lambda: Reader(stack, old["key"]).get().status_code == 200, within_s=60, what="the key")

    rotated = json.loads(stack.nigredo("keys", "rotate", old["id"], "--overlap", "1h", "--json").out)
    eventually(lambda: Reader(stack, rotated["key"]).get().status_code == 200, within_s=60, what="the new key")
    assert Reader(stack, old["key"]).get().status_code == 200

    assert stack.nigredo("keys", "revoke", old["id"]).code == 0
    eventually(lambda: Reader(stack, old["key"]).get().status_code == 401, within_s=60, what="the end of the old key")
    listed = stack.nigredo("keys", "list").out
    assert rotated["id"] in listed
    assert old["id"] not in listed
    assert rotated["key"].split("_", 2)[2] not in listed
    assert stack.nigredo("keys", "revoke", rotated["id"]).code == 0
    assert stack.nigredo("keys", "revoke", rotated["id"]).code != 0


def test_a_key_with_an_end_is_followed_by_one_with_the_same_end_and_never_outlives_it(stack: Stack) -> None:
    old = create_key(stack, "--for", "1h")
    assert old["until"] is not None
    rotated = json.loads(stack.nigredo("keys", "rotate", old["id"], "--overlap", "24h", "--json").out)
    assert rotated["until"] == rotated["old_until"]
    assert rotated["until"][:19] == old["until"][:19]

    again = stack.nigredo("keys", "rotate", old["id"])
    assert again.code != 0
    assert rotated["id"] in again.err
    until = {each["id"]: each["until"] for each in json.loads(stack.nigredo("keys", "list", "--json").out)}
    for key_id in (old["id"], rotated["id"]):
        assert until[key_id][:19] == old["until"][:19]
        assert stack.nigredo("keys", "revoke", key_id).code == 0


def test_with_the_database_away_forms_are_taken_and_reads_say_so(stack: Stack, reader: Reader) -> None:
    assert stack.nigredo("stop", "postgres").code == 0
    try:
        lead_id = post(stack)
        answer = reader.get(limit=1)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        # Who may ask does not depend on the database.
        assert httpx.get(f"{stack.url}/api/leads").status_code == 401
    finally:
        assert stack.nigredo("start", "postgres").code == 0
    assert reader.stored(lead_id)["id"] == lead_id
