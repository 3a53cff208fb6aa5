"""Validation of decoded fields into a form, the only place where user input is checked. Pure.

Every problem names its field, so that a page can show the problem beside the field.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ingest.forms.addresses import normal_email
from schemas.events import Contact
from schemas.immutable import immutable

NAME_MAX = 200
EMAIL_MAX = 254
MESSAGE_MAX = 10_000
LABEL_MAX = 100
EXTRA_FIELDS_MAX = 50
EXTRA_NAME_MAX = 100
EXTRA_VALUE_MAX = 2_000
SHOWN = ("name", "email", "message")
NEXT = "_next"
CUT, DROPPED = "_cut", "_dropped"
"""Extra fields that ingest adds: the names of fields that were cut, and of fields that were dropped. No form can send
them, because names that begin with an underscore are not stored."""
HONEYPOT, TOO_FAST = "honeypot", "too_fast"
"""Spam signs: the hidden field was filled in, or the form was sent faster than a person types."""
TOKENS = frozenset(
    (
        # Captchas: hCaptcha, Turnstile, Friendly Captcha, ALTCHA, mCaptcha, Prosopo, MTCaptcha, Yandex, Cap, Private
        # Captcha, Arkose, AWS.
        *("h-captcha-response", "cf-turnstile-response", "frc-captcha-solution", "frc-captcha-response", "altcha"),
        *("mcaptcha__token", "procaptcha-response", "mtcaptcha-verifiedtoken", "smart-token", "cap-token"),
        *("private-captcha-solution", "fc-token", "aws-waf-token"),
        # Against forged requests: Django, Rails, Drupal, Yii, Craft, and names that many have in common. Those of
        # Laravel, ASP.NET and WordPress begin with an underscore.
        *("csrfmiddlewaretoken", "authenticity_token", "form_build_id", "form_token", "yii_csrf_token"),
        *("craft_csrf_token", "csrf", "csrf_token", "csrf-token", "csrftoken", "xsrf_token", "xsrf-token"),
    )
)
"""Fields that the site's own scripts fill in and that say nothing about the lead, so they are not stored."""
_RECAPTCHA = "g-recaptcha-response"
"""Prefix of reCAPTCHA tokens: a page with several forms appends a number or the form's name."""
_LABELS = ("form_id", "source")
_KNOWN = frozenset((*SHOWN, *_LABELS))

# C0 and C1 controls except line breaks and tab, and DEL: invisible, and PostgreSQL refuses NUL.
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_LINE_BREAKS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
"""All line breaks: Windows and old Macs, slides (VT), printers (FF), mainframes (NEL), Unicode."""
_UNSEEN_SPACE = re.compile(r"[\t\x0b\x0c\x85\u2028\u2029]")
"""Separators that pasting from a spreadsheet or a slide brings into a field of one line; browsers remove CR and LF."""
_HALVES = re.compile("[\ud800-\udfff]")
_UNFIT = re.compile(f"{_CONTROLS.pattern}|{_HALVES.pattern}")


@immutable
class FieldProblem:
    """A problem with a body. `field`: the form's field, a header, or `body`."""

    field: str
    detail: str


class InvalidForm(Exception):
    """The body is not an acceptable form. `status`: the HTTP status 400, 415 or 422."""

    def __init__(self, status: int, *problems: FieldProblem, typed: Mapping[str, str] | None = None) -> None:
        """typed: the values of the form's fields, so that a page can give them all back."""
        super().__init__(", ".join(problem.field for problem in problems))
        self.status = status
        self.problems = problems
        self.typed = typed


@immutable
class Form:
    """A validated form, ready to be stored."""

    contact: Contact
    form_id: str | None
    source: str | None
    next_url: str | None = None
    """The redirect target that the form names. Not checked here: the route allows only configured origins."""
    trapped: bool = False
    """Whether the honeypot, a field hidden from people, was filled in."""
    took_s: float | None = None
    """Seconds it took to fill the form in, as the page's script measured; None without the script."""

    def spam_sign(self, least_s: float) -> str | None:
        """Return HONEYPOT, TOO_FAST (under `least_s` seconds), or None when a person seems to have sent the form."""
        if self.trapped:
            return HONEYPOT
        return TOO_FAST if self.took_s is not None and self.took_s < least_s else None


