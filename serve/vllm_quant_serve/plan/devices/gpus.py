"""The GPUs the planner knows by name, and how ``--gpu h100:4`` is read. No torch.

``memory`` is what CUDA hands out (``cudaMemGetInfo``, the total that vLLM multiplies by
``--gpu-memory-utilization``), not the data sheet's figure: an "80 GB" H100 has 79.1 GiB.
The values are the "total capacity" of PyTorch's out-of-memory messages and the totals of
PyTorch's device query in public issue threads of vLLM, SGLang and PyTorch; where several
were seen (driver, ECC) the smallest. Bandwidth and dense tensor-core rates (without
sparsity, FP16 with FP32 accumulation) are from the vendor's datasheet named in each
section; int8 is 0 where the chip has no fast integer path.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from vllm_quant_plugin.errors import UsageError

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: human-readable.
        memory: bytes that CUDA or HIP reports as the total.
        bandwidth: bytes per second of device memory.
        flops: dense operations per second by dtype: ``bf16`` (or fp16 before Ampere), ``fp8``, ``int8``.
        link: bytes per second and direction to the other GPUs of the same host.
        link_name: ``NVLink 4``, ``PCIe 4``, ...
        capability: CUDA compute capability, (0, 0) for others.
        per_host: GPUs that share ``link`` in a typical host.
    """

    name: str
    memory: int
    bandwidth: float
    flops: dict[str, float]
    link: float
    link_name: str
    capability: tuple[int, int]
    per_host: int = 8


def _gpu(
    name: str, gib: float, tb_s: float, rates: tuple[float, float, float], link: tuple[str, float],
    cap: tuple[int, int], per_host: int = 8,
) -> Gpu:  # fmt: skip
    """``rates`` in TFLOP/s for bf16, fp8, int8; ``link`` in GB/s per direction."""
    flops = {key: rate * 1e12 for key, rate in zip(("bf16", "fp8", "int8"), rates, strict=True) if rate}
    return Gpu(name, int(gib * GIB), tb_s * 1e12, flops, link[1] * 1e9, link[0], cap, per_host)


PCIE3 = ("PCIe 3 x16", 13.0)
PCIE4 = ("PCIe 4 x16", 26.0)
PCIE5 = ("PCIe 5 x16", 52.0)
NVLINK2 = ("NVLink 2", 150.0)
NVLINK3 = ("NVLink 3", 300.0)
NVLINK4 = ("NVLink 4", 450.0)
NVLINK5 = ("NVLink 5", 900.0)
BRIDGE = ("NVLink bridge (pairs)", 300.0)
XGMI = ("Infinity Fabric", 64.0)

