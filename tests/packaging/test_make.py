"""make redoes what depends on a change and nothing else; the set-up scripts work without uv, pip or a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"environment": "scripts/setup.sh cpu", "install": "scripts/install.sh", "build": "cmake --build"}


def write_program(file: Path, body: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(0o755)


def make(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", "-C", str(tree), "FLAVOUR=cpu", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the files that make depends on, with every step recorded as done."""
    for name in ("Makefile", "pyproject.toml", "requirements", "scripts", "kernels/CMakeLists.txt", "kernels/cpu"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    (tmp_path / "vllm_quant_plugin").mkdir()
    shutil.copy(ROOT / "vllm_quant_plugin/__init__.py", tmp_path / "vllm_quant_plugin")
    past = 1_000_000_000
    for file in [tmp_path, *tmp_path.rglob("*")]:
        os.utime(file, (past, past))
    for seconds, stamp in enumerate(
        [".venv/.stamp-cpu", "build/editable/.stamp-installed", "build/editable/.stamp-native"]
    ):
        (tmp_path / stamp).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stamp).touch()
        os.utime(tmp_path / stamp, (past + 1 + seconds, past + 1 + seconds))
    return tmp_path


def steps(tree: Path) -> set[str]:
    """The set-up steps that make would run now."""
    planned = make(tree, "--dry-run", "setup")
    assert planned.returncode == 0, planned.stderr
    return {step for step, command in STEPS.items() if command in planned.stdout}


def test_a_second_make_does_nothing(tree: Path) -> None:
    assert make(tree, "--question", "setup").returncode == 0
    assert steps(tree) == set()


@pytest.mark.parametrize(
    ("changed", "redone"),
    [
        ("requirements/cpu.txt", {"environment", "install", "build"}),
        ("scripts/setup.sh", {"environment", "install", "build"}),
        ("pyproject.toml", {"install", "build"}),
        ("kernels/CMakeLists.txt", {"install", "build"}),
        ("vllm_quant_plugin/__init__.py", {"install", "build"}),  # it holds the version
        ("kernels/cpu/new.cpp", {"build"}),
        ("vllm_quant_plugin/new.py", set()),
        ("requirements/cuda.txt", set()),
    ],
)
def test_a_change_redoes_what_depends_on_it(tree: Path, changed: str, redone: set[str]) -> None:
    (tree / changed).touch()
    assert steps(tree) == redone


def test_a_changed_or_removed_native_source_is_built_again(tree: Path) -> None:
    source = next((tree / "kernels/cpu").glob("*.cpp"))
    source.touch()
    assert steps(tree) == {"build"}
    source.unlink()
    assert steps(tree) == {"build"}


def test_another_flavour_is_another_set_up(tree: Path) -> None:
    planned = make(tree, "--dry-run", "setup", "FLAVOUR=cuda")
    assert "scripts/setup.sh cuda" in planned.stdout


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench"])
def test_every_target_works_on_a_fresh_clone(tree: Path, target: str) -> None:
    shutil.rmtree(tree / ".venv")
    shutil.rmtree(tree / "build")
    planned = make(tree, "--dry-run", target)
    assert [command for command in STEPS.values() if command not in planned.stdout] == []


def test_the_wheel_needs_the_environment_only_and_can_leave_cuda_out(tree: Path) -> None:
    shutil.rmtree(tree / ".venv")
    planned = make(tree, "--dry-run", "wheel", "CUDA=OFF").stdout
    assert [step for step, command in STEPS.items() if command in planned] == ["environment"]
    assert "scripts/build_wheel.sh OFF" in planned
    assert "scripts/build_wheel.sh AUTO" in make(tree, "--dry-run", "wheel").stdout


