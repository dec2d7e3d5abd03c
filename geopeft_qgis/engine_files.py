"""The record of an environment's files, made when it is finished, and what differs from it before a run.

Standard library only (not even qgis), Python 3.9 syntax. Sizes and times are compared, which takes a fraction of a
second, and only a file whose time alone differs is read. What Python makes of the files (.pyc) does not count, nor what
was added. An environment whose stamp speaks of no record, such as one of the user's own, is not looked at.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from .engine_environment import MAY_CHANGE, file_sha256, read_stamp, site_packages

RECORD = "files.json"
SETTINGS = "pyvenv.cfg"
# In a stamp: the sha256 of the record.
STAMPED = "files"

# Files that were read and are whole, by their size and time, so that this is done once.
_read: dict[str, tuple[int, int]] = {}


def write_record(environment: Path) -> str:
    """Writes down size, time and checksum of each file of a finished environment; the record's own sha256.

    Raises:
        OSError: a file cannot be read, or the record not be written.
    """
    known = _published(environment)
    record: dict[str, dict[str, tuple[int, int, str]]] = {}
    for folder in _folders(environment):
        for name, (size, changed) in _seen(environment / folder).items():
            path = f"{folder}/{name}"
            if not path.endswith((".pyc", MAY_CHANGE)) and (folder != "." or name == SETTINGS):
                digest = known.get(path) or file_sha256(environment / path).hexdigest()
                record.setdefault(folder, {})[name] = (size, changed, digest)
    body = json.dumps(record, separators=(",", ":")).encode()
    (environment / RECORD).write_bytes(body)
    return hashlib.sha256(body).hexdigest()


def differing(environment: Path) -> list[str]:
    """Files that are missing, or are not what they were when the environment was finished; in order, each relative to
    it. Empty where it has no record."""
    stamp = read_stamp(environment)
    if STAMPED not in stamp:
        return []
    record = _record(environment, str(stamp[STAMPED]))
    found = (
        [RECORD] if record is None else [path for folder in record for path in _changed(environment, folder, record)]
    )
    # One that was put in its place meanwhile is another matter.
    return differing(environment) if found and read_stamp(environment) != stamp else sorted(found)


def _record(environment: Path, digest: str) -> Any:
    """Folder -> name -> (size, time in ns, sha256); None where it is not the one that was written."""
    try:
        body = (environment / RECORD).read_bytes()
    except OSError:
        return None
    return json.loads(body) if hashlib.sha256(body).hexdigest() == digest else None


def _changed(environment: Path, folder: str, record: Mapping[str, Mapping[str, Any]]) -> list[str]:
    wanted = record[folder]
    seen = _seen(environment / folder, wanted)
    found = []
    for name, (size, changed, digest) in wanted.items():
        now = seen.get(name)
        if now != (size, changed) and (
            now is None or now[0] != size or not _is(environment / folder / name, now, digest)
        ):
            found.append((Path(folder) / name).as_posix())
    return found


def _is(path: Path, now: tuple[int, int], digest: str) -> bool:
    """Whether a file of the right size has the right content."""
    if _read.get(str(path)) == now:
        return True
    try:
        whole = bool(file_sha256(path).hexdigest() == digest)
    except OSError:
        return False
    if whole:
        _read[str(path)] = now
    return whole


def _seen(folder: Path, wanted: Optional[Mapping[str, Any]] = None) -> dict[str, tuple[int, int]]:
    """Name -> (size, time in ns) of the files in a folder, or of those that are wanted; empty where it is not there."""
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if (entry.name in wanted) if wanted is not None else entry.is_file():
                    status = entry.stat()
                    found[entry.name] = (status.st_size, status.st_mtime_ns)
    except OSError:
        return found
    return found


def _folders(environment: Path) -> list[str]:
    """The folders that a run reads from, relative to the environment."""
    site = site_packages(environment)
    inside = [Path(folder) for folder, _, _ in os.walk(site) if not folder.endswith("__pycache__")]
    return [path.relative_to(environment).as_posix() for path in (environment, *inside)]


def _published(environment: Path) -> dict[str, str]:
    """Path, relative to the environment -> sha256 in hex, as the packages say themselves."""
    site = site_packages(environment)
    place = site.relative_to(environment).as_posix()
    found = {}
    for record in site.glob("*.dist-info/RECORD"):
        with record.open(encoding="utf-8", newline="") as lines:
            for name, digest, _ in (row for row in csv.reader(lines) if len(row) == 3):
                if digest.startswith("sha256="):
                    found[f"{place}/{name}"] = base64.urlsafe_b64decode(digest[len("sha256=") :] + "==").hex()
    return found
