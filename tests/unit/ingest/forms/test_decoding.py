"""Decoding of bodies as real clients and pages send them: other encodings, odd headers, wrong content types."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.forms.charsets import CODECS
from ingest.forms.decoding import JSON, MULTIPART, URLENCODED, parse_form, read_fields
from ingest.forms.multipart import Malformed, parameters_of, parts_of
from ingest.forms.validation import EXTRA_VALUE_MAX, InvalidForm, form_of, typed_of

KIND = f"{MULTIPART}; boundary=b"
GOOD = {"name": "Ana", "email": "ana@example.com", "message": "Oi"}


def urlencoded(charset: str | None, codec: str, **fields: str) -> bytes:
    told = {"_charset_": charset} if charset else {}
    pairs = [f"{name}={quote_from_bytes(value.encode(codec))}" for name, value in (GOOD | fields | told).items()]
    return "&".join(pairs).encode()


def part(name: bytes, value: bytes, *headers: bytes) -> bytes:
    lines = (b'Content-Disposition: form-data; name="' + name + b'"', *headers)
    return b"--b\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + value + b"\r\n"


def multipart(*parts: bytes) -> bytes:
    return part(b"name", b"Ana") + part(b"email", b"ana@example.com") + b"".join(parts) + b"--b--\r\n"


@pytest.mark.parametrize(
    ("charset", "codec", "text"),
    [
        ("windows-1252", "cp1252", "José €"),
        ("Shift_JIS", "cp932", "山田①"),
        ("EUC-JP", "euc_jp", "山田"),
        ("ISO-2022-JP", "iso2022_jp", "山田"),
        ("GBK", "gb18030", "漏洞联通"),
        ("windows-1251", "cp1251", "Привет"),
        ("UTF-8", "utf-8", "José 山田"),
    ],
)
def test_a_form_in_the_encoding_that_it_names_is_read_in_it(charset: str, codec: str, text: str) -> None:
    by_field = parse_form(URLENCODED, urlencoded(charset, codec, name=text, message=text))
    by_header = parse_form(f'{URLENCODED}; charset="{charset}"', urlencoded(None, codec, name=text, message=text))

    assert (by_field.contact.name, by_field.contact.message, by_field.contact.extra) == (text, text, {})
    assert by_header == by_field


def test_what_the_encoding_of_a_page_lacks_and_its_browser_wrote_as_a_reference_is_read_too() -> None:
    body = urlencoded("windows-1252", "cp1252", message="é &#128512; &#233; &#9999999; &#55357;")

    assert parse_form(URLENCODED, body).contact.message == "é 😀 &#233; &#9999999; &#55357;"
    assert parse_form(URLENCODED, urlencoded(None, "utf-8", message="&#128512;")).contact.message == "&#128512;"


def test_utf_8_that_a_client_calls_latin_1_is_utf_8() -> None:
    body = urlencoded(None, "utf-8", name="José")

    assert parse_form(f"{URLENCODED}; charset=ISO-8859-1", body).contact.name == "José"
    assert (
        parse_form(f"{JSON}; charset=iso-8859-1", json.dumps(GOOD | {"name": "José"}).encode()).contact.name == "José"
    )


@pytest.mark.parametrize("charset", ["ISO-8859-1", "utf-16", "Shift_JIS"])
def test_json_in_the_encoding_that_it_declares_is_read_in_it(charset: str) -> None:
    text = "José" if charset == "ISO-8859-1" else "山田"
    body = json.dumps(GOOD | {"name": text}, ensure_ascii=False).encode(charset)

    assert parse_form(f"{JSON}; charset={charset}", body).contact.name == text


@pytest.mark.parametrize("kind", [URLENCODED, KIND])
def test_text_in_an_encoding_that_nothing_names_comes_back_as_windows_1252_to_be_looked_over(kind: str) -> None:
    body = b"name=Jos%E9&email=ana%40example.com&message=Ol%E1+%26%23128512%3B&S\xe3o=x"
    if kind == KIND:
        body = multipart(part(b"message", b"Ol\xe1 &#128512;"), part(b"S\xe3o", b"x")).replace(b"Ana", b"Jos\xe9")

    with pytest.raises(InvalidForm) as refused:
        parse_form(kind, body)

    assert refused.value.status == 400
    assert {problem.field for problem in refused.value.problems} == {"name", "message", "body"}
    assert refused.value.typed == {"name": "José", "email": "ana@example.com", "message": "Olá 😀", "São": "x"}


@pytest.mark.parametrize("charset", ["", "x", "utf-7", "unicode_escape", "idna", "zlib", "\0", "é"])
def test_an_encoding_that_no_browser_has_is_as_if_it_were_not_named(charset: str) -> None:
    assert parse_form(URLENCODED, urlencoded(charset, "utf-8", name="José")).contact.name == "José"


@given(st.binary(max_size=60), st.sampled_from(sorted(CODECS)))
def test_no_bytes_break_an_encoding(raw: bytes, charset: str) -> None:
    body = (
        b"name=" + quote_from_bytes(raw).encode() + b"&email=ana@example.com&message=Oi&_charset_=" + charset.encode()
    )
    try:
        parse_form(URLENCODED, body).contact.name.encode()
    except InvalidForm as refused:
        assert refused.problems


def test_a_part_may_name_its_own_encoding_and_the_form_one_for_all() -> None:
    of_part = multipart(part(b"message", "Olá".encode("cp1252"), b"Content-Type: text/plain; charset=ISO-8859-1"))
    of_form = multipart(part(b"_charset_", b"windows-1252"), part(b"message", "Olá".encode("cp1252")))

    assert parse_form(KIND, of_part).contact.message == "Olá"
    assert parse_form(KIND, of_form).contact.message == "Olá"


@pytest.mark.parametrize("coding", [b"7bit", b"8bit", b"8BIT", b"binary", b"Binary"])
def test_a_part_with_an_encoding_that_changes_nothing_is_taken(coding: bytes) -> None:
    # As Apache HttpClient 4.5 sends it.
    body = multipart(
        part(
            b"message", b"Oi", b"Content-Type: text/plain; charset=ISO-8859-1", b"Content-Transfer-Encoding: " + coding
        )
    )

    assert parse_form(KIND, body).contact.message == "Oi"


@pytest.mark.parametrize(
    ("coding", "value"), [(b"base64", b"T2zDoQ=="), (b"BASE64", b"T2zD\r\noQ=="), (b"quoted-printable", b"Ol=C3=A1")]
)
def test_a_part_that_is_encoded_is_decoded(coding: bytes, value: bytes) -> None:
    body = multipart(part(b"message", value, b"content-transfer-encoding:" + coding))

    assert parse_form(KIND, body).contact.message == "Olá"


def test_another_encoding_of_a_part_is_refused_by_its_field() -> None:
    with pytest.raises(InvalidForm) as refused:
        parse_form(KIND, multipart(part(b"message", b"x", b"Content-Transfer-Encoding: uuencode")))

    assert [(refused.value.status, problem.field) for problem in refused.value.problems] == [(400, "message")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b--",
        b"--b\r\n\r\nx\r\n--b--",
        b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n",
        b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--bb--",
        b"--b x\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--b--",
        part(b"a", b"x", b"Content-Transfer-Encoding: base64") + b"--b--",
    ],
)
def test_what_is_no_multipart_or_cut_off_holds_no_part_that_counts(body: bytes) -> None:
    try:
        parts = [part.name for part in parts_of(KIND, body)]
    except Malformed:
        pass
    else:
        assert parts == []


def test_what_stands_around_the_parts_is_no_part() -> None:
    body = b"preamble\r\n" + part(b"a", b"1\r\n--a").replace(b"--b\r\n", b"--b \t\r\n") + b"--b--epilogue\r\n--b\r\n"

    assert [(part.name, part.data) for part in parts_of(KIND, body)] == [(b"a", b"1\r\n--a")]


@pytest.mark.parametrize(
    ("header", "parameters"),
    [
        ('form-data; name="a;b"; filename="x"', {"name": "a;b", "filename": "x"}),
        (r'form-data; name="a\"b" ;FileName = "C:\x\"', {"name": 'a"b', "filename": "C:\\x\\"}),
        (r'form-data; name="C:\\x"; x=; y; =z', {"name": "C:\\x", "x": ""}),
        ("form-data;name=a b ; name=c", {"name": "c"}),
        ('form-data; name="a', {"name": '"a'}),
        ("name=a", {}),
        ("", {}),
    ],
)
def test_parameters_of_a_header_are_read_as_clients_write_them(header: str, parameters: dict[str, str]) -> None:
    assert parameters_of(header) == parameters


@pytest.mark.parametrize("filler", [b";", b';a="', b'\\"', b';a="\\";', b" "])
@pytest.mark.parametrize("kind", [URLENCODED, KIND, "text/plain"])
def test_no_body_of_the_longest_length_holds_the_loop_for_long(filler: bytes, kind: str) -> None:
    filled = filler * (100_000 // len(filler))
    bodies = {URLENCODED: b"name=" + filled, KIND: part(b"a", b"").replace(b'"a"', b'"' + filled) + b"--b--"}
    body = bodies.get(kind, b"name=" + filled.replace(b" ", b"\r\n"))
    began = time.process_time()

    with suppress(InvalidForm):
        read_fields(kind, body)

    # Some ten milliseconds; quadratic time would be far longer on any machine.
    assert time.process_time() - began < 2


@pytest.mark.parametrize("kind", ["text/plain;charset=UTF-8", "text/plain", "", None])
def test_a_json_object_that_a_script_sent_as_a_string_is_taken(kind: str | None) -> None:
    """`sendBeacon` and `fetch` send a string as plain text, and a beacon cannot see a refusal."""
    assert parse_form(kind, json.dumps(GOOD).encode()).contact.name == "Ana"
    with pytest.raises(InvalidForm) as refused:
        parse_form(kind, b'{"name": ')
    assert refused.value.status == 400


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize(("levels", "read"), [(599, True), (600, False), (950, False), (10_000, False)])
def test_json_is_read_to_a_depth_that_nothing_fails_at_later(start: str, end: str, levels: int, read: bool) -> None:
    inner = start * levels + "1" + end * levels
    body = (json.dumps(GOOD)[:-1] + f', "x": {inner}}}').encode()

    if read:
        fields = read_fields(JSON, body)
        assert typed_of(fields)["x"][:EXTRA_VALUE_MAX] == form_of(fields).contact.extra["x"]
        return
    with pytest.raises(InvalidForm) as refused:
        read_fields(JSON, body)
    assert (refused.value.status, refused.value.problems[0].detail) == (400, "is nested too deeply")


def test_many_lists_beside_each_other_are_not_deep() -> None:
    assert parse_form(JSON, json.dumps(GOOD | {"x": [[]] * 500}).encode()).contact.extra["x"].startswith("[[], []")


def test_json_may_begin_with_a_byte_order_mark() -> None:
    body = b"\xef\xbb\xbf" + json.dumps(GOOD).encode()

    assert parse_form(JSON, body).contact.name == "Ana"
    assert parse_form("text/plain", body).contact.name == "Ana"


def test_a_plain_text_form_is_refused_with_what_it_most_likely_holds() -> None:
    body = "name=Ana\r\nemail=ana@example.com\r\nmessage=Olá,\r\n\r\na + b = c\r\n_gotcha=\r\n_next=https://e.com/\r\n"

    with pytest.raises(InvalidForm) as refused:
        read_fields("text/plain", body.encode())

    assert refused.value.status == 415
    assert refused.value.typed == {
        "name": "Ana",
        "email": "ana@example.com",
        "message": "Olá,\n\na + b = c",
        "_next": "https://e.com/",
    }


@pytest.mark.parametrize(("kind", "body"), [("text/plain", b"hello"), ("", b"name=Ana"), ("text/xml", b"name=Ana")])
def test_what_is_no_form_holds_nothing_that_was_typed(kind: str, body: bytes) -> None:
    with pytest.raises(InvalidForm) as refused:
        read_fields(kind, body)

    assert (refused.value.status, refused.value.typed) == (415, None)
