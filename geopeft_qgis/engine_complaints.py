"""What the complaints of uv, pip and Python mean to people.

Standard library only (not even qgis), Python 3.9 syntax.
"""

from __future__ import annotations

import re

from .language import tr

NETWORK_WORDS = ("dns", "connect", "request", "timed out", "network", "download")  # not shown


def is_about_certificates(output: str) -> bool:
    """Whether a tool failed because it does not trust a server's certificate."""
    return any(word in output.lower() for word in ("unknownissuer", "certificate", "sslcertverification"))


def reason(output: str) -> str:
    """The line of a tool's output that tells most: the first error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?i)(error|fatal|e:|x |×|caused by)", line)]
    return (errors or lines or ["?"])[-1 if not errors else 0].strip("×x ").rstrip(".")[:300]


def advice(complaint: str) -> str:
    """What the user can do about a failed command, from all that it printed."""
    # What comes before the error are names of packages and downloads.
    text = re.sub(r"(?s)^.*?(?=^\W*(error|fatal))", "", complaint.lower(), count=1, flags=re.MULTILINE)
    if "ended from outside" in text:
        return tr("Close other programs if the memory is short, then try again.")
    if "no space" in text or "os error 28" in text or "os error 112" in text:
        return tr("Free some disk space, then try again.")
    if "permission denied" in text or "access is denied" in text or "os error 13" in text:
        return tr("Choose another folder, or stop what uses this one (a virus scanner, a running job), then try again.")
    if is_about_certificates(text):
        return tr("A proxy changes the network's certificates: add its authority in QGIS, or name it by SSL_CERT_FILE.")
    if "hash mismatch" in text:
        return tr("The package index serves another file than the one GeoPEFT expects; ask who runs it.")
    if "winerror 1114" in text or "dll load failed" in text:
        return tr("Install the Microsoft Visual C++ runtime (x64), then try again.")
    if re.search(r"\b407\b|proxy auth", text):
        return tr("Check the proxy's user and password in Settings > Options > Network, then try again.")
    if any(word in text for word in NETWORK_WORDS):
        return tr("Check the network and the proxy settings, then try again.")
    return tr("Try again; if it stays so, report it with the sentence above.")
