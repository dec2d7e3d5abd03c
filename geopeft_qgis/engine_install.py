"""Makes, checks, repairs and removes the engine's own Python environment; the plugin and build.py share this file.

Standard library only (not even qgis), Python 3.9 syntax. An environment is built beside an older one from
`requirements.lock` with hashes, then switched to by one rename; its stamp file is written last, so a folder without a
fitting stamp is never used.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .engine_uv import (
    CommandFailed,
    InstallCanceled,
    InstallError,
    Say,
    Steps,
    answer,
    base_python,
    child_environment,
    get_uv,
    reason,
    root_prefix,
    sees_nvidia_gpu,
)

__all__ = [
    "InstallCanceled",
    "InstallError",
    "child_environment",
    "engine_python",
    "engine_source",
    "ensure",
    "home",
    "install_tools",
    "remove",
    "root_prefix",
    "uv_program",
    "verify",
]

HERE = Path(__file__).resolve().parent
STAMP = "stamp.json"
# With the CUDA libraries of the Linux wheels an environment takes 5.6 GB, without them 1.5 GB.
NEEDED_GB = 8 if sys.platform == "linux" else 3
# Companies add their own certificate to this file; that is no damage.
MAY_CHANGE = "certifi/cacert.pem"
CHECKED_IMPORTS = "import torch, torchvision, timm, rasterio, pyogrio, shapely, onnxruntime, sklearn, geopeft"


def engine_source() -> Path:
    """The folder that holds the package `geopeft`, its lock and the pins of uv: in the plugin, or beside it."""
    inside = HERE / "engine"
    return inside.resolve() if (inside / "geopeft").is_dir() else (HERE.parent / "engine").resolve()


def home() -> Path:
    """Where environments and tools live: outside the plugin's folder, which an upgrade deletes."""
    if os.environ.get("GEOPEFT_HOME"):
        return Path(os.environ["GEOPEFT_HOME"]).expanduser().resolve()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "GeoPEFT"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "GeoPEFT"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "geopeft"


def engine_python(source: Path | None = None) -> Path | None:
    """The Python of a finished environment for this source and lock, or None. Reads stamps only: instant."""
    ready = _ready((source or engine_source()).resolve())
    return _python_in(ready[-1]) if ready else None


def ensure(
    source: Path | None,
    say: Say,
    canceled: Callable[[], bool] = lambda: False,
    repair: bool = False,
    wheels: Path | None = None,
    may_use_apt: bool = False,
) -> Path:
    """The Python of an environment that works, made or repaired where needed; takes half a second where it is whole.

    `repair` builds it anew in any case; packages whose files differ from what was published are fetched again.
    `wheels` is a folder of wheels (uv's among them) for a machine without network. `may_use_apt` allows it to install
    python3-pip on Debian.
    Raises InstallError, InstallCanceled.
    """
    work = _Installation((source or engine_source()).resolve(), Steps(say, canceled), wheels, may_use_apt)
    found = None if repair else work.ready()
    if found:
        return found
    with _alone(work.steps):
        # Another process may have finished it while this one waited.
        return (None if repair else work.ready()) or work.build(repair or work.is_damaged)


def verify(python: Path) -> list[str]:
    """What is wrong with an environment, a sentence each; empty when it is whole. About 2 s.

    Compares presence and size of each installed file with the packages' own lists, then starts the engine.
    """
    environment = Path(python).parent.parent
    found = _damage(environment)
    problems = [f"{name}: {len(files)} files are missing or cut, such as {files[0]}." for name, files in found.items()]
    if _read_stamp(environment).get("packages") != _count_packages(environment):
        problems.append("Packages are missing.")
    if not problems:
        started, text = answer([str(python), "-I", "-m", "geopeft", "probe"])
        problems += [] if started else [f"The engine does not start ({text})."]
    return problems


