"""vLLM's own linear kernels in the kernel registry: what serves on an NVIDIA GPU. Torch and vLLM come with ``pack``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm_quant_kernels import env
from vllm_quant_kernels import kernel_sizes as sizes
from vllm_quant_kernels.cuda.kernels import fp8_gemm
from vllm_quant_kernels.dequantizing import Dequantizing
from vllm_quant_kernels.kernel import Device, Kernel, Packed, Tensors
from vllm_quant_kernels.reasons import int8_gemm, int_or_float, plain_scales
from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, WeightScheme
from vllm_quant_kernels.sizes import round_up
from vllm_quant_plugin.adapter import names
from vllm_quant_plugin.adapter.forms import Columns, Form, columns_of, forms

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight

# Compute capabilities for a name where none is known.
GENERATIONS = ((8, 0), (9, 0), (10, 0))
TURING, AMPERE = (7, 5), (8, 0)
_BLOCKS = (128, 128)
ROWS, ALIGNMENT, BLOCK = 32, 16, 128


class VllmKernel(Kernel):
    """A kernel of vLLM, chosen by vLLM's own function when the weight is packed."""

    device = "cuda"

    def kernel_name(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str) -> str:
        """vLLM's name of the kernel, e.g. ``Marlin``."""
        raise NotImplementedError

    def label(self, scheme: WeightScheme) -> str:
        return self.label_on(scheme, 1024, 1024, Device("cuda"))

    def label_on(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str:
        known = [device] if device.capability else [Device("cuda", capability) for capability in GENERATIONS]
        found = [
            self.kernel_name(scheme, n, k, one, dtype) for one in known if not self.can_run(scheme, n, k, one, dtype)
        ]
        return "vLLM " + " / ".join(dict.fromkeys(found))

    def apply(self, packed: Packed, tensors: Tensors, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        assert packed.module is not None
        out = packed.module(x)
        # Not given to the kernel: Marlin wants it permuted when the layer is loaded.
        return out if bias is None else out + bias.to(out.dtype)

    def dequantize(self, packed: Packed, tensors: Tensors) -> torch.Tensor:
        from vllm_quant_plugin.adapter.identity import weight_of

        return weight_of(packed.module)  # type: ignore[arg-type]


def _unusable(device: Device, dtype: str) -> str | None:
    least = AMPERE if dtype == "bfloat16" else TURING
    if dtype not in ("bfloat16", "float16"):
        return f"activations in {dtype}"
    if device.capability is not None and device.capability < least:
        return f"compute capability {device.capability[0]}.{device.capability[1]}"
    return None


class VllmWeightOnly(VllmKernel):
    """Integers of 2 to 8 bits and FP8 E4M3 with 16-bit activations: Machete, Marlin, Humming."""

    name = "vllm-weight-only"
    priority = 50

    def can_run(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str | None:
        reason = _unusable(device, dtype) or int_or_float(scheme, (E4M3,)) or plain_scales(scheme)
        if reason is None and env.batch_invariant():
            reason = "its sums depend on the batch, and VLLM_BATCH_INVARIANT is 1"
        if reason is not None:
            return reason
        if scheme.value == E4M3:
            if (
                scheme.act_order
                or (scheme.block not in (None, _BLOCKS))
                or (scheme.group_size > 0 and not scheme.block)
            ):
                return "FP8 scales neither per channel nor per block of 128 x 128"
            return None
        if self._found(scheme, n, k, None, device, dtype) is None:
            return f"vLLM has no kernel for groups of {scheme.group_of(k)} input features"
        return None

    def refuses(self, weight: CanonicalWeight) -> str | None:
        reason = _elsewhere()
        if reason is not None or weight.kind == "fp8_e4m3":
            return reason or _unfit_float(weight)
        import torch

        from vllm_quant_plugin.adapter.linear import choose

        return None if choose(weight, torch.get_default_dtype()) else "vLLM has no kernel for this weight"

    def kernel_name(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str) -> str:
        if scheme.value == E4M3:
            return names.float_kernel(scheme.block is not None, False, device, names.has_humming())
        found = self._found(scheme, n, k, None, device, dtype)
        return found[1] if found else "none"

    def _found(
        self, scheme: WeightScheme, n: int, k: int, full_k: int | None, device: Device, dtype: str
    ) -> tuple[Form, str, Columns] | None:
        columns, humming = columns_of(scheme, k, full_k), names.has_humming()
        if columns is None:
            return None
        for form in forms(scheme.bits, "none" if scheme.symmetric else "codes", columns.groups):
            rows = round_up(n, ROWS) if form.zeros else n
            kernel = names.integer_kernel(form, rows, columns.count, device, dtype, humming)
            if kernel is not None:
                return form, kernel, columns
        return None

    def packed_bytes(self, scheme: WeightScheme, n: int, k: int, full_k: int | None = None, itemsize: int = 2) -> int:
        humming = names.has_humming()
        if scheme.value == E4M3:
            if humming:
                rows, wide = round_up(n, 256), round_up(k, 128)
            else:
                rows, wide = names.marlin_size(n, round_up(k, ALIGNMENT), BLOCK if scheme.block else PER_CHANNEL)
            blocks = 4 * -(-rows // BLOCK) * -(-wide // BLOCK) if humming else 2 * rows * -(-wide // BLOCK)
            return rows * wide + (blocks if scheme.block else 2 * rows)
        found = self._found(scheme, n, k, full_k, Device("cuda"), "bfloat16")
        if found is None:
            # A shard of an act-order weight whose groups are too small to pad: ``refuses`` says so of the weight.
            return Dequantizing().packed_bytes(scheme, n, k, full_k, itemsize)
        form, kernel, columns = found
        rows = round_up(n, ROWS) if form.zeros else n
        return names.integer_bytes(form, kernel, rows, columns.count, columns.gathered)

    def pack(
        self, weight: CanonicalWeight, scheme: WeightScheme, static: Mapping[str, torch.Tensor] | None = None
    ) -> Packed:
        import torch

        from vllm_quant_plugin.adapter.linear import build_integers
        from vllm_quant_plugin.adapter.scaled import build_fp8

        dtype = torch.get_default_dtype()
        if weight.kind == "int":
            module = build_integers(weight, dtype)
        else:
            module = build_fp8(weight, None, None, dtype)
        return Packed(self, {}, weight.out_features, type(module.kernel).__name__, module)


class VllmW8A8(VllmKernel):
    """INT8 and FP8 with 8-bit activations: CUTLASS, DeepGEMM, FlashInfer, Triton, torch."""

    name = "vllm-w8a8"
    priority = 150

    def can_run(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> str | None:
        reason = _unusable(device, dtype) or plain_scales(scheme)
        return reason or (fp8_gemm(scheme, device) if scheme.value == E4M3 else int8_gemm(scheme))

    def refuses(self, weight: CanonicalWeight) -> str | None:
        reason = _elsewhere()
        if reason is not None or weight.kind == "fp8_e4m3":
            return reason or _unfit_float(weight)
        return "zero points" if weight.zeros is not None else None

    def kernel_name(self, scheme: WeightScheme, n: int, k: int, device: Device, dtype: str) -> str:
        if scheme.value == E4M3:
            return names.float_kernel(scheme.block is not None, True, device, names.has_humming())
        blackwell = device.capability is not None and device.capability >= (10, 0)
        return "Triton INT8" if blackwell else "CUTLASS INT8"

    def packed_bytes(self, scheme: WeightScheme, n: int, k: int, full_k: int | None = None, itemsize: int = 2) -> int:
        columns = round_up(k, ALIGNMENT)
        if scheme.block:
            return n * columns + 4 * -(-n // BLOCK) * -(-k // BLOCK)
        rows, act = round_up(n, ALIGNMENT), scheme.activation
        sums = 4 * rows if act is not None and scheme.is_int and not act.symmetric else 0
        return rows * columns + 4 * rows + sums + sizes.static_bytes(scheme)

    def pack(
        self, weight: CanonicalWeight, scheme: WeightScheme, static: Mapping[str, torch.Tensor] | None = None
    ) -> Packed:
        import torch

        from vllm_quant_plugin.adapter.scaled import build_fp8, build_int8

        dtype, act = torch.get_default_dtype(), scheme.activation
        assert act is not None
        build = build_int8 if weight.kind == "int" else build_fp8
        module = build(weight, act, static, dtype)
        return Packed(self, {}, weight.out_features, type(module.kernel).__name__, module)


def _elsewhere() -> str | None:
    """Why vLLM's kernels for NVIDIA GPUs cannot run in this process; None where they can."""
    from vllm_quant_plugin.compat_adapter import current_platform

    return None if current_platform.is_cuda() else "vLLM does not run on CUDA in this process"


def _unfit_float(weight: CanonicalWeight) -> str | None:
    from vllm_quant_kernels.cuda.w8a8.weight import serves

    return None if serves(weight) else "FP8 scales neither per channel nor per whole block of 128 x 128"


KERNELS = (VllmWeightOnly(), VllmW8A8())