def form_of(fields: Mapping[str, Any]) -> Form:
    """Validate decoded fields. Raises InvalidForm with 422, which names every invalid field.

    Only `name`, `email` and `message` can be invalid, because the visitor neither wrote nor saw the other fields.
    """
    problems: list[FieldProblem] = []

    def text(name: str, max_length: int, *, lines: bool = False) -> str | None:
        value = fields.get(name)
        if value.__class__ is str and len(value) <= max_length and value.isprintable() and (stripped := value.strip()):
            # Fast path for the usual text: no control, no line break, no half of a surrogate pair.
            return str(stripped)
        wrong = None
        if value is None:
            value = ""
        elif value.__class__ is list:
            value = _only_one(value)
        if value.__class__ is not str:
            wrong = "is given more than once" if value.__class__ is list else "must be text"
        else:
            # The length includes outer spaces, as `maxlength` in the page and `maxLength` in the OpenAPI document do.
            long = len(value := _LINE_BREAKS.sub("\n", value) if lines else _UNSEEN_SPACE.sub(" ", value)) > max_length
            value = _seen(value).strip()
            if not value:
                wrong = "is missing"
            elif long:
                wrong = f"is longer than {max_length} characters"
            elif not lines and ("\n" in value or "\r" in value):
                wrong = "has a line break"
        if wrong:
            problems.append(FieldProblem(name, wrong))
        return None if wrong else value

    cut: list[str] = []
    name = text("name", NAME_MAX)
    address = text("email", EMAIL_MAX)
    message = text("message", MESSAGE_MAX, lines=True)
    email = normal_email(address) if address is not None else None
    if address is not None and email is None:
        problems.append(FieldProblem("email", "is not an e-mail address"))
    if problems or name is None or email is None or message is None:
        raise InvalidForm(422, *problems, typed=typed_of(fields))
    form_id, source = (_label(fields, field, cut) for field in _LABELS)
    return Form(
        Contact(name, email, message, _extra(fields, cut)),
        form_id,
        source or _utm_source(fields),
        next_url=as_text(fields[NEXT]).strip() if fields.get(NEXT) else None,
        trapped=_filled(fields.get("_gotcha")),
        took_s=_seconds(fields.get("_seconds")),
    )


