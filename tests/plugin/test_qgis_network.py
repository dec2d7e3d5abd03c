"""QGIS's proxy and certificates reach the installer's programs, and no one else."""

import os
import ssl
import sys
from pathlib import Path

import pytest
from qgis.core import QgsNetworkAccessManager, QgsSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import fake_uv

KEYS = "proxyEnabled proxyType proxyHost proxyPort proxyUser proxyPassword proxyExcludedUrls noProxyUrls".split()


@pytest.fixture
def proxy(qgis_app, monkeypatch):
    """Sets QGIS's proxy as its options dialog does."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)

    def use(**values):
        for key in KEYS:
            QgsSettings().remove(f"proxy/{key}")
        for key, value in values.items():
            QgsSettings().setValue(f"proxy/{key}", value)
        QgsNetworkAccessManager.instance().setupDefaultProxyAndCache()

    yield use
    use()


def http_proxy(**more):
    values = {"proxyEnabled": True, "proxyType": "HttpProxy", "proxyHost": "proxy.example", "proxyPort": "3128"}
    return {**values, **more}


def test_without_a_proxy_nothing_is_set(proxy):
    from geopeft_qgis import qgis_network

    proxy()
    assert qgis_network.proxy_variables() == {}


def test_proxy_with_password_and_exceptions(proxy):
    from geopeft_qgis import qgis_network

    hosts = {
        "proxyExcludedUrls": ["http://intranet.example/x", "other.example"],
        "noProxyUrls": ["https://none.example"],
    }
    proxy(**http_proxy(proxyUser="mar ia", proxyPassword="p@ss:w/rd", **hosts))
    found = qgis_network.proxy_variables()
    assert found["HTTPS_PROXY"] == found["HTTP_PROXY"] == found["ALL_PROXY"]
    assert found["HTTPS_PROXY"] == "http://mar%20ia:p%40ss%3Aw%2Frd@proxy.example:3128"
    assert found["NO_PROXY"] == "intranet.example,other.example,none.example,localhost,127.0.0.1"


def test_socks_proxy_resolves_names_itself(proxy):
    from geopeft_qgis import qgis_network

    proxy(**http_proxy(proxyType="Socks5Proxy"))
    assert qgis_network.proxy_variables()["ALL_PROXY"] == "socks5h://proxy.example:3128"


def test_proxy_of_the_system_is_asked(proxy, monkeypatch):
    from geopeft_qgis import qgis_network

    monkeypatch.setenv("https_proxy", "http://system.example:8080")
    proxy(**http_proxy(proxyType="DefaultProxy", proxyHost=""))
    assert qgis_network.proxy_variables().get("HTTPS_PROXY") == "http://system.example:8080"


def test_certificates_are_those_that_qgis_trusts(qgis_app):
    from geopeft_qgis import qgis_network

    text = qgis_network.for_installer().certificates()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=text)
    assert len(context.get_ca_certs()) > 10


@pytest.mark.fault("S11")
def test_uv_and_pip_get_the_proxy_and_the_log_gets_no_password(proxy, tmp_path, monkeypatch):
    from geopeft_qgis import engine_install, engine_uv, qgis_network, settings

    home = tmp_path / "home"
    python = fake_uv.lay_python(tmp_path / "python3")
    source = fake_uv.lay_source(tmp_path / "source")
    monkeypatch.setenv("GEOPEFT_FAKE_CALLS", str(tmp_path))
    monkeypatch.setenv("GEOPEFT_FAKE_UV", "proxy")
    monkeypatch.setattr(engine_uv, "_pythons", lambda: [str(python)])
    monkeypatch.setattr(engine_install, "expected_gb", lambda variant: (1.0, 0.0))
    monkeypatch.setenv("http_proxy", "http://old.example:1")
    proxy(**http_proxy(proxyUser="maria", proxyPassword="secret"))
    settings.put("package_index", "https://packages.example/all")
    said = []
    choices = engine_install.Choices(folder=home, network=qgis_network.for_installer())
    settings.put("package_index", "")
    with pytest.raises(engine_install.InstallError) as caught:
        engine_install.ensure(source, said.append, choices=choices)
    assert "secret" not in f"{caught.value} {said}" and "407" in str(caught.value)
    downloads = [call for call in fake_uv.calls(tmp_path) if "download" in call["argv"] or "sync" in call["argv"]]
    assert len(downloads) == 2, "pip fetches uv, uv fetches the packages"
    for call in downloads:
        assert call["env"]["HTTPS_PROXY"] == "http://maria:secret@proxy.example:3128"
        assert "http_proxy" not in call["env"]
        assert "secret" not in " ".join(call["argv"])
    assert (
        downloads[0]["env"]["PIP_INDEX_URL"]
        == downloads[1]["env"]["UV_DEFAULT_INDEX"]
        == "https://packages.example/all"
    )
    assert "secret" not in str(dict(os.environ)), "QGIS's own environment is left alone"
