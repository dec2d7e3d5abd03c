"""Downloads against a hub on this computer: resumed, verified, and never half a file under the right name."""

from __future__ import annotations

import hashlib
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from geopeft.errors import Canceled, OutputError, WeightsError
from geopeft.events import Reporter
from geopeft.models import download as downloading
from geopeft.models.registry import WeightsSource

CONTENT = bytes(range(256)) * 4096
SOURCE = WeightsSource(
    file="encoder.pt", sha256=hashlib.sha256(CONTENT).hexdigest(), repo="org/net", revision="abc", path="m/encoder.pt"
)


REDIRECTS = {
    "insecure redirect": "http://example.invalid/file",
    "foreign redirect": "https://example.invalid/file",
    "file redirect": "file:///etc/hostname",
    "endless redirect": "http://127.0.0.1:{port}/again",
}


class Hub(ThreadingHTTPServer):
    """Serves one file in the way a test asks for."""

    content = CONTENT
    mode = "good"
    ranges: list[str | None]
    paths: list[str]
    heads: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        self.server.paths.append(self.path)
        self.server.heads.append(str(self.headers))
        mode, content = self.server.mode, self.server.content
        if mode == "missing":
            self.send_error(404)
            return
        if mode in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[mode].format(port=self.server.server_port))
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and mode != "no ranges" else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if mode == "portal" else "application/octet-stream")
        if mode not in ("endless", "hangs"):
            self.send_header("Content-Length", str(len(body) + (1000 if mode == "too short" else 0)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if mode == "endless":
            while not self.wfile.closed:
                self.wfile.write(bytes(1 << 16))
        if mode == "hangs":
            self.wfile.write(body[:1000])
            self.wfile.flush()
            time.sleep(2)
            return
        breaks = mode == "always breaks" or (mode == "breaks once" and len(self.server.ranges) == 1)
        for start in range(0, len(body), 1 << 15) if mode == "slow" else ():
            self.wfile.write(body[start : start + (1 << 15)])
            time.sleep(0.03)
        if mode != "slow":
            self.wfile.write(body[: len(body) // 3] if breaks else body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Handler)
    server.ranges, server.paths, server.heads = [], [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def get(hub: Hub, target: Path, reporter: Reporter | None = None) -> None:
    downloading.download(SOURCE, target, reporter or Reporter(), hub=f"http://127.0.0.1:{hub.server_port}")


def test_the_file_arrives_from_the_pinned_revision(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "cache" / "encoder.pt"
    get(hub, target)
    assert target.read_bytes() == CONTENT
    assert hub.paths == ["/org/net/resolve/abc/m/encoder.pt"]
    assert [p.name for p in target.parent.iterdir()] == ["encoder.pt"]


@pytest.mark.fault("D01")
def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.mode = "breaks once"
    get(hub, tmp_path / "encoder.pt")
    assert (tmp_path / "encoder.pt").read_bytes() == CONTENT
    assert hub.ranges == [None, f"bytes={len(CONTENT) // 3}-"]


@pytest.mark.fault("D02")
def test_what_an_earlier_run_left_is_continued(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "encoder.pt.part").write_bytes(CONTENT[:1000])
    get(hub, tmp_path / "encoder.pt")
    assert hub.ranges == ["bytes=1000-"] and (tmp_path / "encoder.pt").read_bytes() == CONTENT


def test_a_complete_part_is_kept_without_a_second_download(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "encoder.pt.part").write_bytes(CONTENT)
    get(hub, tmp_path / "encoder.pt")
    assert (tmp_path / "encoder.pt").read_bytes() == CONTENT


def test_a_hub_without_ranges_starts_again(hub: Hub, tmp_path: Path) -> None:
    hub.mode = "no ranges"
    (tmp_path / "encoder.pt.part").write_bytes(CONTENT[:1000])
    get(hub, tmp_path / "encoder.pt")
    assert (tmp_path / "encoder.pt").read_bytes() == CONTENT


@pytest.mark.fault("D03")
def test_one_flipped_byte_is_refused_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.content = CONTENT[:5000] + b"\x00\xff" + CONTENT[5002:]
    with pytest.raises(WeightsError) as error:
        get(hub, tmp_path / "encoder.pt")
    assert error.value.code == "WEIGHTS_CHECKSUM" and not list(tmp_path.iterdir())


def test_the_login_page_of_a_network_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.mode = "portal"
    (tmp_path / "encoder.pt.part").write_bytes(CONTENT[:1000])
    with pytest.raises(WeightsError, match="web page") as error:
        get(hub, tmp_path / "encoder.pt")
    assert error.value.code == "WEIGHTS_MISSING"
    assert (tmp_path / "encoder.pt.part").read_bytes() == CONTENT[:1000]


@pytest.mark.fault("D01", "D08")
@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("missing", "404"),
        ("always breaks", "breaks"),
        ("insecure redirect", "secure"),
        ("file redirect", "secure|not allowed|302"),
        ("foreign redirect", "none of its servers"),
        ("endless redirect", "infinite loop|redirect"),
        ("endless", "no end"),
        ("hangs", "timed out"),
    ],
)
def test_a_hub_that_does_not_give_the_file_ends_in_one_sentence(
    hub: Hub, tmp_path: Path, mode: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.mode = mode
    monkeypatch.setattr(downloading, "MAX_BYTES", 3 * len(CONTENT))
    monkeypatch.setattr(downloading, "TIMEOUT_S", 0.3)
    with pytest.raises(WeightsError, match=says) as error:
        get(hub, tmp_path / "encoder.pt")
    assert error.value.code == "WEIGHTS_MISSING" and not (tmp_path / "encoder.pt").exists()


def test_no_network_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        downloading.download(SOURCE, tmp_path / "encoder.pt", Reporter(), hub="http://127.0.0.1:1")
    assert error.value.code == "WEIGHTS_MISSING" and "weights folder" in error.value.hint


def test_plain_http_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a secure address"):
        downloading.download(SOURCE, tmp_path / "encoder.pt", Reporter(), hub="http://example.invalid")


def test_a_folder_that_cannot_be_written_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Exception) as error:
        get(hub, tmp_path / "file" / "encoder.pt")
    assert getattr(error.value, "code", "") == "OUTPUT_FAILED"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.fault("D05")
def test_a_full_disk_is_told_and_leaves_no_file_under_its_name(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "weights" / "encoder.pt"
    target.parent.mkdir()
    (target.parent / "encoder.pt.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"weights: the disk is full\."):
        downloading.download(SOURCE, target, Reporter(), f"http://127.0.0.1:{hub.server_port}")
    assert not target.exists()
    (target.parent / "encoder.pt.part").unlink()
    downloading.download(SOURCE, target, Reporter(), f"http://127.0.0.1:{hub.server_port}")
    assert target.read_bytes() == CONTENT


def test_a_cancel_leaves_the_part_for_the_next_time(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cancel").touch()
    with pytest.raises(Canceled):
        get(hub, tmp_path / "w" / "encoder.pt", Reporter(folder=tmp_path))
    assert (tmp_path / "w" / "encoder.pt.part").exists()


@pytest.mark.fault("D02")
def test_a_killed_download_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.mode = "slow"
    code = f"""
from geopeft.models import download
from geopeft.models.registry import WeightsSource
from geopeft.events import Reporter
from pathlib import Path
source = WeightsSource(file="encoder.pt", sha256="{SOURCE.sha256}", repo="org/net", revision="abc", path="m/encoder.pt")
download.CHUNK_BYTES = 1024
download.download(source, Path({str(tmp_path / "encoder.pt")!r}), Reporter(), hub="http://127.0.0.1:{hub.server_port}")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    part = tmp_path / "encoder.pt.part"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (part.exists() and part.stat().st_size > 10_000):
        time.sleep(0.01)
    process.kill()
    process.wait()
    have = part.stat().st_size
    assert 0 < have < len(CONTENT) and not (tmp_path / "encoder.pt").exists()
    hub.mode, hub.ranges[:] = "good", []
    get(hub, tmp_path / "encoder.pt")
    assert hub.ranges == [f"bytes={have}-"] and (tmp_path / "encoder.pt").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.pt"]


def test_a_length_that_lies_does_no_harm_to_a_file_that_is_whole(hub: Hub, tmp_path: Path) -> None:
    hub.mode = "too short"
    get(hub, tmp_path / "encoder.pt")
    assert (tmp_path / "encoder.pt").read_bytes() == CONTENT


def test_a_wrong_beginning_from_an_earlier_run_is_fetched_anew_once(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "encoder.pt.part").write_bytes(b"another file")
    get(hub, tmp_path / "encoder.pt")
    assert hub.ranges == ["bytes=12-", None] and (tmp_path / "encoder.pt").read_bytes() == CONTENT


@pytest.mark.fault("C02")
def test_two_that_want_the_same_file_fetch_it_once(hub: Hub, tmp_path: Path) -> None:
    hub.mode = "slow"
    threads = [threading.Thread(target=get, args=(hub, tmp_path / "encoder.pt")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.ranges == [None] and (tmp_path / "encoder.pt").read_bytes() == CONTENT


@pytest.mark.fault("D13", "S11")
def test_tokens_of_other_programs_are_neither_sent_nor_shown(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "http://canary.invalid")
    get(hub, tmp_path / "encoder.pt")
    assert "canary" not in str(hub.heads) + "".join(capfd.readouterr())
    assert (tmp_path / "encoder.pt").read_bytes() == CONTENT


@pytest.mark.fault("E12", "S09")
def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    context = downloading.trust()
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
