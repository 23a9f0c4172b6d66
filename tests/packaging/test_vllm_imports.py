"""vLLM is imported by name in the compat modules only, so that a release that moves a name is followed in one place."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vllm_quant_plugin", "kernels/vllm_quant_kernels", "serve/vllm_quant_serve")

# Modules whose imports still have to move. Remove an entry with its last import; never add one.
KNOWN = {
    "serve/vllm_quant_serve/plan/exact/worker.py",
    "vllm_quant_plugin/bench/command.py",
    "vllm_quant_plugin/bench/contenders.py",
    "vllm_quant_plugin/evaluate/engine.py",
}


def imports_vllm(source: str) -> bool:
    """Whether a module imports vLLM at any depth; ``vllm_quant_*`` is another package."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if any(name.split(".")[0] == "vllm" for name in names):
            return True
    return False


def is_compat(path: Path) -> bool:
    return any(part.startswith("compat") for part in (path.stem, path.parent.name))


def test_only_compat_modules_import_vllm() -> None:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if not is_compat(file)]
    assert len(files) > 100
    found = {str(file.relative_to(ROOT)) for file in files if imports_vllm(file.read_text("utf-8"))}
    assert found - KNOWN == set(), "import these names in a compat module"
    assert KNOWN - found == set(), "clean now: remove it from KNOWN"


def test_imports_are_seen_at_any_depth() -> None:
    assert imports_vllm("def f():\n    from vllm.config import VllmConfig\n")
    assert imports_vllm("import os, vllm.platforms")
    assert not imports_vllm("import vllm_quant_plugin\nfrom vllm_quant_serve.plan import api\nfrom . import vllm\n")
