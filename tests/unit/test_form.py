"""Bodies of every kind: what is a form is read as it was meant, and nothing else gets through or breaks anything."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import httpx
import pytest
from email_validator import EmailNotValidError, validate_email
from hypothesis import given
from hypothesis import strategies as st

from ingest.body import JSON, MULTIPART, URLENCODED, parse_form, read_fields
from ingest.form import EXTRA_FIELDS_MAX, Form, FormRefused, normal_email

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


domains = st.sampled_from(["example.com", "Example.COM", "a.b.de", "localhost", "x.test", "-a.de", "a..de", "[1.2]"])
locals_ = st.text("abcXYZ019._+-!\"' é@", max_size=70) | st.sampled_from(["Info", "info", "a" * 65, "a.b", ".a"])


@given(st.builds("{}@{}".format, locals_, domains) | st.emails() | st.text(max_size=30))
def test_an_address_is_judged_as_the_library_judges_it(address: str) -> None:
    try:
        judged = validate_email(address, check_deliverability=False).normalized
    except EmailNotValidError:
        judged = None

    assert normal_email(address) == judged
    # What was remembered is the same.
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
        # What a browser sends for a file field that was left alone; httpx leaves an empty name out.
        body = body.replace(b'name="cv"\r\n', b'name="cv"; filename=""\r\n')

    try:
        form = parse_form(request.headers["Content-Type"], body)
    except FormRefused as refused:
        assert not taken
        assert [(refused.status, problem.field) for problem in refused.problems] == [(422, "cv")]
        assert refused.typed == GOOD
    else:
        assert taken
        assert form == parse_form(JSON, json.dumps(GOOD).encode())


@given(st.binary(max_size=300))
def test_any_bytes_called_multipart_are_a_form_or_refused(body: bytes) -> None:
    with pytest.raises(FormRefused):
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
    except FormRefused as refused:
        assert refused.problems
        assert 400 <= refused.status < 500
    else:
        assert "\0" not in form.contact.name + form.contact.message


@given(st.text("ab=&+% \n0123456789ABCDEFcé\ufffd", max_size=40).map(str.encode).filter(bytes.strip))
def test_a_body_as_browsers_write_it_holds_what_a_look_at_each_field_finds(body: bytes) -> None:
    """Whitespace around it makes the parser look at each field itself: to the form it is nothing."""

    def read(body: bytes) -> object:
        try:
            return read_fields(URLENCODED, body)
        except FormRefused as error:
            return error.status, error.problems

    assert read(body) == read(b"\n&" + body)


@given(st.dictionaries(st.sampled_from(["name", "email", "message", "form_id", "source", "x"]), anything))
def test_any_values_are_a_form_or_refused_by_name(fields: dict[str, object]) -> None:
    try:
        form = parse_form(JSON, json.dumps(GOOD | fields).encode())
    except FormRefused as refused:
        names = {problem.field for problem in refused.problems}
        assert names <= {*GOOD, *fields, "body"}
    else:
        json.dumps(form.contact.extra).encode("utf-8")
        form.contact.name.encode("utf-8")


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(FormRefused) as refused:
        parse({"name": "", "email": "nobody"})

    assert [problem.field for problem in refused.value.problems] == ["name", "message", "email"]


def test_no_problem_repeats_what_was_typed() -> None:
    with pytest.raises(FormRefused) as refused:
        parse({"name": "Zenobia\n", "email": "zenobia.q at example", "message": "wish\0"})

    told = str(refused.value) + "".join(problem.detail for problem in refused.value.problems)
    assert "enobia" not in told
    assert "wish" not in told


@pytest.mark.parametrize("control", ["\0", "\x07", "\x1b", "\x7f", "\x85"])
@pytest.mark.parametrize("field", ["name", "message", "company"])
def test_a_control_character_is_refused_wherever_it_stands(field: str, control: str) -> None:
    with pytest.raises(FormRefused) as refused:
        parse(GOOD | {field: f"a{control}b"})

    assert [problem.field for problem in refused.value.problems] == [field]


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


def test_a_body_of_very_many_values_is_refused_before_it_costs_anything() -> None:
    with pytest.raises(FormRefused) as refused:
        parse_form(URLENCODED, b"a&" * 400_000)

    assert [problem.field for problem in refused.value.problems] == ["body"]


def test_further_fields_are_kept_up_to_a_bound() -> None:
    most = {f"f{n}": "x" for n in range(EXTRA_FIELDS_MAX)}

    assert len(parse(GOOD | most).contact.extra) == EXTRA_FIELDS_MAX
    with pytest.raises(FormRefused):
        parse(GOOD | most | {"one_more": "x"})


def test_a_refused_form_tells_all_that_it_held_but_the_marks_of_programs() -> None:
    body = b"name=Ana&email=nowhere&company=Ltda&topic=a&topic=b&_next=https://example.com/&_gotcha=x&_seconds=9"

    with pytest.raises(FormRefused) as refused:
        parse_form(URLENCODED, body)

    assert refused.value.typed == {
        "name": "Ana",
        "email": "nowhere",
        "company": "Ltda",
        "topic": "a, b",
        "_next": "https://example.com/",
    }
