"""qgis.PyQt.QtCore as QGIS 4 has it."""

from typing import TYPE_CHECKING, Any

from PyQt6 import QtCore
from PyQt6.QtCore import *  # noqa: F403

NULL: Any = None
# QGIS keeps these names of Qt 5; the other types of QVariant are not used here.
_TYPES = ("Bool", "Int", "LongLong", "Double", "QString", "QStringList", "QDate", "QDateTime", "QByteArray")

if TYPE_CHECKING:

    class QVariant(QtCore.QVariant):
        """With the names that QGIS adds."""

        Bool: Any
        Int: Any
        LongLong: Any
        Double: Any
        String: Any
        StringList: Any
        Date: Any
        DateTime: Any
        ByteArray: Any

else:
    for _name in _TYPES:
        setattr(QtCore.QVariant, _name.removeprefix("Q"), QtCore.QMetaType.Type[_name])
