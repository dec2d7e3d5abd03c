"""One file from the Hugging Face hub: a pinned revision over HTTPS, resumable, checked by sha256 before it is kept."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from geopeft.errors import OutputError, WeightsError
from geopeft.events import Reporter
from geopeft.models.registry import WeightsSource
from geopeft.writing import sha256_of

HUB = "https://huggingface.co"
OFFLINE = "GEOPEFT_OFFLINE"  # set to anything: no download is tried
TIMEOUT_S = 15.0
ATTEMPTS = 4
# The hub gives large files away from servers of its own under these names.
TRUSTED = ("huggingface.co", "hf.co")
# Nothing that a card names is larger; an answer without an end would fill the disk.
MAX_BYTES = 16 << 30
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
        with _alone(part, reporter):
            if target.is_file() and sha256_of(target) == source.sha256:
                return  # another process fetched it while this one waited
            continued = part.exists()
            _receive_all(url, part, source, reporter)
            if sha256_of(part) != source.sha256 and continued:
                # What an earlier run left may have been another file's beginning.
                part.unlink()
                _receive_all(url, part, source, reporter)
            _keep(part, target, source)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise OutputError(f"The weights cannot be written to {target.parent}: {reason}.", "Free space.") from error


@contextlib.contextmanager
def _alone(part: Path, reporter: Reporter) -> Iterator[None]:
    """Two processes do not write the same file; the system drops the lock of one that dies."""
    lock = part.with_name(part.name + ".lock")
    while True:
        with lock.open("a+b") as file:
            while not take_lock(file.fileno()):
                reporter.check_canceled()
                time.sleep(0.2)
            # Whoever had it before may have taken the file away.
            if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):
                        lock.unlink()
                return


def take_lock(descriptor: int) -> bool:
    """Whether this process now holds the lock on an open file; True too where the file system knows no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
    return True


def _receive_all(url: str, part: Path, source: WeightsSource, reporter: Reporter) -> None:
    """Receives until the file is complete; a broken connection is taken up where it broke, while it still brings
    something."""
    idle = 0
    while idle < ATTEMPTS:
        before = part.stat().st_size if part.exists() else 0
        broken: Exception | None = None
        try:
            if _receive(url, part, source, reporter):
                return
        except BROKEN_CONNECTION as error:
            if isinstance(error, urllib.error.HTTPError):
                raise _unreachable(source, f"the hub answers {error.code} {error.reason}") from error
            if isinstance(error, urllib.error.URLError):  # no connection at all: another try would only take longer
                raise _unreachable(source, str(error.reason)) from error
            broken = error
        idle = 0 if part.exists() and part.stat().st_size > before else idle + 1
        if idle == ATTEMPTS and broken is not None:
            raise _unreachable(source, str(getattr(broken, "reason", broken))) from broken
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
                if have > MAX_BYTES:
                    raise _unreachable(source, "the answer has no end")
                reporter.progress("download", have, max(total, have))
            stream.flush()
            os.fsync(stream.fileno())
    return not total or have >= total


def _keep(part: Path, target: Path, source: WeightsSource) -> None:
    digest = sha256_of(part)
    if digest != source.sha256:
        part.unlink()
        raise WeightsError(
            f"The file that came from {source.repo} is not the published one: its sha256 is {digest}, expected "
            f"{source.sha256}.",
            "Run again; if it stays so, put the file into your weights folder by hand.",
            "WEIGHTS_CHECKSUM",
        )
    os.replace(part, target)


def trust() -> ssl.SSLContext:
    """Certificates of the system and of certifi; a server that none of them vouches for is not talked to."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _opener(url: str) -> urllib.request.OpenerDirector:
    _require_safe(url)
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=trust()), _SafeRedirects(url))


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but only over HTTPS, and only to servers of the same owner."""

    def __init__(self, url: str) -> None:
        host = urlsplit(url).hostname or ""
        self._hosts = TRUSTED if _belongs(host, TRUSTED) else (host,)

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_safe(newurl)
        host = urlsplit(newurl).hostname or ""
        if not _belongs(host, self._hosts):
            raise WeightsError(
                f"The hub sends us on to {host}, which is none of its servers.",
                "Try again on another network, or put the file into your weights folder by hand.",
                "WEIGHTS_MISSING",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _belongs(host: str, names: Sequence[str]) -> bool:
    return any(host == name or host.endswith(f".{name}") for name in names)


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
