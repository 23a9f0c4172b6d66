"""What a bare GPU machine is sent is unpacked for use; every part is optional."""

from __future__ import annotations

import importlib.metadata
import lzma
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_bundle

    return gpu_bundle


def test_an_empty_folder_has_the_plugin_alone(bundle: ModuleType, tmp_path: Path) -> None:
    found = bundle.unpack(tmp_path / "nothing", tmp_path / "out")
    assert (found.library, found.peers, found.prepared, found.has_vllm) == (None, None, None, False)
    points = importlib.metadata.Distribution.at(next(found.site.glob("*.dist-info"))).entry_points
    assert {point.group for point in points} == {
        "vllm.general_plugins", "vllm.platform_plugins", "vllm.stat_logger_plugins"
    }  # fmt: skip
    code = "import vllm_quant_plugin, vllm_quant_kernels, vllm_quant_serve; print(vllm_quant_plugin.__file__)"
    command, environment = [sys.executable, "-S", "-c", code], {"PYTHONPATH": str(found.site)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip().startswith(str(found.site))


def test_every_part(bundle: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "bundle"
    (source / "prepared").mkdir(parents=True)
    for name in ("libvqp_cuda.so", "_C_stable_libtorch.abi3.so"):
        (source / f"{name}.xz").write_bytes(lzma.compress(name.encode()))
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("")
    with tarfile.open(source / "vllm.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "vllm", "vllm")
    for _ in range(2):  # the second call finds what the first has made
        found = bundle.unpack(source, tmp_path / "out")
    assert found.library.read_bytes() == b"libvqp_cuda.so"
    assert found.peers.name == "_C_stable_libtorch.abi3.so"
    assert found.has_vllm
    assert found.prepared == source / "prepared"


def test_an_archive_that_leaves_its_folder_is_refused(bundle: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "bundle"
    source.mkdir()
    (tmp_path / "file").write_text("")
    with tarfile.open(source / "vllm.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "file", "../../evil")
    with pytest.raises(tarfile.FilterError):
        bundle.unpack(source, tmp_path / "out")
    assert not (tmp_path / "evil").exists()
