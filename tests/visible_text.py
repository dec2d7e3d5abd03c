"""What the plugin shows to people, read from its code: texts given to `tr`, and texts that nobody gave to it.

A text is translatable as a literal in `self.tr(...)`, in `tr(...)` or `_tr(...)`, or in
`QCoreApplication.translate("GeoPEFT", ...)`; also by the name of a constant that holds literals. Names, numbers and
paths are filled in afterwards with `.format`. A comment `# not shown` on its line says that a literal is for no one's
eyes.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

CONTEXT = "GeoPEFT"
NOT_SHOWN = "# not shown"
WRAPPERS = {"tr", "_tr"}
# Two words in a row are a phrase; code, patterns and format strings seldom have them.
PHRASE = re.compile(r"[^\W\d_]{2,}[,.:;!?]?[ \n]+[^\W\d_]{2,}")
WORD = re.compile(r"[^\W\d_]{2,}")
CODE = re.compile(r"\s*(import|from) \w")
# Names that are the same in every language.
PROPER = {"GeoPEFT", "ONNX", "JSON", "GeoTIFF", "GeoPackage", "LoRA", "QGIS", "CPU", "CUDA", "MPS", "GPU"}
# What these calls are given is seen by people, so that even one word counts.
SHOWING = set(
    """setText setToolTip setStatusTip setWhatsThis setWindowTitle setTitle setPlaceholderText setSuffix setPrefix
    setSpecialValueText setInformativeText setDetailedText setAccessibleName setAccessibleDescription setHeaderLabels
    setHorizontalHeaderLabels setVerticalHeaderLabels setHeaderLabel setTabText addItem addItems addAction addMenu
    addRow addTab pushMessage pushSuccess pushInfo pushWarning pushCritical pushConsoleInfo setProgressText
    reportError setLabelText setButtonText setShortcutText setDescription appendPlainText showMessage
    QLabel QPushButton QToolButton QCheckBox QRadioButton QGroupBox QgsCollapsibleGroupBox QAction QMenu
    QgsDockWidget QDockWidget QProgressDialog QTreeWidgetItem QListWidgetItem QTableWidgetItem QgsTask""".split()
)


class Text(NamedTuple):
    """A translatable text and where it stands."""

    text: str
    context: str
    place: str


class Module(NamedTuple):
    """One file of the plugin, read."""

    name: str
    tree: ast.Module
    lines: list[str]


class Found(NamedTuple):
    """All texts in the order of files and lines, and what is wrong, as `file:line: sentence`."""

    texts: list[Text]
    faults: list[str]


def read(plugin: Path) -> Found:
    """The visible texts of a plugin's folder."""
    modules = []
    for path in sorted(plugin.rglob("*.py")):
        code = path.read_text(encoding="utf-8")
        name = path.relative_to(plugin.parent).as_posix()
        modules.append(Module(name, ast.parse(code), code.splitlines()))
    return read_modules(modules)


def read_modules(modules: list[Module]) -> Found:
    """The visible texts of some files."""
    classes, constants = Classes(modules), Constants(modules)
    # The first round learns which constants are given to tr somewhere, so that their literals are no fault.
    readers = [Reader(module, classes, constants) for _ in range(2) for module in modules][len(modules) :]
    faults = [fault for reader in readers for _, fault in sorted(set(reader.faults))]
    return Found([text for reader in readers for text in reader.texts], faults + sorted(constants.faults))


class Classes:
    """The plugin's classes by name: who inherits from whom, and who has a `tr` of its own."""

    def __init__(self, modules: Iterable[Module]) -> None:
        self._bases: dict[str, set[str]] = {}
        self._own_tr: set[str] = set()
        for module in modules:
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef):
                    bases = {base.id if isinstance(base, ast.Name) else ast.unparse(base) for base in node.bases}
                    self._bases.setdefault(node.name, set()).update(bases)
                    if any(isinstance(part, ast.FunctionDef) and part.name == "tr" for part in node.body):
                        self._own_tr.add(node.name)

    def contexts(self, name: str) -> list[str]:
        """The contexts in which `self.tr` of this class asks: those of its subclasses too."""
        if not name or self._own_tr & self.ancestors(name):
            return [CONTEXT]
        return [name, *sorted(other for other in self._bases if name in self.ancestors(other) - {other})]

    def ancestors(self, name: str) -> set[str]:
        """The class itself and all of the plugin's classes that it inherits from."""
        found, waiting = set(), [name]
        while waiting:
            current = waiting.pop()
            if current in self._bases and current not in found:
                found.add(current)
                waiting += self._bases[current]
        return found


