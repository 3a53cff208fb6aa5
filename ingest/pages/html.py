"""HTML pages: the form, the thanks page and the error page, in two languages, usable without JavaScript.

The translations are in `TEXTS`. The style is inline; the script is a file whose name changes with its content, so that
no cache serves an old script to a new page.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from ingest.forms.validation import EMAIL_MAX, EXTRA_VALUE_MAX, MESSAGE_MAX, NAME_MAX, SHOWN, FieldProblem, shown

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --paper: #f7f6f3; --line: #8b8678; --mark: #8a3b12 }
@media (prefers-color-scheme: dark) { :root { --ink: #eceae4; --paper: #16181d; --line: #7d8290; --mark: #f0a67a } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1.0625rem/1.6 system-ui, sans-serif }
main { max-width: 34rem; margin: 0 auto; padding: 4rem 1.25rem }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem }
label { display: block; font-weight: 600; margin: 1.5rem 0 .35rem }
input, textarea { width: 100%; font: inherit; color: inherit; background: transparent; padding: .65rem .75rem;
  border: 1px solid var(--line); border-radius: .4rem }
textarea { min-height: 9rem; resize: vertical }
[aria-invalid=true] { border: 2px solid var(--mark) }
.wrong { color: var(--mark); margin: .35rem 0 0 }
.trap { position: absolute; left: -100vw; width: 1px; height: 1px; overflow: hidden }
:is(input, textarea, button, a):focus-visible { outline: 3px solid var(--mark); outline-offset: 2px }
button { margin-top: 1.75rem; font: inherit; font-weight: 600; padding: .7rem 1.5rem; cursor: pointer;
  color: var(--paper); background: var(--ink); border: 0; border-radius: .4rem }
a { color: var(--mark) }
"""
SCRIPT = resources.files("ingest.pages").joinpath("form.js").read_bytes()
SCRIPT_PATH = f"/static/form-{hashlib.sha256(SCRIPT).hexdigest()[:12]}.js"

FALLBACK = "en"
LANGUAGES = ("en", "pt")
TEXTS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "form": "Write to us",
        "lead-in": "Leave your name and address and we will answer you.",
        "name": "Name",
        "email": "E-mail",
        "message": "Message",
        "send": "Send",
        "trap": "Leave this empty",
        "thanks": "Thank you",
        "taken": "We have your message and will answer you soon.",
        "another": "Write another one",
        "back": "Back to the form",
        "back there": "Back to the page you came from",
        "kept": "Your browser's Back button leads back to what you wrote.",
        "not yet": "Your message has not been sent yet. Please look it over and send it.",
        "wrong": "Please look at these fields again:",
        "away": "Your message could not be sent: the network is away. Please send it again.",
        "other": "pt",
        "in the other": "Português",
    },
    "pt": {
        "form": "Fale conosco",
        "lead-in": "Deixe seu nome e e-mail e responderemos a você.",
        "name": "Nome",
        "email": "E-mail",
        "message": "Mensagem",
        "send": "Enviar",
        "trap": "Deixe em branco",
        "thanks": "Obrigado",
        "taken": "Recebemos sua mensagem e responderemos em breve.",
        "another": "Escrever outra",
        "back": "Voltar ao formulário",
        "back there": "Voltar à página de onde você veio",
        "kept": "O botão Voltar do navegador leva de volta ao que você escreveu.",
        "not yet": "Sua mensagem ainda não foi enviada. Por favor, confira e envie.",
        "wrong": "Por favor, verifique estes campos:",
        "away": "Não foi possível enviar sua mensagem: sem conexão. Por favor, envie de novo.",
        "other": "en",
        "in the other": "English",
    },
}
PORTUGUESE: Sequence[tuple[str, str]] = (
    (r"is missing", "precisa ser preenchido"),
    (r"is not an e-mail address", "não é um endereço de e-mail"),
    (r"is longer than (\d+) characters", r"tem mais de \1 caracteres"),
    (r"is given more than once", "foi enviado mais de uma vez"),
    (r"has a line break", "tem uma quebra de linha"),
    (r"is not UTF-8: check its accented letters", "não está em UTF-8: confira as letras acentuadas"),
    (r"must be text", "precisa ser texto"),
    (r"is a file, and files are not taken", "é um arquivo, e arquivos não são aceitos"),
)
"""Portuguese for the problem details of `ingest.forms.validation`, by regular expression; others stay English."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page that is the same for every client, and its ETag without the quotes."""

    content: bytes
    etag: str


