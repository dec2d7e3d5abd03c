"""What the plugin store looks at in a zip: its members, its manifest, and that nothing compiled is inside."""

from __future__ import annotations

import configparser
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 25_000_000
NEEDED = ("__init__.py", "metadata.txt", "LICENSE")
REQUIRED = "name description version qgisMinimumVersion author email about tracker repository".split()
CATEGORIES = {"Raster", "Vector", "Database", "Mesh", "Web"}
# supportsQt6 is dead, the range of versions says it; a maximum that is left out would mean 3.99.
RANGE = ("3.22", "4.99")
COMPILED = re.compile(
    r"\.(exe|dll|so(\.\d+)*|dylib|pyd|pyc|pyo|a|lib|o|obj|class|jar|wasm|node|whl|egg|msi|bat|cmd|sh|ps1|com|app|bin)$",
    re.IGNORECASE,
)
MAGIC = {
    b"\x7fELF": "an ELF file",
    b"MZ": "a Windows program",
    b"\xfe\xed\xfa\xce": "a macOS program",
    b"\xfe\xed\xfa\xcf": "a macOS program",
    b"\xce\xfa\xed\xfe": "a macOS program",
    b"\xcf\xfa\xed\xfe": "a macOS program",
    b"\xca\xfe\xba\xbe": "a macOS program or a Java class",
    b"!<arch>": "a library of object files",
    b"\x00asm": "a WebAssembly module",
    b"#!": "a script to be started",
}


def faults(file: Path) -> list[str]:
    """What the store would refuse or mark in a plugin's zip, a sentence each."""
    found = []
    if file.stat().st_size > MAX_BYTES:
        found.append(f"The zip has {file.stat().st_size / 1e6:.1f} MB, the store takes {MAX_BYTES / 1e6:.0f}.")
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        found += _names(names)
        for entry in archive.infolist():
            found += _content(entry, archive.read(entry)[:8])
        top = names[0].split("/")[0]
        found += [f"{name} is missing." for name in NEEDED if f"{top}/{name}" not in names]
        if f"{top}/metadata.txt" in names:
            found += _manifest(archive.read(f"{top}/metadata.txt"), {name.removeprefix(f"{top}/") for name in names})
    return found


def _names(names: list[str]) -> Iterator[str]:
    tops = {name.split("/")[0] for name in names}
    if len(tops) != 1 or not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]+", top) for top in tops):
        yield f"There must be one folder with a Python name at the top, not {sorted(tops)}."
    if any("plugin" in top.lower() for top in tops):
        yield "The folder's name must not say that it is a plugin."
    if len(set(names)) != len(names):
        yield "A name is there twice."
    for name in names:
        hidden = [part for part in name.split("/") if part.startswith((".", "__MACOSX", "__pycache__"))]
        if "\\" in name or name.startswith("/") or (hidden and hidden not in ([".bandit"], [".flake8"])):
            yield f"{name} must not be in the zip."


def _content(entry: zipfile.ZipInfo, start: bytes) -> Iterator[str]:
    name = entry.filename
    if COMPILED.search(name):
        yield f"{name} looks like a program or a library."
    yield from (f"{name} is {what}." for magic, what in MAGIC.items() if start.startswith(magic))
    if name.endswith(".py") and (entry.external_attr >> 16) & 0o111:
        yield f"{name} may be executed."


def _manifest(content: bytes, names: set[str]) -> Iterator[str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(content.decode("utf-8"))
    general = parser["general"]
    yield from (f"metadata.txt has no {key}." for key in REQUIRED if not general.get(key, "").strip())
    for key in ("tracker", "repository", "homepage"):
        if not re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+/?", general.get(key, "")):
            yield f"metadata.txt: {key} is no address: {general.get(key)!r}"
    if not re.fullmatch(r"\d+(\.\d+){1,2}", general.get("version", "")):
        yield "metadata.txt: the version must be numbers with dots."
    if not re.search(rf"(^|\n)\s*{re.escape(general.get('version', '?'))}\b", general.get("changelog", "")):
        yield "metadata.txt: the changelog has no line for this version."
    if (general.get("qgisMinimumVersion"), general.get("qgisMaximumVersion")) != RANGE:
        yield f"metadata.txt: the versions of QGIS must be {RANGE}."
    if "supportsQt6" in general:
        yield "metadata.txt: supportsQt6 is not used any more; qgisMaximumVersion says it."
    if general.get("hasProcessingProvider") != "yes":
        yield "metadata.txt: hasProcessingProvider must be yes, or qgis_process does not find the algorithms."
    if general.get("category", "Raster") not in CATEGORIES:
        yield f"metadata.txt: the category must be one of {sorted(CATEGORIES)}."
    if "/" in general.get("author", "") or "plugin" in general.get("name", "").lower():
        yield "metadata.txt: no slash in author, no 'plugin' in name."
    if re.search(r"<[a-z]+", " ".join(general.get(key, "") for key in ("about", "description", "changelog"))):
        yield "metadata.txt: no HTML."
    if general.get("icon") and general["icon"] not in names:
        yield f"metadata.txt: the icon {general['icon']} is not in the zip."