class Constants:
    """Literals behind the names of the plugin's constants, of modules and of classes.

    `given` are the names that were given to tr so far, `faults` those that cannot be.
    """

    def __init__(self, modules: Iterable[Module]) -> None:
        self.given: set[str] = set()
        self.faults: set[str] = set()
        self._values: dict[str, list[tuple[str, ast.expr]]] = {}
        for module in modules:
            for node in ast.walk(module.tree):
                for name, value in assigned(node):
                    if name.strip("_").isupper():
                        self._values.setdefault(name, []).append((module.name, value))

    def literals(self, name: str, module: str) -> list[str] | None:
        """The texts of a constant; with `module`, of that one's own where it has it. None where there is none."""
        self.given.add(name)
        rows = self._values.get(name, [])
        rows = [row for row in rows if row[0] == module] or rows
        found: list[str] = []
        for place, value in rows:
            if isinstance(value, ast.Name) and value.id != name:
                literals = self.literals(value.id, place)
            else:
                literals = literals_in(value)
            if literals is None:
                self.faults.add(f"{place}:{value.lineno}: {name} is given to tr, but is not made of literals")
            found += literals or []
        return found if rows else None


def assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of an assignment."""
    if isinstance(node, ast.Assign):
        yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
        yield node.target.id, node.value


def literals_in(node: ast.expr) -> list[str] | None:
    """The texts that an expression can be; None where it is not made of literals."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return _all_literals([node.body, node.orelse])
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return _all_literals(node.elts)
    if isinstance(node, ast.Dict):
        return _all_literals(node.values)
    return None


def _all_literals(nodes: Iterable[ast.expr]) -> list[str] | None:
    found: list[str] = []
    for node in nodes:
        literals = literals_in(node)
        if literals is None:
            return None
        found += literals
    return found


