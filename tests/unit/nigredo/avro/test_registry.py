"""Client of the schema registry: the registry's own answers are distinguished from those of a proxy in front."""

from __future__ import annotations

import json

import httpx
import pytest

from nigredo.avro.registry import Registry, RegistryUnavailable, SchemaIncompatible, SchemaUnknown


def answering(*answers: httpx.Response) -> Registry:
    """Return a client of a registry that gives these answers in turn."""
    left = list(answers)
    registry = Registry("http://registry.example/apis/ccompat/v7")
    transport = httpx.MockTransport(lambda _: left.pop(0))
    registry._client = httpx.Client(base_url="http://registry.example/", transport=transport)
    return registry


def test_an_id_is_unknown_by_the_registrys_own_error_code_alone() -> None:
    with pytest.raises(SchemaUnknown):
        answering(httpx.Response(404, json={"error_code": 40403, "message": "Schema 7 not found."})).text_of(7)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404, text="<html>no such route</html>"),
        httpx.Response(404, json={"error_code": 404, "message": "HTTP 404 Not Found"}),
        httpx.Response(404, json=["not", "an", "object"]),
        httpx.Response(200, text="<html>a login page</html>"),
        httpx.Response(200, json={"unexpected": 1}),
        httpx.Response(503),
    ],
)
def test_an_answer_that_is_not_the_registrys_means_wait(answer: httpx.Response) -> None:
    with pytest.raises(RegistryUnavailable):
        answering(answer).text_of(7)


def test_a_refused_schema_is_distinguished_from_an_unavailable_registry() -> None:
    with pytest.raises(SchemaIncompatible):
        answering(httpx.Response(409, json={"error_code": 409})).register("a-value", '"string"')


class Confluent:
    """Fake of Confluent's registry, as far as importing a schema under a given id needs."""

    def __init__(self, *, modes: bool = True) -> None:
        self.modes = modes
        self.mode = "READWRITE"
        self.texts: dict[int, str] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"{}")
        if path.startswith("/mode/"):
            if not self.modes:
                return httpx.Response(422, json={"error_code": 42205, "message": "not supported"})
            self.mode = body["mode"]
            return httpx.Response(200, json=body)
        if request.method == "POST":
            schema_id = body["id"] if self.mode == "IMPORT" else 1
            self.texts[schema_id] = body["schema"]
            return httpx.Response(200, json={"id": schema_id})
        found = self.texts.get(int(path.rpartition("/")[2])) if path.startswith("/schemas/ids/") else None
        if found is None:
            return httpx.Response(404, json={"error_code": 40403, "message": "not found"})
        return httpx.Response(200, json={"schema": found})


@pytest.mark.parametrize("modes", [True, False])
def test_confluents_registry_is_given_an_id_in_import_mode_and_left_in_its_own_mode(modes: bool) -> None:
    confluent, registry = Confluent(modes=modes), Registry("http://registry.example")
    transport = httpx.MockTransport(confluent)
    registry._client = httpx.Client(base_url="http://registry.example/", transport=transport)

    assert registry.bring_back(77, "a-value", '"string"') is modes
    assert confluent.texts == ({77: '"string"'} if modes else {})
    assert confluent.mode == "READWRITE"
