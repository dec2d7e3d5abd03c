"""Translations reach every way in which the plugin asks for text, and touch nothing else."""

import json

import pytest
from qgis.PyQt.QtCore import QCoreApplication, QObject, QTimer
from qgis.PyQt.QtWidgets import QLabel


class GeopeftBase(QObject):
    """Asks as the plugin's classes do."""

    def ask(self):
        return self.tr("Saved {name} – two")


class GeopeftDerived(GeopeftBase):
    pass


@pytest.fixture
def installed(qgis_app, monkeypatch, tmp_path):
    """Installs the translator for a locale, with files of the test's own."""
    from geopeft_qgis import settings, translator

    sources = {
        "Saved {name} – two": ["GeopeftBase", "GeopeftDerived"],
        "&Run": ["GeoPEFT"],
        "Cancel": ["GeopeftBase"],
        "Not yet": ["GeoPEFT"],
    }
    (tmp_path / "sources.json").write_text(json.dumps(sources))
    german = {"Saved {name} – two": "{name} gespeichert – zwei ß", "&Run": "&Los", "Cancel": "Halt", "Not yet": None}
    (tmp_path / "de.json").write_text(json.dumps(german))
    (tmp_path / "pt_BR.json").write_text(json.dumps({"&Run": "&Vai"}))
    (tmp_path / "ja.json").write_text(json.dumps({"&Run": "実行(&R)𠮷"}))
    monkeypatch.setattr(settings, "resource", lambda *parts: str(tmp_path))
    there = []

    def install(locale):
        there.append(translator.install(locale))
        return there[-1]

    yield install
    for one in there:
        translator.remove(one)


def test_a_class_and_its_subclasses_are_translated(installed):
    installed("de_AT")
    assert GeopeftBase().ask() == GeopeftDerived().ask() == "{name} gespeichert – zwei ß"
    assert QCoreApplication.translate("GeoPEFT", "&Run") == "&Los"


def test_texts_of_others_stay_theirs(installed):
    installed("de")
    assert QLabel().tr("Cancel") == "Cancel"
    assert QTimer().tr("Saved {name} – two") == "Saved {name} – two"
    assert GeopeftBase().tr("Cancel") == "Halt"


def test_what_has_no_translation_is_english(installed):
    installed("de")
    assert QCoreApplication.translate("GeoPEFT", "Not yet") == "Not yet"
    assert QCoreApplication.translate("GeoPEFT", "Never heard of") == "Never heard of"


def test_modules_without_qt_are_translated_too(installed):
    from geopeft_qgis import language, translator

    one = installed("ja")
    assert language.tr("&Run") == "実行(&R)𠮷"
    translator.remove(one)
    assert language.tr("&Run") == "&Run"


def test_removed_means_gone(installed):
    from geopeft_qgis import translator

    one = installed("de")
    translator.remove(one)
    assert GeopeftBase().ask() == "Saved {name} – two"


@pytest.mark.parametrize(
    ("locale", "name"),
    [
        ("de", "de"),
        ("de_CH", "de"),
        ("pt", "pt_BR"),
        ("pt_BR", "pt_BR"),
        ("pt-PT", "pt_BR"),
        ("zh-Hans", "zh"),
        ("zh_CN", "zh"),
        ("ZH", "zh"),
        ("en", ""),
        ("en_US", ""),
        ("C", ""),
        ("", ""),
        ("nl", ""),
        ("dezert", ""),
    ],
)
def test_a_locale_finds_the_nearest_language(qgis_app, locale, name):
    from geopeft_qgis import translator

    assert translator.language_of(locale) == name


@pytest.mark.parametrize("locale", ["en", "nl", "it"])
def test_without_a_fitting_file_nothing_is_installed(installed, locale):
    assert installed(locale) is None


def test_the_language_is_what_qgis_shows(qgis_app, monkeypatch):
    from qgis.core import QgsSettings

    from geopeft_qgis import translator

    settings = QgsSettings()
    settings.setValue("locale/overrideFlag", True)
    settings.setValue("locale/userLocale", "pt_BR")
    try:
        assert translator.qgis_locale() == "pt_BR"
        settings.setValue("locale/overrideFlag", False)
        assert translator.qgis_locale() != "pt_BR"
    finally:
        settings.remove("locale/overrideFlag")
        settings.remove("locale/userLocale")


@pytest.mark.parametrize("name", ["de", "es", "fr", "it", "ja", "pt_BR", "ru", "zh"])
def test_every_shipped_translation_is_found_by_qt(qgis_app, name):
    from geopeft_qgis import settings, translator

    one = translator.install(name)
    try:
        translations = json.loads(open(settings.resource("i18n", f"{name}.json"), encoding="utf-8").read())
        contexts = json.loads(open(settings.resource("i18n", "sources.json"), encoding="utf-8").read())
        wrong = [
            (context, source)
            for source, translation in translations.items()
            for context in contexts[source]
            if QCoreApplication.translate(context, source) != (translation or source)
        ]
    finally:
        translator.remove(one)
    assert translations and not wrong
