"""The runner against the fake engine: every way in which a run can end."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from geopeft_qgis import engine_process
from geopeft_qgis.engine_process import EngineCanceled, EngineCrashed, EngineFailed, child_environment, run

FAKE_ENGINE = Path(__file__).resolve().parents[1] / "fake_engine.py"


def command(mode):
    return ["/usr/bin/python3", "-I", "-u", str(FAKE_ENGINE), mode]


def fit_job(folder):
    return {"job": "fit", "protocol": 1, "rasters": ["ä.tif"], "labels": "l", "out": str(folder / "m ü.geopeft")}


def fit(mode, folder, on_event=lambda event: None, canceled=lambda: False, env=None):
    return run(command(mode), fit_job(folder), folder / "run", on_event, canceled, env)


def is_running(pid):
    """True for a process that still runs; one that ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_events_come_in_order_and_outputs_at_the_end(tmp_path):
    events = []
    outputs = fit("ok", tmp_path, events.append)
    assert outputs["figures"]["miou"]["value"] == 0.74
    kinds = [event["event"] for event in events]
    assert kinds[:3] == ["started", "message", "message"]
    assert kinds.count("progress") == 60 and kinds.count("metric") == 20
    assert json.loads((tmp_path / "run" / "job.json").read_text(encoding="utf-8")) == fit_job(tmp_path)
    assert (tmp_path / "run" / "engine.log").read_text() == "a line for the log\n"
    assert not (tmp_path / "run" / "job.json.part").exists()


def test_a_failure_carries_code_message_and_hint(tmp_path):
    with pytest.raises(EngineFailed) as failure:
        fit("fail", tmp_path)
    assert (failure.value.code, failure.value.message, failure.value.hint) == (
        "BANDS_UNKNOWN",
        "The raster has no band 'nir'.",
        "Name the bands.",
    )


@pytest.mark.fault("P02", "P04")
def test_a_crash_tells_the_end_of_the_log(tmp_path):
    with pytest.raises(EngineCrashed, match="exit code -9") as crash:
        fit("crash", tmp_path)
    assert "Segmentation fault in libsomething" in crash.value.log_tail


@pytest.mark.fault("P03")
def test_a_crash_after_completed_is_no_success(tmp_path):
    with pytest.raises(EngineCrashed, match="after it said that it was done with exit code 9"):
        fit("crash_after", tmp_path)


@pytest.mark.fault("P02")
def test_an_output_that_is_not_there_is_no_success(tmp_path):
    with pytest.raises(EngineCrashed, match="m ü.geopeft is not there"):
        fit("missing", tmp_path)


@pytest.mark.fault("P05", "P06", "P07", "P08", "P21")
def test_noise_on_stdout_goes_to_the_log(tmp_path):
    events = []
    assert fit("noise", tmp_path, events.append)["figures"]
    assert {event["event"] for event in events} == {"started", "message", "progress", "metric"}
    assert [event["text"] for event in events if event["event"] == "message"][0] == "caf\ufffd"
    log = (tmp_path / "run" / "engine.log").read_bytes()
    assert b"[stdout] 100\n" in log and b"caf\xe9" in log and b"a warning that nobody reads" in log


@pytest.mark.fault("W18")
def test_the_log_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_process, "MAX_LOG_BYTES", 100_000)
    monkeypatch.setattr(engine_process, "MAX_LINE_BYTES", 10_000)
    fit("noise", tmp_path)
    assert (tmp_path / "run" / "engine.log").stat().st_size <= 100_000


@pytest.mark.fault("P17")
def test_an_engine_of_another_protocol_is_refused(tmp_path):
    with pytest.raises(EngineFailed, match="protocol 99") as failure:
        fit("protocol", tmp_path)
    assert failure.value.code == "PROTOCOL_MISMATCH"
    assert not is_running((tmp_path / "run" / "pid").read_text())


@pytest.mark.fault("P02")
def test_an_engine_that_cannot_start_is_named(tmp_path):
    with pytest.raises(EngineFailed, match="/no/python cannot be started") as failure:
        run(["/no/python"], fit_job(tmp_path), tmp_path / "run", lambda event: None, lambda: False)
    assert failure.value.code == "ENGINE_NOT_STARTED"


