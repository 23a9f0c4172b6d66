"""What a bare GPU machine is sent (``--bundle FOLDER`` of gpu_check.py), unpacked for use.

    libvqp_cuda.so.xz                       the library, built elsewhere for this GPU: nothing is compiled here
    _C_stable_libtorch.abi3.so.xz           vLLM's extension library alone: its kernels are peers, as torch.ops._C
    humming_kernels-*.whl                   a peer
    vllm.tar.xz, whl/*.whl                  a whole vLLM and the wheels that the machine lacks, for the engine benchmark
    prepared/                               what `benchmarks/gpu_engine.py --prepare` made

Every part is optional.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"vllm_quant_plugin": "vllm_quant_plugin", "vllm_quant_kernels": "kernels/vllm_quant_kernels",
            "vllm_quant_serve": "serve/vllm_quant_serve"}  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """The unpacked parts; None for what was not sent.

    Attributes:
        library: ``libvqp_cuda.so``.
        peers: vLLM's extension library.
        site: a folder for sys.path with the peers' packages, vLLM and this plugin as if installed.
        prepared: checkpoints for the engine benchmark.
    """

    library: Path | None = None
    peers: Path | None = None
    site: Path | None = None
    prepared: Path | None = None

    @property
    def has_vllm(self) -> bool:
        """Whether engines can be started from ``site``."""
        return self.site is not None and (self.site / "vllm" / "__init__.py").is_file()


def unpack(source: Path, target: Path) -> Bundle:
    """Unpack ``source`` under ``target``.

    Raises:
        OSError: a part is damaged or there is no room.
        subprocess.SubprocessError: pip refuses a wheel.
    """
    target.mkdir(parents=True, exist_ok=True)
    site = target / "site"
    site.mkdir(exist_ok=True)
    if (archive := source / "vllm.tar.xz").is_file():
        with tarfile.open(archive, "r:xz") as tar:
            tar.extractall(site, filter="data")
    wheels = [*sorted(source.glob("humming*.whl")), *sorted((source / "whl").glob("*.whl"))]
    if wheels:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target"]
        subprocess.run([*command, str(site), *map(str, wheels)], check=True)
    install_plugin(site)
    prepared = source / "prepared"
    return Bundle(
        _decompressed(source / "libvqp_cuda.so.xz", target),
        _decompressed(source / "_C_stable_libtorch.abi3.so.xz", target),
        site,
        prepared if prepared.is_dir() else None,
    )


def _decompressed(source: Path, target: Path) -> Path | None:
    if not source.is_file():
        return None
    path = target / source.stem
    with lzma.open(source) as packed, path.open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    return path


def install_plugin(site: Path) -> None:
    """This checkout in ``site`` as a distribution with its entry points, so that vLLM finds the plugin."""
    for name, folder in PACKAGES.items():
        if not (site / name).exists():
            (site / name).symlink_to(ROOT / folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n")
    groups = project["entry-points"]
    text = "\n".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
        for group, points in groups.items()
    )
    (info / "entry_points.txt").write_text(text)