def uv_program(say: Say, may_use_apt: bool = False) -> Path:
    """The pinned uv, fetched where needed."""
    steps = Steps(say, lambda: False)
    with _alone(steps):
        return get_uv(steps, home() / "uv", engine_source() / "uv.txt", None, may_use_apt)


def install_tools(python: Path, lock: Path, say: Say, may_use_apt: bool = False) -> Path:
    """A folder for PYTHONPATH with the packages of `lock` for `python`: tools that the engine itself does not need."""
    steps = Steps(say, lambda: False)
    version = answer([str(python), "-I", "-c", "import sys; print(sys.version_info[:2])"])[1]
    key = hashlib.sha256(lock.read_bytes() + version.encode()).hexdigest()[:12]
    target = home() / "tools" / key
    if not target.is_dir():
        uv = uv_program(say, may_use_apt)
        with _alone(steps):
            for old in (home() / "tools").glob(f"{key}*"):
                shutil.rmtree(old, ignore_errors=True)
            fresh = target.with_name(f"{key}.new-{os.getpid()}")
            command = [str(uv), "pip", "install", "--require-hashes", "--python", str(python), "--target", str(fresh)]
            _uv(steps, [*command, "-r", str(lock)], None, "The tools could not be installed")
            os.replace(fresh, target)
    return target


def remove() -> None:
    """Removes all environments and the installer's tools; models and their weights stay."""
    with _alone(Steps(lambda text: None, lambda: False)):
        for folder in (*_environments(), home() / "uv", home() / "tools"):
            shutil.rmtree(folder, ignore_errors=True)


