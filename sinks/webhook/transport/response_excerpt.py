"""Response excerpt for operators: the start of a receiver's response, with the lead's own words masked. Pure."""

from __future__ import annotations

import codecs
import html
import re
import unicodedata
from collections.abc import Collection
from urllib.parse import unquote_plus

from schemas.events import Lead

EXCERPT_MAX_BYTES = 512
READ_FOR_EXCERPT_BYTES = 4096
"""Bytes that are masked; more than are kept, so that a word cut at the end of the excerpt is masked too."""
MASK = "***"
_WORD = re.compile(r"[^\W_]+")
_LAST_WORD = re.compile(r"[^\W_]+\Z")
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})|\\([nrtbf/\"\\])")
NAME_LEAST, OTHER_LEAST, WHOLE_LEAST = 2, 3, 4
"""Fewest characters that are masked: of a word of the name, of a word of another field, and of a whole field. Names are
short; a whole field covers addresses and numbers that consist of shorter words."""


def excerpt_of(answer: bytes, lead: Lead, *, charset: str | None = None, secrets: Collection[str] = ()) -> str | None:
    """Return the start of a response as text, with every word masked that occurs in the lead; None if it is empty.

    Word by word, because receivers quote a lead in parts, in other letter case, escaped and cut off.
    charset: as the response declares it. secrets: of the receiver's URL, masked too, because error pages quote them.
    """
    if not answer:
        return None
    text = _unescaped(_decoded(answer[:READ_FOR_EXCERPT_BYTES], charset))
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(re.escape(secret), MASK, text, flags=re.IGNORECASE)
    contact = lead.contact
    private = _words(contact.name, NAME_LEAST)
    others = {
        unicodedata.normalize("NFC", value).strip()
        for value in (contact.email, contact.message, *contact.extra.values())
    }
    for value in others:
        private |= _words(value, OTHER_LEAST)
    for whole in sorted(others, key=len, reverse=True):
        if len(whole) >= WHOLE_LEAST:
            text = re.sub(rf"(?<!\w){re.escape(whole)}(?!\w)", MASK, text, flags=re.IGNORECASE)
    masked = _WORD.sub(lambda found: MASK if _folded(found[0]) in private else found[0], text)
    cut = masked.encode()[:EXCERPT_MAX_BYTES].decode("utf-8", "ignore")
    # Half a word would not be recognised as the lead's.
    if len(answer) > READ_FOR_EXCERPT_BYTES and len(cut) == len(masked):
        cut = _LAST_WORD.sub("", cut)
    return cut or None


def _decoded(answer: bytes, charset: str | None) -> str:
    if answer.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        charset = "utf-16"
    try:
        text = answer.decode(charset or "utf-8", "replace")
    except (LookupError, ValueError):
        text = answer.decode("utf-8", "replace")
    # Undeclared UTF-16 would otherwise be single letters between NULs, and no word would be recognised.
    return text.replace("\0", "")


def _unescaped(text: str) -> str:
    """Return the text with the escapes of JSON, HTML and forms decoded, so that escaped words are masked too."""

    def plain(found: re.Match[str]) -> str:
        return chr(int(found[1], 16)) if found[1] else " "

    text = _ESCAPED.sub(plain, text)
    # Two UTF-16 escapes (surrogates) make one character.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = unquote_plus(html.unescape(text)) if "%" in text or "&" in text else text
    # A letter and its accent may be two characters, and the combining one is in no word.
    return unicodedata.normalize("NFC", text)


def _words(text: str, least: int) -> set[str]:
    return {_folded(word) for word in _WORD.findall(unicodedata.normalize("NFC", text)) if len(word) >= least}


def _folded(word: str) -> str:
    """Return a word without case and accents, so that `joao` matches João."""
    letters = (letter for letter in unicodedata.normalize("NFKD", word) if not unicodedata.combining(letter))
    return "".join(letters).casefold()
