"""Makes, repairs and removes the engine's own Python environment; the plugin and build.py share this file.

Standard library only (not even qgis), Python 3.9 syntax. An environment is built beside an older one from
`requirements.lock` with hashes, then switched to by one rename; its stamp file is written last, so a folder without a
fitting stamp is never used. What was downloaded before an installation was stopped stays in uv's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from . import engine_files, engine_kit
from .engine_complaints import advice, reason
from .engine_disk import alone, disk_errors, in_use, runs_no_programs, switch, take_lock
from .engine_environment import (
    STAMP,
    count_packages,
    damage,
    engine_python,
    engine_source,
    environments,
    freed_bytes,
    home,
    lock_hash,
    outdated,
    python_in,
    read_stamp,
    ready_environments,
    records_hash,
    site_packages,
    verify,
)
from .engine_steps import (
    CommandFailed,
    InstallCanceled,
    InstallError,
    Network,
    Progress,
    Say,
    Steps,
    Tell,
    Watch,
    answer,
    child_environment,
)
from .engine_uv import Growth, PackageWatch, base_python, get_uv, nvidia_card, root_prefix
from .language import tr

__all__ = [
    "Choices",
    "InstallCanceled",
    "InstallError",
    "Network",
    "Progress",
    "child_environment",
    "engine_python",
    "engine_source",
    "ensure",
    "expected_gb",
    "home",
    "install_tools",
    "lock_blocks",
    "lock_hash",
    "lock_text",
    "nvidia_card",
    "outdated",
    "remove",
    "removable",
    "root_prefix",
    "uv_program",
    "variant_here",
    "verify",
]

# GB to download and GB on disk, measured with this lock.
SIZES = {
    ("linux", "gpu"): (3.5, 7.1),
    ("linux", "cpu"): (2.7, 5.3),
    ("windows", "cpu"): (0.36, 1.6),
    ("macos", "cpu"): (0.36, 1.6),
}
# The wheels of torch for Linux need most CUDA libraries at import, with or without a card, but not these.
UNUSED_ON_CPU = frozenset(
    "triton nvidia-cusolver nvidia-nvjitlink nvidia-nvtx nvidia-cuda-cccl cuda-bindings cuda-pathfinder".split()
)
CHECKED_IMPORTS = "import torch, torchvision, timm, rasterio, pyogrio, shapely, onnxruntime, sklearn, geopeft"
INSTALL_FAILED = "The engine's packages could not be installed ({reason})."


@dataclass(frozen=True)
class Choices:
    """What can be chosen about an installation."""

    folder: Optional[Path] = None  # where environments live; home() where it is not given
    wheels: Optional[Path] = None  # an offline kit, or a folder of wheels (uv's among them): no network is used
    variant: str = "auto"  # auto | cpu | gpu
    own_cache: bool = False  # downloads stay in `folder` and not in the user's cache of uv
    may_use_apt: bool = False  # python3-pip may be installed on Debian
    network: Network = field(default_factory=Network)

    @property
    def home(self) -> Path:
        return self.folder or home()


def variant_here() -> str:
    """gpu where the engine's packages can use this machine's card. Those for Windows and macOS have no CUDA in them."""
    return "gpu" if sys.platform == "linux" and nvidia_card() else "cpu"


def expected_gb(variant: str, system: Optional[str] = None) -> tuple[float, float]:
    """(GB to download, GB on disk) of an installation."""
    system = system or engine_kit.this_system()
    return SIZES.get((system, variant)) or SIZES.get((system, "cpu")) or SIZES["linux", "gpu"]


def lock_text(source: Path, variant: str) -> str:
    """The lock without what an installation for the CPU, or for a graphics card, does not take.

    One of the two flavours of onnxruntime, which own the same files, goes in any case.
    """
    dropped = {"onnxruntime"} if variant == "gpu" else {"onnxruntime-gpu", *UNUSED_ON_CPU}
    blocks = lock_blocks((source / "requirements.lock").read_text(encoding="utf-8"))
    return "\n".join(block for name, block in blocks if name not in dropped) + "\n"


def lock_blocks(text: str) -> list[tuple[str, str]]:
    """(name, the requirement with its hashes) of each package in a lock."""
    blocks = [block.rstrip() for block in re.split(r"\n(?=\S)", text)]
    return [(re.split(r"[=\s\[]", block, maxsplit=1)[0], block) for block in blocks if block]


def ensure(
    source: Optional[Path],
    say: Say,
    canceled: Callable[[], bool] = lambda: False,
    repair: bool = False,
    choices: Optional[Choices] = None,
    tell: Tell = lambda progress: None,
) -> Path:
    """The Python of an environment that works, made or repaired where needed; takes half a second where it is whole.

    `repair` builds it anew in any case; packages whose files differ from what was published are fetched again.
    `say` gets lines for a log, `tell` the progress.
    Raises InstallError, InstallCanceled.
    """
    choices = choices or Choices()
    steps = Steps(say, canceled, tell, choices.network)
    work = _Installation((source or engine_source()).resolve(), steps, choices)
    found = None if repair else work.ready()
    if found:
        work.clear_rests(found.parents[1].name)
        return found
    with disk_errors(choices.home), alone(steps, choices.home):
        # Another process may have finished it while this one waited.
        return (None if repair else work.ready()) or work.build(repair or work.is_damaged)


def uv_program(say: Say, may_use_apt: bool = False) -> Path:
    """The pinned uv, fetched where needed."""
    steps = Steps(say, lambda: False)
    with alone(steps, home()):
        return get_uv(steps, home() / "uv", engine_source() / "uv.txt", None, may_use_apt)


def install_tools(python: Path, lock: Path, say: Say, may_use_apt: bool = False) -> Path:
    """A folder for PYTHONPATH with the packages of `lock` for `python`: tools that the engine itself does not need."""
    steps = Steps(say, lambda: False)
    version = answer([str(python), "-I", "-c", "import sys; print(sys.version_info[:2])"])[1]
    key = hashlib.sha256(lock.read_bytes() + version.encode()).hexdigest()[:12]
    target = home() / "tools" / key
    if not target.is_dir():
        uv = uv_program(say, may_use_apt)
        with alone(steps, home()):
            for old in (home() / "tools").glob(f"{key}*"):
                shutil.rmtree(old, ignore_errors=True)
            fresh = target.with_name(f"{key}.new-{os.getpid()}")
            command = [str(uv), "pip", "install", "--require-hashes", "--python", str(python), "--target", str(fresh)]
            try:
                steps.run([*command, "-r", str(lock)], home())
            except CommandFailed as failure:
                text = reason(str(failure))
                sentence = tr("The tools could not be installed ({reason}).").format(reason=text)
                raise InstallError(sentence, advice(str(failure))) from failure
            os.replace(fresh, target)
    return target


def removable(source: Optional[Path] = None, folder: Optional[Path] = None) -> list[Path]:
    """What `remove` takes away: this source's environments, and with the last one the installer's own files."""
    place, mine = folder or home(), str((source or engine_source()).resolve())
    there = environments(place)
    others = [entry for entry in there if read_stamp(entry).get("source") not in (None, mine)]
    parts = [entry for entry in there if entry not in others]
    parts += [] if others else [place / name for name in ("uv", "tools", "python", "cache")]
    return [part for part in parts if part.is_dir()]


def remove(
    source: Optional[Path] = None, folder: Optional[Path] = None, canceled: Callable[[], bool] = lambda: False
) -> int:
    """Removes what `removable` names; models and weights stay. Returns the bytes given back.

    Raises InstallError where a part is in use, InstallCanceled while it waits for another installation.
    """
    place = folder or home()
    with disk_errors(place), alone(Steps(lambda text: None, canceled), place):
        parts = removable(source, place)
        size = freed_bytes(parts)
        for part in parts:
            # A renamed folder is no environment any more, even where a file in it cannot be deleted yet.
            doomed = part.with_name(f"{part.name}.old-{os.getpid()}")
            with contextlib.suppress(OSError):
                os.replace(part, doomed)
            shutil.rmtree(doomed if doomed.exists() else part, ignore_errors=True)
        left = [part for part in parts if part.exists()]
    if left:
        raise in_use(left[0])
    return size


class _Installation:
    """The making of one environment. Its steps run in the order of `build`."""

    def __init__(self, source: Path, steps: Steps, choices: Choices) -> None:
        self.source = source
        self.steps = steps
        self.choices = choices
        self.home = choices.home
        self.wheels = choices.wheels
        self.kit: Optional[engine_kit.Kit] = None
        if self.wheels and engine_kit.is_kit(self.wheels):
            self.kit = engine_kit.read(self.wheels)
            engine_kit.check_fits(self.kit, source)
            self.wheels = self.kit.wheels
        asked = self.kit.variant if self.kit else choices.variant
        self.variant = variant_here() if asked == "auto" else asked
        self.takes_gpu = asked != "cpu"
        self.lock_hash = lock_hash(source)
        self.is_damaged = False

    def ready(self) -> Optional[Path]:
        """The Python of a finished environment for this source, lock and graphics card that is whole."""
        for environment in ready_environments(self.source, self.home):
            variant = read_stamp(environment).get("variant")
            # One for a graphics card works without one as well.
            if variant == self.variant or (variant == "gpu" and self.takes_gpu):
                problems = verify(python_in(environment)) or engine_files.differing(environment)
                if not problems:
                    return python_in(environment)
                if not self.is_damaged:
                    text = tr("The engine's environment is damaged and is made anew. {reason}")
                    self.steps.say(text.format(reason=problems[0]))
                self.is_damaged = True
        return None

    def clear_rests(self, keep: str) -> None:
        """Takes away what killed installations left beside the environment `keep`, unless one is at work."""
        others = [entry for entry in environments(self.home) if entry.name != keep]
        if any(read_stamp(entry).get("source") in (None, str(self.source)) for entry in others):
            with contextlib.suppress(OSError), (self.home / "install.lock").open("a+b") as file:
                if take_lock(file.fileno()):
                    self._sweep(keep)

    def build(self, repair: bool) -> Path:
        root = self.home / "engine"
        self._make_room(root)
        if self.kit:
            with self.steps.step(tr("Checking the files of the offline kit"), "kit"):
                engine_kit.check_files(self.kit, self.steps)
        uv = get_uv(self.steps, self.home / "uv", self.source / "uv.txt", self.wheels, self.choices.may_use_apt)
        if repair:
            self._forget_damaged(uv)
        base, minor = base_python((self.kit.pythons if self.kit else ()) if self.wheels else None)
        identity = "\n".join((self.lock_hash, minor, self.variant, str(self.source)))
        key = hashlib.sha256(identity.encode()).hexdigest()[:12]
        fresh = root / f"{key}.new-{os.getpid()}"
        try:
            self._fill(fresh, uv, base)
            self._stamp(fresh, minor)
            if self.kit:
                engine_kit.copy_weights(self.kit, self.home / engine_kit.WEIGHTS)
            switch(fresh, root / key)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        self._sweep(keep=key)
        self.steps.tell(Progress("check", 1.0, 0.0))
        return python_in(root / key)

    def _make_room(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._sweep()
        if runs_no_programs(root):
            raise InstallError(
                tr("No program may run in {path}: its disk is mounted so (noexec).").format(path=root),
                tr("Choose a folder on another disk."),
            )
        needed = expected_gb(self.variant)[1] * 1.1 + 0.2
        free = shutil.disk_usage(root).free / 1e9
        if free < needed:
            raise InstallError(
                tr("The engine needs {needed} GB of free disk, and {path} has {free} GB.").format(
                    needed=f"{needed:.1f}", path=root, free=f"{free:.1f}"
                ),
                tr("Free some space, or choose a folder on another disk."),
            )

    def _sweep(self, keep: str = "") -> None:
        """Removes what no one can use any more: unfinished builds, and environments of a source that is gone.

        With `keep`, the name of a new environment, also those that it replaces.
        """
        for environment in environments(self.home):
            source = read_stamp(environment).get("source") or "?"
            replaced = keep and environment.name != keep and source == str(self.source)
            if replaced or not Path(source).is_dir():
                shutil.rmtree(environment, ignore_errors=True)
        # What a stopped uv was just unpacking is of no use to the next one.
        rests = list((self.home / "cache").glob(".tmp*"))
        if rests:
            with self.steps.step(tr("Clearing away what a stopped installation left"), "clear"):
                for rest in rests:
                    shutil.rmtree(rest, ignore_errors=True)

    def _forget_damaged(self, uv: Path) -> None:
        """Damaged files are often the cache's own (hard links), so their packages must leave the cache as well."""
        with self.steps.step(tr("Looking for damaged files")):
            found = ready_environments(self.source, self.home)
            damaged = sorted({name for environment in found for name in damage(environment, read_all=True)})
        if damaged:
            self.steps.say(tr("Damaged: {packages}").format(packages=", ".join(damaged)))
            failed = tr("The package cache could not be cleaned ({reason}).")
            self._uv([str(uv), "cache", "clean", *damaged], failed)

    def _fill(self, fresh: Path, uv: Path, base: str) -> None:
        with self.steps.step(tr("Making a Python environment on {python}").format(python=base)):
            command = [str(uv), "venv", "--relocatable", "--python", base, str(fresh)]
            self._uv(command, tr(INSTALL_FAILED), Growth(self.home / "python"))
        lock = fresh / "requirements.txt"
        lock.write_text(lock_text(self.source, self.variant), encoding="utf-8")
        if self.wheels:
            text = tr("Installing the packages from the offline kit ({variant})").format(variant=self.variant)
        else:
            text = tr("Installing the packages ({variant}; about {size} GB the first time)")
            text = text.format(variant=self.variant, size=f"{expected_gb(self.variant)[0]:g}")
        with self.steps.step(text, "packages"):
            command = [str(uv), "pip", "sync", "--require-hashes", "--compile-bytecode"]
            cache = self._cache(uv)
            ledger = cache / f"geopeft-{self.lock_hash[:12]}.json" if self._has_own_cache() else None
            watch = PackageWatch(cache, site_packages(fresh), expected_gb(self.variant)[0] * 1e9, ledger)
            self._uv([*command, "--python", str(python_in(fresh)), str(lock)], tr(INSTALL_FAILED), watch)
        site_packages(fresh).joinpath("geopeft.pth").write_text(_path_line(self.source), encoding="ascii")
        with self.steps.step(tr("Starting the engine's libraries"), "check"):
            try:
                self.steps.run([str(python_in(fresh)), "-I", "-c", CHECKED_IMPORTS], fresh)
            except CommandFailed as failure:
                text = tr("The installed engine does not start ({reason}).").format(reason=reason(str(failure)))
                raise InstallError(text, advice(str(failure))) from failure
        for name, files in damage(fresh).items():
            raise InstallError(
                tr("Files of {package} vanished or changed right after they were installed, such as {file}.").format(
                    package=name, file=files[0]
                ),
                tr("Does a virus scanner remove them? Allow this folder, then try again."),
            )

    def _uv(self, command: list[str], failed: str, watch: Optional[Watch] = None) -> None:
        offline = self.wheels and command[1] == "pip"
        find_links = ["--no-index", "--find-links", str(self.wheels)] if offline else []
        try:
            self.steps.run([*command, *find_links], self.home, watch=watch, more=self._uv_variables())
        except CommandFailed as failure:
            raise InstallError(failed.format(reason=reason(str(failure))), advice(str(failure))) from failure

    def _uv_variables(self) -> Mapping[str, str]:
        more = {"UV_PYTHON_INSTALL_DIR": os.environ.get("UV_PYTHON_INSTALL_DIR") or str(self.home / "python")}
        # Few at a time, so that a stopped download leaves whole packages and not a start of each.
        more["UV_CONCURRENT_DOWNLOADS"] = "4"
        if self._has_own_cache():
            more["UV_CACHE_DIR"] = str(self.home / "cache")
        if self.wheels:
            more.update(UV_OFFLINE="1", UV_PYTHON_DOWNLOADS="never")
        return more

    def _has_own_cache(self) -> bool:
        return self.choices.own_cache and not os.environ.get("UV_CACHE_DIR")

    def _cache(self, uv: Path) -> Path:
        """Where uv keeps what it downloads."""
        own = self._uv_variables().get("UV_CACHE_DIR")
        return Path(own) if own else Path(answer([str(uv), "cache", "dir", "--quiet"])[1].strip() or "?")

    def _stamp(self, fresh: Path, minor: str) -> None:
        stamp = {
            "lock": self.lock_hash,
            "source": str(self.source),
            "variant": self.variant,
            "python": minor,
            "packages": count_packages(fresh),
            "records": records_hash(fresh),
            engine_files.STAMPED: engine_files.write_record(fresh),
        }
        with (fresh / STAMP).open("w", encoding="utf-8") as file:
            json.dump(stamp, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


def _path_line(source: Path) -> str:
    """The line of a .pth file. Before Python 3.13 it is read in the locale's encoding, so it must be plain ASCII."""
    return f"{source}\n" if str(source).isascii() else f"import sys; sys.path.append({ascii(str(source))})\n"
