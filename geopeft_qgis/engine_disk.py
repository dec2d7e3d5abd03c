"""One installation at a time, errors of the disk as sentences, and the switch from an old folder to a new one.

Standard library only (not even qgis), Python 3.9 syntax.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .engine_steps import InstallError, Progress, Steps
from .language import tr

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns an error of the disk into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise InstallError(
                tr("The disk of {path} is full.").format(path=folder),
                tr("Free some space, or choose another folder, then try again."),
            ) from error
        place = error.filename or folder
        raise InstallError(
            tr("{path} cannot be written ({reason}).").format(path=place, reason=error.strerror or error),
            tr("Choose another folder (outside QGIS: set GEOPEFT_HOME), then try again."),
        ) from error


def in_use(path: Path) -> InstallError:
    """The error for a folder that something still runs in."""
    return InstallError(
        tr("{path} is in use.").format(path=path), tr("Stop running jobs and the preview, then try again.")
    )


def runs_no_programs(folder: Path) -> bool:
    """Whether the disk of a folder is mounted so that nothing on it can be run; False where that cannot be told."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
    except (OSError, AttributeError):
        return False


def switch(fresh: Path, target: Path) -> None:
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
                raise in_use(target) from error
            time.sleep(1)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def alone(steps: Steps, folder: Path) -> Iterator[None]:
    """Two installations wait for each other; the system drops the lock of a process that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "install.lock").open("a+b") as file:
        said = False
        while not take_lock(file.fileno()):
            if not said:
                steps.say(tr("Another installation is running; waiting for it."))
                steps.tell(Progress("wait", 0.0))
            said = True
            steps.check()
            time.sleep(0.2)
        yield


def take_lock(descriptor: int) -> bool:
    """Whether this process now holds the lock on an open file."""
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
