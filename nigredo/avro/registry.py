"""Client of the schema registry: Confluent's HTTP API, and the restoring of a lost schema id.

Used to register schemas and to look up ids that are not pinned; the product's own records are decoded by pins only.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from contextlib import suppress
from typing import Any

import httpx

from nigredo.avro.pins import same
from nigredo.errors import DependencyDown

CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
CCOMPAT = "/apis/ccompat/"
"""Path of Apicurio's Confluent-compatible API; Apicurio's native API is under the same host."""
NOT_FOUND = (40401, 40402, 40403)
"""The API's error codes for an unknown subject, version or schema; any other 404 comes from a proxy in between."""
BROUGHT_BACK = "nigredo.brought-back-"
"""Prefix of the helper subjects under which ids are restored in Apicurio."""


class RegistryUnavailable(DependencyDown):
    """The registry did not answer, or not as a registry does: try again later."""


class SchemaUnknown(Exception):
    """The registry, or the pins, answered that the schema does not exist."""


class SchemaIncompatible(Exception):
    """The registry refused a schema, because readers of older or newer records would break."""


class Registry:
    """A client of one registry. Thread-safe. Every method raises RegistryUnavailable when the registry is down."""

    def __init__(self, url: str, *, credentials: tuple[str, str] | None = None, timeout_s: float = 5.0) -> None:
        """url: base of the Confluent API. credentials: user and password, sent as HTTP Basic with every request."""
        self._url = url
        # An explicit transport makes httpx ignore the environment's proxy, because the registry is a part of the
        # installation and reached directly.
        self._client = httpx.Client(
            base_url=url + "/",
            timeout=timeout_s,
            headers={"Accept": CONTENT_TYPE},
            auth=credentials,
            transport=httpx.HTTPTransport(),
        )

    def text_of(self, schema_id: int) -> str:
        """Return the text of the schema with this id. Raises SchemaUnknown when the id does not exist."""
        return self.kind_of(schema_id)[1]

    def kind_of(self, schema_id: int) -> tuple[str, str]:
        """Return kind (`AVRO` and others) and text of the schema with this id. Raises SchemaUnknown."""
        answer = self._ask("GET", f"schemas/ids/{schema_id}")
        if not isinstance(answer, dict) or "schema" not in answer:
            raise RegistryUnavailable("the answer of the schema registry's address is not a registry's")
        return str(answer.get("schemaType", "AVRO")), str(answer["schema"])

    def subjects_of(self, schema_id: int) -> list[str]:
        """Return the subjects that use an id; empty when the registry does not report them."""
        try:
            return sorted({str(each["subject"]) for each in self._ask("GET", f"schemas/ids/{schema_id}/versions")})
        except SchemaUnknown:
            return []

    def schemas_of(self, subject: str) -> list[tuple[int, str]]:
        """Return (id, text) of each Avro version of a subject, oldest first; empty for an unknown subject."""
        try:
            versions = self._ask("GET", f"subjects/{subject}/versions")
            found = [self._ask("GET", f"subjects/{subject}/versions/{version}") for version in versions]
        except SchemaUnknown:
            return []
        return [(int(each["id"]), str(each["schema"])) for each in found if each.get("schemaType", "AVRO") == "AVRO"]

    def newest_of(self, subject: str) -> tuple[int, str] | None:
        """Return (id, text) of the newest version of a subject; None for an unknown subject."""
        try:
            found = self._ask("GET", f"subjects/{subject}/versions/latest")
        except SchemaUnknown:
            return None
        return int(found["id"]), str(found["schema"])

    def register(self, subject: str, text: str) -> int:
        """Register a schema as the newest version of `subject`, unless it is registered already; return its id.

        Raises SchemaIncompatible when the subject's compatibility level forbids the schema.
        """
        return int(self._ask("POST", f"subjects/{subject}/versions", {"schema": text})["id"])

    def set_compatibility(self, subject: str, level: str) -> None:
        """Set the compatibility level of `subject`, such as `FULL_TRANSITIVE`."""
        try:
            self._ask("PUT", f"config/{subject}", {"compatibility": level})
        except SchemaIncompatible as error:
            # Apicurio answers so when another client sets the level at the same moment.
            raise RegistryUnavailable(str(error)) from error

    def bring_back(self, schema_id: int, subject: str, text: str) -> bool:
        """Restore a lost id for a schema; return whether the registry now has this schema under the id.

        The schema is also registered under `subject`. A registry that has the schema under another id keeps that id for
        registrations. False also for a registry that does not accept a given id.
        """
        if CCOMPAT in self._url:
            self._import_into_apicurio(schema_id, subject, text)
        else:
            self._import_by_mode(schema_id, subject, text)
        try:
            return same(self.text_of(schema_id), text)
        except SchemaUnknown:
            return False

    def _import_into_apicurio(self, schema_id: int, subject: str, text: str) -> None:
        """Import the schema by Apicurio's native API, because only that API accepts an id.

        The import uses a helper subject, so that the versions of `subject` do not matter; registering the schema
        afterwards finds the same text and so the same id. Apicurio stores a text once: if the text exists under another
        id, it is imported with a space at its end, which has no meaning in JSON.
        """
        helper = f"{BROUGHT_BACK}{schema_id}"
        for same_text in (text, text + " "):
            # Errors are ignored (an older Apicurio, or a missing permission): the look-up of the id decides.
            with suppress(RegistryUnavailable, SchemaIncompatible):
                self._ask_at(
                    self._url.partition(CCOMPAT)[0] + "/apis/registry/v3/admin/import?requireEmptyRegistry=false",
                    "POST",
                    _archive(schema_id, helper, same_text),
                    {
                        "Content-Type": "application/zip",
                        "X-Registry-Preserve-GlobalId": "false",
                        "X-Registry-Preserve-ContentId": "true",
                    },
                )
            try:
                self.text_of(schema_id)
                break
            except SchemaUnknown:
                continue
        else:
            return
        subject_has_id = self.register(subject, text) == schema_id
        # The helper subject is soft-deleted, and deleted permanently if `subject` itself holds the id.
        with suppress(SchemaUnknown):
            self._ask("DELETE", f"subjects/{helper}")
            if subject_has_id:
                self._ask("DELETE", f"subjects/{helper}?permanent=true")

    def _import_by_mode(self, schema_id: int, subject: str, text: str) -> None:
        """Import the schema in the subject's IMPORT mode, in which Confluent's registry accepts a given id."""
        versions = len(self.schemas_of(subject))
        try:
            self._ask("PUT", f"mode/{subject}?force=true", {"mode": "IMPORT"})
        except (RegistryUnavailable, SchemaIncompatible, SchemaUnknown):
            return
        try:
            body = {"schema": text, "id": schema_id, "version": versions + 1}
            self._ask("POST", f"subjects/{subject}/versions", body)
        except SchemaIncompatible:
            return
        finally:
            self._ask("PUT", f"mode/{subject}?force=true", {"mode": "READWRITE"})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": CONTENT_TYPE}
        response = self._ask_at(path, method, content, headers)
        try:
            return response.json()
        except ValueError as error:
            raise RegistryUnavailable(f"the schema registry's answer to {method} {path} is not JSON") from error

    def _ask_at(self, path: str, method: str, content: bytes | None, headers: dict[str, str]) -> httpx.Response:
        try:
            response = self._client.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise RegistryUnavailable(f"the schema registry does not answer: {type(error).__name__}") from error
        if response.status_code == httpx.codes.NOT_FOUND and _code_of(response) in NOT_FOUND:
            raise SchemaUnknown(f"the schema registry does not have {path}")
        if response.status_code in (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY):
            raise SchemaIncompatible(f"the schema registry refuses {path}: {response.text[:500]}")
        if response.is_error:
            raise RegistryUnavailable(f"the schema registry answers {response.status_code} to {method} {path}")
        return response


