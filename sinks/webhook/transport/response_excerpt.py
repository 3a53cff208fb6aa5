"""What is kept of a receiver's answer: its beginning, without what the lead itself says. Pure."""

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
"""What is cut off in the middle is unmasked no more easily than what is whole: more is masked than is kept."""
MASK = "***"
_WORD = re.compile(r"[^\W_]+")
_LAST_WORD = re.compile(r"[^\W_]+\Z")
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})|\\([nrtbf/\"\\])")
NAME_LEAST, OTHER_LEAST, WHOLE_LEAST = 2, 3, 4
"""So many characters make a word that tells of a person; names are short. What is masked as a whole, as an address or a
number of short words must be, is longer."""


def excerpt_of(answer: bytes, lead: Lead, *, charset: str | None = None, secrets: Collection[str] = ()) -> str | None:
    """Return the beginning of an answer as text, every word masked that the lead says too; None without any.

    Word by word, since receivers quote what they got in parts, in other letter case, escaped and cut off.
    charset: what the answer says of itself. secrets: of the receiver's URL, which error pages quote; masked as well.
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
    # Half a word is not recognised as the lead's.
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
    # Else UTF-16 that does not say so is a row of single letters, none of them a word of the lead's.
    return text.replace("\0", "")


def _unescaped(text: str) -> str:
    """Write characters as themselves that JSON, HTML and forms write otherwise: masked they must be all the same."""

    def plain(found: re.Match[str]) -> str:
        return chr(int(found[1], 16)) if found[1] else " "

    text = _ESCAPED.sub(plain, text)
    # Two escapes of UTF-16 are one character.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = unquote_plus(html.unescape(text)) if "%" in text or "&" in text else text
    # A letter and its accent may come as two characters, of which one is in no word.
    return unicodedata.normalize("NFC", text)


def _words(text: str, least: int) -> set[str]:
    return {_folded(word) for word in _WORD.findall(unicodedata.normalize("NFC", text)) if len(word) >= least}


def _folded(word: str) -> str:
    """Return a word without case and accents: `joao` is João too."""
    letters = (letter for letter in unicodedata.normalize("NFKD", word) if not unicodedata.combining(letter))
    return "".join(letters).casefold()
