"""The fields of a request to a validated form: the one place where what people typed is judged.

Every problem names its field, so that a page can show it where it belongs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from email_validator import EmailNotValidError, validate_email

from schemas.events import Contact
from schemas.immutable import immutable

NAME_MAX = 200
EMAIL_MAX = 254
MESSAGE_MAX = 10_000
LABEL_MAX = 100
EXTRA_FIELDS_MAX = 50
SHOWN = ("name", "email", "message")
NEXT = "_next"
HONEYPOT, TOO_FAST = "honeypot", "too_fast"
"""By what a program gives itself away."""
EXTRA_NAME_MAX = 100
EXTRA_VALUE_MAX = 2_000

# C0 controls but tab and line breaks, DEL, and C1: nothing a person types, and PostgreSQL refuses the first of them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# A local part as nearly everybody has one: a dot-atom in lower case, of a length that fits any domain.
_PLAIN_LOCAL = re.compile(r"(?=.{1,64}\Z)[a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*")
_LINE_BREAKS = re.compile(r"\r\n?|[\u2028\u2029]")
_BREAKS_AND_TABS = re.compile(r"[\t\n\r\u2028\u2029]")


@immutable
class FieldProblem:
    """One thing wrong with a body. `field` is the form's field, or `body`."""

    field: str
    detail: str


class FormRefused(Exception):
    """The body is no acceptable form. `status` is the HTTP status: 400, 415 or 422."""

    def __init__(self, status: int, *problems: FieldProblem, typed: Mapping[str, str] | None = None) -> None:
        """typed: what the fields of the form held, so that a page can give them all back."""
        super().__init__(", ".join(problem.field for problem in problems))
        self.status = status
        self.problems = problems
        self.typed = typed


@immutable
class Form:
    """What a person sent, fit to be stored."""

    contact: Contact
    form_id: str | None
    source: str | None
    next_url: str | None = None
    """Where a browser is to go afterwards, as the form says; whether it may is for others to judge."""
    trapped: bool = False
    """Whether the field that people do not see was filled in."""
    took_s: float | None = None
    """How long it took to fill the form in, where the page's script said so."""

    def spam_sign(self, least_s: float) -> str | None:
        """Return by what a program gave itself away: a field that nobody sees, or faster than anybody types."""
        if self.trapped:
            return HONEYPOT
        return TOO_FAST if self.took_s is not None and self.took_s < least_s else None


def form_of(fields: Mapping[str, Any]) -> Form:
    """Return the form that some fields make. Raises FormRefused naming every field that is wrong."""
    problems: list[FieldProblem] = []

    def text(name: str, most: int, *, lines: bool = False, needed: bool = True) -> str | None:
        value = fields.get(name)
        if isinstance(value, str):
            if len(value) <= most and value.isprintable() and (stripped := value.strip()):
                # What nearly everybody types: no control, no line break, no half of a surrogate pair.
                return stripped
            # A control character is one at the ends too, where it would be cut off; and what is too long is too long
            # with its spaces, as the form's page and the description count it.
            value = _LINE_BREAKS.sub("\n", value)
            value = value if _CONTROLS.search(value) or len(value) > most else value.strip()
        if value is None or value == "":
            if needed:
                problems.append(FieldProblem(name, "is missing"))
            return None
        wrong = _what_is_wrong(value, most, lines=lines)
        if wrong:
            problems.append(FieldProblem(name, wrong))
            return None
        return str(value)

    name = text("name", NAME_MAX)
    address = text("email", EMAIL_MAX)
    message = text("message", MESSAGE_MAX, lines=True)
    form_id = text("form_id", LABEL_MAX, needed=False)
    source = text("source", LABEL_MAX, needed=False)
    email = _email(address, problems) if address is not None else None
    extra = _extra(fields, problems)
    if problems or name is None or email is None or message is None:
        raise FormRefused(422, *problems, typed=typed_of(fields))
    return Form(
        Contact(name, email, message, extra),
        form_id,
        source or _utm_source(fields),
        next_url=str(fields[NEXT]).strip() if fields.get(NEXT) else None,
        trapped=bool(fields.get("_gotcha")),
        took_s=_seconds(fields.get("_seconds")),
    )


