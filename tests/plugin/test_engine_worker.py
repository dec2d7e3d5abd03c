"""The warm engine against the fake one: newest wins, crashes are survived, nothing is left behind."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from geopeft_qgis import engine_worker
from geopeft_qgis.engine_process import EngineCanceled, EngineCrashed, EngineFailed
from geopeft_qgis.engine_worker import EngineWorker

FAKE_ENGINE = Path(__file__).resolve().parents[1] / "fake_engine.py"


def is_running(pid):
    """True for a process that still runs; one that ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Bench:
    """A worker with the fake engine, its jobs and what came of them."""

    def __init__(self, folder, mode, env=None):
        self.folder = folder
        self.raster = folder / "scene.tif"
        self.mode = mode
        self.worker = EngineWorker(self.command, folder / "worker", env)
        self.events = {}
        self.ends = {}

    def command(self):
        return ["/usr/bin/python3", "-I", "-u", str(FAKE_ENGINE), self.mode]

    def submit(self, name):
        job = {"job": "preview", "raster": str(self.raster), "labels": "l", "out": str(self.folder / f"{name}.tif")}
        self.events[name] = []
        assert name not in self.ends
        self.worker.submit(
            job, self.folder / name, self.events[name].append, lambda outputs, error: self.end(name, outputs, error)
        )

    def end(self, name, outputs, error):
        assert name not in self.ends, "a job ends once"
        self.ends[name] = outputs if error is None else error

    def wait(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            self.worker.poll()
            time.sleep(0.01)
        assert condition(), "this did not happen in time"

    def wait_for(self, *names):
        self.wait(lambda: all(name in self.ends for name in names))
        return [self.ends[name] for name in names]

    def pids(self):
        file = self.folder / "worker" / "pids"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def bench(tmp_path, raster_file):
    """Gives a bench; afterwards no process may be left."""
    made = []

    def make(mode="ok", env=None):
        one = Bench(tmp_path, mode, env)
        one.raster = raster_file
        made.append(one)
        return one

    yield make
    for one in made:
        one.worker.close()
        assert not any(is_running(pid) for pid in one.pids())


def test_one_process_runs_one_job_after_another(bench):
    one = bench()
    assert one.worker.pid is None and not one.worker.active
    for name in ("a", "b", "c"):
        one.submit(name)
        assert one.worker.active
        (outputs,) = one.wait_for(name)
        assert Path(outputs["class_raster"]).is_file()
        kinds = [event["event"] for event in one.events[name]]
        assert kinds[:2] == ["started", "message"] and kinds.count("progress") == 20
    assert len(one.pids()) == 1 and not one.worker.active
    assert (one.folder / "worker" / "engine.log").is_file()


def test_the_newest_job_wins(bench, monkeypatch):
    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.1")
    one = bench()
    one.submit("first")
    one.wait(lambda: len(one.events["first"]) > 3)
    start = time.monotonic()
    for name in ("second", "third", "fourth"):
        one.submit(name)
    ends = one.wait_for("first", "second", "third")
    assert all(isinstance(end, EngineCanceled) for end in ends)
    assert time.monotonic() - start < 1
    assert one.wait_for("fourth")[0]["class_raster"].endswith("fourth.tif")
    assert not one.events["second"] and len(one.pids()) == 1


def test_a_failure_is_told_and_the_worker_goes_on(bench):
    one = bench("fail")
    one.submit("a")
    (error,) = one.wait_for("a")
    assert isinstance(error, EngineFailed)
    assert (error.code, error.message, error.hint) == (
        "BANDS_UNKNOWN", "The raster has no band 'nir'.", "Name the bands.",
    )  # fmt: skip
    one.submit("b")
    one.wait_for("b")
    assert len(one.pids()) == 1


def test_noise_goes_to_the_log(bench):
    one = bench("noise")
    one.submit("a")
    assert one.wait_for("a")[0]["classes"]
    assert {event["event"] for event in one.events["a"]} == {"started", "message", "progress"}
    said = [event["text"] for event in one.events["a"] if event["event"] == "message"]
    assert said == ["Values up to 2 are taken as reflectances."], "what names no job is not the job's"
    one.worker.close()
    assert b"[stdout] 100\n" in (one.folder / "worker" / "engine.log").read_bytes()


def test_an_output_that_is_not_there_is_no_success(bench):
    one = bench("missing")
    one.submit("a")
    (error,) = one.wait_for("a")
    assert isinstance(error, EngineCrashed) and "a.tif is not there" in error.message


def test_a_crash_is_survived(bench):
    one = bench("crash_once")
    one.submit("a")
    assert one.wait_for("a")[0]["class_raster"]
    assert len(one.pids()) == 2


def test_a_crash_while_idle_is_survived(bench):
    one = bench()
    one.submit("a")
    one.wait_for("a")
    import os
    import signal

    os.kill(one.worker.pid, signal.SIGKILL)
    time.sleep(0.2)
    one.submit("b")
    assert one.wait_for("b")[0]["class_raster"]
    assert len(one.pids()) == 2


def test_crashing_again_and_again_is_told_and_ends(bench):
    one = bench("crash")
    one.submit("a")
    (error,) = one.wait_for("a")
    assert isinstance(error, EngineCrashed)
    assert "4 times within a minute" in error.message and "engine.log" in error.hint
    assert "Segmentation fault in libsomething" in error.log_tail
    assert len(one.pids()) == 1 + engine_worker.MOST_RESTARTS
    one.submit("b")
    assert isinstance(one.ends["b"], EngineCrashed)
    assert len(one.pids()) == 1 + engine_worker.MOST_RESTARTS


def test_after_a_minute_it_is_tried_again(bench, monkeypatch):
    monkeypatch.setattr(engine_worker, "RESTARTS_WITHIN_S", 3.0)
    one = bench("crash")
    one.submit("a")
    one.wait_for("a")
    time.sleep(3)
    one.mode = "ok"
    one.submit("b")
    assert one.wait_for("b")[0]["class_raster"]


@pytest.mark.parametrize("mode", ["hang", "orphan"])
def test_a_job_that_ignores_its_cancel_loses_its_process(bench, mode, monkeypatch):
    monkeypatch.setattr(engine_worker, "CANCEL_GRACE_S", 0.5)
    one = bench(mode)
    one.submit("a")
    one.wait(lambda: one.events["a"] and (mode == "hang" or (one.folder / "worker" / "child").exists()))
    one.mode = "ok"
    one.submit("b")
    canceled, outputs = one.wait_for("a", "b")
    assert isinstance(canceled, EngineCanceled) and outputs["class_raster"]
    stuck = one.pids()[:1]
    if mode == "orphan":
        stuck.append((one.folder / "worker" / "child").read_text())
    assert len(one.pids()) == 2 and not any(is_running(pid) for pid in stuck)


def test_a_job_that_says_nothing_is_ended(bench, monkeypatch):
    monkeypatch.setattr(engine_worker, "SILENCE_LIMIT_S", 3.0)
    one = bench("hang")
    one.submit("a")
    one.wait(lambda: one.events["a"])
    one.mode = "ok"
    assert one.wait_for("a")[0]["class_raster"]


@pytest.mark.fault("P18")
def test_an_engine_that_never_gets_ready_is_ended(bench, monkeypatch):
    monkeypatch.setattr(engine_worker, "START_LIMIT_S", 0.6)
    one = bench("mute")
    one.submit("a")
    (error,) = one.wait_for("a")
    assert isinstance(error, EngineCrashed)


def test_another_protocol_is_refused(bench):
    one = bench("protocol")
    one.submit("a")
    (error,) = one.wait_for("a")
    assert error.code == "PROTOCOL_MISMATCH"
    assert one.worker.pid is None and not one.worker.active


def test_an_engine_that_cannot_start_is_named(bench):
    one = bench()
    one.command = lambda: ["/no/python"]
    one.worker = EngineWorker(one.command, one.folder / "worker")
    one.submit("a")
    assert one.ends["a"].code == "ENGINE_NOT_STARTED"


@pytest.mark.parametrize("mode", ["ok", "hang", "orphan", "mute", "busy"])
@pytest.mark.fault("P11", "P12")
def test_close_ends_everything_within_five_seconds(bench, mode, monkeypatch):
    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.2" if mode == "busy" else "0")
    one = bench("ok" if mode == "busy" else mode)
    one.submit("a")
    if mode == "ok":
        one.wait_for("a")
    elif mode != "mute":
        one.wait(lambda: one.events["a"])
    one.wait(lambda: one.pids() and (mode != "orphan" or (one.folder / "worker" / "child").exists()))
    start = time.monotonic()
    one.worker.close()
    assert time.monotonic() - start < {"ok": 1, "busy": 1.5, "mute": 1}.get(mode, 5)
    pids = one.pids()
    if mode == "orphan":
        pids.append((one.folder / "worker" / "child").read_text())
    time.sleep(0.1)
    assert not any(is_running(pid) for pid in pids)
    assert "a" in one.ends and not one.worker.active


def test_stop_returns_at_once_and_a_later_job_starts_anew(bench):
    one = bench()
    one.submit("a")
    one.wait_for("a")
    start = time.monotonic()
    one.worker.stop()
    assert time.monotonic() - start < 0.05
    one.submit("b")
    assert one.wait_for("b")[0]["class_raster"]
    assert len(one.pids()) == 2


def test_no_call_takes_long(bench, monkeypatch):
    monkeypatch.setenv("GEOPEFT_FAKE_PAUSE_S", "0.01")
    one = bench("noise")
    longest = 0.0
    real = one.worker.poll

    def timed():
        nonlocal longest
        start = time.monotonic()
        real()
        longest = max(longest, time.monotonic() - start)

    monkeypatch.setattr(one.worker, "poll", timed)
    one.submit("a")
    one.wait_for("a")
    assert longest < 0.1
