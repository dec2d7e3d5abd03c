"""The cache on the disk: bounded, shared, and never wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from geopeft.events import Reporter
from geopeft.features import store
from geopeft.features.store import Store


def arrays(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(3, 5, 7)).astype(np.float16), rng.normal(size=(11,)).astype(np.float32)]


def same(found: list[np.ndarray] | None, expected: list[np.ndarray]) -> bool:
    return found is not None and all(
        one.dtype == other.dtype and np.array_equal(one, other) for one, other in zip(found, expected, strict=True)
    )


def test_what_is_kept_comes_back_in_another_process_too(tmp_path: Path) -> None:
    kept = Store(tmp_path, Reporter())
    assert kept.get("a") is None
    kept.put("a", arrays())
    assert same(kept.get("a"), arrays())
    assert same(Store(tmp_path, Reporter()).get("a"), arrays())
    assert [path.name for path in tmp_path.iterdir()] == ["a.features"]


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "value", "longer", "other"])
def test_a_damaged_file_is_deleted_and_counts_as_not_there(tmp_path: Path, damage: str) -> None:
    kept, path = Store(tmp_path, Reporter()), tmp_path / "a.features"
    kept.put("a", arrays())
    whole = bytearray(path.read_bytes())
    if damage == "cut":
        whole = whole[:-100]
    elif damage == "empty":
        whole = bytearray()
    elif damage == "longer":
        whole += bytes(64)
    elif damage == "other":
        whole[0] ^= 1
    else:
        whole[12 if damage == "header" else -80] ^= 1
    path.write_bytes(whole)
    assert kept.get("a") is None
    assert not path.exists()
    kept.put("a", arrays())
    assert same(kept.get("a"), arrays())


def test_values_that_were_read_outlive_their_file(tmp_path: Path) -> None:
    """Another process may delete it, to make room, while they are used."""
    kept = Store(tmp_path, Reporter())
    kept.put("a", arrays())
    found = kept.get("a")
    (tmp_path / "a.features").unlink()
    assert same(found, arrays())
    assert found is not None
    found[0][:] = 0
    kept.put("a", arrays())
    assert same(kept.get("a"), arrays()), "and changing them changes nothing of it"


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path: Path) -> None:
    many = [np.zeros(25_000, np.float32)]
    kept = Store(tmp_path, Reporter(), most_bytes=1_000_000)
    for number in range(8):
        kept.put(f"{number}", many)
        os.utime(tmp_path / f"{number}.features", (time.time() - 1000 + number, time.time() - 1000 + number))
    assert kept.get("0") is not None, "used now, and so the youngest"
    for number in range(8, 30):
        kept.put(f"{number}", many)
        names = {path.stem for path in tmp_path.iterdir()}
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1_000_000
        assert f"{number}" in names
        if number == 11:
            assert "0" in names and "1" not in names and "7" in names


def test_what_a_killed_process_had_begun_is_taken_away(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".1.part", tmp_path / ".2.part"
    for path in (old, fresh):
        path.touch()
    os.utime(old, (0, 0))
    Store(tmp_path, Reporter())
    assert not old.exists() and fresh.exists()


@pytest.mark.parametrize("why", ["file in the way", "full from the start", "gets full"])
def test_where_nothing_can_be_written_it_is_said_once(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter, folder = Reporter(), tmp_path / "f"
    if why == "file in the way":
        folder.touch()
    if why == "full from the start":
        usage = type(store.shutil.disk_usage("/"))
        monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    kept = Store(folder, reporter)
    if why == "gets full":

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(store.os, "replace", full)
    for name in "ab":
        kept.put(name, arrays())
        assert kept.get(name) is None
    assert len(reporter.messages) == 1
    assert "the training goes on without" in reporter.messages[0]
    assert folder.is_file() or not list(folder.iterdir()), "nothing half is left"


def test_several_processes_write_and_make_room_at_the_same_time(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom geopeft.events import Reporter\n"
        "from geopeft.features.store import Store\n"
        "kept = Store(Path(sys.argv[1]), Reporter(), most_bytes=400_000)\n"
        "for turn in range(150):\n"
        "    value = turn % 17\n"
        "    found = kept.get(str(value))\n"
        "    assert found is None or (found[0] == value).all()\n"
        "    if found is None: kept.put(str(value), [np.full(10_000, value, np.float32)])\n"
        "assert not kept._reporter.messages, kept._reporter.messages\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 600_000