class Reader(ast.NodeVisitor):
    """Walks one file."""

    def __init__(self, module: Module, classes: Classes, constants: Constants) -> None:
        self.texts: list[Text] = []
        self.faults: list[tuple[int, str]] = []
        self._module = module
        self._classes = classes
        self._constants = constants
        self._class = ""
        self._parameters: set[str] = set()
        self._loops: dict[str, ast.expr] = {}
        self._seen: set[int] = set()
        self.visit(module.tree)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self._class = self._class, node.name
        self.generic_visit(node)
        self._class = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = self._parameters
        self._parameters = {argument.arg for argument in node.args.args} if node.name in WRAPPERS else set()
        self.generic_visit(node)
        self._parameters = outer

    def visit_Lambda(self, node: ast.Lambda) -> None:
        # `lambda text: translate(CONTEXT, text)` passes on what was given to tr elsewhere.
        outer = self._parameters
        self._parameters = outer | {argument.arg for argument in node.args.args}
        self.generic_visit(node)
        self._parameters = outer

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._visit_loop(node, node.generators)

    visit_SetComp = visit_GeneratorExp = visit_ListComp  # type: ignore[assignment]  # noqa: N815

    def _visit_loop(self, node: ast.AST, generators: list[ast.comprehension]) -> None:
        outer = dict(self._loops)
        for generator in generators:
            if isinstance(generator.target, ast.Name):
                self._loops[generator.target.id] = generator.iter
        self.generic_visit(node)
        self._loops = outer

    def visit_Call(self, node: ast.Call) -> None:
        asked = self._asked(node)
        if asked is not None:
            argument, contexts = asked
            self._take(argument, contexts)
            if len(node.args) > 2 or (len(node.args) == 2 and _called(node) in WRAPPERS):
                self._fault(node, "plural forms and disambiguations are not translated; write 'Shapes: {count}'")
            self._see(node)
        elif _called(node) == "split" or _called_on(node) == "re" or _called(node) in ("Thread", "compile"):
            self._see(node)
        elif _called(node) in SHOWING:
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                self._look_for_words(argument, WORD)
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        # An exception of Python's own is for programmers.
        if isinstance(node.exc, ast.Call) and hasattr(builtins, _called(node.exc)):
            self._see(node.exc)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring is one
            self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        self._see(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key in node.keys:
            if key is not None:
                self._see(key)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._visit_assigned(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit_assigned(node)

    def _visit_assigned(self, node: ast.stmt) -> None:
        for name, value in assigned(node):
            if name in self._constants.given:
                self._see(value)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        self._look_for_words(node, PHRASE)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._look_for_words(node, PHRASE)
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)

    def _see(self, node: ast.AST) -> None:
        """The literals in here are no fault."""
        self._seen.update(id(part) for part in ast.walk(node))

    def _asked(self, node: ast.Call) -> tuple[ast.expr, list[str]] | None:
        """What a call gives to be translated, and in which contexts."""
        function = node.func
        if isinstance(function, ast.Name) and function.id in WRAPPERS and node.args:
            return node.args[0], [CONTEXT]
        if not isinstance(function, ast.Attribute):
            return None
        if function.attr == "translate" and len(node.args) >= 2 and _name(function.value) == "QCoreApplication":
            given = node.args[0]
            if not (isinstance(given, ast.Name) or (isinstance(given, ast.Constant) and given.value == CONTEXT)):
                self._fault(node, f"the context must be {CONTEXT!r}")
            return node.args[1], [CONTEXT]
        if function.attr in WRAPPERS and node.args:
            if _name(function.value) == "self" and function.attr == "tr":
                return node.args[0], self._classes.contexts(self._class)
            if _name(function.value) in ("language", "translator"):
                return node.args[0], [CONTEXT]
            self._fault(node, "call self.tr, so that the context is known")
        return None

    def _take(self, node: ast.expr, contexts: list[str]) -> None:
        if isinstance(node, ast.Name) and node.id in self._parameters:
            return
        literals = self._literals(node)
        if literals is None:
            self._fault(node, f"no literal is given to tr: {ast.unparse(node)[:60]}")
            return
        for literal in literals:
            if "%n" in literal:
                self._fault(node, "plural forms are not translated; write 'Shapes: {count}'")
            place = f"{self._module.name}:{node.lineno}"
            self.texts += [Text(literal, context, place) for context in contexts]

    def _literals(self, node: ast.expr) -> list[str] | None:
        if isinstance(node, ast.Name) and node.id in self._loops:
            return self._literals(self._loops[node.id])
        if isinstance(node, ast.Subscript):
            return self._literals(node.value)
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = node.id if isinstance(node, ast.Name) else node.attr
            found = self._constants.literals(name, self._module.name if isinstance(node, ast.Name) else "")
            # A base class's placeholder has no text.
            return None if found is None else [literal for literal in found if literal]
        return literals_in(node)

    def _look_for_words(self, node: ast.expr, words: re.Pattern[str]) -> None:
        """Complains of a literal that people would see in English for ever."""
        if id(node) in self._seen:
            return
        if isinstance(node, (ast.Tuple, ast.List)):
            for element in node.elts:
                self._look_for_words(element, words)
            return
        if isinstance(node, ast.IfExp):
            self._look_for_words(node.body, words)
            self._look_for_words(node.orelse, words)
            return
        if isinstance(node, ast.BinOp):
            self._look_for_words(node.left, words)
            self._look_for_words(node.right, words)
            return
        pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
        literals = [piece.value for piece in pieces if isinstance(piece, ast.Constant) and isinstance(piece.value, str)]
        self._seen.update(id(piece) for piece in [node, *pieces])
        text = "{}".join(literals)
        if text in PROPER or not words.search(text) or CODE.match(text) or self._is_marked(node):
            return
        self._fault(node, f"not given to tr: {text[:70]!r}")

    def _is_marked(self, node: ast.expr) -> bool:
        last = getattr(node, "end_lineno", None) or node.lineno
        return any(NOT_SHOWN in line for line in self._module.lines[node.lineno - 1 : last])

    def _fault(self, node: ast.expr, sentence: str) -> None:
        self.faults.append((node.lineno, f"{self._module.name}:{node.lineno}: {sentence}"))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else _name(node.func)


def _called_on(node: ast.Call) -> str:
    return _name(node.func.value) if isinstance(node.func, ast.Attribute) else ""


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""
