"""One file from the Hugging Face hub: a pinned revision over HTTPS, resumable, checked by sha256 before it is kept."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from geopeft.errors import OutputError, WeightsError
from geopeft.events import Reporter
from geopeft.models.registry import WeightsSource

HUB = "https://huggingface.co"
OFFLINE = "GEOPEFT_OFFLINE"  # set to anything: no download is tried
TIMEOUT_S = 15.0
ATTEMPTS = 4
CHUNK_BYTES = 1 << 18
BROKEN_CONNECTION = (
    http.client.HTTPException,
    urllib.error.URLError,
    ssl.SSLError,
    TimeoutError,
    ConnectionError,
)


def download(source: WeightsSource, target: Path, reporter: Reporter, hub: str = HUB) -> None:
    """Fetches `source` to `target`. What has arrived stays in `target.part` and is continued the next time.

    Args:
        hub: address of the hub; plain HTTP is accepted only on this computer.

    Raises:
        WeightsError: WEIGHTS_MISSING when the hub does not give the file, WEIGHTS_CHECKSUM when it is another file.
        OutputError: the file cannot be written.
    """
    if hub == HUB and os.environ.get(OFFLINE):
        raise _unreachable(source, f"{OFFLINE} is set")
    url = f"{hub}/{source.repo}/resolve/{source.revision}/{source.path}"
    part = target.with_name(target.name + ".part")
    reporter.message(f"Downloading {source.path} of {source.repo}, revision {source.revision[:12] or 'main'}.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _receive_all(url, part, source, reporter)
        _keep(part, target, source)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise OutputError(f"The weights cannot be written to {target.parent}: {reason}.", "Free space.") from error


def _receive_all(url: str, part: Path, source: WeightsSource, reporter: Reporter) -> None:
    """Receives until the file is complete; a broken connection is taken up where it broke."""
    for attempt in range(ATTEMPTS):
        try:
            if _receive(url, part, source, reporter):
                return
        except BROKEN_CONNECTION as error:
            if isinstance(error, urllib.error.HTTPError):
                raise _unreachable(source, f"the hub answers {error.code} {error.reason}") from error
            if isinstance(error, urllib.error.URLError):  # no connection at all: another try would only take longer
                raise _unreachable(source, str(error.reason)) from error
            if attempt == ATTEMPTS - 1:
                raise _unreachable(source, str(getattr(error, "reason", error))) from error
    raise _unreachable(source, "the connection breaks again and again")


def _receive(url: str, part: Path, source: WeightsSource, reporter: Reporter) -> bool:
    """One connection; True when the last byte has arrived."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "geopeft", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        answer = _opener(url).open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            # Nothing lies behind what is here: complete, or too long and then the checksum refuses it.
            return True
        raise
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise _unreachable(source, "a web page came back instead of the file (a login page of the network?)")
        resumed = answer.status == 206 and (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else 0
        with part.open("ab" if resumed else "wb") as stream:
            while block := answer.read(CHUNK_BYTES):
                stream.write(block)
                have += len(block)
                reporter.progress("download", have, max(total, have))
            stream.flush()
            os.fsync(stream.fileno())
    return not total or have >= total


def _keep(part: Path, target: Path, source: WeightsSource) -> None:
    with part.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != source.sha256:
        part.unlink()
        raise WeightsError(
            f"The file that came from {source.repo} is not the published one: its sha256 is {digest}, expected "
            f"{source.sha256}.",
            "Run again; if it stays so, put the file into your weights folder by hand.",
            "WEIGHTS_CHECKSUM",
        )
    os.replace(part, target)


def _opener(url: str) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    try:
        import certifi

        context.load_verify_locations(certifi.where())
    except ImportError:
        pass
    _require_safe(url)
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _SafeRedirects())


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from HTTPS to something else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_safe(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_safe(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname == "127.0.0.1"):
        raise WeightsError(f"{parts.scheme}://{parts.netloc} is not a secure address.", "Use HTTPS.", "WEIGHTS_MISSING")


def _unreachable(source: WeightsSource, why: str) -> WeightsError:
    return WeightsError(
        f"The weights {source.path} of {source.repo} cannot be downloaded: {why}.",
        f"Connect to the network and run again, or put {source.file} into your weights folder.",
        "WEIGHTS_MISSING",
    )
