"""What the servers of a layer answer, heard where QGIS brings all answers together."""

from __future__ import annotations

import re
import threading
import time
from typing import Any
from urllib.parse import unquote

from qgis.core import QgsNetworkAccessManager, QgsNetworkReplyContent
from qgis.PyQt.QtCore import QCoreApplication, QObject, QThread, pyqtSignal
from qgis.PyQt.QtNetwork import QNetworkReply, QNetworkRequest

# A tile that a service does not have is no failure, and our own cancel is none of the server's.
NO_FAILURES = (
    QNetworkReply.NetworkError.NoError,
    QNetworkReply.NetworkError.ContentNotFoundError,
    QNetworkReply.NetworkError.ContentGoneError,
    QNetworkReply.NetworkError.OperationCanceledError,
)
NO_PICTURE = re.compile(r"^text/|xml$|html$|json$")
SETTLE_S = 1.0


class ServerAnswers(QObject):
    """Listens from its making to its `end`; made in the main thread, asked in any.

    Providers fetch in threads of their own and say nothing of failures but in a picture with a hole; QGIS passes every
    answer on to the network access of the main thread.

    Args:
        source: of the layer; only its servers count.
    """

    _fence = pyqtSignal()

    def __init__(self, source: str) -> None:
        super().__init__()
        self.failures: list[str] = []
        self.no_pictures: list[str] = []
        self.last_at = 0.0
        self._servers = servers_in(source)
        self._reached = threading.Event()
        self._fence.connect(self._reached.set)
        self._network: Any = QgsNetworkAccessManager.instance()
        self._network.finished[QgsNetworkReplyContent].connect(self._answered)

    def clear(self) -> None:
        """Forgets what was heard."""
        self.failures, self.no_pictures = [], []

    def settle(self) -> None:
        """Waits until the answers that are on their way through the threads have come."""
        if QThread.currentThread() == self.thread():
            QCoreApplication.sendPostedEvents(self._network)
            return
        # The answer to a piece and the word of it here start at the same moment on different ways.
        time.sleep(0.01)
        self._reached.clear()
        self._fence.emit()
        self._reached.wait(SETTLE_S)

    def end(self) -> None:
        """Listens no more."""
        if self._network is not None:
            self._network.finished[QgsNetworkReplyContent].disconnect(self._answered)
            self._network = None

    def _answered(self, reply: QgsNetworkReplyContent) -> None:
        host = reply.request().url().host()
        if self._servers and not any(host.endswith(server) for server in self._servers):
            return
        self.last_at = time.monotonic()
        if reply.error() not in NO_FAILURES:
            # Qt names the whole address, which may hold a key.
            self.failures.append(re.sub(r"^Error transferring \S+ - server replied: ", "", reply.errorString()))
        elif reply.attribute(QNetworkRequest.Attribute.HttpStatusCodeAttribute) == 200:
            kind = bytes(reply.rawHeader(b"Content-Type")).decode("latin-1").split(";")[0].strip().lower()
            if NO_PICTURE.search(kind):
                # The exception of a WMS, or the login page of a network.
                text = QCoreApplication.translate("GeoPEFT", "it sent {kind} instead of a map")
                self.no_pictures.append(text.format(kind=kind))


def servers_in(source: str) -> set[str]:
    """The ends of the names of the servers in a layer's source; a name may hold {switch:a,b,c}."""
    text = unquote(unquote(source))
    hosts = re.findall(r"https?://(?:[^/@\s]*@)?((?:\{[^}]*\}|[^/:?&'\"\s{])+)", text)
    return {".".join(re.sub(r"\{[^}]*\}", "", host).split(".")[-2:]) for host in hosts}
