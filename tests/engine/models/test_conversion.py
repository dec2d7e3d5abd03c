"""A pickled checkpoint is converted once, by a process that may do nothing else."""

from __future__ import annotations

import pickle
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from geopeft.errors import DeviceError
from geopeft.models import conversion
from geopeft.models.conversion import ConversionError, converted
from safetensors.torch import load_file

SHA = "0" * 64


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    shared = torch.arange(6.0)
    tensors = {"a": shared, "same": shared, "turned": torch.arange(6.0).view(2, 3).T}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "net.ckpt")
    return tmp_path / "net.ckpt"


@pytest.mark.fault("S06")
def test_a_checkpoint_of_a_training_program_is_converted_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = converted(checkpoint, SHA, tmp_path / "made")
    tensors = load_file(target)
    assert target.name == f"{SHA}.safetensors" and list(tensors) == ["a", "same", "turned"]
    assert tensors["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_in_child", lambda *_: pytest.fail("it is there already"))
        assert converted(checkpoint, SHA, tmp_path / "made") == target
    whole = target.read_bytes()
    target.write_bytes(whole[:-1] + b"?")
    assert converted(checkpoint, SHA, tmp_path / "made").read_bytes() == whole
    assert {path.name for path in target.parent.iterdir()} == {target.name, f"{SHA}.sha256"}


@pytest.mark.parametrize("content", [b"", b"\x80\x02.", pickle.dumps({"a": [1]}), b"PK\x03\x04"])
def test_what_is_no_checkpoint_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(ConversionError):
        converted(tmp_path / "net.pt", SHA, tmp_path / "made")
    assert list((tmp_path / "made").iterdir()) == []


def in_child(work: Any, part: Path) -> str:
    """What a locked-down process tells after doing `work`."""
    context = conversion.multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def child() -> None:
        try:
            conversion._lock_down(str(part), 100)
            work()
            theirs.send("done")
        except BaseException as error:
            theirs.send(f"{type(error).__name__}: {error}")

    process = context.Process(target=child)
    process.start()
    told: str = ours.recv()
    process.join(20)
    return told


@pytest.mark.fault("S06")
def test_the_process_that_reads_it_has_no_door(tmp_path: Path) -> None:
    """As if a checkpoint had found a way to run code in it."""
    part, other = tmp_path / "part", tmp_path / "other"
    doors: list[Any] = [
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: subprocess.run(["true"], check=False),
        lambda: other.write_bytes(b"x"),
        lambda: other.open("r+b"),
        lambda: conversion.os.system("true"),
        lambda: conversion.os.remove(__file__),
    ]
    for door in doors:
        assert "PermissionError: a checkpoint tried what it may not" in in_child(door, part)
    assert not other.exists() and Path(__file__).exists()
    assert in_child(lambda: part.write_bytes(b"x"), part) == "done"
    assert "File too large" in in_child(lambda: part.write_bytes(bytes(1 << 25)), part)


def test_a_process_that_dies_or_lacks_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.pt").write_bytes(b"x")
    for ends, error, text in ((_dies, ConversionError, "ended unexpectedly"), (_has_no_memory, DeviceError, "memory")):
        monkeypatch.setattr(conversion, "_convert", ends)
        with pytest.raises(error, match=text):
            converted(tmp_path / "net.pt", SHA, tmp_path / "made")


def _dies(*_: Any) -> None:
    conversion.os._exit(9)


def _has_no_memory(source: str, part: str, sha256: str, told: Any) -> None:
    told.send_bytes(b"MEMORY")
