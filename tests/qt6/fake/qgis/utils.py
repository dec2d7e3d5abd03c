"""qgis.utils of a QGIS without a window."""

from __future__ import annotations

from typing import Any

iface: Any = None
plugins: dict[str, Any] = {}