class _Installation:
    """The making of one environment. Its steps run in the order of `build`."""

    def __init__(self, source: Path, steps: Steps, wheels: Path | None, may_use_apt: bool) -> None:
        self.source = source
        self.steps = steps
        self.wheels = wheels
        self.may_use_apt = may_use_apt
        self.variant = "gpu" if sees_nvidia_gpu() else "cpu"
        self.lock_hash = _lock_hash(source)
        self.is_damaged = False

    def ready(self) -> Path | None:
        """The Python of a finished environment for this source, lock and graphics card that is whole."""
        for environment in _ready(self.source):
            if _read_stamp(environment).get("variant") == self.variant:
                problems = verify(_python_in(environment))
                if not problems:
                    return _python_in(environment)
                if not self.is_damaged:
                    self.steps.say(f"The engine's environment is damaged and is made anew. {problems[0]}")
                self.is_damaged = True
        return None

    def build(self, repair: bool) -> Path:
        root = home() / "engine"
        self._make_room(root)
        uv = get_uv(self.steps, home() / "uv", self.source / "uv.txt", self.wheels, self.may_use_apt)
        if repair:
            self._forget_damaged(uv)
        base, minor = base_python(self.wheels)
        identity = "\n".join((self.lock_hash, minor, self.variant, str(self.source)))
        key = hashlib.sha256(identity.encode()).hexdigest()[:12]
        fresh = root / f"{key}.new-{os.getpid()}"
        try:
            self._fill(fresh, uv, base)
            self._stamp(fresh, minor)
            _switch(fresh, root / key)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        self._sweep(keep=key)
        return _python_in(root / key)

    def _make_room(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InstallError(f"The folder {root} cannot be made ({error.strerror}).", "Set GEOPEFT_HOME.") from error
        self._sweep()
        free_gb = shutil.disk_usage(root).free / 1e9
        if free_gb < NEEDED_GB:
            raise InstallError(
                f"The engine needs {NEEDED_GB} GB of free disk, and {root} has {free_gb:.1f} GB.",
                "Free some space, or set GEOPEFT_HOME to a folder on another disk.",
            )

    def _sweep(self, keep: str = "") -> None:
        """Removes what no one can use any more: unfinished builds, and environments of a source that is gone.

        With `keep`, the name of a new environment, also those that it replaces.
        """
        for environment in _environments():
            source = _read_stamp(environment).get("source") or "?"
            replaced = keep and environment.name != keep and source == str(self.source)
            if replaced or not Path(source).is_dir():
                shutil.rmtree(environment, ignore_errors=True)

    def _forget_damaged(self, uv: Path) -> None:
        """Damaged files are often the cache's own (hard links), so their packages must leave the cache as well."""
        with self.steps.step("Looking for damaged files"):
            damaged = sorted({name for found in _ready(self.source) for name in _damage(found, read_all=True)})
        if damaged:
            self.steps.say(f"  damaged: {', '.join(damaged)}")
            _uv(self.steps, [str(uv), "cache", "clean", *damaged], None, "The package cache could not be cleaned")

    def _fill(self, fresh: Path, uv: Path, base: str) -> None:
        failed = "The engine's packages could not be installed"
        with self.steps.step(f"Making a Python environment on {base}"):
            _uv(self.steps, [str(uv), "venv", "--relocatable", "--python", base, str(fresh)], None, failed)
        lock = fresh / "requirements.txt"
        lock.write_text(self._lock_for_this_machine(), encoding="utf-8")
        kind = "an NVIDIA card" if self.variant == "gpu" else "no NVIDIA card"
        with self.steps.step(f"Installing the packages (for {kind}; several GB the first time)"):
            command = [str(uv), "pip", "sync", "--require-hashes", "--compile-bytecode"]
            _uv(self.steps, [*command, "--python", str(_python_in(fresh)), str(lock)], self.wheels, failed)
        _site_packages(fresh).joinpath("geopeft.pth").write_text(_path_line(self.source), encoding="ascii")
        with self.steps.step("Starting the engine's libraries"):
            try:
                self.steps.run([str(_python_in(fresh)), "-I", "-c", CHECKED_IMPORTS], fresh)
            except CommandFailed as failure:
                text = reason(str(failure))
                raise InstallError(f"The installed engine does not start ({text}).", _advice(failure)) from failure
        for name, files in _damage(fresh).items():
            raise InstallError(
                f"Files of {name} vanished or changed right after they were installed, such as {files[0]}.",
                "Does a virus scanner remove them? Allow this folder, then try again.",
            )

    def _lock_for_this_machine(self) -> str:
        """The lock without the flavour of onnxruntime that this machine does not take; both own the same files."""
        dropped = "onnxruntime" if self.variant == "gpu" else "onnxruntime-gpu"
        text = (self.source / "requirements.lock").read_text(encoding="utf-8")
        blocks = re.split(r"\n(?=\S)", text)
        return "\n".join(block for block in blocks if re.split(r"[=\s\[]", block, maxsplit=1)[0] != dropped) + "\n"

    def _stamp(self, fresh: Path, minor: str) -> None:
        stamp = {
            "lock": self.lock_hash,
            "source": str(self.source),
            "variant": self.variant,
            "python": minor,
            "packages": _count_packages(fresh),
        }
        with (fresh / STAMP).open("w", encoding="utf-8") as file:
            json.dump(stamp, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


def _uv(steps: Steps, command: list[str], wheels: Path | None, failed: str) -> None:
    offline = ["--no-index", "--find-links", str(wheels)] if wheels else []
    try:
        steps.run([*command, *offline], home())
    except CommandFailed as failure:
        raise InstallError(f"{failed} ({reason(str(failure))}).", _advice(failure)) from failure


def _advice(failure: CommandFailed) -> str:
    text = str(failure).lower()
    if "no space" in text or "os error 28" in text:
        return "Free some disk space, then try again."
    if "unknownissuer" in text or "certificate" in text:
        return "A proxy changes the network's certificates: set UV_SYSTEM_CERTS=1, then try again."
    if "winerror 1114" in text or "dll load failed" in text:
        return "Install the Microsoft Visual C++ runtime (x64), then try again."
    if "dns" in text or "connect" in text or "request" in text or "timed out" in text:
        return "Check the network and the proxy settings, then try again."
    return "Try again; if it stays so, report it with the sentence above."


def _switch(fresh: Path, target: Path) -> None:
    """Puts a finished environment in place of an older one: two renames, so a kill leaves one of the two or none."""
    old = target.with_name(f"{target.name}.old-{os.getpid()}")
    for attempt in range(10):
        try:
            if target.exists():
                os.replace(target, old)
            os.replace(fresh, target)
            break
        except PermissionError as error:
            # Windows: a virus scanner may hold a fresh file for seconds, a running engine for ever.
            if attempt == 9:
                raise InstallError(f"{target} is in use.", "Stop running jobs, then try again.") from error
            time.sleep(1)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _alone(steps: Steps) -> Iterator[None]:
    """Two installations wait for each other; the system drops the lock of a process that dies."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "install.lock").open("a+b") as file:
        said = False
        while not _take_lock(file.fileno()):
            if not said:
                steps.say("Another installation is running; waiting for it.")
            said = True
            steps.check()
            time.sleep(0.2)
        yield


def _take_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _python_in(environment: Path) -> Path:
    return environment / "Scripts" / "python.exe" if os.name == "nt" else environment / "bin" / "python"


def _site_packages(environment: Path) -> Path:
    if os.name == "nt":
        return environment / "Lib" / "site-packages"
    return next(iter(environment.glob("lib/python3.*")), environment / "lib" / "python3") / "site-packages"


def _environments() -> list[Path]:
    root = home() / "engine"
    return [folder for folder in sorted(root.iterdir()) if folder.is_dir()] if root.is_dir() else []


def _ready(source: Path) -> list[Path]:
    """Finished environments that fit this source and its lock, one for a graphics card last."""
    wanted = {"lock": _lock_hash(source), "source": str(source)}
    fit = [folder for folder in _environments() if _read_stamp(folder).items() >= wanted.items()]
    there = [folder for folder in fit if _python_in(folder).exists()]
    return sorted(there, key=lambda folder: str(_read_stamp(folder).get("variant")))


def _read_stamp(environment: Path) -> dict[str, Any]:
    """The stamp of a finished environment; empty for one that is being built or taken away."""
    try:
        stamp = json.loads((environment / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and "." not in environment.name else {}


def _lock_hash(source: Path) -> str:
    try:
        return hashlib.sha256((source / "requirements.lock").read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(f"The file {source / 'requirements.lock'} is missing.", "Install GeoPEFT again.") from error


def _path_line(source: Path) -> str:
    """The line of a .pth file. Before Python 3.13 it is read in the locale's encoding, so it must be plain ASCII."""
    return f"{source}\n" if str(source).isascii() else f"import sys; sys.path.append({ascii(str(source))})\n"


def _count_packages(environment: Path) -> int:
    return sum(1 for _ in _site_packages(environment).glob("*.dist-info/RECORD"))


def _damage(environment: Path, read_all: bool = False) -> dict[str, list[str]]:
    """Files per package that differ from its RECORD: by presence and size, with `read_all` by sha256 too."""
    site = _site_packages(environment)
    broken: dict[str, list[str]] = {}
    for record in site.glob("*.dist-info/RECORD"):
        with record.open(encoding="utf-8", newline="") as lines:
            for name, digest, size in (row for row in csv.reader(lines) if len(row) == 3):
                if (
                    size
                    and not name.endswith((".pyc", MAY_CHANGE))
                    and not _is_whole(site / name, digest, int(size), read_all)
                ):
                    broken.setdefault(record.parent.name.split("-")[0].replace("_", "-"), []).append(name)
    return broken


def _is_whole(path: Path, digest: str, size: int, read_all: bool) -> bool:
    try:
        if path.stat().st_size != size:
            return False
        if not read_all or not digest.startswith("sha256="):
            return True
        seen = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                seen.update(chunk)
        return seen.digest() == base64.urlsafe_b64decode(digest[len("sha256=") :] + "==")
    except OSError:
        return False
