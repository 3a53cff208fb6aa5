"""Decoding of request bodies into fields: JSON, urlencoded, multipart, or plain text.

Text is UTF-8, or in the encoding that the body declares. Other bytes are refused, together with their most likely text
for a person to check.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from falcon.uri import decode, parse_query_string

from ingest.forms.charsets import codec_for, field_of, guess_of, text_of
from ingest.forms.multipart import Malformed, UnknownTransferEncoding, parameters_of, parts_of
from ingest.forms.validation import FieldProblem, Form, InvalidForm, form_of, shown, typed_of

PAIRS_MAX = 500
NESTED_MAX = 600
"""Maximum depth of a JSON body, safely below the recursion limit of Python's parser, which recurses once a level."""
CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CHARSET = "_charset_"
"""The field in which browsers send the encoding of their form (HTML, 4.10.21.5)."""

JSON = "application/json"
URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
PLAIN = "text/plain"

_PLAIN_FIELD = re.compile(r"([\w.\[\]-]{1,100})=(.*)", re.DOTALL)


def parse_form(content_type: str | None, body: bytes) -> Form:
    """Return the form in a request's body. Raises InvalidForm, which names every invalid field."""
    return form_of(read_fields(content_type, body))


def refuse_encoded(coding: str | None) -> None:
    """Refuse a compressed body (RFC 9110, 8.4), because forms are small. Raises InvalidForm with 415.

    Other values, such as the name of a charset, are ignored as a client's mistake.
    """
    if coding and not CODINGS.isdisjoint(one.strip().lower() for one in coding.split(",")):
        raise InvalidForm(415, FieldProblem("Content-Encoding", "must not be there: bodies are taken as they are"))


def read_fields(content_type: str | None, body: bytes) -> Mapping[str, Any]:
    """Return the values of a body by field name; a field given several times, as checkboxes are, is a list.

    Raises InvalidForm for an unreadable body.
    """
    kind, _, parameters = (content_type or "").partition(";")
    kind = kind.strip().lower()
    codec = codec_for(parameters_of(f";{parameters}").get("charset")) if "charset" in parameters.lower() else None
    if kind in ("", PLAIN):
        return _undeclared_fields(kind, body, codec)
    if kind not in (JSON, URLENCODED, MULTIPART):
        raise _unsupported()
    if not body.strip():
        raise InvalidForm(400, FieldProblem("body", "is empty"))
    if kind == JSON:
        return _json_fields(body, codec)
    return _urlencoded_fields(body, codec) if kind == URLENCODED else _multipart_fields(content_type or "", body, codec)


def _unsupported(typed: Mapping[str, str] | None = None) -> InvalidForm:
    return InvalidForm(415, FieldProblem("Content-Type", f"must be {JSON}, {URLENCODED} or {MULTIPART}"), typed=typed)


def _undeclared_fields(kind: str, body: bytes, codec: str | None) -> Mapping[str, Any]:
    """Return the fields of a JSON object sent without its content type, as by scripts that cannot see a 415.

    A form with `enctype="text/plain"` is refused, because its values may contain the separators.
    """
    if body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return _json_fields(body, codec)
    raise _unsupported(_plain_fields(body, codec) if kind == PLAIN else None)


def _plain_fields(body: bytes, codec: str | None) -> Mapping[str, str] | None:
    """Return the most likely fields of a plain text form, for a person to check; None when the text is no form."""
    text = field_of(body, codec)
    fields: dict[str, list[str]] = {}
    last = None
    for line in (guess_of(body) if text is None else text).split("\r\n")[: 10 * PAIRS_MAX]:
        if (found := _PLAIN_FIELD.fullmatch(line)) and len(fields) < PAIRS_MAX:
            last = found[1]
            fields[last] = [found[2]]
        elif last is not None:
            fields[last].append(line)
    return typed_of({name: "\n".join(lines).strip() for name, lines in fields.items()}) or None


def _json_fields(body: bytes, codec: str | None) -> Mapping[str, Any]:
    text = text_of(body, codec)
    if text is None:
        raise InvalidForm(400, FieldProblem("body", "is not UTF-8"))
    try:
        # Numbers stay as written, because a float would round them: as bytes, which no other JSON value becomes, and
        # which cost no more than numbers. A byte order mark is not part of the text.
        fields = json.loads(
            text.removeprefix("\ufeff"), parse_constant=_no_constant, parse_int=str.encode, parse_float=str.encode
        )
    except RecursionError:
        raise _nested() from None
    except ValueError:
        raise InvalidForm(400, FieldProblem("body", "is not JSON")) from None
    if not isinstance(fields, dict):
        raise InvalidForm(422, FieldProblem("body", "must be a JSON object"))
    if len(fields) > PAIRS_MAX:
        raise _too_many()
    if text.count("[") + text.count("{") > NESTED_MAX and _depth_of(fields) > NESTED_MAX:
        raise _nested()
    return fields