def language_of(accepted: str | None) -> str:
    """Return the language of an answer by `Accept-Language` (RFC 9110, 12.5.4); FALLBACK when none matches."""
    best, weight_of_best = FALLBACK, 0.0
    for part in (accepted or "").lower().split(","):
        tag, _, parameter = part.partition(";")
        language = tag.strip().partition("-")[0]
        try:
            weight = float(parameter.strip().removeprefix("q=")) if parameter else 1.0
        except ValueError:
            continue
        if language in LANGUAGES and weight > weight_of_best:
            best, weight_of_best = language, weight
    return best


def page(language: str, title: str, content: str, *, script: bool = False) -> bytes:
    """Return a whole page. `content` is HTML; `title` is text."""
    tag = f'<script src="{SCRIPT_PATH}" defer></script>\n' if script else ""
    return (
        f'<!doctype html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{STYLE}</style>\n{tag}</head>\n"
        f"<body>\n<main>\n{content}\n</main>\n</body>\n</html>\n"
        # Replaced, because half of a surrogate pair, which no person types, must not cause an error.
    ).encode("utf-8", "replace")


def form_page(
    language: str,
    typed: Mapping[str, str] | None = None,
    problems: Sequence[FieldProblem] = (),
    *,
    chosen: bool = False,
    title: str = "",
    notice: str = "",
) -> bytes:
    """Return the form: empty, or with the typed values and the problem of each field beside it.

    typed: may hold fields of another site's form, which become hidden inputs, or visible ones to be corrected where
    they have a problem. chosen: whether the person asked for this language, so that the next page keeps it. title and
    notice: the reason why a form without problems comes back.
    """
    text, typed = TEXTS[language], typed or {}
    wrong = {problem.field: _translated(language, problem.detail) for problem in problems}
    alert = ""
    if wrong:
        on_page = {*SHOWN, *map(shown, typed)}
        items = "".join(
            f"<li>{_link(language, field) if field in on_page else _escaped(field)} {_escaped(detail)}</li>"
            for field, detail in wrong.items()
        )
        alert = f'<div role="alert" class="wrong" tabindex="-1"><p>{text["wrong"]}</p><ul>{items}</ul></div>\n'
    elif notice:
        alert = f'<p role="alert" class="wrong" tabindex="-1">{_escaped(notice)}</p>\n'

    def field(name: str, max_length: int, *, kind: str = "", complete: str = "") -> str:
        field_id = _id_of(shown(name))
        attributes = f'id="{field_id}" name="{_escaped(name)}" maxlength="{max_length}"{complete}{kind}'
        if name in SHOWN:
            attributes += " required"
        note = ""
        if shown(name) in wrong:
            attributes += f' aria-invalid="true" aria-describedby="{field_id}-wrong"'
            note = f'<p class="wrong" id="{field_id}-wrong">{_escaped(wrong[shown(name)])}</p>\n'
        value = _escaped(typed.get(name, ""))
        # Browsers drop the first line break within a textarea, so it is the page's own.
        box = (
            f"<textarea {attributes}>\n{value}</textarea>"
            if name in ("message", *others)
            else f'<input {attributes} value="{value}">'
        )
        label = text[name] if name in SHOWN else _escaped(shown(name))
        return f'<label for="{field_id}">{label}</label>\n{box}\n{note}'

    others = [name for name in typed if name not in SHOWN]
    hidden = "".join(
        f'<input type="hidden" name="{_escaped(name)}" value="{_escaped(typed[name])}">\n'
        for name in others
        if shown(name) not in wrong
    )
    content = (
        f"<h1>{_escaped(title) or text['form']}</h1>\n<p>{text['lead-in']}</p>\n{alert}"
        f'<form action="/api/leads{_lang_query(language, chosen)}" method="post" data-away="{text["away"]}">\n'
        + field("name", NAME_MAX, complete=' autocomplete="name"')
        + field("email", EMAIL_MAX, kind=' type="email"', complete=' autocomplete="email"')
        + field("message", MESSAGE_MAX)
        + "".join(field(name, EXTRA_VALUE_MAX) for name in others if shown(name) in wrong)
        + f'{hidden}<div class="trap" aria-hidden="true"><label for="_gotcha">{text["trap"]}</label>'
        '<input id="_gotcha" name="_gotcha" tabindex="-1" autocomplete="off"></div>\n'
        f'<button type="submit">{text["send"]}</button>\n</form>'
    )
    if not typed:
        other = text["other"]
        content += f'\n<p lang="{other}"><a href="/?lang={other}" hreflang="{other}">{text["in the other"]}</a></p>'
    return page(language, title or text["form"], content, script=True)


