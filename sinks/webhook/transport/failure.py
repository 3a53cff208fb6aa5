"""Transport failures as texts that operators search for: the system's or TLS's code, then a sentence. No I/O.

The codes are the ones that Node.js uses too, because the operations runbook searches for `ECONNREFUSED`. No text
contains a byte that the receiver sent.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping

import aiohttp
import httpx
from aiohttp.http_exceptions import HttpProcessingError

ADDRESS_REFUSED = "refused to connect: the receiver's address is not public (see WEBHOOK_ALLOWED_NETWORKS)"


class AddressRefused(OSError):
    """The receiver's name resolved to an address that the SSRF guard refuses."""

    def __init__(self) -> None:
        # The same text for all addresses of a name, so that the client library raises this error unchanged.
        super().__init__(errno.EACCES, ADDRESS_REFUSED)


CERTIFICATES: Mapping[int, str] = {
    2: "UNABLE_TO_GET_ISSUER_CERT: an authority above the receiver's certificate is missing",
    9: "CERT_NOT_YET_VALID: the receiver's certificate is not valid yet",
    10: "CERT_HAS_EXPIRED: the receiver's certificate has expired",
    18: "DEPTH_ZERO_SELF_SIGNED_CERT: the receiver's certificate is self-signed",
    19: "SELF_SIGNED_CERT_IN_CHAIN: the receiver's certificate is signed by an authority that is not trusted here",
    20: "UNABLE_TO_GET_ISSUER_CERT_LOCALLY: the receiver's certificate is signed by an authority that is not known"
    " here, or the receiver does not send the certificates in between",
    21: "UNABLE_TO_VERIFY_LEAF_SIGNATURE: the receiver does not send the certificates in between",
    23: "CERT_REVOKED: the receiver's certificate is revoked",
    62: "ERR_TLS_CERT_ALTNAME_INVALID: the receiver's certificate is for another host",
    64: "ERR_TLS_CERT_ALTNAME_INVALID: the receiver's certificate is for another address",
}
"""Texts by OpenSSL's verification error (X509_V_ERR_*)."""

TLS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "WRONG_VERSION_NUMBER",
            "HTTP_REQUEST",
            "PACKET_LENGTH_TOO_LONG",
            "RECORD_LAYER_FAILURE",
            "UNEXPECTED_MESSAGE",
        ),
        "EPROTO: the receiver does not speak TLS on this port",
    ),
    **dict.fromkeys(
        ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE"),
        "EPROTO: the receiver has no version of TLS that is accepted here (1.2 or later)",
    ),
    **dict.fromkeys(
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_BAD_CERTIFICATE", "TLSV1_ALERT_UNKNOWN_CA"),
        "EPROTO: the receiver wants a client certificate",
    ),
    "UNEXPECTED_EOF_WHILE_READING": "ECONNRESET: the receiver closed the connection during the TLS handshake",
}
"""Texts by OpenSSL's reason."""

NAMES: Mapping[int, str] = {
    socket.EAI_NONAME: "ENOTFOUND: the receiver's name is not known",
    socket.EAI_NODATA: "ENOTFOUND: the receiver's name has no address",
    socket.EAI_AGAIN: "EAI_AGAIN: the resolver does not answer for the receiver's name",
}
"""Texts by the resolver's error code (EAI_*)."""

UNNUMBERED: Mapping[type[OSError], int] = {
    ConnectionResetError: errno.ECONNRESET,
    ConnectionAbortedError: errno.ECONNABORTED,
    BrokenPipeError: errno.EPIPE,
}
"""Error numbers of exceptions that event loops raise without one, as when TLS handshakes are cut off."""

_ERRNO = re.compile(r"\[Errno (\d+)\]")
_QUOTED = re.compile(r"""[:\n'"]| when reading """)
"""Matches where the parser's message starts to quote the response."""


def describe(failure: BaseException) -> str:
    """Return the text for a failure, by the first known exception among the failure and its causes."""
    causes = list(_causes(failure))
    for cause in causes:
        if (text := _known(cause)) is not None:
            return text
    if any(isinstance(cause, httpx.TimeoutException | TimeoutError) for cause in causes[1:]):
        return "Connection timeout"
    return f"the connection broke: {type(causes[-1]).__name__}"


def _known(cause: BaseException) -> str | None:
    # The order matters: earlier classes are subclasses of later ones.
    if isinstance(cause, AddressRefused):
        return ADDRESS_REFUSED
    if isinstance(cause, aiohttp.ClientConnectorError):
        return None  # Repeats the number of its cause, which may be no errno.
    if isinstance(cause, ssl.SSLCertVerificationError):
        other = f"CERT_REFUSED: the receiver's certificate is not accepted (OpenSSL's code {cause.verify_code})"
        return CERTIFICATES.get(cause.verify_code, other)
    if isinstance(cause, ssl.SSLError):
        return TLS.get(cause.reason or "", f"EPROTO: TLS failed ({cause.reason or type(cause).__name__})")
    if isinstance(cause, socket.gaierror):
        return NAMES.get(cause.errno or 0, f"ENOTFOUND: the receiver's name cannot be resolved (code {cause.errno})")
    if isinstance(cause, aiohttp.ServerDisconnectedError):
        return "ECONNRESET: the receiver closed the connection before it answered"
    if isinstance(cause, HttpProcessingError):
        words = _QUOTED.split(cause.message.removeprefix("Bad status line:").strip(), maxsplit=1)[0].strip()
        return f"the answer is no HTTP: {words or type(cause).__name__}"
    if isinstance(cause, aiohttp.ClientPayloadError):
        return "ECONNRESET: the answer broke off"
    if isinstance(cause, httpx.InvalidURL | aiohttp.InvalidURL | UnicodeError):
        return "the receiver's URL cannot be used"
    if isinstance(cause, OSError):
        numbers = [cause.errno] if cause.errno is not None else [int(each) for each in _ERRNO.findall(str(cause))]
        numbers = numbers or [number for kind, number in UNNUMBERED.items() if isinstance(cause, kind)]
        # Several numbers, because each address of a name may have failed differently.
        codes = [number for number in dict.fromkeys(numbers) if number in errno.errorcode]
        if codes:
            return ", ".join(f"{errno.errorcode[code]}: {os.strerror(code)}" for code in codes)
    return None


def _causes(failure: BaseException) -> Iterator[BaseException]:
    """Yield an exception, then its causes, the root last."""
    seen: set[int] = set()
    cause: BaseException | None = failure
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