def _depth_of(fields: Mapping[str, Any]) -> int:
    """Return the nesting depth of lists and objects, without recursion."""
    depth, level = 0, list[Any]([fields])
    while level:
        depth += 1
        within = (one for each in level for one in (each.values() if isinstance(each, dict) else each))
        level = [one for one in within if isinstance(one, (dict, list))]
    return depth


def _nested() -> InvalidForm:
    return InvalidForm(400, FieldProblem("body", "is nested too deeply"))


def _too_many() -> InvalidForm:
    return InvalidForm(422, FieldProblem("body", f"has more than {PAIRS_MAX} values"))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _urlencoded_fields(body: bytes, codec: str | None) -> Mapping[str, Any]:
    if body.isascii() and body.split() == [body] and body.count(b"&") < PAIRS_MAX:
        # As browsers write it: Falcon's parser, which is compiled. It decodes bytes that are not UTF-8 to REPLACEMENT;
        # such a body is parsed field by field below.
        text = body.decode()
        if codec in (None, "utf-8") and CHARSET not in text and REPLACEMENT not in decode(text):
            fields: Mapping[str, Any] = parse_query_string(text, keep_blank=True)
            return fields
    pairs = [pair for pair in body.split(b"&") if pair.strip()]
    if len(pairs) > PAIRS_MAX:
        raise _too_many()
    raw = []
    for pair in pairs:
        name, _, value = pair.partition(b"=")
        raw.append((_unquoted(name), _unquoted(value), None))
    return _texts(raw, codec)


def _unquoted(raw: bytes) -> bytes:
    spaced = raw.replace(b"+", b" ")
    return unquote_to_bytes(spaced) if b"%" in spaced else spaced


def _multipart_fields(content_type: str, body: bytes, codec: str | None) -> Mapping[str, Any]:
    """Return the fields. A file is refused, because files are not stored; an empty file input is ignored."""
    raw: list[tuple[bytes, bytes, str | None]] = []
    problems = []
    try:
        for part in parts_of(content_type, body):
            if part.filename is None:
                raw.append((part.name, part.data, part.charset))
            elif part.filename or part.data:
                problems.append(FieldProblem(_readable(part.name), "is a file, and files are not taken"))
            if len(raw) + len(problems) > PAIRS_MAX:
                raise _too_many()
    except Malformed:
        raise InvalidForm(400, FieldProblem("body", "is not multipart form data")) from None
    except UnknownTransferEncoding as error:
        detail = "has a Content-Transfer-Encoding that does not exist"
        raise InvalidForm(400, FieldProblem(_readable(error.name), detail)) from None
    return _texts(raw, codec, problems)


def _readable(name: bytes) -> str:
    return shown(name.decode("utf-8", "replace"))


def _texts(
    raw: Iterable[tuple[bytes, bytes, str | None]], codec: str | None, files: Iterable[FieldProblem] = ()
) -> Mapping[str, Any]:
    """Decode the fields to text. raw: name, value and declared charset of each field. Raises InvalidForm."""
    raw = list(raw)
    declared = next((value for name, value, _ in raw if name == CHARSET.encode()), b"")
    codec = codec_for(declared.decode("latin-1")) or codec
    given: dict[str, list[str]] = {}
    unreadable = []
    for raw_name, raw_value, own in raw:
        name, value = field_of(raw_name, codec), field_of(raw_value, codec_for(own) or codec)
        if name is None:
            name = guess_of(raw_name)
            unreadable.append(FieldProblem("body", "has a field name that is not UTF-8"))
        if value is None:
            value = guess_of(raw_value)
            unreadable.append(FieldProblem(shown(name), "is not UTF-8: check its accented letters"))
        given.setdefault(name, []).append(value)
    fields = {name: values[0] if len(values) == 1 else values for name, values in given.items()}
    problems = [*unreadable, *files]
    if problems:
        # With the typed fields, to be checked by the person or resent without the file.
        raise InvalidForm(400 if unreadable else 422, *problems, typed=typed_of(fields))
    return fields