GPUS: dict[str, Gpu] = {
    # Blackwell data centre: NVIDIA HGX B200/B300 and GB200 datasheets.
    "b300": _gpu("B300 SXM", 267.5, 8.0, (2250, 4500, 0), NVLINK5, (10, 3)),
    "gb200": _gpu("GB200", 184.0, 8.0, (2500, 5000, 5000), NVLINK5, (10, 0), 4),
    "b200": _gpu("B200 SXM", 178.35, 7.7, (2250, 4500, 4500), NVLINK5, (10, 0)),
    # Blackwell workstation and consumer: RTX Blackwell PRO and RTX 50 architecture papers.
    "rtx-pro-6000": _gpu("RTX PRO 6000 Blackwell", 94.9, 1.79, (504, 1008, 1008), PCIE5, (12, 0)),
    "rtx5090": _gpu("GeForce RTX 5090", 31.3, 1.79, (209.5, 419, 838), PCIE5, (12, 0), 4),
    "rtx5080": _gpu("GeForce RTX 5080", 15.4, 0.96, (112.6, 225, 450), PCIE5, (12, 0), 4),
    # Hopper: NVIDIA H100, H200, H20 and GH200 datasheets.
    "h200": _gpu("H200 SXM", 139.7, 4.8, (989, 1979, 1979), NVLINK4, (9, 0)),
    "h200-nvl": _gpu("H200 NVL", 139.7, 4.8, (835, 1671, 1671), NVLINK4, (9, 0), 4),
    "gh200": _gpu("GH200 96GB", 94.5, 4.0, (989, 1979, 1979), NVLINK4, (9, 0), 1),
    "h100": _gpu("H100 SXM 80GB", 79.1, 3.35, (989, 1979, 1979), NVLINK4, (9, 0)),
    "h100-pcie": _gpu("H100 PCIe 80GB", 79.1, 2.0, (756, 1513, 1513), BRIDGE, (9, 0)),
    "h100-nvl": _gpu("H100 NVL 94GB", 93.0, 3.9, (835, 1671, 1671), BRIDGE, (9, 0)),
    "h20": _gpu("H20 96GB", 95.0, 4.0, (148, 296, 296), NVLINK4, (9, 0)),
    # Ada: NVIDIA L4, L40, L40S and RTX 6000 Ada datasheets, Ada architecture paper.
    "l40s": _gpu("L40S", 44.3, 0.864, (362, 733, 733), PCIE4, (8, 9)),
    "l40": _gpu("L40", 44.3, 0.864, (181, 362, 362), PCIE4, (8, 9)),
    "l20": _gpu("L20", 44.3, 0.864, (119.5, 239, 239), PCIE4, (8, 9)),
    "l4": _gpu("L4", 21.95, 0.3, (121, 242, 242), PCIE4, (8, 9)),
    "rtx6000-ada": _gpu("RTX 6000 Ada", 47.4, 0.96, (364, 728, 728), PCIE4, (8, 9), 4),
    "rtx4090": _gpu("GeForce RTX 4090", 23.5, 1.008, (165, 330, 660), PCIE4, (8, 9), 4),
    "rtx4080": _gpu("GeForce RTX 4080", 15.6, 0.717, (97.5, 195, 390), PCIE4, (8, 9), 4),
    # Ampere: NVIDIA A100, A40, A30, A10 and RTX A6000 datasheets, GA102 architecture paper.
    "a100": _gpu("A100 SXM 80GB", 79.15, 2.039, (312, 0, 624), NVLINK3, (8, 0)),
    "a100-pcie": _gpu("A100 PCIe 80GB", 79.15, 1.935, (312, 0, 624), BRIDGE, (8, 0)),
    "a100-40": _gpu("A100 SXM 40GB", 39.38, 1.555, (312, 0, 624), NVLINK3, (8, 0)),
    "a800": _gpu("A800 SXM 80GB", 79.15, 2.039, (312, 0, 624), ("NVLink 3, reduced", 200.0), (8, 0)),
    "a40": _gpu("A40", 44.3, 0.696, (149.7, 0, 299), PCIE4, (8, 6)),
    "a30": _gpu("A30", 23.5, 0.933, (165, 0, 330), PCIE4, (8, 0)),
    "a10": _gpu("A10", 21.95, 0.6, (125, 0, 250), PCIE4, (8, 6)),
    "a10g": _gpu("A10G", 21.95, 0.6, (70, 0, 140), PCIE4, (8, 6)),
    "rtx-a6000": _gpu("RTX A6000", 47.4, 0.768, (154.8, 0, 309.7), PCIE4, (8, 6), 4),
    "rtx3090": _gpu("GeForce RTX 3090", 23.57, 0.936, (71, 0, 284), PCIE4, (8, 6), 4),
    "rtx3080": _gpu("GeForce RTX 3080 10GB", 9.65, 0.76, (59.5, 0, 238), PCIE4, (8, 6), 4),
    "rtx3060": _gpu("GeForce RTX 3060 12GB", 11.6, 0.36, (25.5, 0, 102), PCIE4, (8, 6), 4),
    # Turing and Volta (FP16, no BF16): NVIDIA T4 and V100 datasheets.
    "t4": _gpu("T4", 14.56, 0.32, (65, 0, 130), PCIE3, (7, 5)),
    "v100": _gpu("V100 SXM2 32GB", 31.73, 0.9, (125, 0, 0), NVLINK2, (7, 0)),
    "v100-16": _gpu("V100 SXM2 16GB", 15.77, 0.9, (125, 0, 0), NVLINK2, (7, 0)),
    # CDNA 3 and 4: AMD Instinct MI300X, MI325X and MI355X datasheets.
    "mi300x": _gpu("Instinct MI300X", 191.5, 5.3, (1307, 2615, 2615), XGMI, (0, 0)),
    "mi325x": _gpu("Instinct MI325X", 255.5, 6.0, (1307, 2615, 2615), XGMI, (0, 0)),
    "mi355x": _gpu("Instinct MI355X", 287.5, 8.0, (2500, 5000, 5000), XGMI, (0, 0)),
}
_ALIASES = {
    "h100-80": "h100", "h100-sxm": "h100", "h200-sxm": "h200", "b200-sxm": "b200", "a100-80": "a100",
    "a100-sxm": "a100", "v100-32": "v100", "4090": "rtx4090", "3090": "rtx3090", "5090": "rtx5090",
    "a6000": "rtx-a6000", "rtx6000": "rtx6000-ada", "rtxpro6000": "rtx-pro-6000", "rtxa6000": "rtx-a6000",
}  # fmt: skip
MAX_DEVICES = 4096
# Of all hosts together.
MOST_DEVICES = 1 << 20
MOST_KINDS = 8