def _code_of(response: httpx.Response) -> object:
    try:
        document = response.json()
    except ValueError:
        return None
    return document.get("error_code") if isinstance(document, dict) else None


def _archive(schema_id: int, subject: str, text: str) -> bytes:
    """Return a zip archive in Apicurio's export format: a subject with one version, and its content under the id."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    made = {"owner": "", "createdOn": 0, "modifiedBy": "", "modifiedOn": 0}
    coordinates = {"groupId": None, "artifactId": subject}
    folder = f"groups/default/artifacts/{subject}"
    documents: dict[str, dict[str, Any]] = {
        "manifest.Manifest.json": {"systemVersion": "3.0.0", "exportVersion": "3.0", "exportedOn": 0},
        f"content/{digest}.Content.json": {
            "contentId": schema_id,
            "canonicalHash": digest,
            "contentHash": digest,
            "artifactType": "AVRO",
            "contentType": "application/json",
            "serializedReferences": None,
        },
        f"{folder}/MetaData.Artifact.json": coordinates | made | {"artifactType": "AVRO"},
        f"{folder}/versions/1.ArtifactVersion.json": coordinates
        | made
        | {"globalId": 1, "version": "1", "versionOrder": 1, "state": "ENABLED", "contentId": schema_id},
        f"{folder}/branches/latest.Branch.json": coordinates
        | made
        | {"branchId": "latest", "systemDefined": True, "versions": ["1"]},
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, document in documents.items():
            archive.writestr(name, json.dumps(document))
        archive.writestr(f"content/{digest}.Content.data", text)
    return out.getvalue()
