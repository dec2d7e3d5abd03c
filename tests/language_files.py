"""The language files in resources/i18n: kept up to date with the code, and compared with it.

`sources.json` has every visible text with its contexts, each `LANGUAGE.json` the same texts with their translations,
null where there is none yet, all in the order of the code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from string import Formatter

from tests.visible_text import Text

LANGUAGES = ("de", "es", "fr", "it", "ja", "pt_BR", "ru", "zh")


def contexts_of(texts: Iterable[Text]) -> dict[str, list[str]]:
    """text -> its contexts: what `sources.json` holds."""
    found: dict[str, list[str]] = {}
    for text in texts:
        contexts = found.setdefault(text.text, [])
        if text.context not in contexts:
            contexts.append(text.context)
    return {text: sorted(contexts) for text, contexts in found.items()}


def write(folder: Path, texts: list[Text]) -> list[str]:
    """Brings `sources.json` and the language files up to date; says in a line each what is new, open and dropped."""
    contexts = contexts_of(texts)
    _write_json(folder / "sources.json", contexts)
    said = []
    for language in LANGUAGES:
        path = folder / f"{language}.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        _write_json(path, {text: known.get(text) for text in contexts})
        dropped = [text for text in known if text not in contexts and known[text]]
        untranslated = sum(not known.get(text) for text in contexts)
        said.append(f"{path.name}: {len(contexts)} texts, {untranslated} without a translation")
        said += [f"{path.name}: dropped {text!r}: {known[text]!r}" for text in dropped]
    return said


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")


def file_faults(folder: Path, texts: list[Text]) -> Iterator[str]:
    """What is wrong with the language files, a line each."""
    contexts = contexts_of(texts)
    listed = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
    if list(listed.items()) != list(contexts.items()):
        yield "sources.json is not what the code has: run python3 build.py strings"
    for language in LANGUAGES:
        yield from language_faults(language, folder, list(contexts))


def language_faults(language: str, folder: Path, sources: list[str]) -> Iterator[str]:
    """What is wrong with one language's file, a line each."""
    path = folder / f"{language}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    yield from (f"{path.name}: no such text in the code: {text!r}" for text in known if text not in sources)
    for source in sources:
        translation = known.get(source)
        if not translation:
            yield f"{path.name}: not translated: {source!r}"
        else:
            yield from (f"{path.name}: {fault}: {translation!r}" for fault in differences(source, translation))


def differences(source: str, translation: str) -> Iterator[str]:
    """What a translation must have as its source has it."""
    for what, take in SAME.items():
        try:
            wanted, there = take(source), take(translation)
        except ValueError as error:
            yield f"cannot be filled in ({error})"
            return
        if wanted != there:
            yield f"{what} {there} instead of {wanted}"


def placeholders(text: str) -> list[tuple[str, str, str]]:
    """The {fields} of a text, with how they are written; ValueError where a brace is alone."""
    return sorted(
        (field, spec or "", how or "") for _, field, spec, how in Formatter().parse(text) if field is not None
    )


SAME: dict[str, Callable[[str], object]] = {
    "placeholders": placeholders,
    "tags": lambda text: sorted(re.findall(r"</?[a-zA-Z][^>]*>", text)),
    "line breaks": lambda text: text.count("\n"),
    "shortcut marks": lambda text: len(re.findall(r"&(?![&a-z]+;|&| )", text)),
    "blank at its start": lambda text: text[:1].isspace(),
    "blank at its end": lambda text: text[-1:].isspace(),
}
