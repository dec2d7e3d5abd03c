"""The installer, as far as it can be tested without a download: environments on disk, and whole runs with a fake uv."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fake_uv
import pytest

from geopeft_qgis import (
    engine_disk,
    engine_environment,
    engine_files,
    engine_install,
    engine_process,
    engine_steps,
    engine_uv,
)

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "engine"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEOPEFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def make_environment(home: Path, key: str = "abc", **changes: object) -> Path:
    """A finished environment with one package of one file, as the installer leaves it."""
    environment = home / "engine" / key
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    site = environment / ("Lib" if os.name == "nt" else "lib/python3.11") / "site-packages"
    record = site / "one-1.0.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    (site / "one.py").write_bytes(b"1 + 1\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"1 + 1\n").digest()).decode().rstrip("=")
    record.write_text(f"one.py,sha256={digest},6\none.pyc,,\none-1.0.dist-info/RECORD,,\n", encoding="utf-8")
    lock = hashlib.sha256((SOURCE / "requirements.lock").read_bytes()).hexdigest()
    stamp: dict[str, object] = {"lock": lock, "source": str(SOURCE), "variant": "cpu", "packages": 1}
    (environment / "stamp.json").write_text(json.dumps({**stamp, **changes}), encoding="utf-8")
    return python


@pytest.mark.parametrize(("variant", "kept"), [("cpu", "onnxruntime"), ("gpu", "onnxruntime-gpu")])
def test_packages_that_a_machine_does_not_take_are_left_out(variant: str, kept: str) -> None:
    lock = engine_install.lock_text(SOURCE, variant)
    whole = (SOURCE / "requirements.lock").read_text(encoding="utf-8")
    names = re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE)
    assert [name for name in names if name.startswith("onnxruntime")] == [kept]
    left_out = set(re.findall(r"^([a-z0-9._-]+)==", whole, re.MULTILINE)) - set(names)
    assert left_out >= engine_install.UNUSED_ON_CPU if variant == "cpu" else len(left_out) == 1
    assert {"onnx", "onnxscript", "torch", "nvidia-cudnn-cu13"} <= set(names)


def test_finished_environment_is_found_by_lock_and_source(own_home: Path) -> None:
    assert engine_install.engine_python(SOURCE) is None
    python = make_environment(own_home)
    assert engine_install.engine_python(SOURCE) == python


@pytest.mark.parametrize("changes", [{"lock": "another"}, {"source": "/another"}])
def test_environment_of_another_lock_or_source_is_not_taken(own_home: Path, changes: dict[str, str]) -> None:
    make_environment(own_home, **changes)
    assert engine_install.engine_python(SOURCE) is None


@pytest.mark.fault("E02")
def test_unfinished_environment_is_not_taken_and_is_swept_away(own_home: Path) -> None:
    whole = make_environment(own_home)
    unstamped = make_environment(own_home, "unstamped")
    (own_home / "engine" / "unstamped" / "stamp.json").unlink()
    half = make_environment(own_home, "abc.new-1")
    foreign = make_environment(own_home, "gone", source=str(own_home / "no such source"))
    assert engine_environment.ready_environments(SOURCE, own_home) == [whole.parents[1]]
    steps = engine_steps.Steps(lambda text: None, lambda: False)
    engine_install._Installation(SOURCE, steps, engine_install.Choices())._sweep()
    assert whole.exists()
    assert not any(python.exists() for python in (unstamped, half, foreign))


@pytest.mark.fault("E15")
def test_environment_whose_base_python_is_gone_is_not_taken(own_home: Path) -> None:
    python = make_environment(own_home)
    python.unlink()
    python.symlink_to(own_home / "no such python")
    assert engine_install.engine_python(SOURCE) is None


def test_cut_missing_and_changed_files_are_found(own_home: Path) -> None:
    environment = make_environment(own_home).parents[1]
    file = engine_environment.site_packages(environment) / "one.py"
    assert engine_environment.damage(environment, read_all=True) == {}
    file.write_bytes(b"1 + 2\n")
    os.utime(file, (0, 0))
    assert engine_environment.damage(environment) == {}, "not every file is read each time"
    assert engine_environment.damage(environment, read_all=True) == {"one": ["one.py"]}
    file.write_bytes(b"1 +")
    assert engine_environment.damage(environment) == {"one": ["one.py"]}
    file.unlink()
    assert "one.py" in engine_install.verify(environment / "bin" / "python")[0]


@pytest.mark.fault("E16")
@pytest.mark.parametrize("fault", ["deleted", "emptied", "zeroed", "flipped"])
@pytest.mark.parametrize("name", ["one.py", "one-1.0.dist-info/RECORD"])
def test_one_file_that_changed_is_found_before_a_run(own_home: Path, name: str, fault: str) -> None:
    environment = make_environment(own_home).parents[1]
    stamp = environment / "stamp.json"
    content = json.loads(stamp.read_text()) | {"records": engine_environment.records_hash(environment)}
    stamp.write_text(json.dumps(content), encoding="utf-8")
    assert engine_environment.damage(environment) == {}
    path = engine_environment.site_packages(environment) / name
    spoil(path, fault)
    (problem,) = engine_environment.verify(environment / "bin" / "python")[:1]
    assert "missing" in problem


def spoil(path: Path, fault: str) -> None:
    body = path.read_bytes()
    path.unlink()
    changed = {"emptied": b"", "zeroed": bytes(len(body)), "flipped": body[:3] + bytes([body[3] ^ 1]) + body[4:]}
    if fault != "deleted":
        path.write_bytes(changed[fault])
        os.utime(path, (time.time() + 5, time.time() + 5))


def recorded(home: Path) -> Path:
    """A finished environment with a record of its files; its folder."""
    environment = make_environment(home).parents[1]
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\n", encoding="utf-8")
    stamp = json.loads((environment / "stamp.json").read_text()) | {
        engine_files.STAMPED: engine_files.write_record(environment)
    }
    (environment / "stamp.json").write_text(json.dumps(stamp), encoding="utf-8")
    return environment


SITE = "Lib/site-packages" if os.name == "nt" else "lib/python3.11/site-packages"


@pytest.mark.fault("E16")
@pytest.mark.parametrize("fault", ["deleted", "emptied", "zeroed", "flipped"])
@pytest.mark.parametrize("name", [f"{SITE}/one.py", f"{SITE}/one-1.0.dist-info/RECORD", "pyvenv.cfg", "files.json"])
def test_the_look_before_a_run_names_the_one_file_that_changed(own_home: Path, name: str, fault: str) -> None:
    environment = recorded(own_home)
    assert engine_files.differing(environment) == []
    spoil(environment / name, fault)
    assert engine_files.differing(environment) == [name]


def test_the_look_before_a_run_gives_no_false_alarm(own_home: Path, tmp_path: Path) -> None:
    """What Python and others make, a copy with other times, and an environment that the plugin did not make."""
    environment = recorded(own_home)
    site = environment / SITE
    (site / "__pycache__").mkdir()
    (site / "__pycache__" / "one.cpython-311.pyc").touch()
    (site / "more.py").touch()
    os.utime(site / "one.py", (5, 5))
    assert engine_files.differing(environment) == []
    shutil.copytree(environment, tmp_path / "copy", symlinks=True, copy_function=shutil.copyfile)
    assert engine_files.differing(tmp_path / "copy") == []
    (site / "one.py").unlink()
    (environment / "stamp.json").unlink()
    assert engine_files.differing(environment) == []


@pytest.mark.fault("E17")
def test_another_version_of_a_package_is_found_before_a_run_and_replaced(own_home: Path) -> None:
    environment = recorded(own_home)
    site = environment / SITE
    shutil.rmtree(site / "one-1.0.dist-info")
    (site / "one-2.0.dist-info").mkdir()
    (site / "one-2.0.dist-info" / "RECORD").write_text("one.py,,6\n", encoding="utf-8")
    (site / "one.py").write_bytes(b"2 + 2\n")
    assert engine_files.differing(environment) == [f"{SITE}/one-1.0.dist-info/RECORD", f"{SITE}/one.py"]


@pytest.mark.fault("E16")
def test_missing_package_is_found(own_home: Path) -> None:
    python = make_environment(own_home, packages=2)
    assert engine_install.verify(python) == ["Packages are missing."]


def test_switch_replaces_a_folder_that_is_there(tmp_path: Path) -> None:
    for name in ("key", "key.new-7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    engine_disk.switch(tmp_path / "key.new-7", tmp_path / "key")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["key", "key/key.new-7"]


@pytest.mark.fault("C01")
def test_second_installation_waits_for_the_first(own_home: Path) -> None:
    steps = engine_steps.Steps(lambda text: None, lambda: False)
    own_home.mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from geopeft_qgis import engine_disk as e;"
        f"file = open({str(own_home / 'install.lock')!r}, 'a+b'); print(e.take_lock(file.fileno()))"
    )
    with engine_disk.alone(steps, own_home):
        held = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    free = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (held.stdout.strip(), free.stdout.strip()) == ("False", "True")


@pytest.mark.skipif(os.name == "nt", reason="process groups of POSIX")
def test_cancel_ends_a_command_with_its_children(tmp_path: Path) -> None:
    start = time.monotonic()
    steps = engine_steps.Steps(lambda text: None, lambda: time.monotonic() - start > 0.5)
    child = "import subprocess as s; p = s.Popen(['sleep', '60']); open('pid', 'w').write(str(p.pid)); p.wait()"
    with pytest.raises(engine_install.InstallCanceled):
        steps.run([sys.executable, "-c", child], tmp_path)
    assert time.monotonic() - start < 5
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not is_running(pid):
            return
        time.sleep(0.1)
    pytest.fail("the child of the cancelled command still runs")


def is_running(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        # Where nobody collects orphans, an ended process stays as a zombie.
        return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_failed_command_tells_its_output(tmp_path: Path) -> None:
    steps = engine_steps.Steps(lambda text: None, lambda: False)
    with pytest.raises(engine_steps.CommandFailed, match="error: no space left"):
        steps.run([sys.executable, "-c", "import sys; sys.exit('error: no space left')"], tmp_path)


@pytest.mark.fault("E22")
def test_uv_with_a_wrong_checksum_is_refused(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = own_home / "uv-1-py3-none-any.whl"
    own_home.mkdir()
    with zipfile.ZipFile(fake, "w") as archive:
        archive.writestr("uv-1.data/scripts/uv", "not uv")
    monkeypatch.setattr(engine_uv, "_download", lambda *arguments: fake)
    with pytest.raises(engine_install.InstallError, match="sha256"):
        engine_install.uv_program(lambda text: None)
    assert not [path for path in (own_home / "uv").rglob("*") if path.is_file()]


@pytest.mark.fault("E08", "E09", "E10", "D13")
@pytest.mark.parametrize(
    "name",
    "PYTHONHOME PYTHONPATH PYTHONEXECUTABLE PYTHONSTARTUP PYTHONUSERBASE VIRTUAL_ENV CONDA_PREFIX LD_PRELOAD "
    "LD_LIBRARY_PATH DYLD_LIBRARY_PATH GDAL_DATA GDAL_DRIVER_PATH GDAL_VRT_ENABLE_PYTHON GDAL_SKIP PROJ_LIB PROJ_DATA "
    "PROJ_NETWORK QT_PLUGIN_PATH QGIS_PREFIX_PATH HF_TOKEN HF_ENDPOINT HF_HUB_OFFLINE TRANSFORMERS_CACHE TORCH_HOME "
    "UV_INSECURE_HOST UV_INDEX_STRATEGY UV_NO_VERIFY_HASHES SSLKEYLOGFILE OPENSSL_CONF".split(),
)
def test_a_variable_that_leads_astray_reaches_no_child(name: str) -> None:
    assert name not in engine_process.child_environment({name: "x", name.lower(): "x", "PATH": "/bin"})
    assert name.lower() not in engine_process.child_environment({name.lower(): "x"})


@pytest.mark.fault("E12")
def test_no_command_of_the_installer_leaves_certificates_or_hashes_unchecked() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "geopeft_qgis").rglob("*.py")))
    for word in ("trusted-host", "TRUSTED_HOST", "INSECURE_HOST", "insecure-host", "CERT_NONE", "no-verify-hashes",
                 "_create_unverified_context", "verify=False", "ignoreSslErrors", "VerifyNone"):  # fmt: skip
        assert word not in code
    assert code.count('"--require-hashes"') >= 3


@pytest.mark.fault("E08", "E09")
def test_installer_passes_no_foreign_settings_to_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    leaks = ("PYTHONHOME", "PYTHONPATH", "PYTHONEXECUTABLE", "VIRTUAL_ENV", "LD_PRELOAD", "GDAL_DATA", "PROJ_LIB",
             "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCESS_KEY")  # fmt: skip
    for name in (*leaks, "PIP_TARGET", "UV_LINK_MODE", "PYTHONDONTWRITEBYTECODE", "UV_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    child = engine_steps.child_environment()
    assert not {*leaks, "PIP_TARGET", "UV_LINK_MODE", "PYTHONDONTWRITEBYTECODE", "SSL_CERT_FILE"} & set(child)
    assert child["UV_OFFLINE"] == "1"
    assert engine_steps.child_environment(pip=True)["PIP_TARGET"] == "1"


def test_path_line_is_ascii_and_finds_the_source(tmp_path: Path) -> None:
    for name in ("plain", "größe"):
        (tmp_path / name).mkdir()
        line = engine_install._path_line(tmp_path / name)
        assert line.isascii()
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "x.pth").write_text(line, encoding="ascii")
        code = f"import site, sys; site.addsitedir({str(tmp_path / 'site' / name)!r}); print(ascii(sys.path[-1]))"
        found = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == ascii(str(tmp_path / name))


# Whole installations, with a fake uv


@pytest.fixture
def source(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine of one package, a fake uv that installs it, and nothing that waits for real."""
    monkeypatch.setenv("GEOPEFT_FAKE_CALLS", str(tmp_path))
    monkeypatch.setattr(engine_install, "expected_gb", lambda variant: (0.01, 0.0))
    monkeypatch.setattr(engine_install, "base_python", lambda kit: (sys.executable, "3.11"))
    monkeypatch.setattr(engine_install, "variant_here", lambda: "cpu")
    fake_uv.lay_uv(own_home)
    return fake_uv.lay_source(tmp_path / "source")


