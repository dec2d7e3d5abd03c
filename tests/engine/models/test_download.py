"""Downloads against a hub on this computer: resumed, verified, and never half a file under the right name."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from geopeft.errors import Canceled, WeightsError
from geopeft.events import Reporter
from geopeft.models import download as downloading
from geopeft.models.registry import WeightsSource

CONTENT = bytes(range(256)) * 4096
SOURCE = WeightsSource(
    file="encoder.pt", sha256=hashlib.sha256(CONTENT).hexdigest(), repo="org/net", revision="abc", path="m/encoder.pt"
)


class Hub(ThreadingHTTPServer):
    """Serves one file in the way a test asks for."""

    content = CONTENT
    mode = "good"
    ranges: list[str | None]
    paths: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        self.server.paths.append(self.path)
        mode, content = self.server.mode, self.server.content
        if mode == "missing":
            self.send_error(404)
            return
        if mode == "insecure redirect":
            self.send_response(302)
            self.send_header("Location", "http://example.invalid/file")
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and mode != "no ranges" else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if mode == "portal" else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        breaks = mode == "always breaks" or (mode == "breaks once" and len(self.server.ranges) == 1)
        self.wfile.write(body[: len(body) // 3] if breaks else body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Handler)
    server.ranges, server.paths = [], []
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


def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.mode = "breaks once"
    get(hub, tmp_path / "encoder.pt")
    assert (tmp_path / "encoder.pt").read_bytes() == CONTENT
    assert hub.ranges == [None, f"bytes={len(CONTENT) // 3}-"]


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


@pytest.mark.parametrize(
    ("mode", "says"), [("missing", "404"), ("always breaks", "breaks"), ("insecure redirect", "secure")]
)
def test_a_hub_that_does_not_give_the_file_ends_in_one_sentence(hub: Hub, tmp_path: Path, mode: str, says: str) -> None:
    hub.mode = mode
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


def test_a_cancel_leaves_the_part_for_the_next_time(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cancel").touch()
    with pytest.raises(Canceled):
        get(hub, tmp_path / "w" / "encoder.pt", Reporter(folder=tmp_path))
    assert (tmp_path / "w" / "encoder.pt.part").exists()
