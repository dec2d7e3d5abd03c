"""The protocol and the command line, as a program sees them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from geopeft import PROTOCOL
from geopeft.errors import JobError
from geopeft.job import JOB_TYPES, json_schema, load, parse


def engine(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "geopeft", *arguments], capture_output=True, text=True, timeout=120, **options
    )


def events_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def write_job(folder: Path, **fields: object) -> Path:
    path = folder / "job.json"
    path.write_text(json.dumps({"protocol": PROTOCOL, **fields}))
    return path


def test_a_job_file_ends_in_one_terminal_event(tmp_path: Path) -> None:
    done = engine("run", str(write_job(tmp_path, job="probe")))
    events = events_of(done.stdout)
    assert [e["event"] for e in events] == ["started", "completed"]
    assert events[0]["protocol"] == PROTOCOL
    assert events[1]["outputs"]["packages"]["torch"]
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("not json", "JOB_INVALID"),
        ("[]", "JOB_INVALID"),
        ('{"job": "fly"}', "JOB_INVALID"),
        ('{"job": "probe", "surprise": 1}', "JOB_INVALID"),
        ('{"job": "probe", "protocol": 99}', "JOB_INVALID"),
        ('{"job": "predict", "model": "m", "rasters": [], "out": "o"}', "JOB_INVALID"),
        ('{"job": "fit", "rasters": ["r"], "labels": "l", "out": "o", "max_minutes": NaN}', "JOB_INVALID"),
        ('{"job": "inspect", "model": "nowhere.geopeft"}', "PACKAGE_MISSING"),
    ],
)
def test_a_bad_job_fails_with_a_code_and_a_hint(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "job.json").write_text(text)
    done = engine("run", str(tmp_path / "job.json"))
    last = events_of(done.stdout)[-1]
    assert (last["event"], last["code"]) == ("failed", code)
    assert last["hint"]
    assert "Traceback" not in last["message"]
    assert done.returncode == 1


def test_another_protocol_is_refused_with_an_offer_to_update(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="update the engine"):
        load(write_job(tmp_path, job="probe") if PROTOCOL == 99 else _other_protocol(tmp_path))


def _other_protocol(folder: Path) -> Path:
    path = folder / "job.json"
    path.write_text(json.dumps({"job": "probe", "protocol": PROTOCOL + 1}))
    return path


@pytest.mark.fault("P05")
def test_what_libraries_print_does_not_reach_the_events(tmp_path: Path) -> None:
    program = (
        "import sys, geopeft.__main__ as m, geopeft.probe as p\n"
        "real = p.run\n"
        "def noisy(job, reporter):\n"
        "    print('noise'); import os; os.write(1, b'100\\n')\n"
        "    return real(job, reporter)\n"
        "p.run = noisy\n"
        f"sys.exit(m.main(['run', {str(write_job(tmp_path, job='probe'))!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert [e["event"] for e in events_of(done.stdout)] == ["started", "completed"]
    assert "noise" in done.stderr


@pytest.mark.fault("P11", "P12")
def test_the_engine_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import geopeft.__main__ as m, time, pathlib;"
        "m._watch_parent(pathlib.Path()); time.sleep(60)'], start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(50):
        if not _runs(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the engine outlived its parent")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.fault("P09")
def test_a_cancel_file_cancels(tmp_path: Path) -> None:
    from geopeft.errors import Canceled
    from geopeft.events import Reporter

    reporter = Reporter(folder=tmp_path)
    reporter.progress("fit", 1, 10)
    (tmp_path / "cancel").touch()
    with pytest.raises(Canceled):
        reporter.progress("fit", 2, 10)


@pytest.mark.parametrize("name", sorted(JOB_TYPES))
def test_every_field_of_a_job_is_an_option(name: str) -> None:
    text = engine(name, "--help").stdout
    for field in JOB_TYPES[name].model_fields:
        if field in ("job", "protocol", "classes"):
            continue
        flag = "--json" if field == "json_file" else "--" + field.replace("_", "-")
        assert flag in text or field.upper().rstrip("S") in text


def test_options_become_the_job() -> None:
    job = parse({"job": "fit", "rasters": ["a.tif"], "labels": "l.gpkg", "out": "m", "bands": ["B02"]})
    assert job.model_dump()["bands"] == ("B02",)
    assert job.model_dump()["adapter"] == "lora"


def test_the_schema_refuses_fields_it_does_not_know() -> None:
    kinds = json_schema()["$defs"]
    assert all(kind.get("additionalProperties") is False for kind in kinds.values())


def test_the_worker_runs_one_job_after_another(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2 ü"
    for folder in (first, second):
        folder.mkdir()
        write_job(folder, job="probe")
    lines = f"{first / 'job.json'}\n\n{second / 'job.json'}\n"
    done = engine("worker", input=lines)
    events = events_of(done.stdout)
    assert [e["event"] for e in events] == ["ready", *["started", "completed"] * 2]
    assert [e.get("job") for e in events] == [None, *[str(first / "job.json")] * 2, *[str(second / "job.json")] * 2]
    assert done.returncode == 0
    assert f"== {first / 'job.json'}\n" in done.stderr


def test_a_job_that_fails_does_not_end_the_worker(tmp_path: Path) -> None:
    texts = {
        "json": "{",
        "deep": "[" * 100_000,
        "kind": '{"job": "fly"}',
        "binary": "\x00\x01",
        "missing": '{"job": "inspect", "model": "nowhere.geopeft"}',
        "bug": '{"job": "preview", "raster": "\\u0000", "labels": "l", "out": "map.tif"}',
    }
    files = []
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "job.json")
        files[-1].write_text(text)
    files += [tmp_path, Path("/nowhere/job.json"), Path("job\x01.json")]
    last = tmp_path / "last"
    last.mkdir()
    files.append(write_job(last, job="probe"))
    done = engine("worker", input="".join(f"{path}\n" for path in files))
    ends = [e for e in events_of(done.stdout) if e["event"] in ("failed", "completed")]
    assert [(e["job"], e["event"]) for e in ends] == [
        *((str(path), "failed") for path in files[:-1]),
        (str(files[-1]), "completed"),
    ]
    assert all(e["hint"] for e in ends[:-1])
    assert done.returncode == 0


def start_worker(folder: Path) -> subprocess.Popen[str]:
    """A worker that is ready."""
    pipe = subprocess.PIPE
    with (folder / "engine.log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "geopeft", "worker"],
            stdin=pipe, stdout=pipe, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
    assert worker.stdout is not None
    assert json.loads(worker.stdout.readline())["event"] == "ready"
    return worker


def test_the_worker_ends_with_its_input(tmp_path: Path) -> None:
    worker = start_worker(tmp_path)
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.close()
    assert worker.wait(5) == 0
    worker.stdout.close()


def test_a_worker_that_nobody_listens_to_ends(tmp_path: Path) -> None:
    worker = start_worker(tmp_path)
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdout.close()
    worker.stdin.write(f"{write_job(tmp_path, job='probe')}\n")
    worker.stdin.flush()
    assert worker.wait(10) == 3
    worker.stdin.close()
    assert "Traceback" not in (tmp_path / "engine.log").read_text()


def test_a_cancel_file_stops_a_job_of_the_worker_only(tmp_path: Path) -> None:
    worker = start_worker(tmp_path)
    assert worker.stdin is not None and worker.stdout is not None
    path = write_job(tmp_path, job="preview", raster="r.tif", labels="l", out=str(tmp_path / "map.tif"))
    (tmp_path / "cancel").touch()
    other = tmp_path / "other"
    other.mkdir()
    worker.stdin.write(f"{path}\n{write_job(other, job='probe')}\n")
    worker.stdin.close()
    events = events_of(worker.stdout.read())
    assert [e["event"] for e in events] == ["started", "canceled", "started", "completed"]
    assert worker.wait(5) == 0
    worker.stdout.close()
