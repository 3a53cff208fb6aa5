"""Whatever bytes arrive in headers and bodies, none of them is the server's fault."""

from __future__ import annotations

import json
import socket

from hypothesis import example, given, settings
from hypothesis import strategies as st

from nigredo.testing import Stack

Headers = list[tuple[bytes, bytes]]
LATIN = st.binary(max_size=60).map(lambda value: bytes(byte for byte in value if byte not in b"\r\n\0"))
NAMES = [
    *("Accept", "Accept-Encoding", "Accept-Language", "Access-Control-Request-Method", "Authorization", "Cookie"),
    *("Connection", "Content-Encoding", "Content-Type", "Date", "Expect", "Forwarded", "Host", "Idempotency-Key"),
    *("If-Modified-Since", "If-None-Match", "Origin", "Range", "Referer", "Sec-Fetch-Mode", "Trailer"),
    *("Upgrade", "User-Agent", "X-Forwarded-For", "X-Forwarded-Host", "X-Request-Id"),
]
TYPICAL = [
    "text/html",
    "text/html;q=x",
    "*/*;q=0.1, text/html;level=1",
    "application/json",
    "application/json; charset=utf-7",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "multipart/form-data; boundary=b",
    'multipart/form-data; boundary="',
    "pt-BR,pt;q=0.9,en;q=nan",
    "http://[",
    "https://[::1/?utm_source=a",
    "https://example.com:99999/?utm_source=%ff",
    'for="[::1%25eth0]:80";by=x',
    "1.2.3.4, ::ffff:1.2.3.4, [::1]:80, unknown",
    "Bearer ngd_",
    "Basic Og==",
    'W/"x", *',
    "bytes=0-",
    "100-continue",
    "close, upgrade",
    "h2c",
]
HEADERS = st.lists(
    st.tuples(st.sampled_from(NAMES).map(str.encode), st.one_of(st.sampled_from(TYPICAL).map(str.encode), LATIN)),
    max_size=6,
)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=40),
    st.sampled_from(["http://[", "ana@example.com", "Ana", "1e999", "nan", "\ud800"]),
)
FIELDS = st.sampled_from(
    ["name", "email", "message", "form_id", "source", "_next", "_gotcha", "_seconds", "utm_source", "", "x", "\0"]
)
DOCUMENTS = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4))
GOOD = {"name": "Ana", "email": "ana@example.com", "message": "Oi"}
FORMS = st.dictionaries(FIELDS, DOCUMENTS, max_size=5).map(lambda fields: json.dumps(GOOD | fields).encode())
PAIRS = st.lists(st.tuples(FIELDS, LATIN), max_size=6).map(
    lambda pairs: b"&".join(name.encode() + b"=" + value for name, value in pairs)
)
PARTS = st.lists(st.tuples(LATIN, LATIN), max_size=4).map(
    lambda parts: (
        b"".join(
            b"--b\r\nContent-Disposition: form-data; name=" + name + b"\r\n\r\n" + value + b"\r\n"
            for name, value in parts
        )
        + b"--b--\r\n"
    )
)
BODIES = st.one_of(
    st.tuples(st.just(b"application/json"), FORMS | DOCUMENTS.map(lambda value: json.dumps(value).encode())),
    st.tuples(st.just(b"application/x-www-form-urlencoded"), PAIRS),
    st.tuples(st.just(b"multipart/form-data; boundary=b"), PARTS),
    st.tuples(LATIN, st.binary(max_size=300)),
)
PATHS = [b"/", b"/api/leads?utm_source=%00&limit=1&cursor=%ff", b"/api/leads/x/trail", b"/health", b"//", b"*"]
TARGETS = st.one_of(
    st.just(b"/api/leads"),
    st.sampled_from(PATHS),
    st.binary(max_size=30).map(lambda raw: b"/" + bytes(byte for byte in raw if byte > 32)),
)
LAST = [(b"Host", b"x"), (b"Connection", b"close")]
METHODS = st.sampled_from([b"POST", b"POST", b"POST", b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE", b"X"])


def exchange(port: int, request: bytes, *, cut: bool) -> bytes:
    """Send raw bytes and return what comes back, which may be nothing for what is no HTTP. cut: nothing more comes."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            connection.sendall(request)
            if cut:
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                got += chunk
        except ConnectionError:
            pass
    return got


def statuses(answer: bytes) -> list[int]:
    """Return the status of each answer in what came back; `100 Continue` is one too."""
    return [int(line[9:12]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


@settings(max_examples=400)
@given(METHODS, TARGETS, HEADERS, BODIES, st.sampled_from(["length", "chunked", "short", "none"]))
@example(b"POST", b"/api/leads", [], (b"application/json", json.dumps(GOOD | {"_seconds": 10**400}).encode()), "length")
@example(
    b"POST",
    b"/api/leads",
    [(b"Accept", b"text/html")],
    (b"application/json", json.dumps(GOOD | {"_next": "http://["}).encode()),
    "length",
)
def test_no_combination_of_headers_and_body_is_the_servers_fault(
    stack: Stack,
    method: bytes,
    target: bytes,
    headers: Headers,
    body: tuple[bytes, bytes],
    framing: str,
) -> None:
    kind, content = body
    lines = [method + b" " + target + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in [*headers, *LAST, (b"Content-Type", kind)]]
    if framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
        content = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content) if content else b"0\r\n\r\n"
    elif framing != "none":
        lines.append(b"Content-Length: %d" % (len(content) + (framing == "short")))
    request = b"\r\n".join(lines) + b"\r\n\r\n" + content

    answer = exchange(stack.home.port("ingest"), request, cut=framing == "short")

    assert not [status for status in statuses(answer.partition(b"\r\n\r\n")[0]) if status >= 500], (
        request,
        answer[:500],
    )


def test_the_server_is_well_afterwards(stack: Stack) -> None:
    assert stack.post().status_code == 202