def typed_of(fields: Mapping[str, Any]) -> Mapping[str, str]:
    """Return what a person typed, and what a site's form says of itself; not the marks of programs."""
    names = [name for name in fields if name == NEXT or not name.startswith("_")]
    return {name: value for name in names if isinstance(value := _as_text(fields[name]), str)}


def _utm_source(fields: Mapping[str, Any]) -> str | None:
    """Return the campaign a hidden field names, where it is fit for a label."""
    value = fields.get("utm_source")
    return label(value) if isinstance(value, str) else None


def label(text: str) -> str | None:
    """Return a text that came along by itself as a label; None when it is not fit for one, which is nobody's fault."""
    text = text.strip()
    return text if 0 < len(text) <= LABEL_MAX and text.isprintable() else None


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    # Nobody is done before he began: a clock was set back meanwhile.
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _email(address: str, problems: list[FieldProblem]) -> str | None:
    normal = normal_email(address)
    if normal is None:
        problems.append(FieldProblem("email", "is not an e-mail address"))
    return normal


def normal_email(address: str) -> str | None:
    """Return an e-mail address in its normal form; None when it is none. `email_validator` is the judge."""
    local, _, domain = address.rpartition("@")
    if not (_PLAIN_LOCAL.fullmatch(local) and domain.isascii()):
        return _judged(address)
    # The library leaves such a local part as it is, and domains come again and again: its judgement is remembered.
    normal = _normal_domain(domain)
    return None if normal is None else f"{local}@{normal}"


@lru_cache(maxsize=4096)
def _normal_domain(domain: str) -> str | None:
    address = _judged(f"a@{domain}")
    return None if address is None else address[2:]


def _judged(address: str) -> str | None:
    try:
        return str(validate_email(address, check_deliverability=False).normalized)
    except EmailNotValidError:
        # Its own text quotes the address.
        return None


def _extra(fields: Mapping[str, Any], problems: list[FieldProblem]) -> dict[str, str]:
    """Keep the fields we give no meaning to; those that begin with an underscore are for the endpoint itself."""
    known = ("name", "email", "message", "form_id", "source")
    names = [name for name in fields if name not in known and not name.startswith("_")]
    if len(names) > EXTRA_FIELDS_MAX:
        problems.append(FieldProblem("body", f"has more than {EXTRA_FIELDS_MAX} further fields"))
        return {}
    extra = {}
    for name in names:
        wrong = _what_is_wrong(name, EXTRA_NAME_MAX) if name else "has no name"
        value = _as_text(fields[name])
        wrong = wrong or _what_is_wrong(value, EXTRA_VALUE_MAX, lines=True)
        if wrong:
            problems.append(FieldProblem(shown(name), wrong))
        else:
            extra[name] = _LINE_BREAKS.sub("\n", value)
    return extra


def _as_text(value: Any) -> Any:
    """Return a plain value as the text it is written as; lists of plain values too; anything else as it is."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value


def _what_is_wrong(value: Any, most: int, *, lines: bool = False) -> str | None:
    if isinstance(value, list):
        return "is given more than once"
    if not isinstance(value, str):
        return "must be text"
    if len(value) > most:
        return f"is longer than {most} characters"
    if _CONTROLS.search(value):
        return "has a control character"
    if not lines and _BREAKS_AND_TABS.search(value):
        return "has a line break or a tab"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "has half of a surrogate pair"
    return None


def shown(name: str) -> str:
    """Return a field name that came from outside in a form that can be sent back."""
    cut = name[:EXTRA_NAME_MAX]
    return _CONTROLS.sub("?", cut).encode("utf-8", "replace").decode("utf-8") or "body"
