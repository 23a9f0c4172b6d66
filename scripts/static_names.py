"""Resolves Python names in source trees without importing anything.

``Sources`` reads modules from a wheel or a folder; ``resolve`` follows a name through
re-exports, star imports and lazy module ``__getattr__`` to where it is defined; ``parameters``
gives those of a function, method or constructor, looked up through base classes.
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Missing(Exception):
    """A module, name or attribute that the sources do not have; the text says which."""


@dataclass(frozen=True)
class Definition:
    """Where a name is defined: ``node`` is its class or function, None for any other value."""

    module: str
    name: str
    node: ast.ClassDef | FunctionNode | None


class Sources:
    """The Python modules of one package, in a wheel or in the folder that contains the package."""

    def __init__(self, path: Path, package: str) -> None:
        self.path = path
        self.package = package
        self._archive = zipfile.ZipFile(path) if path.is_file() else None
        self._members = frozenset(self._archive.namelist()) if self._archive else frozenset()
        self._trees: dict[str, ast.Module | None] = {}

    def _text(self, name: str) -> str | None:
        if self._archive:
            return self._archive.read(name).decode() if name in self._members else None
        file = self.path / name
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def owns(self, module: str) -> bool:
        """Whether ``module`` belongs to the package (others are assumed to exist)."""
        return module == self.package or module.startswith(self.package + ".")

    def is_package(self, module: str) -> bool:
        """Whether ``module`` is a folder with an ``__init__``."""
        return self._text(f"{module.replace('.', '/')}/__init__.py") is not None

    def tree(self, module: str) -> ast.Module | None:
        """The syntax tree of ``module``; None where there is no such Python module."""
        if module not in self._trees:
            base = module.replace(".", "/")
            text = self._text(f"{base}/__init__.py")
            text = self._text(f"{base}.py") if text is None else text
            self._trees[module] = None if text is None else ast.parse(text)
        return self._trees[module]

    def absolute(self, module: str, node: ast.ImportFrom) -> str:
        """The absolute name of the module that ``node``, written in ``module``, imports from."""
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + self.is_package(module)]
        return ".".join([*parts, *(node.module or "").split(".")]).rstrip(".")


def run_time(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module or class that can run at import, those of branches included.

    Statements for the type checker (``if TYPE_CHECKING:``) are skipped.
    """
    for node in body:
        yield node
        if isinstance(node, ast.If):
            typing_only = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
            yield from run_time(node.orelse if typing_only else [*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            handlers = [child for handler in node.handlers for child in handler.body]
            yield from run_time([*node.body, *handlers, *node.orelse, *node.finalbody])
        elif isinstance(node, ast.With):
            yield from run_time(node.body)


def _assigned(node: ast.stmt) -> set[str]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = list(node.targets)
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def _lazy(tree: ast.Module, name: str) -> bool:
    """Whether a module-level ``__getattr__`` offers ``name``: named in it, or a key of a table in the module."""
    getter = next((n for n in run_time(tree.body) if isinstance(n, ast.FunctionDef) and n.name == "__getattr__"), None)
    if getter is None:
        return False
    tables = [key for table in ast.walk(tree) if isinstance(table, ast.Dict) for key in table.keys]
    return any(isinstance(n, ast.Constant) and n.value == name for n in [*ast.walk(getter), *tables])


def resolve(sources: Sources, module: str, name: str, _seen: frozenset[tuple[str, str]] = frozenset()) -> Definition:
    """Follow ``name`` of ``module`` to its definition. Raises ``Missing``.

    Names that lead out of the package (such as a re-export of torch) count as found.
    """
    if not sources.owns(module) or (module, name) in _seen:
        return Definition(module, name, None)
    tree = sources.tree(module)
    if tree is None:
        raise Missing(f"there is no module {module}")
    seen = _seen | {(module, name)}
    found: Definition | None = None
    for node in run_time(tree.body):
        if isinstance(node, ast.ClassDef | FunctionNode) and node.name == name:
            found = Definition(module, name, node)
        elif name in _assigned(node):
            found = Definition(module, name, None)
        elif isinstance(node, ast.Import):
            if any(alias.asname == name or alias.name.split(".")[0] == name for alias in node.names):
                found = Definition(module, name, None)
        elif isinstance(node, ast.ImportFrom):
            origin = sources.absolute(module, node)
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    found = resolve(sources, origin, alias.name, seen)
                elif alias.name == "*" and found is None:
                    try:
                        found = resolve(sources, origin, name, seen)
                    except Missing:
                        continue
    if found is None and (sources.tree(f"{module}.{name}") is not None or _lazy(tree, name)):
        found = Definition(module, name, None)
    if found is None:
        raise Missing(f"{module} has no {name}")
    return found


def member(sources: Sources, owner: Definition, name: str) -> Definition:
    """The method or attribute ``name`` of a class, its bases included. Raises ``Missing``."""
    if not isinstance(owner.node, ast.ClassDef):
        raise Missing(f"{owner.module}:{owner.name} is not a class")
    found: Definition | None = None
    for node in run_time(owner.node.body):
        if isinstance(node, ast.ClassDef | FunctionNode) and node.name == name:
            found = Definition(owner.module, f"{owner.name}.{name}", node)
        elif name in _assigned(node):
            found = Definition(owner.module, f"{owner.name}.{name}", None)
    if found:
        return found
    for base in owner.node.bases:
        # Generic[T] and the like are written as subscripts of the class that counts.
        expression = base.value if isinstance(base, ast.Subscript) else base
        try:
            parent = resolve(sources, owner.module, ast.unparse(expression).split(".")[0])
            return member(sources, parent, name)
        except Missing:
            continue
    raise Missing(f"{owner.module}:{owner.name} has no {name}")


@dataclass(frozen=True)
class Parameters:
    """The parameter names of a function or constructor, and those of them that have no default."""

    names: tuple[str, ...]
    required: tuple[str, ...]


def parameters(sources: Sources, definition: Definition) -> Parameters:
    """Parameters of a function or, for a class, of its constructor. Raises ``Missing``.

    A class without ``__init__`` takes its annotated fields, as dataclasses and pydantic models do.
    """
    node = definition.node
    if isinstance(node, ast.ClassDef):
        try:
            return parameters(sources, member(sources, definition, "__init__"))
        except Missing:
            fields = [n for n in run_time(node.body) if isinstance(n, ast.AnnAssign)]
            names = tuple(ast.unparse(field.target) for field in fields)
            return Parameters(names, tuple(ast.unparse(field.target) for field in fields if field.value is None))
    if node is None:
        raise Missing(f"{definition.module}:{definition.name} is not a function")
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [*[None] * (len(positional) - len(node.args.defaults)), *node.args.defaults, *node.args.kw_defaults]
    pairs = list(zip([*positional, *node.args.kwonlyargs], defaults, strict=True))
    given = [(argument.arg, default) for argument, default in pairs if argument.arg not in ("self", "cls")]
    return Parameters(tuple(name for name, _ in given), tuple(name for name, default in given if default is None))
