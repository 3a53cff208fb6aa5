"""The pages people see: the form, the thanks, an error. Plain HTML that works without JavaScript."""

from __future__ import annotations

import html

from ingest.form import EMAIL_MAX, MESSAGE_MAX, NAME_MAX

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --paper: #f7f6f3; --line: #c9c5bb; --mark: #8a3b12 }
@media (prefers-color-scheme: dark) { :root { --ink: #eceae4; --paper: #16181d; --line: #4a4e58; --mark: #f0a67a } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1.0625rem/1.6 system-ui, sans-serif }
main { max-width: 34rem; margin: 0 auto; padding: 4rem 1.25rem }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem }
label { display: block; font-weight: 600; margin: 1.5rem 0 .35rem }
input, textarea { width: 100%; font: inherit; color: inherit; background: transparent; padding: .65rem .75rem;
  border: 1px solid var(--line); border-radius: .4rem }
textarea { min-height: 9rem; resize: vertical }
:is(input, textarea, button, a):focus-visible { outline: 3px solid var(--mark); outline-offset: 2px }
button { margin-top: 1.75rem; font: inherit; font-weight: 600; padding: .7rem 1.5rem; cursor: pointer;
  color: var(--paper); background: var(--ink); border: 0; border-radius: .4rem }
a { color: var(--mark) }
"""


def page(title: str, content: str) -> bytes:
    """Return a whole page. `content` is HTML; `title` is text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{content}\n</main>\n</body>\n</html>\n"
    ).encode()


FORM = page(
    "Write to us",
    f"""<h1>Write to us</h1>
<p>Leave your name and address and we will answer you.</p>
<form action="/api/leads" method="post">
<label for="name">Name</label>
<input id="name" name="name" autocomplete="name" required maxlength="{NAME_MAX}">
<label for="email">E-mail</label>
<input id="email" name="email" type="email" autocomplete="email" required maxlength="{EMAIL_MAX}">
<label for="message">Message</label>
<textarea id="message" name="message" required maxlength="{MESSAGE_MAX}"></textarea>
<button type="submit">Send</button>
</form>""",
)
THANKS = page(
    "Thank you",
    '<h1>Thank you</h1>\n<p role="status">We have your message and will answer you soon.</p>\n'
    '<p><a href="/">Write another one</a></p>',
)
