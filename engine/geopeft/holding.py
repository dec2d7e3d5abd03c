"""One job at a time writes a file: a lock beside it while the job runs.

The system gives the lock back when its holder ends, however it ends. What a job that was killed had begun to write is
taken away by the next one that writes the same file.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import secrets
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from geopeft.errors import OutputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_PART = re.compile(r"\.(.+\.[0-9a-f]{8})\.[0-9a-f]{8}\.part\..*", re.DOTALL)


@contextlib.contextmanager
def hold(path: Path, *beside: Path) -> Iterator[None]:
    """While it lasts no other process holds `path`. Where the file system knows no locks, nothing is held.

    Args:
        path: what a job writes.
        beside: what else it writes.

    Raises:
        OutputError: OUTPUT_BUSY where another job holds it.
    """
    path = _in_real_folder(path)
    lock = path.with_name(f".{_short(path)}.lock")
    handle = _take(lock, path)
    if handle is None:
        yield
        return
    try:
        clear(path, *beside)
        yield
    finally:
        # Deleted while it is held, so that nobody else's lock is; Windows deletes no file that is open.
        if sys.platform != "win32":
            lock.unlink(missing_ok=True)
        os.close(handle)
        if sys.platform == "win32":
            with contextlib.suppress(OSError):
                lock.unlink()


def part_of(path: Path, suffix: str = "") -> Path:
    """A new temporary name beside `path`, which `hold` knows as one of it."""
    path = _in_real_folder(path)
    return path.with_name(f".{_short(path)}.{secrets.token_hex(4)}.part{suffix or path.suffix}")


def folder_beside(path: Path, suffix: str) -> Path:
    """The name of a hidden folder beside `path` that belongs to it."""
    path = _in_real_folder(path)
    return path.with_name(f".{_short(path)}{suffix}")


def clear(*paths: Path) -> None:
    """Takes away what processes that were killed had begun to write of files that this one holds."""
    for path in map(_in_real_folder, paths):
        for left in path.parent.glob(f".{glob.escape(_short(path))}.????????.part*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    left.unlink()


def _in_real_folder(path: Path) -> Path:
    """Two names of one folder make one output; a link is replaced itself, not what it points to."""
    return Path(os.path.realpath(path.parent)) / path.name


def _short(path: Path) -> str:
    """A name of bounded length that no other file of the folder has; that of the file itself for a part of one."""
    whole = _PART.fullmatch(path.name)
    if whole:
        return whole[1]
    return f"{path.stem[:40]}.{zlib.crc32(os.fsencode(path.name)):08x}"


def _take(lock: Path, path: Path) -> int | None:
    """The lock file, open and locked; None where that is not possible, which writing the result will tell better."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError:
            return None
        try:
            if sys.platform == "win32":
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(handle)
            raise OutputError(
                f"Another job is writing {path}.", "Wait until it has ended, or choose another output.", "OUTPUT_BUSY"
            ) from error
        except OSError:
            os.close(handle)
            with contextlib.suppress(OSError):
                lock.unlink()
            return None
        with contextlib.suppress(OSError):
            # The holder before may have deleted the file between the two calls above.
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        os.close(handle)