def thanks_page(language: str, *, chosen: bool = False) -> bytes:
    """Return the page that follows an accepted form."""
    text = TEXTS[language]
    content = (
        f'<h1>{text["thanks"]}</h1>\n<p role="status">{text["taken"]}</p>\n'
        f'<p><a href="/{_lang_query(language, chosen)}">{text["another"]}</a></p>'
    )
    return page(language, text["thanks"], content)


def error_page(
    language: str,
    title: str,
    detail: str,
    problems: Sequence[FieldProblem],
    *,
    chosen: bool = False,
    sent_from: str | None = None,
) -> bytes:
    """Return the page of an error, with a link back. sent_from: the page of the form that could not be read."""
    text = TEXTS[language]
    alerts = f'<p role="alert">{_escaped(detail)}</p>\n' if detail else ""
    if problems:
        items = (f"<b>{_escaped(each.field)}</b> {_escaped(_translated(language, each.detail))}" for each in problems)
        alerts += f'<ul role="alert">{"".join(f"<li>{item}</li>" for item in items)}</ul>\n'
    back = f'<p><a href="/{_lang_query(language, chosen)}">{text["back"]}</a></p>'
    if sent_from is not None:
        back = f'<p>{text["kept"]}</p>\n<p><a href="{_escaped(sent_from)}">{text["back there"]}</a></p>'
    content = f"<h1>{_escaped(title)}</h1>\n{alerts}{back}"
    return page(language, title, content)


def cached(content: bytes) -> Page:
    """Return a page with the ETag by which caches revalidate it."""
    return Page(content, hashlib.sha256(content).hexdigest()[:16])


def _escaped(text: str) -> str:
    """Escape a text for content and double-quoted attributes; apostrophes stay, `&#x27;` would be six times as long."""
    return html.escape(text, quote=False).replace('"', "&#34;")


def _lang_query(language: str, chosen: bool) -> str:
    return f"?lang={language}" if chosen else ""


def _id_of(field: str) -> str:
    """Return a field's element id: its name, or for another site's field a hash that cannot clash with our ids."""
    return field if field in SHOWN else f"other-{hashlib.sha256(field.encode('utf-8', 'replace')).hexdigest()[:12]}"


def _link(language: str, field: str) -> str:
    return f'<a href="#{_id_of(field)}">{TEXTS[language][field] if field in SHOWN else _escaped(field)}</a>'


def _translated(language: str, detail: str) -> str:
    if language == "pt":
        for pattern, translated in PORTUGUESE:
            if re.fullmatch(pattern, detail):
                return re.sub(pattern, translated, detail)
    return detail


_BOTH = [(language, chosen) for language in LANGUAGES for chosen in (False, True)]
FORMS = {(language, chosen): cached(form_page(language, chosen=chosen)) for language, chosen in _BOTH}
THANKS = {(language, chosen): cached(thanks_page(language, chosen=chosen)) for language, chosen in _BOTH}
"""By language, and whether the person chose the language."""
