"""The sdist holds the native sources; the C library is optional. For the wheel see test_wheel.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CMAKE = shutil.which("cmake", path=sysconfig.get_path("scripts"))
DATA = "vllm_quant_plugin/data/stdlib-llama"

BUILD = "import sys; from scikit_build_core import build; print(build.build_sdist(sys.argv[1]))"


def build_sdist(out: Path) -> Path:
    """Build the sdist of this tree into ``out``."""
    command = [sys.executable, "-c", BUILD, str(out)]
    environment = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return out / result.stdout.splitlines()[-1]


def test_the_sdist_can_build_the_libraries(tmp_path: Path) -> None:
    with tarfile.open(build_sdist(tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {".cpp", ".h", ".cu", ".cuh"}
    sources = {str(file.relative_to(ROOT)) for file in (ROOT / "kernels").rglob("*") if file.suffix in native}
    assert {"pyproject.toml", "LICENSE", "kernels/CMakeLists.txt", f"{DATA}/model.safetensors"} <= names
    assert sources
    assert sources <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def configure(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Configure the kernels on a machine without a compiler: nothing but Ninja is on PATH."""
    ninja = shutil.which("ninja", path=sysconfig.get_path("scripts"))
    assert CMAKE
    assert ninja
    tools = folder / "bin"
    tools.mkdir()
    (tools / "ninja").symlink_to(ninja)
    command = [CMAKE, "-S", str(ROOT / "kernels"), "-B", str(folder / "build"), "-G", "Ninja", *flags]
    environment = {"PATH": str(tools), "HOME": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_a_compiler_the_package_is_built_without_the_library(tmp_path: Path) -> None:
    result = configure(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "no C++ compiler found" in result.stderr
    assert CMAKE
    subprocess.run([CMAKE, "--build", str(tmp_path / "build")], check=True, capture_output=True)
    assert not list((tmp_path / "build").rglob("*.so"))


def test_a_build_that_requires_the_library_fails_without_a_compiler(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DVQP_REQUIRE_NATIVE=ON")
    assert result.returncode != 0
    assert "no C++ compiler found" in result.stderr
