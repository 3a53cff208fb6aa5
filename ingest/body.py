"""A request's body to its fields, whatever it is written in: JSON, urlencoded, or multipart."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from falcon.errors import HTTPInvalidHeader, MediaMalformedError
from falcon.media.multipart import MultipartFormHandler
from falcon.uri import decode, parse_query_string

from ingest.form import FieldProblem, Form, FormRefused, form_of, shown, typed_of

PAIRS_MAX = 500
CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

JSON = "application/json"
URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"

_multipart = MultipartFormHandler()
_multipart.parse_options.max_body_part_count = PAIRS_MAX


def parse_form(content_type: str | None, body: bytes) -> Form:
    """Return the form in a request's body. Raises FormRefused naming every field that is wrong."""
    return form_of(read_fields(content_type, body))


def refuse_encoded(coding: str | None) -> None:
    """Refuse a compressed body (RFC 9110, 8.4): forms are small, and none is unpacked here.

    Other values, such as the name of a charset, are a mistake that says nothing of the body.
    """
    if coding and not CODINGS.isdisjoint(one.strip().lower() for one in coding.split(",")):
        raise FormRefused(415, FieldProblem("Content-Encoding", "must not be there: bodies are taken as they are"))


def read_fields(content_type: str | None, body: bytes) -> Mapping[str, Any]:
    """Return what a body holds, by field; a field given several times, as checkboxes are, is a list.

    Raises FormRefused for what cannot be read.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    read = {JSON: _json_fields, URLENCODED: _urlencoded_fields}.get(kind)
    if read is None and kind != MULTIPART:
        raise FormRefused(415, FieldProblem("Content-Type", f"must be {JSON}, {URLENCODED} or {MULTIPART}"))
    if not body.strip():
        raise FormRefused(400, FieldProblem("body", "is empty"))
    return read(body) if read else _multipart_fields(content_type or "", body)


def _json_fields(body: bytes) -> Mapping[str, Any]:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise FormRefused(400, FieldProblem("body", "is not UTF-8")) from None
    try:
        fields = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise FormRefused(400, FieldProblem("body", "is nested too deeply")) from None
    except ValueError:
        raise FormRefused(400, FieldProblem("body", "is not JSON")) from None
    if not isinstance(fields, dict):
        raise FormRefused(422, FieldProblem("body", "must be a JSON object"))
    return fields


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _urlencoded_fields(body: bytes) -> Mapping[str, Any]:
    if body.isascii() and body.split() == [body] and body.count(b"&") < PAIRS_MAX:
        # As browsers write it: Falcon's parser, which is compiled. It takes what is no UTF-8 for this character; then
        # the fields are looked at one by one.
        text = body.decode()
        if REPLACEMENT not in decode(text):
            fields: Mapping[str, Any] = parse_query_string(text, keep_blank=True)
            return fields
    given: dict[str, list[str]] = {}
    problems = []
    pairs = [pair for pair in body.split(b"&") if pair.strip()]
    if len(pairs) > PAIRS_MAX:
        raise FormRefused(422, FieldProblem("body", f"has more than {PAIRS_MAX} values"))
    for pair in pairs:
        raw_name, _, raw_value = pair.partition(b"=")
        try:
            name = _unquoted(raw_name).decode("utf-8")
        except UnicodeDecodeError:
            raise FormRefused(400, FieldProblem("body", "has a field name that is not UTF-8")) from None
        try:
            value = _unquoted(raw_value).decode("utf-8")
        except UnicodeDecodeError:
            problems.append(FieldProblem(shown(name), "is not UTF-8"))
            continue
        given.setdefault(name, []).append(value)
    if problems:
        raise FormRefused(400, *problems, typed=typed_of(_single(given)))
    return _single(given)


def _unquoted(raw: bytes) -> bytes:
    spaced = raw.replace(b"+", b" ")
    return unquote_to_bytes(spaced) if b"%" in spaced else spaced


def _multipart_fields(content_type: str, body: bytes) -> Mapping[str, Any]:
    """Return the fields. A file chosen in the form is refused: there is nowhere to put it; an empty choice is none."""
    given: dict[str, list[str]] = {}
    problems = []
    try:
        for part in _multipart.deserialize(io.BytesIO(body), content_type, len(body)):
            name, data = part.name or "", part.get_data()
            if part.filename is not None:
                if part.filename or data:
                    problems.append(FieldProblem(shown(name), "is a file, and files are not taken"))
                continue
            try:
                given.setdefault(name, []).append(data.decode("utf-8"))
            except UnicodeDecodeError:
                problems.append(FieldProblem(shown(name), "is not UTF-8"))
    except (MediaMalformedError, HTTPInvalidHeader, UnicodeDecodeError, ValueError):
        raise FormRefused(400, FieldProblem("body", "is not multipart form data")) from None
    if problems:
        # What was typed comes back, to be sent without the file.
        raise FormRefused(422, *problems, typed=typed_of(_single(given)))
    return _single(given)


def _single(given: Mapping[str, list[str]]) -> Mapping[str, Any]:
    return {name: values[0] if len(values) == 1 else values for name, values in given.items()}