def install(source: Path, **options: object) -> Path:
    return engine_install.ensure(source, lambda text: None, **options)  # type: ignore[arg-type]


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_installation_makes_an_environment_and_finds_it_again(source: Path, own_home: Path, tmp_path: Path) -> None:
    before = files_below(source)
    seen: list[engine_steps.Progress] = []
    python = install(source, tell=seen.append)
    assert python == engine_environment.engine_python(source)
    assert files_below(source) == before, "nothing is written into the plugin's folder"
    done = [progress.done for progress in seen]
    assert done == sorted(done) and done[-1] == 1 and {progress.stage for progress in seen} == {"packages", "check"}
    count = len(fake_uv.calls(tmp_path))
    assert install(source) == python
    later = [call["argv"] for call in fake_uv.calls(tmp_path)[count:]]
    assert [argv[1:] for argv in later if isinstance(argv, list)] == [["-I", "-m", "geopeft", "probe"]]


def test_folder_may_be_anywhere_and_have_any_name(source: Path, own_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Ein Ordner für später"
    fake_uv.lay_uv(folder)
    python = install(source, choices=engine_install.Choices(folder=folder, own_cache=True))
    assert folder in python.parents and not (own_home / "engine").exists()
    assert engine_environment.engine_python(source) is None
    assert engine_environment.engine_python(source, folder) == python
    caches = {call["env"]["UV_CACHE_DIR"] for call in fake_uv.calls(tmp_path) if "sync" in call["argv"]}  # type: ignore[index, operator]
    assert caches == {str(folder / "cache")}


@pytest.mark.parametrize(
    ("mode", "message", "hint"),
    [
        ("full", "No space left on device", "Free some disk space"),
        ("denied", "Permission denied", "Choose another folder"),
        ("offline", "Failed to fetch", "Check the network"),
        ("mismatch", "Hash mismatch", "package index"),
        ("killed", "ended from outside", "Close other programs"),
        ("proxy", "407", "proxy's user and password"),
    ],
)
def test_failed_installation_says_why_and_what_next(
    source: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, mode: str, message: str, hint: str
) -> None:
    monkeypatch.setenv("GEOPEFT_FAKE_UV", mode)
    with pytest.raises(engine_install.InstallError) as caught:
        install(source)
    assert message in caught.value.message and hint in caught.value.hint
    assert "secret" not in str(caught.value)
    assert list((own_home / "engine").iterdir()) == []


@pytest.mark.fault("E16")
def test_repair_makes_an_environment_whole_again(source: Path) -> None:
    environment = install(source).parents[1]
    (engine_environment.site_packages(environment) / "one.py").write_bytes(b"1 + 2\n")
    assert engine_files.differing(environment) == [f"{SITE}/one.py"]
    assert engine_files.differing(install(source).parents[1]) == []
    (environment / "pyvenv.cfg").unlink()
    assert engine_files.differing(install(source, repair=True).parents[1]) == []


@pytest.mark.fault("E02")
def test_what_a_killed_repair_left_is_taken_away_at_the_next_start(source: Path, own_home: Path) -> None:
    python = install(source)
    (own_home / "engine" / "x.new-1" / "lib").mkdir(parents=True)
    with engine_disk.alone(engine_steps.Steps(lambda text: None, lambda: False), own_home):
        assert install(source) == python
        assert (own_home / "engine" / "x.new-1").is_dir(), "another installation is at work on it"
    assert install(source) == python
    assert [path.name for path in (own_home / "engine").iterdir()] == [python.parents[1].name]


@pytest.mark.skipif(not engine_steps.tied(), reason="only Linux ends children with their parent")
@pytest.mark.fault("E02")
def test_a_command_ends_with_the_installer_that_was_killed(tmp_path: Path) -> None:
    child = (
        "import os, time; open('pid.part', 'w').write(str(os.getpid())); os.replace('pid.part', 'pid'); time.sleep(60)"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from geopeft_qgis import engine_steps as e; import pathlib;"
        f"e.Steps(print, lambda: False).run([sys.executable, '-c', {child!r}], pathlib.Path({str(tmp_path)!r}))"
    )
    installer = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 20
    while not (tmp_path / "pid").exists() and time.monotonic() < end:
        time.sleep(0.05)
    installer.kill()
    installer.wait()
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not is_running(pid):
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("the command outlived the installer")


@pytest.mark.fault("E18")
def test_failed_installation_leaves_the_older_environment(
    source: Path, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    python = install(source)
    monkeypatch.setenv("GEOPEFT_FAKE_UV", "full")
    with pytest.raises(engine_install.InstallError):
        install(source, repair=True)
    assert engine_environment.engine_python(source) == python and python.exists()


@pytest.mark.fault("E20")
def test_folder_that_cannot_be_written_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(engine_install.InstallError, match="cannot be written.*Choose another folder"):
        install(source, choices=engine_install.Choices(folder=tmp_path / "file" / "home"))


@pytest.fixture
def noexec(tmp_path: Path) -> Iterator[Path]:
    """A small disk on which nothing can be run."""
    place = tmp_path / "noexec"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,noexec", "tmpfs", str(place)], capture_output=True
    ).returncode:
        pytest.skip("this user may mount nothing")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.fault("E20")
@pytest.mark.skipif(sys.platform != "linux", reason="mounts as Linux does")
def test_a_disk_that_runs_nothing_is_told_before_anything_is_downloaded(
    source: Path, noexec: Path, tmp_path: Path
) -> None:
    with pytest.raises(engine_install.InstallError, match=r"noexec\). Choose a folder on another disk"):
        install(source, choices=engine_install.Choices(folder=noexec))
    assert not fake_uv.calls(tmp_path)


def test_full_disk_is_told_before_anything_is_downloaded(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine_install, "expected_gb", lambda variant: (1.0, 1e9))
    with pytest.raises(engine_install.InstallError, match="needs .* GB of free disk"):
        install(source)
    assert not fake_uv.calls(tmp_path)


def test_standing_still_ends_the_installation(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOPEFT_FAKE_UV", "hang")
    monkeypatch.setattr(engine_uv.PackageWatch, "quiet_limit_s", 0.5)
    monkeypatch.setattr(engine_steps, "LOOK_S", 0.1)
    with pytest.raises(engine_install.InstallError, match="Nothing has moved.*Check the network"):
        install(source)


def test_cancel_during_the_download_keeps_what_arrived(
    source: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress comes from the bytes that arrive; the half-made environment goes, the cache stays."""
    monkeypatch.setenv("GEOPEFT_FAKE_UV", "slow")
    monkeypatch.setattr(engine_steps, "LOOK_S", 0.1)
    monkeypatch.delenv("UV_CACHE_DIR", raising=False)
    seen: list[engine_steps.Progress] = []
    choices = engine_install.Choices(own_cache=True)
    with pytest.raises(engine_install.InstallCanceled):
        install(source, choices=choices, tell=seen.append, canceled=lambda: bool(seen) and seen[-1].done_bytes > 1e6)
    assert 1e6 < seen[-1].done_bytes < 5e6 and seen[-1].total_bytes == pytest.approx(10.5e6, rel=0.1)
    assert list((own_home / "engine").iterdir()) == [] and (own_home / "cache").is_dir()
    monkeypatch.delenv("GEOPEFT_FAKE_UV")
    install(source, choices=choices)
    assert not list((own_home / "cache").glob(".tmp*")), "what uv was unpacking is cleared away"


def test_what_arrived_is_not_counted_again(tmp_path: Path) -> None:
    output = "Downloading a (100.0MiB)\nDownloading b (50.0MiB)\n Downloaded b\n"
    ledger = tmp_path / "ledger.json"
    first = engine_uv.PackageWatch(tmp_path, tmp_path, 300 << 20, ledger)
    (tmp_path / ".tmpX").mkdir()
    (tmp_path / ".tmpX" / "a.so").write_bytes(b"\0" * 1_000_000)
    progress = first.look(output)[1]
    assert progress is not None
    assert progress.done_bytes == int((50 << 20) + engine_uv.PACKED_SHARE * 1_000_000)
    assert progress.total_bytes == 300 << 20
    first.close()
    again = engine_uv.PackageWatch(tmp_path, tmp_path, 300 << 20, ledger).look("Downloading a (100.0MiB)\n")[1]
    assert again is not None and again.total_bytes == 250 << 20


def test_unpacking_a_kit_is_progress_too(tmp_path: Path) -> None:
    (tmp_path / "archive-v0" / "older").mkdir(parents=True)
    (tmp_path / "archive-v0" / "older" / "a.so").write_bytes(b"\0" * 5_000_000)
    watch = engine_uv.PackageWatch(tmp_path, tmp_path, 10_000_000)
    (tmp_path / "archive-v0" / "new").mkdir()
    (tmp_path / "archive-v0" / "new" / "b.so").write_bytes(b"\0" * 1_000_000)
    for extra in (0, 500_000):
        (tmp_path / ".tmpX").mkdir(exist_ok=True)
        (tmp_path / ".tmpX" / "c.so").write_bytes(b"\0" * extra)
        progress = watch.look("Resolved 90 packages in 2ms\n")[1]
        assert progress is not None and progress.done_bytes == int(engine_uv.PACKED_SHARE * (1_000_000 + extra))


def test_time_left_comes_from_the_rate_and_not_from_a_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(engine_uv.time, "monotonic", lambda: clock[0])
    watch = engine_uv.PackageWatch(tmp_path, tmp_path, 100 << 20)
    (tmp_path / ".tmpX").mkdir()
    etas = []
    for second in range(11):
        clock[0] = 1000.0 + second
        (tmp_path / ".tmpX" / "a.so").write_bytes(b"\0" * (second << 20))
        progress = watch.look("Downloading a (100.0MiB)\n")[1]
        assert progress is not None
        etas.append(progress.eta_s)
    assert etas[:4] == [None] * 4, "no time left is named before a rate is known"
    rate = engine_uv.PACKED_SHARE * (1 << 20)
    assert etas[-1] == pytest.approx((100 << 20) / rate - 10 + engine_uv.AFTER_DOWNLOAD_S)


@pytest.mark.fault("E18")
def test_environment_made_from_another_lock_is_outdated(source: Path) -> None:
    assert not engine_environment.outdated(source)
    install(source)
    assert not engine_environment.outdated(source)
    (source / "requirements.lock").write_text("two==2.0\n", encoding="utf-8")
    assert engine_environment.outdated(source) and engine_environment.engine_python(source) is None
    install(source)
    assert not engine_environment.outdated(source)
    assert len(engine_environment.environments(engine_environment.home())) == 1, "the older one is gone"


@pytest.mark.fault("E19")
def test_environment_for_a_card_works_without_one(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_install, "variant_here", lambda: "gpu")
    python = install(source)
    monkeypatch.setattr(engine_install, "variant_here", lambda: "cpu")
    assert install(source) == python
    assert install(source, choices=engine_install.Choices(variant="cpu")) != python


@pytest.mark.fault("E21")
def test_remove_takes_this_sources_environments_and_says_what_it_freed(source: Path, own_home: Path) -> None:
    foreign = make_environment(own_home, "foreign", source=str(SOURCE))
    python = install(source)
    (python.parents[1] / "big").write_bytes(b"\0" * 1_000_000)
    assert 1_000_000 <= engine_install.remove(source) < 1_100_000
    assert not python.exists() and foreign.exists() and (own_home / "uv").is_dir()
    engine_install.remove(SOURCE)
    assert files_below(own_home) == {"engine", "install.lock"}


def test_files_that_live_on_elsewhere_free_nothing(tmp_path: Path) -> None:
    inside, elsewhere = tmp_path / "inside", tmp_path / "elsewhere"
    inside.mkdir()
    elsewhere.write_bytes(b"\0" * 1000)
    os.link(elsewhere, inside / "shared")
    (inside / "own").write_bytes(b"\0" * 10)
    os.link(inside / "own", inside / "own too")
    assert engine_environment.freed_bytes([inside]) == 10


def test_an_installers_python_is_never_downloaded_where_there_is_no_network(
    source: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_uv, "_pythons", list)
    assert engine_uv.base_python(None) == (engine_uv.MANAGED_PYTHON, engine_uv.MANAGED_PYTHON)
    with pytest.raises(engine_install.InstallError, match=r"needs Python 3\.12 .*found: -. Install Python 3\.12"):
        engine_uv.base_python(("3.12",))


@pytest.mark.fault("E06")
def test_base_python_is_one_that_the_kit_has_wheels_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = fake_uv.lay_python(tmp_path / "python3")
    monkeypatch.setattr(engine_uv, "_pythons", lambda: [str(python)])
    assert engine_uv.base_python(("3.11",))[1] == "3.11"
    with pytest.raises(engine_install.InstallError, match=r"found: 3\.11"):
        engine_uv.base_python(("3.12",))


# The network


def environment_of(tmp_path: Path, word: str) -> dict[str, str]:
    """The variables of the last call with this word in it."""
    found = [call["env"] for call in fake_uv.calls(tmp_path) if word in call["argv"]]  # type: ignore[operator]
    assert found and isinstance(found[-1], dict)
    return found[-1]


def test_index_of_pips_settings_reaches_uv(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv does not read them by itself."""
    settings, certificates = tmp_path / "pip.conf", tmp_path / "company.pem"
    certificates.touch()
    index = (tmp_path / "index").as_uri()
    variables = {"PIP_INDEX_URL": index, "PIP_CERT": certificates}
    # pip's own rule for the name of a variable's setting.
    named = {name.removeprefix("PIP_").lower().replace("_", "-"): value for name, value in variables.items()}
    lines = ["[global]", *(f"{name}: {value}" for name, value in named.items())]
    settings.write_text("\n".join([*lines, ""]), encoding="utf-8")
    for name in (*variables, "UV_DEFAULT_INDEX", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(engine_steps, "_pip_files", lambda: [settings])
    install(source)
    child = environment_of(tmp_path, "sync")
    assert child["UV_DEFAULT_INDEX"] == index and child["SSL_CERT_FILE"] == str(certificates)


def test_index_that_the_user_chose_comes_before_all_others(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://environment.example")
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.example")
    chosen = (tmp_path / "chosen").as_uri()
    network = engine_steps.Network(index=chosen)
    install(source, choices=engine_install.Choices(network=network))
    child = environment_of(tmp_path, "sync")
    assert child["UV_DEFAULT_INDEX"] == child["PIP_INDEX_URL"] == chosen


def test_no_index_is_named_where_nobody_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(engine_steps, "_pip_files", list)
    assert not {"UV_DEFAULT_INDEX", "PIP_INDEX_URL"} & set(
        engine_steps.child_environment(network=engine_steps.Network())
    )


@pytest.mark.fault("E12")
def test_certificates_of_the_caller_help_where_the_systems_do_not(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOPEFT_FAKE_UV", "certificate")
    for name in ("SSL_CERT_FILE", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(engine_steps, "_pip_files", list)
    with pytest.raises(engine_install.InstallError, match="add its authority in QGIS"):
        install(source)
    assert environment_of(tmp_path, "sync")["UV_SYSTEM_CERTS"] == "1"
    asked: list[bool] = []
    network = engine_steps.Network(certificates=lambda: "PEM" if not asked.append(True) else "")  # type: ignore[func-returns-value]
    install(source, choices=engine_install.Choices(network=network))
    path = Path(environment_of(tmp_path, "sync")["SSL_CERT_FILE"])
    assert path.read_text(encoding="ascii") == "PEM" and asked == [True]


def test_certificates_are_not_asked_for_where_all_is_well(source: Path) -> None:
    network = engine_steps.Network(certificates=lambda: pytest.fail("asked"))
    install(source, choices=engine_install.Choices(network=network))


@pytest.mark.fault("S11")
def test_passwords_in_addresses_are_never_shown() -> None:
    text = "error: http://maria:s3c@proxy:80/x and https://token@index.example failed"
    assert engine_steps.without_passwords(text) == "error: http://***@proxy:80/x and https://***@index.example failed"
