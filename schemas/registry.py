"""The schema registry: Confluent's HTTP API, with everything it once said kept on disk.

Ids and schemas never change once given, so a cached answer is as good as the registry's own: a process that has
started once needs the registry again only for a schema it has never met.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from nigredo.errors import DependencyDown

NOT_ASKED_S = 10.0
"""How long a registry that did not answer is not asked for what is known all the same."""
CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"


class RegistryUnavailable(DependencyDown):
    """The registry did not answer and the cache does not know; may succeed later."""


class SchemaUnknown(Exception):
    """The registry answered that it does not have it. `nigredo topics ensure` registers what this release writes."""


class SchemaIncompatible(Exception):
    """The registry refused a schema: readers of older or newer records would break."""


class Registry:
    """A client of one registry. `cache_dir` may be shared by several processes. Safe to use from several threads."""

    def __init__(self, url: str, cache_dir: Path, *, timeout_s: float = 5.0) -> None:
        # With a transport of its own the client asks no proxy of the environment: the registry is a part of the
        # installation, and reached directly.
        self._client = httpx.Client(
            base_url=url + "/", timeout=timeout_s, headers={"Accept": CONTENT_TYPE}, transport=httpx.HTTPTransport()
        )
        self._cache_dir = cache_dir
        self._lock = threading.Lock()
        self._not_asked_until = 0.0

    def id_of(self, subject: str, schema: Any) -> int:
        """Return the id under which `schema` is registered; asks the registry first, else the cache.

        Raises SchemaUnknown when it is not registered, RegistryUnavailable when nobody can tell.
        """
        text = _canonical(schema)
        cache_file = self._cache_dir / f"{subject}.{hashlib.sha256(text.encode()).hexdigest()[:16]}.id"
        known = cache_file.exists()
        if known and time.monotonic() < self._not_asked_until:
            return int(cache_file.read_text())
        try:
            answer = self._ask("POST", f"subjects/{subject}", {"schema": text})
        except RegistryUnavailable:
            if not known:
                raise
            # Each of many questions would wait as long for the same.
            self._not_asked_until = time.monotonic() + NOT_ASKED_S
            return int(cache_file.read_text())
        schema_id = int(answer["id"])
        self._keep(cache_file, str(schema_id))
        return schema_id

    def schema_of(self, schema_id: int) -> Any:
        """Return the schema with this id; from the cache if it is there.

        Raises SchemaUnknown when the registry has no such id, RegistryUnavailable when nobody can tell.
        """
        cache_file = self._cache_dir / f"{schema_id}.avsc"
        if cache_file.exists():
            return json.loads(cache_file.read_text(encoding="utf-8"))
        answer = self._ask("GET", f"schemas/ids/{schema_id}")
        if answer.get("schemaType", "AVRO") != "AVRO":
            raise SchemaUnknown(f"schema {schema_id} is {answer['schemaType']}, not Avro")
        schema = json.loads(answer["schema"])
        self._keep(cache_file, answer["schema"])
        return schema

    def register(self, subject: str, schema: Any) -> int:
        """Register `schema` as the newest of `subject`, unless it is there already; return its id.

        Raises SchemaIncompatible when the subject's compatibility level forbids it.
        """
        return int(self._ask("POST", f"subjects/{subject}/versions", {"schema": _canonical(schema)})["id"])

    def set_compatibility(self, subject: str, level: str) -> None:
        """Set which changes of `subject` the registry accepts from now on, such as `FULL_TRANSITIVE`."""
        self._ask("PUT", f"config/{subject}", {"compatibility": level})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": CONTENT_TYPE}
        try:
            response = self._client.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise RegistryUnavailable(f"the schema registry does not answer: {type(error).__name__}") from error
        if response.status_code == httpx.codes.NOT_FOUND:
            raise SchemaUnknown(f"the schema registry does not have {path}")
        if response.status_code in (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY):
            raise SchemaIncompatible(f"the schema registry refuses {path}: {response.text[:500]}")
        if response.is_error:
            raise RegistryUnavailable(f"the schema registry answers {response.status_code} to {method} {path}")
        return response.json()

    def _keep(self, file: Path, text: str) -> None:
        # A cache that cannot be written costs a question at the next start, nothing else.
        with self._lock, suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_name(f"{file.name}.{os.getpid()}")
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(file)


def _canonical(schema: Any) -> str:
    """One text for one schema, so that the registry finds it again."""
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False)
