"""QGIS's way to the network (proxy, certificates, package index) for the installer's programs."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from qgis.core import QgsApplication, QgsNetworkAccessManager
from qgis.PyQt.QtCore import QUrl
from qgis.PyQt.QtNetwork import QNetworkProxy, QNetworkProxyFactory, QNetworkProxyQuery

from . import settings
from .engine_steps import Network

HTTP = (QNetworkProxy.ProxyType.HttpProxy, QNetworkProxy.ProxyType.HttpCachingProxy)
# Only the scheme matters to a system whose proxy depends on the address; no package index is named here.
ANY_ADDRESS = "https://packages.invalid/"


def for_installer() -> Network:
    """What a download in QGIS would use. Call it in the main thread; a proxy's password is only in what it returns."""
    return Network(proxy_variables(), _trusted_certificates, settings.get("package_index"))


def proxy_variables() -> dict[str, str]:
    """HTTP_PROXY and its relatives, from Settings > Options > Network; empty where QGIS has no proxy of its own.

    The system's own variables reach the installer anyway.
    """
    manager = QgsNetworkAccessManager.instance()
    proxy = manager.fallbackProxy()
    if manager.useSystemProxy():
        found = QNetworkProxyFactory.systemProxyForQuery(QNetworkProxyQuery(QUrl(ANY_ADDRESS)))
        proxy = found[0] if found else proxy
    address = _address(proxy)
    if not address:
        return {}
    direct = [_host(url) for url in [*manager.excludeList(), *manager.noProxyList()]]
    no_proxy = ",".join(dict.fromkeys([*(host for host in direct if host), "localhost", "127.0.0.1"]))
    return {"HTTP_PROXY": address, "HTTPS_PROXY": address, "ALL_PROXY": address, "NO_PROXY": no_proxy}


def _address(proxy: QNetworkProxy) -> str:
    """A proxy as an address; empty for none."""
    if not proxy.hostName() or proxy.type() not in (*HTTP, QNetworkProxy.ProxyType.Socks5Proxy):
        return ""
    # The proxy resolves names, since the names of the outside are often unknown inside.
    scheme = "http" if proxy.type() in HTTP else "socks5h"
    user = quote(proxy.user(), safe="")
    password = f":{quote(proxy.password(), safe='')}" if proxy.password() else ""
    who = f"{user}{password}@" if user else ""
    return f"{scheme}://{who}{proxy.hostName()}:{proxy.port()}"


def _host(url: str) -> str:
    """The host of an address that QGIS reaches directly; these may be whole addresses or only names."""
    return urlsplit(url if "//" in url else f"//{url}").hostname or ""


def _trusted_certificates() -> str:
    """PEM text of all authorities that QGIS trusts: the system's and those that the user has added."""
    return bytes(QgsApplication.authManager().trustedCaCertsPemText()).decode("ascii", "replace")
