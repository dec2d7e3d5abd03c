"""Plugin and engine read the same packages."""

from __future__ import annotations

from geopeft import package

from geopeft_qgis import model_package


def test_the_plugin_knows_every_package_that_the_engine_writes() -> None:
    assert model_package.SCHEMA_VERSION == package.SCHEMA_VERSION
    written = {package.MANIFEST, package.WEIGHTS, package.FOREST, package.START}
    assert written <= model_package.MEMBERS
