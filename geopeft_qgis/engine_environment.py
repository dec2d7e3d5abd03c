"""The engine's environments on disk: where they are, whether they fit, are whole, and how large they are.

Standard library only (not even qgis), Python 3.9 syntax. Everything here only reads. An environment without a fitting
stamp, which is written last, is never used.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from .engine_steps import InstallError, answer
from .language import tr

HERE = Path(__file__).resolve().parent
STAMP = "stamp.json"
# Companies add their own certificate to this file; that is no damage.
MAY_CHANGE = "certifi/cacert.pem"


def engine_source() -> Path:
    """The folder that holds the package `geopeft`, its lock and the pins of uv: in the plugin, or beside it."""
    inside = HERE / "engine"
    return inside.resolve() if (inside / "geopeft").is_dir() else (HERE.parent / "engine").resolve()


def home() -> Path:
    """Where environments and tools live by default: outside the plugin's folder, which an upgrade deletes."""
    if os.environ.get("GEOPEFT_HOME"):
        return Path(os.environ["GEOPEFT_HOME"]).expanduser().resolve()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "GeoPEFT"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "GeoPEFT"  # not shown
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "geopeft"


def engine_python(source: Optional[Path] = None, folder: Optional[Path] = None) -> Optional[Path]:
    """The Python of a finished environment for this source and lock, or None. Reads stamps only: instant.

    `folder` is where environments live, `home()` by default.
    """
    ready = ready_environments((source or engine_source()).resolve(), folder or home())
    return python_in(ready[-1]) if ready else None


def outdated(source: Optional[Path] = None, folder: Optional[Path] = None) -> bool:
    """Whether all that is there for this source was made from another lock: an engine of another version."""
    source = (source or engine_source()).resolve()
    stamps = [read_stamp(environment) for environment in environments(folder or home())]
    mine = [stamp.get("lock") for stamp in stamps if stamp.get("source") == str(source)]
    return bool(mine) and lock_hash(source) not in mine


def verify(python: Path) -> list[str]:
    """What is wrong with an environment, a sentence each; empty when it is whole. About 2 s.

    Compares presence and size of each installed file with the packages' own lists, then starts the engine.
    """
    environment = Path(python).parent.parent
    found = damage(environment)
    cut = tr("{package}: {count} files are missing or cut, such as {file}.")
    problems = [cut.format(package=name, count=len(files), file=files[0]) for name, files in found.items()]
    stamp = read_stamp(environment)
    # An environment that an earlier version made says nothing of its lists.
    lists = records_hash(environment) if "records" in stamp else None
    if stamp.get("packages") != count_packages(environment) or stamp.get("records") != lists:
        problems.append(tr("Packages are missing."))
    if not problems:
        started, text = answer([str(python), "-I", "-m", "geopeft", "probe"])
        problems += [] if started else [tr("The engine does not start ({reason}).").format(reason=text)]
    return problems


def python_in(environment: Path) -> Path:
    """The Python of an environment, whether it is there or not."""
    return environment / "Scripts" / "python.exe" if os.name == "nt" else environment / "bin" / "python"


def site_packages(environment: Path) -> Path:
    """Where an environment's packages are."""
    if os.name == "nt":
        return environment / "Lib" / "site-packages"
    return next(iter(environment.glob("lib/python3.*")), environment / "lib" / "python3") / "site-packages"


def environments(folder: Path) -> list[Path]:
    """Folders of environments, finished or not."""
    root = folder / "engine"
    return [entry for entry in sorted(root.iterdir()) if entry.is_dir()] if root.is_dir() else []


def ready_environments(source: Path, folder: Path) -> list[Path]:
    """Finished environments that fit this source and its lock, one for a graphics card last."""
    wanted = {"lock": lock_hash(source), "source": str(source)}
    fit = [entry for entry in environments(folder) if read_stamp(entry).items() >= wanted.items()]
    there = [entry for entry in fit if python_in(entry).exists()]
    return sorted(there, key=lambda entry: str(read_stamp(entry).get("variant")))


def read_stamp(environment: Path) -> dict[str, Any]:
    """The stamp of a finished environment; empty for one that is being built or taken away."""
    try:
        stamp = json.loads((environment / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and "." not in environment.name else {}


def lock_hash(source: Path) -> str:
    """The sha256 of a source's lock; InstallError where it is missing."""
    try:
        return hashlib.sha256((source / "requirements.lock").read_bytes()).hexdigest()
    except OSError as error:
        text = tr("The file {path} is missing.").format(path=source / "requirements.lock")
        raise InstallError(text, tr("Install GeoPEFT again.")) from error


def count_packages(environment: Path) -> int:
    """How many packages have left their list of files."""
    return sum(1 for _ in site_packages(environment).glob("*.dist-info/RECORD"))


def records_hash(environment: Path) -> str:
    """Over the packages' own lists of files, so that a list that is cut does not make its files whole."""
    seen = hashlib.sha256()
    for record in sorted(site_packages(environment).glob("*.dist-info/RECORD")):
        seen.update(record.parent.name.encode() + b"\0" + record.read_bytes())
    return seen.hexdigest()


def damage(environment: Path, read_all: bool = False) -> dict[str, list[str]]:
    """Files per package that differ from its RECORD: by presence and size, with `read_all` by sha256 too.

    A file that was written to after the environment was finished is always read.
    """
    site = site_packages(environment)
    finished = _finished_at(environment)
    broken: dict[str, list[str]] = {}
    for record in site.glob("*.dist-info/RECORD"):
        with record.open(encoding="utf-8", newline="") as lines:
            for name, digest, size in (row for row in csv.reader(lines) if len(row) == 3):
                if (
                    size
                    and not name.endswith((".pyc", MAY_CHANGE))
                    and not _is_whole(site / name, digest, int(size), read_all, finished)
                ):
                    broken.setdefault(record.parent.name.split("-")[0].replace("_", "-"), []).append(name)
    return broken


def _finished_at(environment: Path) -> float:
    """When the stamp was written, in seconds; for ever where there is none yet."""
    try:
        return (environment / STAMP).stat().st_mtime
    except OSError:
        return float("inf")


def _is_whole(path: Path, digest: str, size: int, read_all: bool, finished: float) -> bool:
    try:
        status = path.stat()
        if status.st_size != size:
            return False
        if not (read_all or status.st_mtime > finished) or not digest.startswith("sha256="):
            return True
        return file_sha256(path).digest() == base64.urlsafe_b64decode(digest[len("sha256=") :] + "==")
    except (OSError, ValueError):
        return False


def file_sha256(path: Path) -> Any:
    """The hash object of a file's content; OSError where it cannot be read."""
    seen = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            seen.update(chunk)
    return seen


def freed_bytes(folders: Iterable[Path]) -> int:
    """What removing these folders gives back: a file that has another name elsewhere (a hard link) frees nothing."""
    links: dict[tuple[int, int], tuple[int, int]] = {}
    single = 0
    for path in (path for folder in folders for path in folder.rglob("*")):
        try:
            status = path.lstat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            if status.st_nlink <= 1:
                single += status.st_size
            else:
                key = (status.st_dev, status.st_ino)
                seen = links.get(key, (0, status.st_nlink))[0]
                links[key] = (seen + 1, status.st_nlink)
                single += status.st_size if seen + 1 == status.st_nlink else 0
    return single


def free_bytes(folder: Path) -> int:
    """Free space where a folder is or would be."""
    there = next((part for part in (folder, *folder.parents) if part.exists()), folder)
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return 0