@pytest.mark.parametrize(("mode", "limit_s"), [("polite", 2.0), ("orphan", 8.0), ("hang", 8.0)])
@pytest.mark.fault("P09", "P12")
def test_cancel_ends_the_engine_and_its_children(tmp_path, mode, limit_s):
    steps = []
    asked = []

    def canceled():
        if len(steps) >= 3 and not asked:
            asked.append(time.monotonic())
        return bool(asked)

    with pytest.raises(EngineCanceled):
        fit(mode, tmp_path, lambda event: steps.append(event), canceled)
    assert time.monotonic() - asked[0] < limit_s
    pids = [(tmp_path / "run" / name).read_text() for name in ("pid", "child") if (tmp_path / "run" / name).exists()]
    assert len(pids) == (2 if mode == "orphan" else 1)
    time.sleep(0.2)
    assert not any(is_running(pid) for pid in pids)


def test_a_stop_is_passed_on_once_and_ends_a_training_with_its_result(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.1")
    events, asked = [], []

    def stop():
        if (tmp_path / "run" / "stop").exists():
            asked.append("again")
        return any(event["event"] == "metric" for event in events)

    job = fit_job(tmp_path)
    outputs = run(command("ok"), job, tmp_path / "run", events.append, lambda: False, stop=stop)
    assert outputs["model"] == job["out"] and Path(job["out"]).is_file()
    assert [event["event"] for event in events].count("progress") < 20
    assert not asked, "told once"


def test_a_stop_where_there_is_nothing_to_keep_is_a_cancel(tmp_path):
    job = fit_job(tmp_path)
    with pytest.raises(EngineCanceled):
        run(command("polite"), job, tmp_path / "run", lambda event: None, lambda: False, stop=lambda: True)
    assert not Path(job["out"]).exists()


def test_a_stop_of_an_earlier_run_does_not_stop_the_next(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()
    events = []
    fit("ok", tmp_path, events.append)
    assert [event["event"] for event in events].count("progress") == 60


@pytest.mark.fault("P26")
def test_an_error_in_the_listener_leaves_no_engine_behind(tmp_path):
    def broken(event):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit("hang", tmp_path, broken)
    time.sleep(0.2)
    assert not is_running((tmp_path / "run" / "pid").read_text())


@pytest.mark.fault("P10")
def test_a_cancel_of_an_earlier_run_does_not_stop_the_next(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cancel").touch()
    assert fit("ok", tmp_path)


LEAKS = {
    "PYTHONPATH": "/leak",
    "PYTHONHOME": "/leak",
    "PYTHONEXECUTABLE": "/leak",
    "PROJ_LIB": "/leak",
    "GDAL_DATA": "/leak",
    "GDAL_VRT_ENABLE_PYTHON": "YES",
    "LD_PRELOAD_NOT": "x",
    "QT_PLUGIN_PATH": "/leak",
    "VIRTUAL_ENV": "/leak",
    "SSL_CERT_FILE": "/no/such/file.pem",
    "MY_SECRET": "x",
}


@pytest.mark.fault("E08", "E09", "E10")
@pytest.mark.fault("E08", "E09", "E10")
def test_the_environment_of_qgis_does_not_reach_the_engine(tmp_path, monkeypatch):
    for name, value in LEAKS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setenv("GEOPEFT_WEIGHTS", "w")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    fit("ok", tmp_path)
    seen = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert not set(LEAKS) & set(seen)
    kept = ("PATH", "GEOPEFT_WEIGHTS", "CUDA_VISIBLE_DEVICES", "SSL_CERT_DIR", "https_proxy")
    assert {name: seen.get(name) for name in kept} == {name: os.environ[name] for name in kept}
    assert (seen["PYTHONUTF8"], seen["PYTHONNOUSERSITE"]) == ("1", "1")


def test_the_keys_of_stores_that_rasters_lie_in_reach_the_engine():
    keys = ("AWS_ACCESS_KEY_ID", "AWS_S3_ENDPOINT", "AZURE_STORAGE_ACCOUNT", "AZURE_NO_SIGN_REQUEST",
            "GS_NO_SIGN_REQUEST", "GOOGLE_APPLICATION_CREDENTIALS", "OSS_ENDPOINT", "SWIFT_AUTH_TOKEN")  # fmt: skip
    seen = child_environment({**dict.fromkeys(keys, "x"), "GDAL_HTTP_HEADERS": "x", "AZURE_CLIENT_SECRET": "x"})
    assert {name for name, value in seen.items() if value == "x"} == set(keys)


def test_qgis_folders_leave_the_path_on_windows(monkeypatch):
    monkeypatch.setattr(engine_process.os, "pathsep", ";")
    monkeypatch.setattr(engine_process, "_is_windows", lambda: True)
    path = r"C:\Program Files\QGIS 3.40\bin;C:\OSGeo4W\bin;C:\Windows\system32"
    assert child_environment({"PATH": path})["PATH"] == r"C:\Windows\system32"
