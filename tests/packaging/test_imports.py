"""The top-level folder ``kernels/`` never stands in for the PyPI package ``kernels``.

transformers asks for that package (``is_kernels_available``). A folder without ``__init__.py``
is importable as a namespace package when its parent is on ``sys.path``, which for ``python -c``
and ``python -m`` is the current directory. Three things keep it harmless, each tested here:
the editable installation puts no folder on ``sys.path``; a regular package anywhere on
``sys.path`` wins over a namespace folder; and transformers takes a module without version
and file for absent.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

AVAILABLE = "import transformers.utils; print(transformers.utils.is_kernels_available())"
# Configurations reach the module of transformers that imports from ``kernels`` where it believes in it.
USE = "from transformers import LlamaConfig; print(LlamaConfig().model_type)"


def python(code: str, cwd: Path, path: Path | None = None) -> str:
    """Run ``code`` with the current directory first on ``sys.path``; returns what it prints."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if path:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def install_fake_kernels(folder: Path) -> None:
    """A regular package ``kernels`` with a version inside the range that transformers asks for."""
    from transformers.utils import import_utils

    version = import_utils.KERNELS_MIN_VERSION
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels/__init__.py").write_text(f"__version__ = {version!r}\n")
    metadata = folder / f"kernels-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n")
    (metadata / "top_level.txt").write_text("kernels\n")
    (metadata / "RECORD").write_text("kernels/__init__.py,,\n")


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_transformers_imports_and_is_not_fooled(where: str, tmp_path: Path) -> None:
    cwd = ROOT if where == "root" else tmp_path
    ask = "import importlib.metadata as m; print(any(d.name == 'kernels' for d in m.distributions()))"
    installed = python(ask, cwd)
    assert python(AVAILABLE, cwd) == installed
    assert python(USE, cwd) == "llama"


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_the_real_package_wins_over_the_folder(where: str, tmp_path: Path) -> None:
    install_fake_kernels(tmp_path / "site")
    cwd = ROOT if where == "root" else tmp_path
    show_file = "import kernels; print(kernels.__file__)"
    assert python(show_file, cwd, tmp_path / "site") == str(tmp_path / "site/kernels/__init__.py")
    assert python(AVAILABLE, cwd, tmp_path / "site") == "True"


def test_the_installation_puts_nothing_of_the_repository_on_the_path(tmp_path: Path) -> None:
    on_path = python("import sys; print('\\n'.join(sys.path))", tmp_path).splitlines()
    inside = [Path(entry) for entry in on_path if entry and Path(entry).resolve().is_relative_to(ROOT)]
    assert not [entry for entry in inside if (entry / "kernels").is_dir() or (entry / "vllm_quant_kernels").is_dir()]
    packages = "import vllm_quant_kernels, vllm_quant_plugin, vllm_quant_serve"
    python(packages, tmp_path)


def test_the_folder_is_no_regular_package() -> None:
    assert not (ROOT / "kernels/__init__.py").exists()
