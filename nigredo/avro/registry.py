"""The schema registry's client: Confluent's HTTP API, and what brings an id back under which a schema was known.

Asked where schemas are registered, and for an id that is not pinned: records of our own are read by the pins alone.
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
"""Apicurio's Confluent API, beside which its own is found."""
NOT_FOUND = (40401, 40402, 40403)
"""The API's own words for a subject, a version, a schema that there is not: any other 404 comes from in between."""
BROUGHT_BACK = "nigredo.brought-back-"


class RegistryUnavailable(DependencyDown):
    """The registry did not answer; may succeed later."""


class SchemaUnknown(Exception):
    """The registry, or the pins, answered that there is no such schema."""


class SchemaIncompatible(Exception):
    """The registry refused a schema: readers of older or newer records would break."""


class Registry:
    """A client of one registry. Safe to use from several threads."""

    def __init__(self, url: str, *, credentials: tuple[str, str] | None = None, timeout_s: float = 5.0) -> None:
        """credentials: user and password, sent as HTTP Basic with every request."""
        self._url = url
        # With a transport of its own the client asks no proxy of the environment: the registry is a part of the
        # installation, and reached directly.
        self._client = httpx.Client(
            base_url=url + "/",
            timeout=timeout_s,
            headers={"Accept": CONTENT_TYPE},
            auth=credentials,
            transport=httpx.HTTPTransport(),
        )

    def text_of(self, schema_id: int) -> str:
        """Return the text of the schema with this id. Raises SchemaUnknown when the registry has no such id."""
        return self.kind_of(schema_id)[1]

    def kind_of(self, schema_id: int) -> tuple[str, str]:
        """Return kind (`AVRO` and others) and text of the schema with this id. Raises SchemaUnknown."""
        answer = self._ask("GET", f"schemas/ids/{schema_id}")
        if not isinstance(answer, dict) or "schema" not in answer:
            raise RegistryUnavailable("what answers for the schema registry does not speak its language")
        return str(answer.get("schemaType", "AVRO")), str(answer["schema"])

    def subjects_of(self, schema_id: int) -> list[str]:
        """Return the subjects that an id stands under; none where the registry does not tell."""
        try:
            return sorted({str(each["subject"]) for each in self._ask("GET", f"schemas/ids/{schema_id}/versions")})
        except SchemaUnknown:
            return []

    def schemas_of(self, subject: str) -> list[tuple[int, str]]:
        """Return id and text of each version of a subject, oldest first; none for a subject that there is not."""
        try:
            versions = self._ask("GET", f"subjects/{subject}/versions")
            found = [self._ask("GET", f"subjects/{subject}/versions/{version}") for version in versions]
        except SchemaUnknown:
            return []
        return [(int(each["id"]), str(each["schema"])) for each in found if each.get("schemaType", "AVRO") == "AVRO"]

    def newest_of(self, subject: str) -> tuple[int, str] | None:
        """Return id and text of the newest version of a subject; None for a subject that there is not."""
        try:
            found = self._ask("GET", f"subjects/{subject}/versions/latest")
        except SchemaUnknown:
            return None
        return int(found["id"]), str(found["schema"])

    def register(self, subject: str, text: str) -> int:
        """Register a schema as the newest of `subject`, unless it is there already; return its id.

        Raises SchemaIncompatible when the subject's compatibility level forbids it.
        """
        return int(self._ask("POST", f"subjects/{subject}/versions", {"schema": text})["id"])

    def set_compatibility(self, subject: str, level: str) -> None:
        """Set which changes of `subject` the registry accepts from now on, such as `FULL_TRANSITIVE`."""
        try:
            self._ask("PUT", f"config/{subject}", {"compatibility": level})
        except SchemaIncompatible as error:
            # Apicurio's word when another client sets it at the same moment.
            raise RegistryUnavailable(str(error)) from error

    def bring_back(self, schema_id: int, subject: str, text: str) -> bool:
        """Let an id that the registry does not know mean this schema again; return whether it does.

        The schema is registered under `subject` too. A registry that knows the schema under another id keeps that one
        for it. False as well for a registry that cannot be told an id.
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
        """Import the schema by Apicurio's own API, which alone keeps an id.

        Under a subject of its own: registering it afterwards finds the same text, and so the same id, and the import
        needs to know nothing of the versions that `subject` has. Apicurio holds a text once; one that is there under
        another id is told apart by a space at its end, which means nothing.
        """
        helper = f"{BROUGHT_BACK}{schema_id}"
        for same_text in (text, text + " "):
            # An older one, or one that wants a right for this: whether the id is there tells.
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
        own = self.register(subject, text) == schema_id
        # The helper is hidden; and gone for good where `subject` holds the id by itself.
        with suppress(SchemaUnknown):
            self._ask("DELETE", f"subjects/{helper}")
            if own:
                self._ask("DELETE", f"subjects/{helper}?permanent=true")

    def _import_by_mode(self, schema_id: int, subject: str, text: str) -> None:
        """Import the schema as Confluent's registry has it done: in a mode in which it takes the id it is told."""
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
            raise RegistryUnavailable(f"the schema registry's answer to {method} {path} is no JSON") from error

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
    """Return one schema as Apicurio exports it: a subject with one version, and its content under the id."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    made = {"owner": "", "createdOn": 0, "modifiedBy": "", "modifiedOn": 0}
    place = {"groupId": None, "artifactId": subject}
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
        f"{folder}/MetaData.Artifact.json": place | made | {"artifactType": "AVRO"},
        f"{folder}/versions/1.ArtifactVersion.json": place
        | made
        | {"globalId": 1, "version": "1", "versionOrder": 1, "state": "ENABLED", "contentId": schema_id},
        f"{folder}/branches/latest.Branch.json": place
        | made
        | {"branchId": "latest", "systemDefined": True, "versions": ["1"]},
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, document in documents.items():
            archive.writestr(name, json.dumps(document))
        archive.writestr(f"content/{digest}.Content.data", text)
    return out.getvalue()
