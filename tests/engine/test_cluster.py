"""Tasks on Dask's workers: one that dies loses nothing, and what is wrong with a cluster is one sentence."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import psutil
import pytest
from distributed.scheduler import KilledWorker
from geopeft import __version__
from geopeft.cluster import cluster, tasks
from geopeft.cluster.cluster import Cluster, address_of, open_cluster
from geopeft.cluster.tasks import Order
from geopeft.errors import Canceled, GeopeftError, JobError
from geopeft.events import Reporter


@pytest.fixture(scope="module")
def near() -> Iterator[Any]:
    """A cluster whose workers are threads of this process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address="127.0.0.1:0"
    ) as one:
        yield one


def orders(folder: Path, count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"folder": str(folder), "task": f"t{n}", "number": n, **fields} for n in range(count)]


def squared(order: Order, reporter: Reporter) -> tuple[int, int]:
    """Ends its own process once, where it is told to."""
    if order["number"] == order.get("dies") and not (mark := Path(order["folder"], "dead")).exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    reporter.message(f"{order['number']} is done")
    return order["number"] ** 2, os.getpid()


def goes_on(order: Order, reporter: Reporter) -> None:
    for step in range(600):
        reporter.progress("step", step, 600)
        time.sleep(0.05)


class Stubborn(Exception):
    """Cannot be pickled, as some libraries' errors."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)


def refuses(order: Order, reporter: Reporter) -> None:
    if order["number"] == 1:
        raise JobError("No.", "Ask again.", "NAME_UNKNOWN")
    if order["number"] == 2:
        raise MemoryError
    if order["number"] == 3:
        raise Stubborn("what", 1)


def run(one: Cluster, work: Any, given: list[dict[str, Any]], look: Any = lambda: None) -> list[cluster.Answer]:
    left = iter(given)
    return sorted(one.run(work, lambda: next(left, None), look), key=lambda answer: answer.order["number"])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_worker_that_is_killed_loses_no_task_and_no_stranger_reaches_the_processes(tmp_path: Path) -> None:
    with open_cluster("local:2", "cpu", Reporter()) as one:
        assert one.threads == 2
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [c.laddr for p in processes for c in p.net_connections() if c.status == "LISTEN"]
        assert len(listening) >= 3 and {address.ip for address in listening} == {"127.0.0.1"}
        scheduler = one._client.scheduler.address
        with pytest.raises(OSError):
            distributed.Client(scheduler.replace("tls", "tcp"), timeout=0.5, set_as_default=False)
        with pytest.raises(OSError):
            other = distributed.Security.temporary()
            distributed.Client(scheduler, timeout=0.5, security=other, set_as_default=False)
        answers = run(one, squared, orders(tmp_path, 12, dies=3))
    assert [answer.value[0] for answer in answers] == [n * n for n in range(12)]
    assert (tmp_path / "dead").exists()
    assert os.getpid() not in {answer.value[1] for answer in answers}
    assert answers[5].said == (("5 is done", "info"),)
    assert not [p for p in processes[1:] if p.is_running() and "spawn_main" in " ".join(p.cmdline())]


def test_what_goes_wrong_on_a_worker_is_told_of_its_order_alone(
    near: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_cluster(near.scheduler_address, "cpu", Reporter()) as one:
        answers = run(one, refuses, orders(tmp_path, 5))
        gone = run(one, squared, orders(tmp_path / "none", 1))[0].error
    codes = [answer.error.code if isinstance(answer.error, GeopeftError) else None for answer in answers]
    assert codes == [None, "NAME_UNKNOWN", "OUT_OF_MEMORY", "INTERNAL", None]
    refused = answers[1].error
    assert isinstance(refused, GeopeftError) and (refused.message, refused.hint) == ("No.", "Ask again.")
    assert "Stubborn: what" in capfd.readouterr().err
    assert isinstance(gone, GeopeftError) and gone.code == "CLUSTER_FILES" and str(tmp_path / "none") in gone.message


def test_a_task_ends_when_its_folder_is_taken_away_and_a_cancel_ends_all(near: Any, tmp_path: Path) -> None:
    folder, told = tmp_path / "tasks", list[int]()
    folder.mkdir()
    given = orders(folder, 40)

    def look() -> None:
        told.append(tasks.progress_of(given[0], "step"))
        if told[-1] > 0:
            tasks.take_away(folder)

    with open_cluster(near.scheduler_address, "cpu", Reporter()) as one:
        left = iter(given)
        first = next(one.run(goes_on, lambda: next(left, None), look))
        assert isinstance(first.error, Canceled) and max(told) > 0
        folder.mkdir()

        def cancel() -> None:
            if one._client.scheduler_info()["workers"]:
                raise Canceled

        with pytest.raises(Canceled):
            run(one, goes_on, orders(folder, 40), cancel)
        tasks.take_away(folder)
        assert not list(tmp_path.iterdir())
        begun = time.monotonic()
        assert run(one, squared, [{"folder": str(tmp_path), "task": "t", "number": 3}])[0].value[0] == 9
        assert time.monotonic() - begun < 10


def test_an_order_that_ends_several_workers_fails() -> None:
    worker: Any = "worker"

    class Killed:
        status = "error"

        def exception(self) -> Exception:
            return KilledWorker("task", worker, 3)

    error = Cluster(None, "local")._answer({}, Killed()).error
    assert isinstance(error, GeopeftError) and error.code == "CLUSTER_WORKERS"


@pytest.mark.parametrize(
    "name", ["loca", "local:", "local:x", "10.0.0.5:8786", "http://host:8786", "tcp://host", "tcp://:8786",
             "tcp://host:0", "tcp://host:70000", "tcp://a b:8786", "none.json"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(JobError, match="names no scheduler") as caught, open_cluster(name, "cpu", Reporter()):
        pass
    assert caught.value.code == "CLUSTER_ADDRESS" and "tcp://" in caught.value.hint


def test_the_address_may_be_in_the_file_of_the_scheduler(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(json.dumps({"type": "Scheduler", "address": "tcp://10.0.0.5:8786"}))
    assert address_of(str(path)) == "tcp://10.0.0.5:8786"
    assert address_of("tls://[fe80::1]:80") == "tls://[fe80::1]:80"
    for text in ('{"address": "file:///etc"}', "[]", "no JSON"):
        path.write_text(text)
        with pytest.raises(JobError) as caught:
            address_of(str(path))
        assert caught.value.code == "CLUSTER_ADDRESS"


def test_a_scheduler_that_is_not_there_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(JobError) as caught, open_cluster(f"tcp://127.0.0.1:{port}", "cpu", Reporter()):
            pass
    assert caught.value.code == "CLUSTER_UNREACHABLE" and f"127.0.0.1:{port}" in caught.value.message
    with pytest.raises(JobError) as caught, open_cluster(f"tcp://127.0.0.1:{port}", "cpu", Reporter()):
        pass
    assert caught.value.code == "CLUSTER_UNREACHABLE"


def test_a_scheduler_that_goes_away_ends_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://",
                                   dashboard_address="127.0.0.1:0")  # fmt: skip
    closed = list[bool]()

    def look() -> None:
        if not closed:
            closed.append(True)
            # Only now: connecting to it may take longer on a busy machine.
            monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
            one.close()

    with open_cluster(one.scheduler_address, "cpu", Reporter()) as connected, pytest.raises(JobError) as caught:
        run(connected, goes_on, orders(tmp_path, 3), look)
    assert caught.value.code == "CLUSTER_UNREACHABLE"


def test_a_scheduler_without_workers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WORKER_S", 0.5)
    with (
        distributed.LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address="127.0.0.1:0") as e,
        pytest.raises(JobError) as caught,
        open_cluster(e.scheduler_address, "cpu", Reporter()),
    ):
        pass
    assert caught.value.code == "CLUSTER_WORKERS" and "dask worker" in caught.value.hint


def test_another_version_on_a_worker_is_refused(near: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "__version__", "0.0.1")
    with pytest.raises(JobError, match=rf"has GeoPEFT {__version__}, this process has 0\.0\.1") as caught:
        with open_cluster(near.scheduler_address, "cpu", Reporter()):
            pass
    assert caught.value.code == "CLUSTER_VERSION" and "engine[cluster]" in caught.value.hint
    assert tasks.do(squared, orders(tmp_path, 1)[0], "9.9.9")["error"][2] == "CLUSTER_VERSION"


def test_another_version_of_dask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def client(*arguments: Any, **named: Any) -> None:
        raise ImportError("mismatched versions")

    monkeypatch.setattr(distributed, "Client", client)
    with pytest.raises(JobError) as caught, open_cluster("tcp://127.0.0.1:1", "cpu", Reporter()):
        pass
    assert caught.value.code == "CLUSTER_VERSION" and "mismatched" in caught.value.message


@pytest.mark.parametrize(
    ("name", "answer", "told"),
    [
        ("geopeft:__version__", ModuleNotFoundError("No module named 'geopeft'"), "has no GeoPEFT (ModuleNotFound"),
        ("python_version", "3.9.1", "has Python 3.9.1"),
        ("torch", "1.0.0+cu118", "has torch 1.0.0"),
    ],
)
def test_each_worker_must_have_the_same_of_all_that_computes(name: str, answer: Any, told: str) -> None:
    class Client:
        def run(self, ask: Any, *words: Any, on_error: str) -> dict[str, Any]:
            own = ask(*words)
            asked = words[0] if words else ask.__name__
            same = own.partition("+")[0] + "+cu999" if asked == "torch" else own
            return {"tcp://a:1": same, "tcp://b:2": answer if asked == name else own}

    with pytest.raises(JobError) as caught:
        cluster._check_versions(Client())
    assert caught.value.code == "CLUSTER_VERSION"
    assert told in caught.value.message and "tcp://b:2" in caught.value.message


@pytest.mark.parametrize("name", ["distributed", "cryptography.x509"])
def test_without_dask_it_is_told_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(JobError, match="not installed") as caught, open_cluster("local", "cpu", Reporter()):
        pass
    assert caught.value.code == "CLUSTER_MISSING" and 'pip install "./engine[cluster]"' in caught.value.hint


def test_processes_share_out_gpus_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cluster, "cores", lambda: 8)
    assert [cluster.environment_of(slot, 3, 2) for slot in (0, 1, 2)] == [
        {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": gpu} for gpu in "010"
    ]
    assert cluster.environment_of(0, 1, 0) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [cluster.environment_of(slot, 2, 2)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["5", "7"]