def test_an_unknown_choice_of_cuda_is_refused() -> None:
    command = ["bash", str(ROOT / "scripts/build_wheel.sh"), "maybe"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "CUDA=maybe: use AUTO, ON or OFF" in result.stderr


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A PATH of its own with the few tools the scripts call."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "cat", "dirname", "grep", "make", "touch", "rm", "find"):
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    return folder


def shell(code: str, path: Path, root: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` after sourcing scripts/uv.sh, with ``path`` as PATH."""
    script = f"set -euo pipefail; root={root}; source {ROOT}/scripts/uv.sh; {code}"
    environment = {"PATH": str(path), "HOME": str(root), **variables}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)


def test_uv_is_installed_by_pip_where_it_is_missing(tmp_path: Path, bin_folder: Path) -> None:
    write_program(bin_folder / "uv", "exit 127")  # a shim with no uv behind it
    install = f'echo "$@" >> {tmp_path}/pip-arguments; /bin/mkdir -p {tmp_path}/.uv-bootstrap/bin'
    write_program(bin_folder / "python3", f'[[ "$*" == "-m pip --version" ]] || {{ {install}; }}')
    result = shell('find_uv; echo "uv=$uv"', bin_folder, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "installing it with pip" in result.stdout
    assert f"uv={tmp_path}/.uv-bootstrap/bin/uv" in result.stdout
    arguments = (tmp_path / "pip-arguments").read_text().split()
    assert arguments[arguments.index("--target") + 1] == f"{tmp_path}/.uv-bootstrap"


def test_without_uv_and_pip_one_line_says_so(tmp_path: Path, bin_folder: Path) -> None:
    result = shell("find_uv", bin_folder, tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "neither uv nor a Python with pip" in result.stderr


def test_settings_of_pip_reach_uv(tmp_path: Path, bin_folder: Path) -> None:
    code = 'use_pip_settings; echo "${UV_FIND_LINKS:-} ${UV_DEFAULT_INDEX:-} ${UV_INDEX:-}"'
    pip = {"PIP_FIND_LINKS": "/a /b", "PIP_INDEX_URL": "file:///i", "PIP_EXTRA_INDEX_URL": "file:///e"}
    assert shell(code, bin_folder, tmp_path, **pip).stdout.splitlines()[-1] == "/a,/b file:///i file:///e"
    own = {"UV_FIND_LINKS": "/own", "UV_DEFAULT_INDEX": "file:///own", "UV_INDEX": "file:///more"}
    assert shell(code, bin_folder, tmp_path, **pip, **own).stdout.splitlines()[-1] == "/own file:///own file:///more"
    assert shell(code, bin_folder, tmp_path).stdout.split() == []


@pytest.mark.parametrize(
    ("links", "expected"),
    [("/with-torch", "/with-torch"), ("/other", "/other,file:///page/"), ("", "file:///page/")],
)
def test_torch_comes_from_its_own_page_only_where_it_is_nowhere_else(
    tmp_path: Path, bin_folder: Path, links: str, expected: str
) -> None:
    has_torch = '[[ ",$UV_FIND_LINKS," == *,/with-torch,* || ",$UV_FIND_LINKS," == *,file:///page/,* ]]'
    write_program(bin_folder / "uv", f'[[ "$*" == *" torch=="*+cpu ]] && {has_torch}')
    code = 'uv=uv; ensure_torch_cpu 3.11; echo "links=$UV_FIND_LINKS"'
    variables = {"UV_FIND_LINKS": links, "VQP_TORCH_CPU_LINKS": "file:///page/"}
    result = shell(code, bin_folder, ROOT, **variables)
    assert result.returncode == 0, result.stderr
    assert f"links={expected}" in result.stdout
    assert ("using PyTorch's own CPU wheel index" in result.stdout) == (links != expected)


def test_torch_to_be_had_nowhere_is_one_line(bin_folder: Path) -> None:
    write_program(bin_folder / "uv", "exit 1")
    result = shell("uv=uv; ensure_torch_cpu 3.11", bin_folder, ROOT)
    assert result.returncode == 1
    assert "PIP_FIND_LINKS" in result.stderr


def test_gpu_check_without_a_gpu_says_so_and_fails(bin_folder: Path) -> None:
    write_program(bin_folder / "nvidia-smi", "exit 9")  # installed, but no driver answers
    environment = {"PATH": str(bin_folder)}
    command = ["bash", str(ROOT / "scripts/gpu_check.sh")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 69
    assert result.stderr.count("\n") == 1
    assert "no NVIDIA GPU here" in result.stderr
    through_make = subprocess.run(
        ["make", "-C", str(ROOT), "gpu-check"], env=environment, capture_output=True, text=True, check=False
    )
    assert through_make.returncode == 2
    assert "no NVIDIA GPU here" in through_make.stderr
