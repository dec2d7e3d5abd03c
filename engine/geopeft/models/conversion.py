"""Pickled checkpoints become safetensors once, in a child process that may do nothing else.

Of a pickle only tensors and plain containers are unpickled (`weights_only`). The child has no network, starts nothing,
and writes one file: an audit hook ends whatever else is tried, so that a hole in the unpickler opens no further door.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from geopeft.errors import is_out_of_memory, out_of_memory
from geopeft.watched import end_with_parent
from geopeft.writing import check_target, sha256_of, write_bytes

if TYPE_CHECKING:
    from torch import Tensor

# Under these names checkpoints of training programs keep the tensors of their network.
NESTED = ("state_dict", "model", "model_state", "teacher")
# What a file of tensors needs beside its tensors.
OVERHEAD_BYTES = 1 << 24
NOT_TENSORS = "it holds something else than named tensors"
_FORBIDDEN = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "ctypes.",
              "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown",
              "shutil.", "ftplib.", "urllib.", "webbrowser.", "sqlite3.", "signal.", "winreg.")  # fmt: skip


class ConversionError(Exception):
    """A checkpoint cannot be converted; the text says why."""


def converted(path: Path, sha256: str, folder: Path) -> Path:
    """The safetensors file with a checkpoint's tensors; made at the first call, `folder`/SHA256.safetensors.

    Its own checksum lies beside it, so that one that was damaged later is made again.

    Args:
        path: a pickled checkpoint.
        sha256: of that file.
        folder: where converted files are kept.

    Raises:
        ConversionError: it holds anything else than tensors, or the child did not end well.
        OutputError: there is no room for the converted file, or it cannot be written.
        DeviceError: the memory does not suffice.
    """
    target, record = folder / f"{sha256}.safetensors", folder / f"{sha256}.sha256"
    if (
        target.is_file()
        and record.is_file()
        and record.read_text(encoding="ascii", errors="replace") == sha256_of(target)
    ):
        return target
    check_target(target, path.stat().st_size)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".converting-") as scratch:
        part = Path(scratch) / target.name
        _in_child(path, part, sha256)
        digest = sha256_of(part)
        os.replace(part, target)
    write_bytes(record, digest.encode("ascii"))
    return target


def named_tensors(loaded: Any) -> dict[str, Tensor]:
    """The tensors of what a checkpoint holds, from under the names that training programs use; ConversionError."""
    import torch

    for key in NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise ConversionError(NOT_TENSORS)
    return {str(key): value for key, value in loaded.items()}


def load_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled checkpoint, unpickling nothing else; whatever the library raises, or ConversionError."""
    import torch

    return named_tensors(torch.load(path, map_location="cpu", weights_only=True))


def _in_child(path: Path, part: Path, sha256: str) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_convert, args=(str(path), str(part), sha256, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        told = ours.recv_bytes(1 << 16).decode("utf-8", "replace")
    except (EOFError, OSError):
        told = "the process that read it ended unexpectedly"
    finally:
        ours.close()
        child.join(10)
        if child.is_alive():
            child.kill()
            child.join()
    if told == "MEMORY":
        raise out_of_memory("checkpoint")
    if told != "DONE":
        raise ConversionError(told)


def _convert(source: str, part: str, sha256: str, told: connection.Connection) -> None:
    """What the child does: reads, writes, tells by one message."""
    try:
        end_with_parent()
        from safetensors.torch import save_file

        _lock_down(part, os.path.getsize(source))
        tensors = {key: value.contiguous().clone() for key, value in load_pickled(Path(source)).items()}
        save_file(tensors, part, {"source_sha256": sha256})
        message = "DONE"
    except ConversionError as error:
        message = str(error)
    except Exception as error:  # torch raises many kinds of errors for a broken file
        message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:500]}"
        message = "MEMORY" if is_out_of_memory(error) else message
    told.send_bytes(message.encode("utf-8", "replace"))


def _lock_down(part: str, source_bytes: int) -> None:
    """From here on this process reads, computes and writes one file."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = 2 * source_bytes + OVERHEAD_BYTES
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = (*arguments, None, None)[:3]
            writes = any(c in mode for c in "wxa+") if isinstance(mode, str) else bool((flags or 0) & writing)
            if writes and path != part:
                _refuse(f"writing {str(path)[:200]}")
        elif event.startswith(_FORBIDDEN):
            _refuse(event)

    sys.addaudithook(hook)


def _refuse(what: str) -> NoReturn:
    raise PermissionError(f"a checkpoint tried what it may not: {what}")
