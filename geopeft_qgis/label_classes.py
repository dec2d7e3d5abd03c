"""The classes of a layer, which live in its style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsDefaultValue,
    QgsEditorWidgetSetup,
    QgsExpression,
    QgsFeatureRequest,
    QgsField,
    QgsProject,
    QgsRendererCategory,
    QgsVectorLayer,
)
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QObject, pyqtSignal
from qgis.PyQt.QtGui import QColor

from .label_shapes import edit_command
from .label_style import CLASS_FIELD, MAX_CLASSES, LabelClass, class_symbol, is_label_layer, palette_color, recolored
from .language import tr
from .layers import LayerError, category_styles, class_text

STYLE_NAME = "labels"


class LabelClasses(QObject):
    """The classes of a layer. They are read from its style, and from `learn` where the data has more.

    The layer's style is only written when a class is changed here, or by `adopt`; the data only by `rename` (text
    fields whose values are the names) and by `remove` with its shapes. Both are steps of the layer's undo stack.

    Args:
        layer: must outlive this object, or `end` be called before.
        field: the field with the class.
        rows: the first classes of a new layer; None: what the layer has.
    """

    changed = pyqtSignal()

    def __init__(
        self,
        layer: QgsVectorLayer,
        field: str,
        rows: Optional[Sequence[LabelClass]] = None,
        parent: Optional[QObject] = None,
    ) -> None:
        super().__init__(parent)
        self.layer = layer
        self.field = field
        self._is_ours = is_label_layer(layer) and field == CLASS_FIELD
        self._owns_style = self._is_ours
        self._writing = False
        self._style_saved = not self._is_ours
        self._renames: list[tuple[LabelClass, LabelClass]] = []
        self._removed: dict[str, LabelClass] = {}
        self._rows = list(rows) if rows is not None else self._styled()
        self._in_style = {row.key for row in self._rows}
        if rows is not None:
            self._store()
        layer.rendererChanged.connect(self._style_changed)
        layer.afterCommitChanges.connect(self.save_style)

    @property
    def rows(self) -> tuple[LabelClass, ...]:
        """The classes, in the order of the table."""
        return tuple(self._rows)

    def end(self) -> None:
        """Lets the layer go."""
        if not sip.isdeleted(self.layer):
            self.layer.rendererChanged.disconnect(self._style_changed)
            self.layer.afterCommitChanges.disconnect(self.save_style)
        self.deleteLater()

    # Changes by the user; each raises LayerError where it is not possible

    def add(self, name: str = "") -> int:
        """Adds a class at the end; its row. Without a name it is called 'class N'."""
        name = self._checked(name.strip() or self._free_name(), -1)
        field = self._field()
        if field.isNumeric():
            numbers = [int(row.value) for row in self._rows if row.key.lstrip("-").isdigit()]
            value: Any = max([0, *numbers]) + 1
        else:
            value = name
        self._rows.append(LabelClass(value, name, palette_color([row.color for row in self._rows])))
        self._store()
        return len(self._rows) - 1

    def rename(self, row: int, name: str) -> None:
        """Gives a class another name; where the field holds the names, in the features too."""
        old = self._rows[row]
        name = self._checked(name.strip(), row)
        if name == old.name:
            return
        in_data = not self._field().isNumeric() and old.key == old.name
        new = LabelClass(name if in_data else old.value, name, old.color)
        ids = self.shapes_of(row) if in_data else []
        if ids:
            index = self.layer.fields().lookupField(self.field)
            with edit_command(self.layer, self.tr("Rename class")):
                for fid in ids:
                    self.layer.changeAttributeValue(fid, index, name)
            self._renames.append((old, new))
        self._rows[row] = new
        self._store()

    def recolor(self, row: int, color: QColor) -> None:
        """Gives a class another colour."""
        self._rows[row] = self._rows[row]._replace(color=color.name())
        self._store()

    def remove(self, row: int) -> None:
        """Removes a class, with its shapes."""
        ids = self.shapes_of(row)
        if ids:
            with edit_command(self.layer, self.tr("Remove class")):
                self.layer.deleteFeatures(ids)
        gone = self._rows.pop(row)
        self._removed[gone.key] = gone
        self._store()

    def move(self, row: int, by: int) -> int:
        """Moves a class up (-1) or down (1); its new row."""
        place = min(max(row + by, 0), len(self._rows) - 1)
        self._rows.insert(place, self._rows.pop(row))
        self._store()
        return place

    def adopt(self) -> None:
        """Shows these classes in the layer's style where it has no style of its own to lose."""
        renderer = self.layer.renderer()
        if renderer is not None and renderer.type() == "singleSymbol" and self._rows:
            self._store()

    def save_style(self) -> None:
        """Keeps the classes of a layer of ours in its file, so that they come along to another project."""
        if self._style_saved:
            return
        self._style_saved = True
        # QGIS asks before it replaces a style of the same name, so the old one goes first.
        count, ids, names, *_ = self.layer.listStylesInDatabase()
        for style_id, name in list(zip(ids, names))[: max(count, 0)]:
            if name == STYLE_NAME:
                self.layer.deleteStyleFromDatabase(style_id)
        self.layer.saveStyleToDatabase(STYLE_NAME, "", True, "")

    def set_current(self, row: int) -> None:
        """In a layer of ours, what QGIS's own tools draw gets the current class too."""
        if self._is_ours and 0 <= row < len(self._rows):
            value = QgsExpression.quotedString(self._rows[row].key)
            index = self.layer.fields().lookupField(self.field)
            if self.layer.defaultValueDefinition(index).expression() != value:
                self.layer.setDefaultValueDefinition(index, QgsDefaultValue(value))

    # What the data says

    def shapes_of(self, row: int) -> list[int]:
        """Ids of the features of a class."""
        return self._ids(f"trim(to_string({self._quoted()})) = {QgsExpression.quotedString(self._rows[row].key)}")

    def without_class(self) -> list[int]:
        """Ids of the features that have no class."""
        return self._ids(f"coalesce(trim(to_string({self._quoted()})), '') = ''")

    def learn(self, present: Mapping[str, Any]) -> None:
        """Takes in the values that the data has: those not in the style become classes, in the palette's colours.

        An undone renaming or removal gives the class its old name back.

        Args:
            present: text -> value as stored.
        """
        before = list(self._rows)
        self._follow_undo(present)
        rows = [row for row in self._rows if row.key in self._in_style or row.key in present]
        known = {row.key for row in rows}
        unknown = [key for key in present if key and key not in known]
        numeric = all(key.lstrip("-").isdigit() for key in unknown)
        for key in sorted(unknown, key=int if numeric else str)[: max(MAX_CLASSES - len(rows), 0)]:
            new = LabelClass(present[key], key, palette_color([row.color for row in rows]))
            rows.append(self._removed.pop(key, new))
        self._rows = rows
        if rows == before:
            return
        if self._owns_style:
            self._store()
        else:
            self.changed.emit()

    def _follow_undo(self, present: Mapping[str, Any]) -> None:
        """Renames a class back (or forth again) when its features were, and none has the other name."""
        keys = [row.key for row in self._rows]
        for old, new in reversed(self._renames):
            for gone, back in ((new, old), (old, new)):
                if back.key in present and back.key not in keys and gone.key in keys and gone.key not in present:
                    row = keys.index(gone.key)
                    self._rows[row] = back._replace(color=self._rows[row].color)
                    keys[row] = back.key

    # The layer

    def _styled(self) -> list[LabelClass]:
        values = {}
        renderer = self.layer.renderer()
        if isinstance(renderer, QgsCategorizedSymbolRenderer):
            for category in renderer.categories():
                listed = category.value() if isinstance(category.value(), list) else [category.value()]
                values.update({class_text(value): value for value in listed})
        styles = category_styles(self.layer, self.field)
        return [LabelClass(values.get(key, key), style["name"], style["color"]) for key, style in styles.items()]

    def _store(self) -> None:
        """Writes the classes into the layer's style; symbols that are there keep their look, in the class's colour."""
        self._owns_style = True
        self._in_style = {row.key for row in self._rows}
        kind = self.layer.geometryType()
        old = {} if self._is_ours else self._categories()
        categories = []
        for row in self._rows:
            known = old.get(row.key)
            symbol = recolored(known.symbol(), kind, row.color) if known else class_symbol(kind, row.color)
            categories.append(QgsRendererCategory(row.value, symbol, row.name))
        if "" in old:  # all other values
            categories.append(QgsRendererCategory(None, old[""].symbol().clone(), old[""].label()))
        self._writing = True
        self.layer.setRenderer(QgsCategorizedSymbolRenderer(self.field, categories))
        self._writing = False
        if self._is_ours:
            values = [{row.name: row.key} for row in self._rows]
            index = self.layer.fields().lookupField(self.field)
            self.layer.setEditorWidgetSetup(index, QgsEditorWidgetSetup("ValueMap", {"map": values}))
            self._style_saved = False
        if QgsProject.instance().mapLayer(self.layer.id()) is not None:
            QgsProject.instance().setDirty(True)
        self.layer.emitStyleChanged()
        self.layer.triggerRepaint()
        self.changed.emit()

    def _categories(self) -> dict[str, QgsRendererCategory]:
        renderer = self.layer.renderer()
        if not isinstance(renderer, QgsCategorizedSymbolRenderer) or not category_styles(self.layer, self.field):
            return {}
        found: dict[str, QgsRendererCategory] = {}
        for category in renderer.categories():
            listed = category.value() if isinstance(category.value(), list) else [category.value()]
            for value in listed:
                found.setdefault(class_text(value), category)
        return found

    def _style_changed(self) -> None:
        """Somebody else changed the style, in the layer's properties for instance."""
        if self._writing:
            return
        styled = self._styled()
        if styled:
            self._rows = styled
            self._in_style = {row.key for row in styled}
            self.changed.emit()

    def _ids(self, expression: str) -> list[int]:
        request = QgsFeatureRequest(QgsExpression(expression)).setFlags(QgsFeatureRequest.Flag.NoGeometry)
        request.setSubsetOfAttributes([self.layer.fields().lookupField(self.field)])
        return [feature.id() for feature in self.layer.getFeatures(request)]

    def _quoted(self) -> str:
        return str(QgsExpression.quotedColumnRef(self.field))

    def _field(self) -> QgsField:
        return self.layer.fields().field(self.layer.fields().lookupField(self.field))

    def _free_name(self) -> str:
        names = {row.name for row in self._rows}
        number = len(self._rows) + 1
        while tr("class {number}").format(number=number) in names:
            number += 1
        return tr("class {number}").format(number=number)

    def _checked(self, name: str, row: int) -> str:
        """The name, or LayerError where it cannot be used."""
        others = {other.name.casefold() for place, other in enumerate(self._rows) if place != row}
        field = self._field()
        if not name:
            raise LayerError(self.tr("A class needs a name. Type one."))
        if name.casefold() in others:
            raise LayerError(self.tr("There is a class '{name}' already. Choose another name.").format(name=name))
        if row < 0 and len(self._rows) >= MAX_CLASSES:
            raise LayerError(self.tr("There can be {number} classes. Remove one first.").format(number=MAX_CLASSES))
        if not field.isNumeric() and 0 < field.length() < len(name):
            text = self.tr("The field '{field}' holds names of up to {number} letters. Choose a shorter one.")
            raise LayerError(text.format(field=self.field, number=field.length()))
        return name
