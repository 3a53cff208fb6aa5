"""Character encodings of forms: the labels that browsers and clients declare, and the codecs for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

WINDOWS_1252 = "cp1252"
_LABELS = {
    "utf-8": "utf-8 utf8 unicode-1-1-utf-8",
    WINDOWS_1252: "windows-1252 cp1252 iso-8859-1 iso8859-1 iso_8859-1 latin1 l1 us-ascii ascii",
    "cp1250": "windows-1250 cp1250",
    "cp1251": "windows-1251 cp1251",
    "cp1253": "windows-1253 cp1253",
    "cp1254": "windows-1254 cp1254 iso-8859-9 latin5",
    "cp1255": "windows-1255 cp1255",
    "cp1256": "windows-1256 cp1256",
    "cp1257": "windows-1257 cp1257",
    "cp1258": "windows-1258 cp1258",
    "cp874": "windows-874 iso-8859-11 tis-620",
    "cp866": "ibm866 cp866",
    **{f"iso8859_{part}": f"iso-8859-{part} iso8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)},
    "koi8_r": "koi8-r",
    "koi8_u": "koi8-u",
    "mac_roman": "macintosh x-mac-roman",
    "mac_cyrillic": "x-mac-cyrillic",
    "cp932": "shift_jis shift-jis sjis x-sjis windows-31j ms_kanji",
    "euc_jp": "euc-jp x-euc-jp",
    "iso2022_jp": "iso-2022-jp",
    "cp949": "euc-kr ks_c_5601-1987 windows-949",
    "gb18030": "gb18030 gbk gb2312 x-gbk",
    "big5hkscs": "big5 big5-hkscs",
    "utf-16": "utf-16",
    "utf-16-le": "utf-16le",
    "utf-16-be": "utf-16be",
}
CODECS: Mapping[str, str] = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}
"""Python's codec by label, as the Encoding standard (WHATWG) defines it: Latin-1 is windows-1252. A fixed table,
because Python's own look-up caches every unknown label for good and has codecs that are no character encodings."""
_REFERENCE = re.compile(r"&#([0-9]{2,7});")


def codec_for(label: str | None) -> str | None:
    """Return the codec for a declared label; None for an unknown one."""
    return None if label is None else CODECS.get(label.strip(" \t\"'").lower())


def text_of(raw: bytes, codec: str | None) -> str | None:
    """Decode bytes by their declared encoding, or as UTF-8; return None when neither fits.

    Clients declare Latin-1 by mistake, so bytes declared as windows-1252 or Latin-1 are read as UTF-8 where that fits.
    """
    if codec is not None and codec != WINDOWS_1252 and (text := _decoded(raw, codec)) is not None:
        return text
    text = _decoded(raw, "utf-8")
    return _decoded(raw, codec) if text is None and codec == WINDOWS_1252 else text


def field_of(raw: bytes, codec: str | None) -> str | None:
    """Decode a form's field as `text_of` does, and resolve references to characters that the page's encoding lacks.

    Browsers send these as decimal references (HTML, 4.10.21.8), an emoji on a windows-1252 page as `&#128512;`.
    """
    text = text_of(raw, codec)
    return text if text is None or codec is None or "&#" not in text else _dereferenced(text, codec)


def guess_of(raw: bytes) -> str:
    """Decode bytes of an unknown encoding as windows-1252, the most likely one, for a person to check."""
    return _dereferenced(raw.decode(WINDOWS_1252, "replace"), WINDOWS_1252)


def _dereferenced(text: str, codec: str) -> str:
    return _REFERENCE.sub(partial(_character, codec), text)


def _character(codec: str, reference: re.Match[str]) -> str:
    number = int(reference[1])
    if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
        return reference[0]
    # Browsers write references only for characters that the encoding lacks; any other reference was typed.
    return reference[0] if chr(number).encode(codec, "ignore") else chr(number)


def _decoded(raw: bytes, codec: str) -> str | None:
    try:
        return raw.decode(codec)
    except UnicodeDecodeError:
        return None
