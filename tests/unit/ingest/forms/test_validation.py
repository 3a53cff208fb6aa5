"""Validation of bodies of every kind: forms are read as intended, and any other body is refused without an error."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import httpx
import pytest
from email_validator import EmailNotValidError, validate_email
from hypothesis import assume, given
from hypothesis import strategies as st

from ingest.forms.addresses import normal_email
from ingest.forms.decoding import JSON, MULTIPART, URLENCODED, parse_form, read_fields
from ingest.forms.validation import CUT, DROPPED, EXTRA_FIELDS_MAX, EXTRA_VALUE_MAX, Form, InvalidForm

GOOD = {"name": "Ana", "email": "ana@example.com", "message": "Oi"}

plain = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1, max_size=50)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


def parse(fields: dict[str, object]) -> Form:
    return parse_form(JSON, json.dumps(fields).encode())


@given(plain, plain, st.dictionaries(plain.filter(lambda name: not name.startswith("_")), plain, max_size=5))
def test_json_and_urlencoded_bodies_of_one_form_are_the_same(name: str, message: str, extra: dict[str, str]) -> None:
    fields = {**extra, "name": name, "email": "ana@example.com", "message": message}

    as_json = parse_form("application/json; charset=utf-8", json.dumps(fields).encode())
    as_form = parse_form(URLENCODED, urlencode(fields).encode())

    assert as_json == as_form
    assert as_json.contact.name == name
    assert as_json.contact.message == message


UNASKED = {*map(chr, range(0xFF01, 0xFF5F)), *"\u2018\u2019\u02bc\u00ad\u200b\u200e\u200f\u2060\ufeff"}
domains = st.sampled_from(["example.com", "Example.COM", "a.b.de", "localhost", "x.test", "-a.de", "a..de", "[1.2]"])
locals_ = st.text("abcXYZ019._+-!\"' é@", max_size=70) | st.sampled_from(["Info", "info", "a" * 65, "a.b", ".a"])


@given(st.builds("{}@{}".format, locals_, domains) | st.emails() | st.text(max_size=30))
def test_an_address_is_judged_as_the_library_judges_it(address: str) -> None:
    assume(not set(address) & UNASKED)
    try:
        judged = validate_email(address, check_deliverability=False).normalized
    except EmailNotValidError:
        judged = None

    assert normal_email(address) == judged
    # The cached result is the same.
    assert normal_email(address) == judged


# A quotation mark or a backslash in a multipart field's own name is written differently by every client.
simple_names = plain.filter(lambda name: not name.startswith("_") and not set(name) & set('"\\'))


@given(plain, plain, st.dictionaries(simple_names, plain, max_size=5))
def test_a_multipart_body_of_the_form_is_the_same_too(name: str, message: str, extra: dict[str, str]) -> None:
    fields = {**extra, "name": name, "email": "ana@example.com", "message": message}
    request = httpx.Request("POST", "http://x", files=[(key, (None, value)) for key, value in fields.items()])

    as_multipart = parse_form(request.headers["Content-Type"], request.read())

    assert as_multipart == parse_form(JSON, json.dumps(fields).encode())


@pytest.mark.parametrize(("name", "content", "taken"), [("", b"", True), ("cv.pdf", b"%PDF", False), ("", b"x", False)])
def test_a_file_is_refused_by_its_field_and_an_empty_choice_is_none(name: str, content: bytes, taken: bool) -> None:
    files = [*((key, (None, value)) for key, value in GOOD.items()), ("cv", (name, content))]
    request = httpx.Request("POST", "http://x", files=files)  # type: ignore[arg-type]
    body = request.read()
    if not name:
        # As a browser sends an empty file input; httpx omits an empty file name.
        body = body.replace(b'name="cv"\r\n', b'name="cv"; filename=""\r\n')

    try:
        form = parse_form(request.headers["Content-Type"], body)
    except InvalidForm as refused:
        assert not taken
        assert [(refused.status, problem.field) for problem in refused.problems] == [(422, "cv")]
        assert refused.typed == GOOD
    else:
        assert taken
        assert form == parse_form(JSON, json.dumps(GOOD).encode())


@given(st.binary(max_size=300))
def test_any_bytes_called_multipart_are_a_form_or_refused(body: bytes) -> None:
    with pytest.raises(InvalidForm):
        parse_form(f"{MULTIPART}; boundary=x", b"--x\r\n" + body)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (None, False, None)),
        ({"_gotcha": ""}, (None, False, None)),
        ({"_gotcha": "x"}, (None, True, None)),
        ({"_next": "https://example.com/x"}, ("https://example.com/x", False, None)),
        ({"_seconds": "1.5"}, (None, False, 1.5)),
        ({"_seconds": "soon"}, (None, False, None)),
        ({"_seconds": "nan"}, (None, False, None)),
        ({"_seconds": "-3"}, (None, False, None)),
        ({"_next": " https://example.com/x "}, ("https://example.com/x", False, None)),
        ({"_seconds": [1]}, (None, False, None)),
    ],
)
def test_what_a_form_says_about_itself_is_understood_and_not_kept(fields: dict[str, object], expected: object) -> None:
    form = parse(GOOD | fields)

    assert (form.next_url, form.trapped, form.took_s) == expected
    assert form.contact.extra == {}


@given(st.binary(max_size=300), st.sampled_from([JSON, URLENCODED, "text/plain", "", None]))
def test_any_bytes_are_a_form_or_refused_by_name(body: bytes, content_type: str | None) -> None:
    try:
        form = parse_form(content_type, body)
    except InvalidForm as refused:
        assert refused.problems
        assert 400 <= refused.status < 500
    else:
        assert "\0" not in form.contact.name + form.contact.message


@given(st.text("ab=&+% \n0123456789ABCDEFcé\ufffd", max_size=40).map(str.encode).filter(bytes.strip))
def test_a_body_as_browsers_write_it_holds_what_a_look_at_each_field_finds(body: bytes) -> None:
    """Whitespace around the body makes the parser decode each field itself, and is no part of the form."""

    def read(body: bytes) -> object:
        try:
            return read_fields(URLENCODED, body)
        except InvalidForm as error:
            return error.status, error.problems

    assert read(body) == read(b"\n&" + body)


@given(st.dictionaries(st.sampled_from(["name", "email", "message", "form_id", "source", "x"]), anything))
def test_any_values_are_a_form_or_refused_by_name(fields: dict[str, object]) -> None:
    try:
        form = parse_form(JSON, json.dumps(GOOD | fields).encode())
    except InvalidForm as refused:
        names = {problem.field for problem in refused.problems}
        assert names <= {*GOOD, *fields, "body"}
    else:
        json.dumps(form.contact.extra).encode("utf-8")
        form.contact.name.encode("utf-8")


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(InvalidForm) as refused:
        parse({"name": "", "email": "nobody"})

    assert [problem.field for problem in refused.value.problems] == ["name", "message", "email"]


def test_no_problem_repeats_what_was_typed() -> None:
    with pytest.raises(InvalidForm) as refused:
        parse({"name": "Zenobia\n", "email": "zenobia.q at example", "message": "wish\0"})

    told = str(refused.value) + "".join(problem.detail for problem in refused.value.problems)
    assert "enobia" not in told
    assert "wish" not in told


@pytest.mark.parametrize("control", ["\0", "\x03", "\x07", "\x1b", "\x7f", "\x9f"])
@pytest.mark.parametrize("field", ["name", "message", "company"])
def test_a_control_character_that_came_along_is_removed(field: str, control: str) -> None:
    contact = parse(GOOD | {field: f"a{control}b"}).contact

    assert {"name": contact.name, "message": contact.message, **contact.extra}[field] == "ab"


@pytest.mark.parametrize("space", ["\t", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_what_breaks_a_line_unseen_is_a_space_in_a_name_and_a_line_break_in_a_message(space: str) -> None:
    contact = parse(GOOD | {"name": f"Ana{space}Lima", "message": f"a{space}b"}).contact

    assert contact.name == "Ana Lima"
    assert contact.message == ("a\tb" if space == "\t" else "a\nb")


@pytest.mark.parametrize("field", ["name", "email"])
def test_a_line_break_is_refused_where_no_browser_sends_one(field: str) -> None:
    with pytest.raises(InvalidForm) as refused:
        parse(GOOD | {field: GOOD[field] + "\r\nBcc: x"})

    assert [problem.detail for problem in refused.value.problems] == ["has a line break"]


def test_half_of_an_emoji_that_a_script_cut_is_replaced_by_a_sign() -> None:
    assert parse(GOOD | {"message": "Oi \ud83d"}).contact.message == "Oi \N{REPLACEMENT CHARACTER}"


def test_what_comes_back_to_be_mended_holds_nothing_unseen() -> None:
    with pytest.raises(InvalidForm) as refused:
        parse({"name": "Ana\x0b", "email": "nowhere", "message": "a\x03b\x0bc", "x": "\x00y"})

    assert refused.value.typed == {"name": "Ana\n", "email": "nowhere", "message": "ab\nc", "x": "y"}


def test_values_are_trimmed_and_line_breaks_are_lf() -> None:
    form = parse({"name": "  Ana ", "email": " ana@EXAMPLE.com ", "message": "a\r\nb\rc\n"})

    assert form.contact.name == "Ana"
    assert form.contact.email == "ana@example.com"
    assert form.contact.message == "a\nb\nc"


def test_plain_values_of_further_fields_are_kept_as_text() -> None:
    form = parse(
        GOOD | {"n": 12, "x": 1.5, "yes": True, "none": None, "tags": ["a", "b"], "_next": "/x", "source": "ad"}
    )

    assert form.contact.extra == {"n": "12", "x": "1.5", "yes": "true", "none": "", "tags": "a, b"}
    assert form.source == "ad"


def test_a_checkbox_group_is_one_field() -> None:
    form = parse_form(URLENCODED, b"name=Ana&email=ana@example.com&message=Oi&topic=a&topic=b")

    assert form.contact.extra == {"topic": "a, b"}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (URLENCODED, b"a&" * 400_000),
        (JSON, json.dumps({f"f{n}": "" for n in range(15_000)}).encode()),
        (f"{MULTIPART}; boundary=b", b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n" * 2_000 + b"--b--"),
    ],
)
def test_a_body_of_very_many_values_is_refused_before_it_costs_anything(kind: str, body: bytes) -> None:
    with pytest.raises(InvalidForm) as refused:
        parse_form(kind, body)

    assert refused.value.typed is None
    assert [problem.field for problem in refused.value.problems] == ["body"]


def test_a_further_field_that_is_too_long_is_cut_and_marked_and_costs_no_lead() -> None:
    extra = parse(GOOD | {"signature": "x" * 12_000, "company": "Ltda", "form_id": "f" * 200}).contact.extra

    assert extra == {"signature": "x" * EXTRA_VALUE_MAX, "company": "Ltda", CUT: "form_id, signature"}


def test_further_fields_are_kept_up_to_a_bound_and_the_rest_is_named() -> None:
    most = {f"f{n}": "x" for n in range(EXTRA_FIELDS_MAX)}

    assert parse(GOOD | most).contact.extra == most
    assert parse(GOOD | {"empty": ""} | most).contact.extra == most
    assert parse(GOOD | most | {"one_more": "x"}).contact.extra == most | {DROPPED: "one_more"}
    assert parse(GOOD | {"n" * 101: "x", "": "y"}).contact.extra == {DROPPED: f"{'n' * 100}, ?"}


def test_no_form_can_say_what_was_cut() -> None:
    assert parse(GOOD | {CUT: "x", "\x00_cut": "x", "\x00name": "x"}).contact.extra == {DROPPED: "_cut, name"}


@pytest.mark.parametrize(
    "name",
    [
        *("h-captcha-response", "g-recaptcha-response", "g-recaptcha-response-1", "cf-turnstile-response", "altcha"),
        *("frc-captcha-solution", "csrf_token", "csrfmiddlewaretoken", "authenticity_token", "CRAFT_CSRF_TOKEN"),
        *("_wpcf7", "_token", "__RequestVerificationToken"),
    ],
)
def test_a_token_that_the_page_put_in_by_itself_is_not_kept_however_long_it_is(name: str) -> None:
    assert parse(GOOD | {name: "a" * 4_300}).contact.extra == {}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("[1, 2]", "1, 2"),
        ("[null]", ""),
        ('["x", null, true]', "x, , true"),
        ('[1, "x"]', "1, x"),
        ('[["x"]]', '[["x"]]'),
        (
            '{"street": "Rua \u00e9", "no": 1.50, "on": [true, null]}',
            '{"street": "Rua \u00e9", "no": 1.50, "on": [true, null]}',
        ),
        ("1E400", "1E400"),
        ("1e-400", "1e-400"),
        ("123456789.123456789012", "123456789.123456789012"),
        ("-0", "-0"),
        ("[1.10]", "1.10"),
        ("9" * 10_000, "9" * EXTRA_VALUE_MAX),
    ],
)
def test_whatever_json_holds_in_a_further_field_is_kept_as_it_is_written(value: str, kept: str) -> None:
    body = f'{{"name": "Ana", "email": "ana@example.com", "message": "Oi", "x": {value}}}'

    assert parse_form(JSON, body.encode()).contact.extra["x"] == kept


@pytest.mark.parametrize("value", [[1] * 40_000, [[1] * 300] * 100, {f"f{n}": [n] for n in range(9_000)}, [["x"] * 9]])
def test_what_is_kept_of_a_long_value_is_how_it_begins(value: object) -> None:
    body = json.dumps(GOOD | {"x": value}).encode()
    begins = json.dumps(value) if value != [1] * 40_000 else "1, " * 40_000

    kept = parse_form(JSON, body).contact.extra

    assert kept["x"] == begins[:EXTRA_VALUE_MAX]
    assert (CUT in kept) is (len(begins) > EXTRA_VALUE_MAX)


def test_very_deep_nesting_is_refused_and_breaks_nothing() -> None:
    for depth in (500, 2_000, 30_000):
        body = b'{"name":"Ana","email":"ana@example.com","message":"Oi","x":' + b"[" * depth + b"]" * depth + b"}"
        try:
            parse_form(JSON, body)
        except InvalidForm as refused:
            assert refused.status == 400


@pytest.mark.parametrize("value", [12, 1.5, True, ["Ana"], [["Ana"]], {"first": "Ana"}, [], ["Ana", 1]])
def test_what_a_person_writes_is_text_in_json_too(value: object) -> None:
    with pytest.raises(InvalidForm) as refused:
        parse(GOOD | {"name": value})

    assert [(problem.field, problem.detail) for problem in refused.value.problems] == [("name", "must be text")]


@pytest.mark.parametrize("twice", ["email=ana%40example.com&email=", "email=&email=ana@example.com"])
def test_a_field_that_a_page_has_for_two_sizes_of_screen_is_the_one_that_was_filled_in(twice: str) -> None:
    assert parse_form(URLENCODED, f"name=Ana&message=Oi&{twice}".encode()).contact.email == "ana@example.com"


@pytest.mark.parametrize(("fields", "trapped"), [("&_gotcha=&_gotcha=", False), ("&_gotcha=&_gotcha=x", True)])
def test_an_empty_honeypot_is_empty_however_often_a_page_has_it(fields: str, trapped: bool) -> None:
    assert parse_form(URLENCODED, f"name=A&email=a@example.com&message=O{fields}".encode()).trapped is trapped


@pytest.mark.parametrize(("value", "trapped"), [(0, False), (False, False), (None, False), ([], False), (1, True)])
def test_a_honeypot_that_a_script_sends_as_json_is_empty_when_it_says_nothing(value: object, trapped: bool) -> None:
    assert parse(GOOD | {"_gotcha": value}).trapped is trapped


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("o\u2019brien@example.com", "o'brien@example.com"),
        ("\u202aana@example.com\u202c", "ana@example.com"),
        ("ana@example.com\u200b", "ana@example.com"),
        ("\uff41na\uff20example\uff0ecom", "ana@example.com"),
        ("taro..yamada@docomo.ne.jp", "taro..yamada@docomo.ne.jp"),
        ("taro.@ezweb.ne.jp", "taro.@ezweb.ne.jp"),
        ("ana\t@example.com", None),
        ("taro..yamada@example.com", None),
        (".taro@docomo.ne.jp", None),
        (f"{'a.' * 33}@docomo.ne.jp", None),
    ],
)
def test_an_address_is_read_as_its_writer_meant_it(written: str, meant: str | None) -> None:
    assert normal_email(written) == meant


def test_a_refused_form_tells_all_that_it_held_but_the_marks_of_programs() -> None:
    body = b"name=Ana&email=nowhere&company=Ltda&topic=a&topic=b&_next=https://example.com/&_gotcha=x&_seconds=9"

    with pytest.raises(InvalidForm) as refused:
        parse_form(URLENCODED, body)

    assert refused.value.typed == {
        "name": "Ana",
        "email": "nowhere",
        "company": "Ltda",
        "topic": "a, b",
        "_next": "https://example.com/",
    }