def _known(name: str) -> Gpu | None:
    """The GPU called ``name``, in any spelling of case, blanks, hyphens and underscores."""
    key = _key(name)
    plain = {k.replace("-", ""): k for k in (*GPUS, *_ALIASES)}
    key = plain.get(key.replace("-", ""), key)
    return GPUS.get(_ALIASES.get(key, key))


def _key(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().lower()).removeprefix("nvidia-").removeprefix("geforce-")


def find_gpu(name: str) -> Gpu:
    """The GPU called ``name``.

    Raises:
        UsageError: unknown; the hint names the closest ones.
    """
    found = _known(name)
    if found is None:
        close = difflib.get_close_matches(_key(name[:60]), [*GPUS, *_ALIASES], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(sorted(GPUS))}."
        raise UsageError(f"GPU {name[:60]!r} is not in the table", f"{hint} Or give --gpu-memory, e.g. 48GiB")
    return found


def _split(spec: str) -> tuple[str, str]:
    """Name and count as written: ``h100:4``, ``h100x4``, ``4xh100``; a name that is known as it stands has no count."""
    name, colon, count = spec.partition(":")
    if colon or _known(spec) is not None:
        return name, count
    before = re.fullmatch(r"(\d+)\s*[x*\u00d7]\s*(.+)", spec.strip(), re.IGNORECASE | re.ASCII)
    if before and _known(before[2]) is not None:
        return before[2], before[1]
    after = re.fullmatch(r"(.+?)\s*([x*\u00d7])\s*(\d+)", spec.strip(), re.IGNORECASE | re.ASCII)
    if after is None:
        return name, ""
    # The x of mi300x8 ends the name, that of h100x8 does not.
    return (after[1] + after[2] if _known(after[1] + after[2]) and not _known(after[1]) else after[1]), after[3]


def parse_gpu(spec: str) -> tuple[Gpu, int]:
    """``h100:4`` (or ``h100x4``) -> the GPU and 4; without a count, 1.

    Raises:
        UsageError: an unknown GPU, or no number of them.
    """
    name, count = _split(spec[:200])
    number = int(count) if count.isascii() and count.isdigit() and len(count) < 10 else 0
    if (count or ":" in spec) and not 1 <= number <= MAX_DEVICES:
        raise UsageError(
            f"--gpu {spec[:60]!r}: {count[:30]!r} is not a number of GPUs", f"write e.g. h100:4 (1 to {MAX_DEVICES})"
        )
    return find_gpu(name), number or 1


def unknown_gpu(memory: int) -> Gpu:
    """A GPU of which only the memory is known; rates are those of an A10-class card."""
    return Gpu(f"GPU with {memory / GIB:.1f} GiB", memory, 0.6e12, {"bf16": 125e12}, PCIE4[1] * 1e9, PCIE4[0], (8, 0))
