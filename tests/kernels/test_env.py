"""The table of environment variables: complete, current on its page, and the only way to read one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_quant_kernels import env
from vllm_quant_kernels.env import BY_NAME, VARIABLES, SettingError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vllm_quant_plugin", "kernels/vllm_quant_kernels", "serve/vllm_quant_serve")
# Names that begin alike: options of CMake, and names of C that comments and docs mention.
CMAKE = {"VQP_CUDA", "VQP_REQUIRE_NATIVE", "VQP_CUDA_ARCHITECTURES", "VQP_CUDA_REPORT", "VQP_SANITIZE"}
C_NAMES = {"VQP_F32", "VQP_CUDA_F32", "VQP_ESYSTEM", "VQP_CUDA_EDEVICE"}


def test_every_name_in_the_sources_is_in_the_table() -> None:
    folders = (*PACKAGES, "scripts", "benchmarks", "docs", "deploy", "examples", "tests/gpu")
    patterns = ("*.py", "*.sh", "*.md", "*.yaml", "*.yml")
    files = [path for folder in folders for pattern in patterns for path in (ROOT / folder).rglob(pattern)]
    files += [ROOT / "Makefile", ROOT / "README.md"]
    unknown = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in re.findall(r"\bVQP_[A-Z0-9_]*[A-Z0-9]\b", path.read_text("utf-8", errors="ignore"))
        if name not in BY_NAME and name not in CMAKE | C_NAMES
    }
    assert unknown == set()
    native = [path for suffix in ("*.cpp", "*.cu", "*.h") for path in (ROOT / "kernels").rglob(suffix)]
    asked = {name for path in native for name in re.findall(r'getenv\("(VQP_\w+)"', path.read_text("utf-8"))}
    assert asked <= set(BY_NAME)


def environment_reads(source: str) -> set[str]:
    """VQP_ names that a module reads from os.environ or os.getenv, also by a constant of the module."""
    tree = ast.parse(source)
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in (
            "os.environ.get", "os.environ.pop", "os.getenv", "environ.get"
        ):  # fmt: skip
            key = node.args[0]
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and (
            ast.unparse(node.value) == "os.environ"
        ):  # fmt: skip
            key = node.slice
        else:
            continue
        name = key.value if isinstance(key, ast.Constant) else constants.get(ast.unparse(key))
        if isinstance(name, str) and name.startswith("VQP_"):
            found.add(name)
    return found


def test_only_the_table_reads_the_environment() -> None:
    files = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py") if path.name != "env.py"]
    reads = {str(path.relative_to(ROOT)): found for path in files if (found := environment_reads(path.read_text()))}
    reads.pop("vllm_quant_plugin/inspect.py", None)  # asks the registry when the formats do
    assert reads == {}


def test_reads_are_found() -> None:
    assert environment_reads('NAME = "VQP_A"\nimport os\nos.environ.get(NAME)\nos.environ["VQP_B"]\n') == {
        "VQP_A",
        "VQP_B",
    }
    assert environment_reads('import os\nos.environ["VQP_B"] = "1"\nos.environ.get("HOME")\n') == set()


def test_the_page_is_current() -> None:
    command = [sys.executable, str(ROOT / "scripts/environment_table.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_table_is_sound() -> None:
    assert len(BY_NAME) == len(VARIABLES)
    for variable in VARIABLES:
        assert variable.name.startswith("VQP_")
        assert bool(variable.values) != bool(variable.form), variable.name
        assert not variable.values or variable.default in ("", *variable.values), variable.name
        assert variable.about.endswith("."), variable.name


def test_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQP_CUDA_FP8", raising=False)
    assert env.choice("VQP_CUDA_FP8") == "w8a8"
    monkeypatch.setenv("VQP_CUDA_FP8", "w8a16")
    assert env.choice("VQP_CUDA_FP8") == "w8a16"
    monkeypatch.setenv("VQP_CUDA_FP8", "")
    assert env.choice("VQP_CUDA_FP8") == "w8a8"
    monkeypatch.setenv("VQP_CUDA_FP8", "both")
    with pytest.raises(SettingError, match="VQP_CUDA_FP8=both: must be w8a8 or w8a16"):
        env.choice("VQP_CUDA_FP8")
    monkeypatch.setenv("VQP_CUDA_PDL", "0")
    assert not env.switch("VQP_CUDA_PDL")
    monkeypatch.setenv("VQP_LEDGER", "/tmp/x")
    assert env.text("VQP_LEDGER") == env.pop("VQP_LEDGER") == "/tmp/x"
    assert env.text("VQP_LEDGER") is None
    with pytest.raises(KeyError):
        env.text("VQP_NOT_IN_THE_TABLE")
