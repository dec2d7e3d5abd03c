"""Everything visible is translatable, and every language file is complete."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests import language_files, visible_text

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "resources" / "i18n"


@pytest.fixture(scope="module")
def found() -> visible_text.Found:
    return visible_text.read(ROOT / "geopeft_qgis")


def test_every_visible_text_is_given_to_tr(found: visible_text.Found) -> None:
    assert found.faults == [], "\n".join(found.faults)


def test_the_list_of_sources_is_what_the_code_has(found: visible_text.Found) -> None:
    listed = json.loads((FOLDER / "sources.json").read_text(encoding="utf-8"))
    assert listed == language_files.contexts_of(found.texts), "run python3 build.py strings"


@pytest.mark.parametrize("language", language_files.LANGUAGES)
def test_a_language_is_complete(language: str, found: visible_text.Found) -> None:
    sources = list(language_files.contexts_of(found.texts))
    faults = list(language_files.language_faults(language, FOLDER, sources))
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:20])


def test_the_plugin_offers_the_same_languages() -> None:
    tree = ast.parse((ROOT / "geopeft_qgis" / "translator.py").read_text(encoding="utf-8"))
    offered = [value for node in tree.body for name, value in visible_text.assigned(node) if name == "LANGUAGES"]
    assert [ast.literal_eval(value) for value in offered] == [language_files.LANGUAGES]


def read(code: str, other: str = "") -> visible_text.Found:
    modules = [
        visible_text.Module(name, ast.parse(text), text.splitlines())
        for name, text in (("a.py", code), ("b.py", other))
    ]
    return visible_text.read_modules(modules)


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ("class A(QWidget):\n def f(self): self.tr('One')", {("One", "A")}),
        ("class A(QWidget):\n def f(self): self.tr('One ' 'two')\nclass B(A): pass", {("One two", "A"), ("One two", "B")}),  # noqa: E501
        ("class A:\n def tr(self, text): return translate(text)\nclass B(A):\n def f(self): self.tr('x')", {("x", "GeoPEFT")}),  # noqa: E501
        ("QCoreApplication.translate('GeoPEFT', 'Two words')", {("Two words", "GeoPEFT")}),
        ("raise LayerError(tr('Two {n} words').format(n=1))", {("Two {n} words", "GeoPEFT")}),
        ("box.setText(_tr('On') if x else _tr('Off'))", {("On", "GeoPEFT"), ("Off", "GeoPEFT")}),
        ("_tr('On' if x else 'Off')", {("On", "GeoPEFT"), ("Off", "GeoPEFT")}),
        ("TITLES = {'a b': 'First one'}\n[tr(TITLES[key]) for key in TITLES]", {("First one", "GeoPEFT")}),
        ("class A(QWidget):\n NAMES = ('x', 'y')\n def f(self): [self.tr(n) for n in self.NAMES]", {("x", "A"), ("y", "A")}),  # noqa: E501
    ],
)  # fmt: skip
def test_a_translatable_text_is_found_with_its_contexts(code: str, texts: set[tuple[str, str]]) -> None:
    found = read(code)
    assert {(text.text, text.context) for text in found.texts} == texts
    assert found.faults == []


def test_a_text_of_a_base_class_is_asked_for_by_subclasses_in_other_files() -> None:
    found = read(
        "class A(QWidget):\n TITLE = ''\n def f(self): self.tr(self.TITLE)", "class B(A):\n TITLE = 'My title'"
    )
    assert {(text.text, text.context) for text in found.texts} == {("My title", "A"), ("My title", "B")}


@pytest.mark.parametrize(
    "code",
    [
        "label.setText('Ready')",
        "label.setText(f'{n} labels')",
        "label.setToolTip('a' if x else 'Draw')",
        "layout.addRow('Raster', box)",
        "button = QPushButton('Go')",
        "raise LayerError('There is no raster.')",
        "raise LayerError(f'There is no raster {name}.')",
        "text = 'The model is trained.'",
        "tr(f'There are {n} labels')",
        "tr('{n} labels'.format(n=1))",
        "tr(text)",
        "other.tr('Ready')",
        "tr('%n label(s)')",
        "self.tr('%n label(s)', '', n)",
        "QCoreApplication.translate('Another', 'Ready')",
        "TITLE = 'a b' + f(x)\ntr(TITLE)",
    ],
)
def test_a_text_that_stays_english_is_a_fault(code: str) -> None:
    assert [fault[:5] for fault in read(code).faults[:1]] == ["a.py:"]


@pytest.mark.parametrize(
    "code",
    [
        "'''A module of two words.'''\ndef f():\n  '''Does two things.'''",
        "raise ValueError('for programmers only')",
        "WORDS = 'one two three'.split()",
        "pattern = re.compile('two words')",
        "if text == 'two words': pass",
        "ENDS = {'label raster': 3.0}",
        "CODE = 'import sys; print(sys.version)'",
        "label.setText(f'{n} %')",
        "label.setText('')",
        "box.addItem('GeoPEFT')",
        "name = 'Application Support'  # not shown",
        "box.addItem('mobilenet')  # not shown, the name of a file",
    ],
)
def test_a_text_that_no_one_reads_is_no_fault(code: str) -> None:
    assert read(code) == visible_text.Found([], [])


@pytest.mark.parametrize(
    ("source", "translation", "fault"),
    [
        ("{n} of {total}", "{total}: {n}", None),
        ("{n} of {total}", "{n} von {alle}", "placeholders"),
        ("{share:.0f} %", "{share} %", "placeholders"),
        ("Saved {name}", "{Gespeichert", "filled in"),
        ("<b>Labels</b> are", "<b>Etiketten sind", "tags"),
        ("one\n\ntwo", "eins zwei", "line breaks"),
        (" min", "Min.", "blank"),
        ("&Run", "Los", "shortcut"),
        ("R&D && more", "F&E && mehr", None),
    ],
)
def test_a_translation_keeps_what_the_code_needs(source: str, translation: str, fault: str | None) -> None:
    faults = list(language_files.differences(source, translation))
    assert len(faults) == (fault is not None)
    assert all(fault in text for text in faults if fault)


def test_new_texts_come_in_and_translations_stay(tmp_path: Path) -> None:
    texts = [visible_text.Text(text, "A", "a.py:1") for text in ("one", "two")]
    language_files.write(tmp_path, texts)
    german = tmp_path / "de.json"
    assert json.loads(german.read_text()) == {"one": None, "two": None}
    german.write_text('{"one": "eins", "two": "zwei", "gone": "weg"}', encoding="utf-8")
    said = language_files.write(tmp_path, [visible_text.Text("new", "A", "a.py:1"), *texts])
    assert list(json.loads(german.read_text()).items()) == [("new", None), ("one", "eins"), ("two", "zwei")]
    assert any("dropped 'gone': 'weg'" in line for line in said)
    assert [line for line in language_files.file_faults(tmp_path, texts) if line.startswith("sources")]
