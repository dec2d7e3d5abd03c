"""An offline kit: a folder with everything that the engine's installation would download, and the sha256 of each file.

Standard library only (not even qgis), Python 3.9 syntax. `build.py kit` writes it, the installer reads it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from .engine_environment import file_sha256, lock_hash
from .engine_steps import STAGES, InstallError, Progress, Steps
from .language import tr

MANIFEST = "kit.json"
FORMAT = 1
SYSTEMS = {"linux": "linux", "win32": "windows", "darwin": "macos"}
WHEELS, WEIGHTS = "wheels", "weights"
MAKE_KIT = "python3 build.py kit --platform"  # not shown


@dataclass(frozen=True)
class Kit:
    """What kit.json says."""

    folder: Path
    system: str  # linux, windows or macos
    machine: str  # x86_64 or arm64
    variant: str  # cpu or gpu
    pythons: tuple[str, ...]  # minor versions, such as 3.12
    lock: str  # sha256 of the lock that its wheels are for
    version: str  # of GeoPEFT
    files: Mapping[str, Mapping[str, Any]]  # path below the folder -> sha256 and size in bytes

    @property
    def wheels(self) -> Path:
        """The folder of wheels, uv's among them."""
        return self.folder / WHEELS

    @property
    def size(self) -> int:
        """All files together, in bytes."""
        return sum(int(entry["size"]) for entry in self.files.values())


def this_system() -> str:
    """linux, windows or macos."""
    return SYSTEMS.get(sys.platform, sys.platform)


def this_machine() -> str:
    """x86_64 or arm64."""
    names = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}
    return names.get(platform.machine().lower(), platform.machine().lower())


def is_kit(folder: Path) -> bool:
    """Whether a folder says that it is a kit."""
    return (folder / MANIFEST).is_file()


def read(folder: Path) -> Kit:
    """The kit in a folder; InstallError where there is none."""
    hint = tr("Choose the folder that 'build.py kit' has made; it holds the file kit.json.")
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            text = tr("The kit in {path} was made by another version of GeoPEFT.").format(path=folder)
            raise InstallError(text, tr("Make a new kit."))
        names = ("system", "machine", "variant", "lock", "version")
        files = {
            str(name): {"sha256": str(e["sha256"]), "size": int(e["size"])} for name, e in content["files"].items()
        }
        texts = {name: str(content[name]) for name in names}
        return Kit(folder=folder, pythons=tuple(map(str, content["pythons"])), files=files, **texts)
    except OSError as error:
        raise InstallError(tr("There is no offline kit in {path}.").format(path=folder), hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = tr("The file {path} is damaged.").format(path=folder / MANIFEST)
        raise InstallError(text, tr("Copy the kit again.")) from error


def check_fits(kit: Kit, source: Path) -> None:
    """Raises InstallError where a kit is for another system or for another version of the engine."""
    here = (this_system(), this_machine())
    if (kit.system, kit.machine) != here:
        raise InstallError(
            tr("This kit is for {system} ({machine}), and this is {here} ({here_machine}).").format(
                system=kit.system, machine=kit.machine, here=here[0], here_machine=here[1]
            ),
            tr("Make one with: {command}").format(command=f"{MAKE_KIT} {here[0]}"),
        )
    if kit.lock != lock_hash(source):
        raise InstallError(
            tr("This kit was made for GeoPEFT {version} with other packages than this plugin's.").format(
                version=kit.version
            ),
            tr("Install the plugin of the same version, or make a new kit."),
        )


def check_files(kit: Kit, steps: Steps) -> None:
    """Raises InstallError that names a file that is missing or damaged; says how far it is."""
    done = 0
    for name, entry in kit.files.items():
        steps.check()
        path = kit.folder / name
        try:
            whole = _is_inside(kit.folder, path) and file_sha256(path).hexdigest() == entry["sha256"]
        except OSError:
            text = tr("The kit lacks the file {name}.").format(name=name)
            raise InstallError(text, tr("Copy the whole kit again.")) from None
        if not whole:
            text = tr("The file {name} of the kit is damaged (its sha256 differs).").format(name=name)
            raise InstallError(text, tr("Copy it again."))
        done += int(entry["size"])
        share = STAGES["kit"] + (STAGES["uv"] - STAGES["kit"]) * done / max(1, kit.size)
        steps.tell(Progress("kit", share, None, done, kit.size))


def _is_inside(folder: Path, path: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def copy_weights(kit: Kit, target: Path) -> Optional[Path]:
    """Copies a kit's weights to where they stay; that folder, or None where the kit has none."""
    names = [name for name in kit.files if name.startswith(WEIGHTS + "/")]
    for name in names:
        file = target / name[len(WEIGHTS) + 1 :]
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{file.name}.new-{os.getpid()}")
        shutil.copyfile(kit.folder / name, fresh)
        os.replace(fresh, file)
    return target if names else None


def write_manifest(
    folder: Path, facts: Mapping[str, Any], pythons: Sequence[str], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Writes kit.json over all other files of a folder, the last step of making a kit; its content."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        name = path.relative_to(folder).as_posix()
        files[name] = {"sha256": file_sha256(path).hexdigest(), "size": path.stat().st_size}
    content = {"format": FORMAT, **facts, "pythons": list(pythons), "files": files}
    fresh = folder / f"{MANIFEST}.new"
    fresh.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8", newline="\n")
    os.replace(fresh, folder / MANIFEST)
    tell(f"{folder / MANIFEST}: {len(files)} files, {sum(e['size'] for e in files.values()) / 1e9:.2f} GB")
    return content
