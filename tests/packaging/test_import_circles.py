"""No module of the three packages imports itself through others, not even inside a function or for a type checker.

An import inside a function hides a circle from Python, not from a reader: the modules can still only be understood
together.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "vllm_quant_kernels": ROOT / "kernels/vllm_quant_kernels",
    "vllm_quant_plugin": ROOT / "vllm_quant_plugin",
    "vllm_quant_serve": ROOT / "serve/vllm_quant_serve",
}


def module_files(packages: dict[str, Path]) -> dict[str, Path]:
    """The file of every module, by its dotted name; a package by its own name."""
    found = {}
    for package, folder in packages.items():
        for file in folder.rglob("*.py"):
            parts = (package, *file.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(source: str, module: str, is_package: bool, modules: Iterable[str]) -> set[str]:
    """The modules among ``modules`` that a source imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                names.add(inner if inner in modules else base)
    return names & set(modules) - {module}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that each lead back to themselves (strongly connected components, Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            group = set(stack[at:])
            del stack[at:]
            if len(group) > 1:
                found.append(group)

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return found


def project_circles() -> list[set[str]]:
    files = module_files(PACKAGES)
    graph = {
        module: imports(file.read_text(), module, file.name == "__init__.py", files) for module, file in files.items()
    }
    return circles(graph)


def test_no_circles() -> None:
    found = project_circles()
    assert [sorted(group) for group in found] == []


def test_a_circle_is_seen_wherever_its_imports_are() -> None:
    modules = ["p", "p.a", "p.b", "p.c", "p.sub", "p.sub.d"]
    sources = {
        "p": "",
        "p.a": "def f():\n    from p import b\n",
        "p.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import c\n",
        "p.c": "import p.a\n",
        "p.sub": "from .d import x\n",
        "p.sub.d": "from ..c import y\n",
    }
    graph = {name: imports(text, name, name in ("p", "p.sub"), modules) for name, text in sources.items()}
    assert graph["p.sub"] == {"p.sub.d"}
    assert graph["p.sub.d"] == {"p.c"}
    assert circles(graph) == [{"p.a", "p.b", "p.c"}]
