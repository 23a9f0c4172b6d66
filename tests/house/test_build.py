"""The wheel holds what it must and works where it is installed; the C library is optional."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CMAKE = shutil.which("cmake", path=sysconfig.get_path("scripts"))
DATA = "vllm_quant_plugin/data/stdlib-llama"

# Unoptimised: what is tested is where things land, not how fast they are.
BUILD = """
import sys
from scikit_build_core import build
kind, out, scratch = sys.argv[1:]
settings = {"build-dir": scratch, "cmake.build-type": "None", "cmake.define.VQP_CUDA": "OFF"}
print(getattr(build, f"build_{kind}")(out, settings))
"""


def build(kind: str, out: Path) -> Path:
    """Build the wheel or the sdist of this tree into ``out``."""
    command = [sys.executable, "-c", BUILD, kind, str(out), str(out / "scratch")]
    environment = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return out / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder into which the wheel was installed, away from the editable installation."""
    uv = shutil.which("uv", path=f"{ROOT}/.uv-bootstrap/bin{os.pathsep}{os.environ['PATH']}")
    assert uv, "make puts uv into .uv-bootstrap where it is missing"
    target = wheel.parent / "target"
    command = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", sys.executable]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True)
    return target


def run_installed(target: Path, *arguments: str) -> str:
    """Run Python with ``target`` first; -S, because the editable installation's finder comes in through site."""
    path = os.pathsep.join([str(target), sysconfig.get_path("purelib")])
    command = [sys.executable, "-S", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, cwd=target.parent, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_wheel_has_the_libraries_and_the_model(wheel: Path) -> None:
    assert wheel.name.split("-", 2)[2].startswith("py3-none-"), "one wheel serves every Python"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    model = {path.name for path in (ROOT / DATA).iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "heldout-prose.txt", "heldout-code.txt"} <= model
    assert {f"{DATA}/{name}" for name in model} <= names
    assert "vllm_quant_kernels/libvqp_cpu.so" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "vllm_quant_kernels",
        "vllm_quant_plugin",
        "vllm_quant_serve",
    }
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".cpp", ".cu", ".o"))]


def test_every_tracked_package_file_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folders = {"vllm_quant_plugin": "", "kernels/vllm_quant_kernels": "kernels/", "serve/vllm_quant_serve": "serve/"}
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=False)
    # An unpacked sdist is no repository: there the folders themselves are the list.
    files = listed.stdout.split() or [str(p.relative_to(ROOT)) for f in folders for p in (ROOT / f).rglob("*.py")]
    prefixes = tuple(prefix for prefix in folders.values() if prefix)
    targets = {next((file.removeprefix(p) for p in prefixes if file.startswith(p)), file) for file in files}
    assert {file for file in targets - names if not file.endswith(".so")} == set()


def test_an_installed_wheel_runs(installed: Path) -> None:
    import vllm_quant_plugin

    assert run_installed(installed, "-m", "vllm_quant_plugin", "--version") == vllm_quant_plugin.__version__
    where = "import {0}; print({0}.__file__)"
    for package in ("vllm_quant_plugin", "vllm_quant_kernels", "vllm_quant_serve"):
        assert run_installed(installed, "-c", where.format(package)).startswith(str(installed))
    loads = "from vllm_quant_kernels import library; print(library.library_path()); library.load()"
    assert run_installed(installed, "-c", loads) == str(installed / "vllm_quant_kernels/libvqp_cpu.so")
    points = (
        "import importlib.metadata as m; print(sorted(p.name for p in m.entry_points(group='vllm.general_plugins')))"
    )
    assert "vqp" in run_installed(installed, "-c", points)


def test_the_sdist_can_build_the_libraries(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
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
