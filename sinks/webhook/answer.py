"""What is kept of a receiver's answer: its beginning, without what the lead itself says. Pure."""

from __future__ import annotations

import html
import re
from urllib.parse import unquote_plus

from schemas.events import Lead

EXCERPT_MAX_BYTES = 512
READ_FOR_EXCERPT_BYTES = 4096
"""What is cut off in the middle is unmasked no more easily than what is whole: more is masked than is kept."""
MASK = "***"
_WORD = re.compile(r"[^\W_]+")
_LAST_WORD = re.compile(r"[^\W_]+\Z")
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})|\\([nrtbf/\"\\])")
NAME_LEAST, OTHER_LEAST = 2, 3
"""So many characters make a word that tells of a person; names are short."""


def excerpt_of(answer: bytes, lead: Lead) -> str | None:
    """Return the beginning of an answer as text, every word masked that the lead says too; None without any.

    Word by word, since receivers quote what they got in parts, in other letter case, escaped and cut off.
    """
    if not answer:
        return None
    text = _unescaped(answer[:READ_FOR_EXCERPT_BYTES].decode("utf-8", "replace"))
    contact = lead.contact
    private = _words(contact.name, NAME_LEAST)
    for value in (contact.email, contact.message, *contact.extra.values()):
        private |= _words(value, OTHER_LEAST)
    masked = _WORD.sub(lambda found: MASK if found[0].casefold() in private else found[0], text)
    cut = masked.encode()[:EXCERPT_MAX_BYTES].decode("utf-8", "ignore")
    # Half a word is not recognised as the lead's.
    if len(answer) > READ_FOR_EXCERPT_BYTES and len(cut) == len(masked):
        cut = _LAST_WORD.sub("", cut)
    return cut or None


def _unescaped(text: str) -> str:
    """Write characters as themselves that JSON, HTML and forms write otherwise: masked they must be all the same."""

    def plain(found: re.Match[str]) -> str:
        return chr(int(found[1], 16)) if found[1] else " "

    text = _ESCAPED.sub(plain, text)
    # Two escapes of UTF-16 are one character.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return unquote_plus(html.unescape(text)) if "%" in text or "&" in text else text


def _words(text: str, least: int) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text) if len(word) >= least}