def typed_of(fields: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the fields that a person typed and the form's own visible or hidden fields, without tokens.

    Control characters are removed, because a page must not give back what its reader cannot correct.
    """
    names = [name for name in fields if name == NEXT or (name and not name.startswith("_") and not _is_token(name))]
    return {name: _seen(_LINE_BREAKS.sub("\n", as_text(fields[name]))) for name in names}


def _only_one(values: list[Any]) -> Any:
    """Return the only value of a field that a page has several times, as for large and small screens; else the list."""
    if len(values) < 2 or not all(value.__class__ is str for value in values):
        # A JSON list of a program, not the repeated field of a form.
        return None
    filled = {stripped for value in values if (stripped := value.strip())}
    return filled.pop() if len(filled) == 1 else values if filled else ""


def _seen(text: str) -> str:
    """Return a text without control characters, and with U+FFFD for each half of a surrogate pair."""
    if text.isprintable() or not _UNFIT.search(text):
        return text
    return _HALVES.sub("\N{REPLACEMENT CHARACTER}", _CONTROLS.sub("", text))


def _label(fields: Mapping[str, Any], name: str, cut: list[str]) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    text = _line(as_text(value)).strip()
    if len(text) > LABEL_MAX:
        cut.append(name)
    return text[:LABEL_MAX].strip() or None


def _line(text: str) -> str:
    return text if text.isprintable() else _seen(_UNSEEN_SPACE.sub(" ", text).replace("\r", " ").replace("\n", " "))


def _filled(value: Any) -> bool:
    """Say whether a hidden field was filled in, at least once where the page has it several times."""
    if value.__class__ is list:
        return any(_filled(one) for one in value)
    return bool(value) and value not in ("0", b"0")


def _utm_source(fields: Mapping[str, Any]) -> str | None:
    """Return the campaign of the hidden field `utm_source`; None when it is no valid label."""
    value = fields.get("utm_source")
    return label(value) if isinstance(value, str) else None


def label(text: str) -> str | None:
    """Return a text as a label; None when it is empty, longer than LABEL_MAX or not printable, which is no error."""
    text = text.strip()
    return text if 0 < len(text) <= LABEL_MAX and text.isprintable() else None


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    # Negative when the client's clock was set back meanwhile.
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _extra(fields: Mapping[str, Any], cut: list[str]) -> dict[str, str]:
    """Return the extra fields to store: all but known fields, tokens, and names that begin with an underscore.

    Long values are cut and surplus fields dropped; CUT and DROPPED then list their names. cut: names of fields that
    were cut before.
    """
    extra: dict[str, str] = {}
    dropped: list[str] = []
    for name, value in fields.items():
        if name in _KNOWN or name[:1] == "_" or _is_token(name):
            continue
        if not (value.__class__ is str and len(value) <= EXTRA_VALUE_MAX and value.isprintable()):
            value = _seen(_LINE_BREAKS.sub("\n", as_text(value)))
            if len(value) > EXTRA_VALUE_MAX:
                cut.append(name)
                value = value[:EXTRA_VALUE_MAX]
        if not (name.isprintable() and 0 < len(name) <= EXTRA_NAME_MAX):
            name = _line(name)
            if (
                not 0 < len(name) <= EXTRA_NAME_MAX
                or name[0] == "_"
                or name in _KNOWN
                or name in fields
                or name in extra
            ):
                dropped.append(name or "?")
                continue
        extra[name] = value
    if len(extra) > EXTRA_FIELDS_MAX:
        # Non-empty fields first.
        kept = sorted(extra, key=lambda name: not extra[name])[:EXTRA_FIELDS_MAX]
        dropped += [name for name in extra if extra[name] and name not in kept]
        extra = {name: extra[name] for name in kept}
    for mark, names in ((CUT, cut), (DROPPED, dropped)):
        if names:
            extra[mark] = ", ".join(map(shown, names))[:EXTRA_VALUE_MAX]
    return extra


def _is_token(name: str) -> bool:
    name = name.lower()
    return name in TOKENS or name.startswith(_RECAPTCHA)


def as_text(value: Any) -> str:
    """Return a decoded value as text: a list of plain values separated by commas, nested values as JSON.

    value: as `json` decodes it, with numbers as bytes (`ingest.forms.decoding`). A text longer than EXTRA_VALUE_MAX may
    be incomplete, because no more is stored.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode()
    if value.__class__ is list:
        value = value[:EXTRA_VALUE_MAX]
        try:
            return ", ".join(value)
        except TypeError:
            if not any(one.__class__ in (list, dict) for one in value):
                return ", ".join([one.decode() if one.__class__ is bytes else as_text(one) for one in value])
    pieces: list[str] = []
    _write(value, pieces, EXTRA_VALUE_MAX)
    return "".join(pieces)


def _write(value: Any, pieces: list[str], room: int) -> int:
    """Append a value as JSON until the room is used up; return the remaining room in characters.

    Written by hand, because the library does not write a number in its original form.
    """
    if isinstance(value, (list, dict)):
        start, end = "[]" if isinstance(value, list) else "{}"
        pieces.append(start)
        for position, one in enumerate(value):
            if room < 0:
                return room
            if position:
                pieces.append(", ")
                room -= 2
            if isinstance(value, dict):
                room = _write(one, pieces, room)
                pieces.append(": ")
                one = value[one]
            room = _write(one, pieces, room)
        pieces.append(end)
        return room - 2
    text = value.decode() if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False)
    pieces.append(text)
    return room - len(text)


def shown(name: str) -> str:
    """Return a client's field name on one line, without control characters and cut, for an answer."""
    return _line(name)[:EXTRA_NAME_MAX] or "body"
