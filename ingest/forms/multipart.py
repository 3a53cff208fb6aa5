"""Multipart parser: the parts of a multipart/form-data body (RFC 7578) that is completely in memory.

Falcon's own reader accepts only one `Content-Transfer-Encoding`, although Apache HttpClient sends others with each
part, and no field names outside UTF-8, although pages in other encodings have them.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator, Mapping

from schemas.immutable import immutable

BOUNDARY_MAX = 200
_DECODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "base64": binascii.a2b_base64,
    "quoted-printable": binascii.a2b_qp,
}
_IDENTITIES = ("", "7bit", "8bit", "binary")
_PARAMETER = re.compile(r""";\s*+([^\s;="]++)\s*+=\s*+("(?:[^"\\]|\\.)*+"|[^;]*+)""", re.DOTALL)


class Malformed(Exception):
    """The body is not multipart form data."""


class UnknownTransferEncoding(Exception):
    """A part has an unknown `Content-Transfer-Encoding`. `name`: the field's name in bytes."""

    def __init__(self, name: bytes) -> None:
        super().__init__("unknown Content-Transfer-Encoding")
        self.name = name


@immutable
class Part:
    """A field of the form. `charset`: from the part's own Content-Type."""

    name: bytes
    data: bytes
    charset: str | None
    filename: str | None
    """None for a field that is no file; empty when no file was chosen."""


def parts_of(content_type: str, body: bytes) -> Iterator[Part]:
    """Yield each part of a body, in order. Raises Malformed or UnknownTransferEncoding."""
    boundary = parameters_of(content_type).get("boundary", "").encode("latin-1", "replace")
    if not 0 < len(boundary) <= BOUNDARY_MAX:
        raise Malformed
    # The first delimiter may begin the body, without the line break before it.
    _, *pieces = (b"\r\n" + body).split(b"\r\n--" + boundary)
    for piece in pieces:
        if piece.startswith(b"--"):
            return
        padding, line_break, content = piece.partition(b"\r\n")
        if not line_break or padding.strip(b" \t"):
            raise Malformed
        yield _part_of(content)
    # A body without the closing delimiter is incomplete.
    raise Malformed


def _part_of(content: bytes) -> Part:
    head, blank, data = content.partition(b"\r\n\r\n")
    if not blank:
        raise Malformed
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    about = parameters_of(headers.get("content-disposition", ""))
    field = about.get("name", "").encode("latin-1")
    coding = headers.get("content-transfer-encoding", "").lower()
    if coding not in _IDENTITIES:
        if coding not in _DECODERS:
            raise UnknownTransferEncoding(field)
        try:
            data = _DECODERS[coding](data)
        except binascii.Error:
            raise Malformed from None
    charset = parameters_of(headers.get("content-type", "")).get("charset")
    return Part(field, data, charset, about.get("filename", about.get("filename*")))


def parameters_of(header: str) -> Mapping[str, str]:
    """Return a header's parameters by their names in lower case, in linear time.

    Falcon's `parse_header` scans a quoted string again at each semicolon in it, and a body full of semicolons blocked
    the event loop for seconds.
    """
    found = {}
    for parameter in _PARAMETER.finditer(header):
        value = parameter[2].strip()
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1].replace("\\\\", "\\").replace('\\"', '"')
        found[parameter[1].lower()] = value
    return found
