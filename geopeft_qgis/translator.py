"""The plugin's texts in QGIS's language: `resources/i18n/LANGUAGE.json` -> QTranslator.

QTranslator reads Qt's binary .qm files only. Such a file is made here in memory, and not by overriding `translate`:
Qt asks its translators for every text of QGIS, from any thread, and a Python override there would have to wait for
the interpreter's lock, which may wait for that very thread.

`sources.json` says which text belongs to which contexts; `build.py strings` keeps it. A context is the name of the
class whose instance calls `tr` (PyQt takes that of the subclass), or GeoPEFT elsewhere. A text is translated in its
own contexts only, so that no text of QGIS or of another plugin is touched.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from qgis.core import QgsApplication
from qgis.PyQt.QtCore import QCoreApplication, QTranslator

from . import language, settings

CONTEXT = "GeoPEFT"
LANGUAGES = ("de", "es", "fr", "it", "ja", "pt_BR", "ru", "zh")

# Tags of the .qm format, see qtranslator.cpp of Qt.
_MAGIC = bytes.fromhex("3cb86418caef9c95cd211cbf60a1bddd")
_HASHES, _MESSAGES = 0x42, 0x69
_END, _TRANSLATION, _SOURCE, _CONTEXT = 1, 3, 6, 7


class MemoryTranslator(QTranslator):
    """A translator with a .qm file that is in memory."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        # Qt does not copy the bytes: they must live as long as the translator.
        self._content: Any = content
        self.loadFromData(self._content)


def install(locale: Optional[str] = None) -> Optional[QTranslator]:
    """Installs the translator for QGIS's language, or for `locale`; None where the texts stay in English."""
    language.use(lambda text: QCoreApplication.translate(CONTEXT, text))
    name = language_of(qgis_locale() if locale is None else locale)
    entries = list(_entries(name)) if name else []
    if not entries:
        return None
    translator = MemoryTranslator(compiled(entries))
    QCoreApplication.installTranslator(translator)
    return translator


def remove(translator: Optional[QTranslator]) -> None:
    """Undoes `install`."""
    language.use()
    if translator is not None:
        QCoreApplication.removeTranslator(translator)


def qgis_locale() -> str:
    """The language that QGIS shows: of its command line, else of its options, else the system's."""
    application = QgsApplication.instance()
    shown = application.translation() if application is not None else ""
    return str(shown or QgsApplication.locale())


def language_of(locale: str) -> str:
    """The file that fits a locale such as de_AT, pt or zh-Hant; empty for English and for any that is missing."""
    name = locale.replace("-", "_")
    if name in LANGUAGES:
        return name
    base = name.split("_")[0].lower()
    return next((known for known in LANGUAGES if known.split("_")[0] == base), "")


def _entries(name: str) -> Iterable[tuple[str, str, str]]:
    """(context, source, translation) for every text that has a translation."""
    folder = Path(settings.resource("i18n"))
    try:
        contexts = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
        translations = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for source, translation in translations.items():
        for context in contexts.get(source, ()) if translation else ():
            yield context, source, translation


def compiled(entries: Iterable[tuple[str, str, str]]) -> bytes:
    """A .qm file with these entries of (context, source, translation)."""
    offsets: list[tuple[int, int]] = []
    messages = bytearray()
    for context, source, translation in entries:
        key = source.encode("utf-8")
        offsets.append((_elf_hash(key), len(messages)))
        # Qt's own reader counts in UTF-16, most significant byte first.
        messages += _block(_TRANSLATION, translation.encode("utf-16-be"))
        messages += _block(_SOURCE, key) + _block(_CONTEXT, context.encode("utf-8")) + bytes([_END])
    hashes = b"".join(struct.pack(">II", *row) for row in sorted(offsets))
    return _MAGIC + _block(_HASHES, hashes) + _block(_MESSAGES, bytes(messages))


def _block(tag: int, content: bytes) -> bytes:
    return struct.pack(">BI", tag, len(content)) + content


def _elf_hash(text: bytes) -> int:
    """The hash by which Qt finds a text."""
    value = 0
    for byte in text:
        value = (value << 4) + byte
        high = value & 0xF0000000
        if high:
            value ^= high >> 24
        value &= ~high & 0xFFFFFFFF
    return value or 1
